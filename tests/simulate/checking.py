"""One run, made and judged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from slime_core.errors import InvariantError
from tests.simulate.core import harness as core_harness
from tests.simulate.knobs import Knobs
from tests.simulate.oracles import Violation, judge
from tests.simulate.pairs import harness as pair_harness
from tests.simulate.pairs.oracles import judge_pairs
from tests.simulate.pairs.world import pairs_of
from tests.simulate.planted import PLANTED
from tests.simulate.run import Run
from tests.simulate.shell import harness as shell_harness
from tests.simulate.shrink import shrink

__all__ = ["HARNESSES", "PAIRS", "Checked", "check", "fitted", "smallest"]

HARNESSES: Final[dict[str, Callable[[Knobs], Run]]] = {
    "core": core_harness.run,
    "shell": shell_harness.run,
}
"""Those in which a seed's knobs mean the same world."""
PAIRS: Final = "pairs"
"""The shell, with two workers a call."""
_LEAST_OF_PAIRS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A run and the rules that it broke; ``run`` is ``None`` if it did not even end."""

    knobs: Knobs
    run: Run | None
    violations: tuple[Violation, ...]

    @property
    def rules(self) -> frozenset[str]:
        """The names of the rules that were broken."""
        return frozenset(one.rule for one in self.violations)


def fitted(knobs: Knobs, harness: str) -> Knobs:
    """A seed's own knobs, made fit for a harness."""
    return pairs_of(knobs) if harness == PAIRS else knobs


def check(knobs: Knobs, harness: str, *, bug: str | None = None) -> Checked:
    """Run and judge, with a planted bug if one is named.

    An error of our own that comes out of the run is a violation as well.
    """
    with nullcontext() if bug is None else PLANTED[bug].plant():
        try:
            run = pair_harness.run(knobs) if harness == PAIRS else HARNESSES[harness](knobs)
        except InvariantError as error:
            noticed = Violation("invariants", f"the run broke off: {error.message}")
            return Checked(knobs=knobs, run=None, violations=(noticed,))
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            found = Violation("crash", f"{type(error).__name__}: {error}")
            return Checked(knobs=knobs, run=None, violations=(found,))
        judged = judge_pairs(run) if harness == PAIRS else judge(run)
        return Checked(knobs=knobs, run=run, violations=tuple(judged))


def smallest(checked: Checked, harness: str, *, bug: str | None = None) -> Checked:
    """The same violation with quieter knobs."""
    rules = checked.rules

    def still_fails(knobs: Knobs) -> bool:
        if harness == PAIRS and knobs.workers < _LEAST_OF_PAIRS:
            return False
        return bool(check(knobs, harness, bug=bug).rules & rules)

    return check(shrink(checked.knobs, still_fails), harness, bug=bug)
