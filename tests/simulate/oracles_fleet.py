"""The rules of what requests ask of the fleet."""

from __future__ import annotations

from collections.abc import Iterator

from slime_core.placing import TARGET_HEADER
from slime_core.weights import VERSION_HEADER
from tests.simulate.cases import Case, rule
from tests.simulate.watch_fleet import Taken

__all__ = ["targets_are_kept_to", "wishes_are_kept_to"]


def _heads(case: Case, name: str) -> Iterator[tuple[str, list[Taken]]]:
    """What requests said in a field of their heads, with the slots that their calls took."""
    taken = case.run.watch.fleet.taken
    for exchange in case.story.exchanges:
        said = dict(exchange.ask.headers).get(name)
        # What shares another's answer has its calls, which were made for that one's wishes.
        if said is None or exchange.retry is not None:
            continue
        slots = [slot for call in exchange.calls for slot in taken.get(call, ())]
        if slots:
            case.note(f"{name} said")
            yield said, slots


@rule("10 weights as wished")
def wishes_are_kept_to(case: Case) -> Iterator[str]:
    """A call that asks for weights goes to workers that are known to hold such weights."""
    for wish, slots in _heads(case, VERSION_HEADER):
        for slot in slots:
            if not _is_granted(wish, slot):
                yield f"{wish} was sent to {slot}"


def _is_granted(wish: str, slot: Taken) -> bool:
    word, _, rest = wish.partition(":")
    match word:
        case "latest-only":
            return slot.lag in (0, None)
        case "max-staleness":
            return slot.lag is None or slot.lag <= int(rest)
        case "min-version":
            # Numbers are newer than names, and these wishes are for numbers.
            held = slot.version or ""
            return held.isdigit() and int(held) >= int(rest)
        case _:
            return True


@rule("10 targets")
def targets_are_kept_to(case: Case) -> Iterator[str]:
    """A call that names its worker goes nowhere else."""
    for target, slots in _heads(case, TARGET_HEADER):
        for slot in slots:
            meant = slot.listed[int(target)] if target.isdigit() else target
            if slot.worker != meant:
                yield f"{target} was sent to {slot.worker}, of {slot.listed}"
