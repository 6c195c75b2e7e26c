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
from tests.simulate.planted import PLANTED
from tests.simulate.run import Run
from tests.simulate.shell import harness as shell_harness
from tests.simulate.shrink import shrink

__all__ = ["HARNESSES", "Checked", "check", "smallest"]

HARNESSES: Final[dict[str, Callable[[Knobs], Run]]] = {
    "core": core_harness.run,
    "shell": shell_harness.run,
}


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


def check(knobs: Knobs, harness: str, *, bug: str | None = None) -> Checked:
    """Run and judge, with a planted bug if one is named.

    An error of our own that comes out of the run is a violation as well.
    """
    with nullcontext() if bug is None else PLANTED[bug].plant():
        try:
            run = HARNESSES[harness](knobs)
        except InvariantError as error:
            noticed = Violation("invariants", f"the run broke off: {error.message}")
            return Checked(knobs=knobs, run=None, violations=(noticed,))
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            found = Violation("crash", f"{type(error).__name__}: {error}")
            return Checked(knobs=knobs, run=None, violations=(found,))
        return Checked(knobs=knobs, run=run, violations=tuple(judge(run)))


def smallest(checked: Checked, harness: str, *, bug: str | None = None) -> Checked:
    """The same violation with quieter knobs."""
    rules = checked.rules

    def still_fails(knobs: Knobs) -> bool:
        return bool(check(knobs, harness, bug=bug).rules & rules)

    return check(shrink(checked.knobs, still_fails), harness, bug=bug)
