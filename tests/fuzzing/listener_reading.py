"""One connection's requests as the listener's parser reads them, and as h11 does, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import h11

from slime_trio.limits.head import HeadLimits, Phase, Refusal
from slime_trio.limits.protocol import StrictConnection
from slime_trio.listener.request_parser import Data, EndOfMessage, RequestHead, RequestParser

__all__ = ["Read", "Seen", "check_against_h11", "read", "read_by_h11", "reason_to_refuse_more"]


@dataclass(slots=True)
class Read:
    """One request. ``head_wire`` and ``body_wire`` are its bytes, where h11 tells."""

    method: str
    target: bytes
    version: str
    fields: list[tuple[bytes, bytes]]
    keeps_alive: bool
    expects_continue: bool
    body: bytes = b""
    is_complete: bool = False
    head_wire: bytes = field(default=b"", compare=False)
    body_wire: bytes = field(default=b"", compare=False)

    @property
    def head(self) -> tuple[object, ...]:
        """All but the body."""
        return self.method, self.target, self.version, self.fields, self.keeps_alive

    @property
    def framed_fields(self) -> list[tuple[bytes, bytes]]:
        """The fields with codings in small letters, as h11 has them."""
        coding = b"transfer-encoding"
        return [(name, one.lower() if name == coding else one) for name, one in self.fields]


@dataclass(slots=True)
class Seen:
    """All requests of a connection, each answered when it was complete, and how it stands then."""

    requests: list[Read]
    refusal: Refusal | None
    phase: Phase

    @property
    def is_in_a_body(self) -> bool:
        """Whether the last request has begun, and its body has not ended."""
        return bool(self.requests) and not self.requests[-1].is_complete


# -- the listener's parser ---------------------------------------------------------------------


def read(
    pieces: Iterable[bytes], limits: HeadLimits, *, ends: bool = False, late: bool = False
) -> Seen:
    """What the parser makes of it. With ``late`` nothing is answered before all of it was fed."""
    parser = RequestParser(limits)
    requests: list[Read] = []
    for piece in pieces:
        parser.feed(piece)
        if not late:
            _take(parser, requests)
    if ends:
        parser.feed_eof()
    _take(parser, requests)
    return Seen(requests, parser.refusal, parser.phase)


def _take(parser: RequestParser, requests: list[Read]) -> None:
    while True:
        match parser.next_event():
            case RequestHead() as head:
                assert head.has_body or not head.content_length
                requests.append(_begun(head))
            case Data(data):
                assert data
                requests[-1].body += data
            case EndOfMessage():
                requests[-1].is_complete = True
            case None:
                if parser.phase != "answer" or parser.refusal or not requests[-1].keeps_alive:
                    return
                parser.start_next()


def _begun(head: RequestHead) -> Read:
    return Read(
        method=head.method,
        target=head.target,
        version=head.http_version,
        fields=list(head.headers),
        keeps_alive=head.keep_alive,
        expects_continue=head.expects_continue,
    )


# -- h11 ---------------------------------------------------------------------------------------


def read_by_h11(wire: bytes, limits: HeadLimits) -> Seen:
    """The same by the connection that Hypercorn gets."""
    connection: Any = StrictConnection(limits)
    connection.receive_data(wire)
    requests: list[Read] = []
    while True:
        left: bytes = connection.trailing_data[0]
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            break
        came = left[: len(left) - len(connection.trailing_data[0])]
        if isinstance(event, h11.Request):
            requests.append(_begun_by_h11(event, connection, came))
        elif isinstance(event, (h11.Data, h11.EndOfMessage)):
            requests[-1].body_wire += came
            if isinstance(event, h11.Data):
                requests[-1].body += bytes(event.data)
            else:
                requests[-1].is_complete = True
                if not _goes_on(connection):
                    break
        else:
            break
    if requests and not requests[-1].is_complete:
        requests[-1].body_wire += left
    return Seen(requests, connection.refusal, connection.phase)


def _begun_by_h11(event: h11.Request, connection: Any, wire: bytes) -> Read:
    return Read(
        method=event.method.decode(),
        target=event.target,
        version=event.http_version.decode(),
        fields=list(event.headers),
        keeps_alive=connection.their_state is not h11.MUST_CLOSE and connection._cstate.keep_alive,
        expects_continue=connection.they_are_waiting_for_100_continue,
        head_wire=wire,
    )


def _goes_on(connection: Any) -> bool:
    """Answer a complete request; whether another may follow."""
    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    if connection.their_state is not h11.DONE or connection.our_state is not h11.DONE:
        return False
    connection.start_next_cycle()
    return True


# -- both --------------------------------------------------------------------------------------


def check_against_h11(wire: bytes, limits: HeadLimits) -> None:
    """What the parser takes h11 takes too, and reads alike; what it refuses more has a reason."""
    ours, theirs = read([wire], limits), read_by_h11(wire, limits)
    assert len(ours.requests) <= len(theirs.requests)
    for mine, its in zip(ours.requests, theirs.requests, strict=False):
        mine.fields = mine.framed_fields
        assert mine.head == its.head
        assert mine.expects_continue == its.expects_continue
        if mine.is_complete:
            assert (mine.body, mine.is_complete) == (its.body, its.is_complete)
        else:
            shorter = min(len(mine.body), len(its.body))
            assert mine.body[:shorter] == its.body[:shorter]
    if ours.refusal is None:
        _check_both_wait(ours, theirs)
    elif _refuses_more(ours, theirs):
        at = len(ours.requests) - ours.is_in_a_body
        assert at < len(theirs.requests)
        assert reason_to_refuse_more(theirs.requests[at], in_body=ours.is_in_a_body) is not None


def _refuses_more(ours: Seen, theirs: Seen) -> bool:
    return (
        ours.refusal != theirs.refusal
        or len(ours.requests) < len(theirs.requests)
        or (ours.is_in_a_body and not theirs.is_in_a_body)
    )


def _check_both_wait(ours: Seen, theirs: Seen) -> None:
    assert len(ours.requests) == len(theirs.requests)
    if theirs.refusal is None:
        assert ours.phase == theirs.phase
    else:
        # h11 looks at the end of a chunk byte by byte, the parser once both have come.
        assert ours.phase == "body"
        assert ours.requests[-1].body == theirs.requests[-1].body


# -- what only the parser refuses --------------------------------------------------------------

_SIZE: Final = re.compile(rb"[0-9A-Fa-f]*")
_WORD: Final = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_PLAIN_EXTENSIONS: Final = re.compile(rb"(;%b(=%b)?)*" % (_WORD, _WORD))

_OF_HEADS: Final = {
    "blanks behind chunked": re.compile(rb"(?i)\ntransfer-encoding:[ \t]*chunked[ \t]+\r\n"),
}
_OF_SIZES: Final = {
    "blanks behind a size": re.compile(rb"[0-9A-Fa-f]+(;.*)?[ \t]+(;.*)?\r\n", re.DOTALL),
    "a size of more than sixteen digits": re.compile(rb"[0-9A-Fa-f]{17,}.*", re.DOTALL),
}
_OF_TRAILERS: Final = {
    "a line feed alone": re.compile(rb".*[^\r]\n|\n", re.DOTALL),
    "a folded trailer": re.compile(rb"[ \t].*", re.DOTALL),
    "a trailer that announces a length": re.compile(
        rb"(content-length|transfer-encoding):.*", re.DOTALL | re.IGNORECASE
    ),
    "a control character": re.compile(rb".*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f].*\r\n", re.DOTALL),
}


def reason_to_refuse_more(theirs: Read, *, in_body: bool) -> str | None:
    """Why the parser refuses, on purpose, a request that h11 takes; ``None`` if nobody knows."""
    if not in_body:
        return _named(_OF_HEADS, theirs.head_wire, whole=False)
    sizes, trailers = _lines_between_data(theirs.body_wire)
    for line in sizes:
        extensions = line.rstrip(b"\r\n")[len(_SIZE.match(line)[0]) :]  # type: ignore[index]
        if reason := _named(_OF_SIZES, line):
            return reason
        if not _PLAIN_EXTENSIONS.fullmatch(extensions):
            return "an extension that may be none"
    reasons = (_named(_OF_TRAILERS, line) for line in trailers)
    return next((reason for reason in reasons if reason), None)


def _named(reasons: dict[str, re.Pattern[bytes]], wire: bytes, *, whole: bool = True) -> str | None:
    for name, pattern in reasons.items():
        if pattern.fullmatch(wire) if whole else pattern.search(wire):
            return name
    return None


def _lines_between_data(wire: bytes) -> tuple[list[bytes], list[bytes]]:
    """The lines of sizes, and the trailers, of a body in chunks; as lax as can be."""
    sizes: list[bytes] = []
    at, size = 0, 1
    while size and (end := wire.find(b"\n", at) + 1):
        sizes.append(wire[at:end])
        size = int(_SIZE.match(wire, at)[0] or b"0", 16)  # type: ignore[index]
        at = end + size + 2 if size else end
    return sizes, re.findall(rb"[^\n]*\n", wire[at:])
