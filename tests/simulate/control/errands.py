"""What is asked of the control plane in a run, and when: drawn before it, like what befalls it.

An errand is one purpose of a trainer: a pause and its end, new weights, an abort. Each is drawn
from a generator of its own name and number, so that leaving one out moves no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.simulate.chance import derive

__all__ = ["ERRAND_KINDS", "LONG_S", "Errand", "Errands", "draw_errands"]

ERRAND_KINDS: Final = (
    "pause",
    "pause_leased",
    "pause_left",
    "update",
    "update_left",
    "update_in_pause",
    "relabel",
    "flush_cache",
    "abort_everything",
    "abort_session",
    "abort_call",
    "enlist",
)
"""What can be asked through the router.

``pause``: and ``continue`` after a while. ``pause_leased``: nobody continues. ``pause_left``,
``update_left``: who asked goes away in the middle. ``update``: new weights, in each way of holding
generations up. ``update_in_pause``: pause, update, continue. ``relabel``: new weights came by
another way. ``enlist``: a worker is removed and registered, in either dialect.
"""

LONG_S: Final = 20_000.0
"""A lease that only ends in time if somebody sees to it."""

Rates = Sequence[tuple[str, float]]

_PAUSES: Final = ("abort", "retract", "in_place", None)
_HOLDS: Final = ("hold", "drain", "drain", "none", None)
_TWICE: Final = ("abort_everything", "abort_session", "abort_call", "flush_cache")
"""Done several times each: an idle fleet takes no notice of them."""
_TIMES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One purpose. ``url``: the worker that is meant where only one is; ``aimed``: how it is named
    (``""``: all workers are meant). ``mode``: of a pause; ``hold``: of an update; ``None`` leaves
    it to the router. ``lasts_s``: from one step to the next; ``lease_s``: of its pause;
    ``patience_s``: the caller goes away after so long; ``word`` picks between like forms.
    """

    kind: str
    url: str
    aimed: str = ""
    mode: str | None = None
    hold: str | None = None
    lasts_s: float = 0.0
    lease_s: float = 0.0
    patience_s: float = 0.0
    word: int = 0


Errands = list[tuple[float, Errand]]


def draw_errands(seed: int, *, urls: Sequence[str], until_s: float, rates: Rates) -> Errands:
    """What is asked up to ``until_s``, in order of time.

    Raises ``ValueError`` for a kind there is not.
    """
    errands: Errands = []
    for kind, count in rates:
        if kind not in ERRAND_KINDS:
            raise ValueError(f"no such errand: {kind}")
        for number in range(round(count) * (_TIMES if kind in _TWICE else 1)):
            chance = derive(seed, "errand", kind, number)
            errands.append((chance.uniform(0, until_s), _errand(kind, chance, urls, until_s)))
    errands.sort(key=lambda one: one[0])
    return errands


def _errand(kind: str, chance: Random, urls: Sequence[str], until_s: float) -> Errand:
    aimed = chance.choice(("", "", "", "query", "selector", "engine"))
    lease_s = {"pause_leased": chance.choice((0.05, 0.5, 3.0)), "pause_left": LONG_S}
    return Errand(
        kind=kind,
        url=chance.choice(urls),
        aimed="" if kind.startswith("abort") else aimed,
        mode=chance.choice(_PAUSES),
        hold=chance.choice(_HOLDS),
        lasts_s=until_s * chance.uniform(0.02, 0.4),
        lease_s=lease_s.get(kind, chance.choice((2.0, 20.0))),
        patience_s=0.001 * 1000.0 ** chance.random(),
        word=chance.randrange(1 << 16),
    )
