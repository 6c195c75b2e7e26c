"""The streams of a pair made one, event by event.

The decode worker's events are the answer's. An event is held only while it has something that
prefill's part is missing for: logprobs of the prompt, which every event of the sample repeats, or
experts, which its last event has. All others pass at once, and with their very bytes; so does the
last event of a sample that was aborted, for which prefill's part may never come.
"""

from __future__ import annotations

from typing import Final

import msgspec

from slime_core import sse
from slime_core.disaggregation.bootstrap import Wanted
from slime_core.disaggregation.merging import (
    PLACES,
    Details,
    details_of,
    endings,
    merge_details,
    wanted_in,
)
from slime_core.disaggregation.splicing import set_fields
from slime_core.sglang.errors import read_json
from slime_core.strict_json import FieldTypeError, decode_typed

__all__ = ["StreamMerger"]


class _Head(msgspec.Struct, gc=False):
    index: int | None = None


_HEAD: Final = msgspec.json.Decoder(_Head)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class StreamMerger:
    """Give it prefill's events as they come, and ask for each decode event what to send.

    Samples are told apart by ``index``; an event without one belongs to the only sample. What
    stands in ``sglext`` speaks of all samples and so waits for the end of prefill's stream.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._known: dict[tuple[str, int], Details] = {}
        self._finished: dict[int, bool] = {}
        """Which samples prefill is done with, and whether they were aborted."""
        self._has_ended = False

    def prefill(self, event: sse.Event) -> None:
        """Takes an event of the prefill worker. Raises :class:`WorkerError` for broken JSON."""
        if event.data == b"[DONE]":
            return
        index = _index(event.data)
        for place in PLACES:
            details = details_of(event.data, place)
            known = self._known.setdefault((place, index), {})
            known |= {name: details[name] for name in wanted_in(details, self._wanted)}
            if place == "meta_info" and bytes(details.get("finish_reason", _NULL)) != b"null":
                self._finished[index] = bool(endings(event.data).aborts)

    def prefill_ended(self) -> None:
        """Prefill's stream is over; what it did not tell will not come."""
        self._has_ended = True

    def merged(self, event: sse.Event) -> bytes | None:
        """What to send for an event of the decode worker, or ``None``: not before more of prefill.

        Raises :class:`WorkerError` for an event that cannot be merged.
        """
        if event.data == b"[DONE]" or not self._wanted.anything:
            return event.raw
        try:
            fields = decode_typed(_FIELDS, event.data)
        except FieldTypeError:
            return event.raw  # Whoever reads it next says what is wrong with it.
        own = {place: details_of(event.data, place) for place in PLACES if place in fields}
        own = {place: told for place, told in own.items() if wanted_in(told, self._wanted)}
        index = _index(event.data)
        aborted = bool(own) and bool(endings(event.data).aborts)
        if not aborted and not all(self._is_known(place, index) for place in own):
            return None
        lenient = aborted or self._finished.get(index, False)
        changes = {
            place: merge_details(
                bytes(fields[place]),
                self._known.get((place, index), {}),
                self._wanted,
                lenient=lenient,
            )
            for place in own
        }
        return _with_data(event, set_fields(event.data, fields, changes)) if changes else event.raw

    def _is_known(self, place: str, index: int) -> bool:
        return self._has_ended or (place == "meta_info" and index in self._finished)


_NULL: Final = msgspec.Raw(b"null")


def _index(data: bytes) -> int:
    return read_json(_HEAD, data, "the worker's event").index or 0


def _with_data(event: sse.Event, data: bytes) -> bytes:
    """The event's bytes with other data; an event of several data lines is written anew."""
    before, found, after = event.raw.partition(event.data)
    return before + data + after if found else sse.encode(data, event=event.event)
