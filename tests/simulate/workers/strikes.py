"""Faults of the message: what goes out instead of an event, a body, or the answer as a whole.

Each hook gives the steps that go out, or ``None`` where its fault does not strike (yet).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from tests.simulate.faults import Fault, FaultKind
from tests.simulate.workers.answers import (
    CUT,
    DONE,
    END,
    Event,
    data,
    head_of,
    whole,
    whole_steps,
)
from tests.simulate.workers.pieces import Data, Raw, Step

if TYPE_CHECKING:
    from tests.simulate.workers.faults import Misdeed

__all__ = ["EVENTS", "WHOLES", "aborted", "instead", "probe_steps"]

_NO_HTTP: Final = (
    b"\x00\x01 no http\r\n\r\n",
    b"HTTP/1.1 99999999999 x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    b"SSH-2.0-OpenSSH\r\n",
)
_BAD_CHUNKS: Final = (
    b"zz\r\nno chunk\r\n",
    b"-5\r\nabc",
    b"fffffffffffffffff\r\n",
    b"5\r\nabcdefgh",
)
_NO_EVENTS: Final = (
    b"data: {no json\n\n", b"data: \xff\xfe\n\n", b"data:\n\n", b"data: null\n\n", b"data: 17\n\n",
    b'data: "text"\n\n', b"data: {}\n\n", b'data: {"text": "\\ud800"}\n\n',
)  # fmt: skip
_FAILURES: Final = (
    (b'{"error":{"message":"it failed"}}', "application/json"),
    (b'{"error":"it failed"}', "application/json"),
    (b'{"object":"error","message":"it failed","code":500}', "application/json"),
    (b"<html><body>Internal Server Error</body></html>", "text/html"),
    (b"", "text/plain"),
    (b"\xff\xfe\x00broken", "application/octet-stream"),
    (b'{"error":{"message":', "application/json"),
    (b"[[[[[[[[[[", "application/json"),
)


def instead(fault: Fault) -> list[Step] | None:
    """The answer of a worker that does not even begin to generate."""
    match fault.kind:
        case FaultKind.REFUSE:
            body = msgspec.json.encode({"error": {"message": "the worker is busy"}})
            return whole_steps(body, status=(503, 503, 429, 502)[fault.variant % 4])
        case FaultKind.FAIL:
            body, kind = _FAILURES[fault.variant % len(_FAILURES)]
            return whole_steps(body, status=500, kind=kind)
        case FaultKind.NO_HTTP:
            return [Step(Raw(_NO_HTTP[fault.variant % len(_NO_HTTP)])), CUT]
        case _:
            return None


def probe_steps(fault: Fault, body: bytes) -> list[Step]:
    """The answer to a question about the worker."""
    steps = instead(fault)
    if steps is not None:
        return steps
    match fault.kind:
        case FaultKind.HANG:
            return []
        case FaultKind.DIE_BEFORE:
            return [CUT]
        case FaultKind.DIE_DURING:
            return [Step(head_of(200, len(body) + 1)), Step(Data(b"{")), CUT]
        case FaultKind.BAD_FRAMING:
            return [Step(Raw(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n" + body)), CUT]
        case FaultKind.TRUNCATED:
            return whole_steps(body[: len(body) // 2])
        case FaultKind.EMPTY_BODY:
            return whole_steps(b"")
        case FaultKind.GARBAGE_BYTES:
            return whole_steps(b"\x00\xff{no json")
        case FaultKind.WRONG_JSON:
            return whole_steps((b"[]", b'{"model_path":5}', b"null", b"{}")[fault.variant % 4])
        case _:
            late = whole_steps(body)
            return [Step(late[0].piece, delay_s=fault.delay_s), *late[1:]]


# Streams


def _die_before(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event) and not misdeed.healed:
        return []
    misdeed.strike()  # even if healing came first, as the head is missing
    return [CUT]


def _hang_during(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike()
    misdeed.hangs = True
    return []


def _die_during(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike()
    return [CUT]


def _die_mid_event(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike()
    return [Step(Data(_part(data(event.json).data, misdeed.fault))), CUT]


def _die_mid_character(misdeed: Misdeed, event: Event) -> list[Step] | None:
    told = data(event.json).data
    at = _inside_a_character(told)
    if at is None or misdeed.struck or event.number < misdeed.fault.after % 4:
        return None
    misdeed.strike()
    return [Step(Data(told[:at])), CUT]


def _bad_chunk(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike(lies=True)
    return [Step(Raw(_BAD_CHUNKS[misdeed.fault.variant % len(_BAD_CHUNKS)])), CUT]


def _end_early(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike()
    return [DONE, END] if misdeed.fault.variant % 2 else [END]


def _truncated(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike(lies=True)
    if misdeed.fault.variant % 2:
        return [Step(Data(_part(data(event.json).data, misdeed.fault))), END]
    return [Step(data(_part(event.json, misdeed.fault))), DONE, END]


def _duplicated(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike(lies=True)
    return [misdeed.step(event), Step(data(event.json))]


def _reordered(misdeed: Misdeed, event: Event) -> list[Step] | None:
    held = misdeed.release()
    if held is not None:
        misdeed.strike(lies=True)
        if misdeed.around.incremental and held.sampled is event.sampled:
            misdeed.disbelieve(event.sampled)
        return [misdeed.step(event), misdeed.step(held)]
    if event.last or not misdeed.due(event):
        return None
    misdeed.hold(event)
    return []


def _dropped(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike(lies=True)
    if misdeed.around.incremental:
        misdeed.disbelieve(event.sampled)
    return []


def _garbage_event(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike(lies=True)
    garbage = _NO_EVENTS[misdeed.fault.variant % len(_NO_EVENTS)]
    return [Step(Data(garbage)), misdeed.step(event)]


def _garbage_bytes(misdeed: Misdeed, event: Event) -> list[Step] | None:
    """A block of its own, or one that swallows the beginning of the event."""
    if not misdeed.due(event):
        return None
    misdeed.strike(lies=True)
    garbage = b"\x00\xff\xc3garbage"
    if misdeed.fault.variant % 2:
        return [Step(Data(garbage + b"\n\n")), misdeed.step(event)]
    if misdeed.around.incremental:
        misdeed.disbelieve(event.sampled)
    return [Step(Data(garbage)), Step(data(event.json))]


def _comments(misdeed: Misdeed, event: Event) -> list[Step] | None:
    misdeed.strike()
    before = (b": ping\n\n", b":\n", b"\n")[misdeed.fault.variant % 3]
    return [Step(Data(before)), misdeed.step(event), Step(Data(b": pong\n\n"))]


def _error_event(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if not misdeed.due(event):
        return None
    misdeed.strike()
    code = (500, 503, 400, "server_error")[misdeed.fault.variant % 4]
    error = {"error": {"message": "it failed", "type": "server_error", "code": code}}
    return [Step(data(msgspec.json.encode(error))), DONE, END]


def _finish_twice(misdeed: Misdeed, event: Event) -> list[Step] | None:
    if event.finish is None:
        return None
    misdeed.strike(lies=True)
    return [misdeed.step(event), Step(data(event.json))]


def aborted(misdeed: Misdeed, event: Event) -> list[Step] | None:
    """Aborts at the engine, which tells it with the next event."""
    if event.finish is None and event.count and misdeed.due(event):
        misdeed.strike()
        misdeed.around.abort(event.sampled.rid)
    return None


# Whole answers


def _die_whole_before(misdeed: Misdeed, _events: Sequence[Event], _many: bool) -> list[Step]:
    misdeed.strike()
    return [CUT]


def _die_whole_during(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step]:
    misdeed.strike()
    body = _body(events, many)
    return [Step(head_of(200, len(body))), Step(Data(_part(body, misdeed.fault))), CUT]


def _die_whole_mid_character(
    misdeed: Misdeed, events: Sequence[Event], many: bool
) -> list[Step] | None:
    body = _body(events, many)
    at = _inside_a_character(body)
    if at is None:
        return None
    misdeed.strike()
    return [Step(head_of(200, len(body))), Step(Data(body[:at])), CUT]


def _hang_whole_during(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step]:
    misdeed.strike()
    misdeed.hangs = True
    return [Step(head_of(200, len(_body(events, many))))]


def _bad_length(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step]:
    misdeed.strike(lies=True)
    body = _body(events, many)
    size = len(body)
    framings = (
        f"content-length: {size + 7}\r\n",
        f"content-length: {size // 2}\r\n",
        "content-length: many\r\n",
        f"content-length: {size}\r\ncontent-length: {size - 1}\r\n",
        "transfer-encoding: chunked\r\n",
        f"content-length: -{size}\r\n",
    )
    framing = framings[misdeed.fault.variant % len(framings)]
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{framing}\r\n"
    return [Step(Raw(head.encode() + body)), CUT]


def _half_a_body(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step]:
    misdeed.strike(lies=True)
    return whole_steps(_part(_body(events, many), misdeed.fault))


def _empty_body(misdeed: Misdeed, _events: Sequence[Event], _many: bool) -> list[Step]:
    misdeed.strike(lies=True)
    return whole_steps(b"")


def _garbage_body(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step]:
    misdeed.strike(lies=True)
    body = _body(events, many)
    choices = (b"\x00\xff{no json", body + b"}", b"\xef\xbb\xbf" + body, body + body)
    return whole_steps(choices[misdeed.fault.variant % len(choices)])


def _wrong_status(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step]:
    misdeed.strike(lies=True)
    return whole_steps(_body(events, many), status=(500, 404, 202)[misdeed.fault.variant % 3])


def _wrong_type(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step]:
    misdeed.strike()
    accounts = tuple(account for event in events for account in misdeed.accounts(event))
    return whole_steps(_body(events, many), accounts, kind="text/event-stream; charset=utf-8")


def _wrong_number(misdeed: Misdeed, events: Sequence[Event], many: bool) -> list[Step] | None:
    """Of several answers one too many or too few; a single one has other lengths to get wrong."""
    if not many or misdeed.fault.variant % 2:
        return None
    misdeed.strike(lies=True)
    items = [event.json for event in events]
    return whole_steps(whole(items[1:] if misdeed.fault.after % 2 else items * 2, many=True))


def _body(events: Sequence[Event], many: bool) -> bytes:
    return whole([event.json for event in events], many=many)


def _part(told: bytes, fault: Fault) -> bytes:
    """The beginning: at least a byte, and at least two bytes short."""
    return told[: 1 + int(fault.fraction * (len(told) - 3))]


def _inside_a_character(told: bytes) -> int | None:
    """Behind the first byte of the first character that has several."""
    return next((place + 1 for place, byte in enumerate(told) if byte >= 0xC0), None)


EventHook = Callable[["Misdeed", Event], list[Step] | None]
WholeHook = Callable[["Misdeed", Sequence[Event], bool], list[Step] | None]

EVENTS: Final[dict[FaultKind, EventHook]] = {
    FaultKind.DIE_BEFORE: _die_before,
    FaultKind.HANG_DURING: _hang_during,
    FaultKind.DIE_DURING: _die_during,
    FaultKind.DIE_MID_EVENT: _die_mid_event,
    FaultKind.DIE_MID_CHARACTER: _die_mid_character,
    FaultKind.BAD_FRAMING: _bad_chunk,
    FaultKind.END_EARLY: _end_early,
    FaultKind.TRUNCATED: _truncated,
    FaultKind.DUPLICATED: _duplicated,
    FaultKind.REORDERED: _reordered,
    FaultKind.DROPPED: _dropped,
    FaultKind.GARBAGE_EVENT: _garbage_event,
    FaultKind.GARBAGE_BYTES: _garbage_bytes,
    FaultKind.COMMENTS: _comments,
    FaultKind.ERROR_EVENT: _error_event,
    FaultKind.FINISH_TWICE: _finish_twice,
    FaultKind.ABORTED: aborted,
}
"""What happens to an event of a stream."""

WHOLES: Final[dict[FaultKind, WholeHook]] = {
    FaultKind.DIE_BEFORE: _die_whole_before,
    FaultKind.HANG_DURING: _hang_whole_during,
    FaultKind.DIE_DURING: _die_whole_during,
    FaultKind.DIE_MID_EVENT: _die_whole_during,
    FaultKind.DIE_MID_CHARACTER: _die_whole_mid_character,
    FaultKind.BAD_FRAMING: _bad_length,
    FaultKind.TRUNCATED: _half_a_body,
    FaultKind.EMPTY_BODY: _empty_body,
    FaultKind.GARBAGE_BYTES: _garbage_body,
    FaultKind.WRONG_STATUS: _wrong_status,
    FaultKind.WRONG_TYPE: _wrong_type,
    FaultKind.WRONG_LENGTHS: _wrong_number,
}
"""What happens to an answer that is given at once."""
