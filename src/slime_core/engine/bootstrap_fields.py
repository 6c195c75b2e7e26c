"""The fields by which a request tells the workers of a pair where its prompt changes hands.

Read as SGLang 0.5.23 reads them: scalars are broadcast over a batch, a scalar room to ``room + i``;
lists must have the batch's length, and may hold nulls. The samples of one prompt share its room,
which is unsafe in SGLang; here the sample's number tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from slime_core.engine.generation import Room
from slime_core.engine.refusals import framework_error, manager_error
from slime_core.engine.transfers import Role

__all__ = ["NO_HOST", "room_of", "rooms_of"]

NO_HOST: Final = "2.2.2.2"
"""SGLang's stand-in for a prefill worker where there is none: its own health probes name it."""

_ROOMS: Final = 2**63


def rooms_of(body: Mapping[str, Any], count: int, batch: bool) -> tuple[Room | None, ...]:
    """The room of each prompt; ``None``: it has none. Raises :class:`~.refusals.Refusal`."""
    hosts = _column(body, "bootstrap_host", str, count, batch)
    ports = _column(body, "bootstrap_port", int, count, batch)
    numbers = _column(body, "bootstrap_room", int, count, batch)
    given = body.get("bootstrap_room")
    if batch and isinstance(given, int):
        numbers = [given + place for place in range(count)]
    if not all(number is None or 0 <= number < _ROOMS for number in numbers):
        raise framework_error("bootstrap_room must be in [0, 2**63)")
    return tuple(
        None if number is None else Room(number=number, host=host or "", port=port)
        for number, host, port in zip(numbers, hosts, ports, strict=True)
    )


def room_of(room: Room | None, sample: int, role: Role) -> Room | None:
    """Where one sample's prompt changes hands on a worker of this role, if it does.

    Raises :class:`~.refusals.Refusal` (400) where half of a pair is not told.
    """
    if role is Role.REGULAR:
        return None
    if room is None:
        raise manager_error("Disaggregated request received without bootstrap room id.")
    if room.host == NO_HOST:
        return None
    return Room(number=room.number, sample=sample, host=room.host, port=room.port)


def _column(body: Mapping[str, Any], key: str, kind: type, count: int, batch: bool) -> list[Any]:
    value = body.get(key)
    if value is None or _is(value, kind):
        return [value] * count
    if not isinstance(value, list) or not all(one is None or _is(one, kind) for one in value):
        raise framework_error(f"{key} has the wrong type")
    if not batch or len(value) != count:
        raise manager_error(f"{key} should be a list with the length of the batch.")
    return value


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
