"""The response parser: golden answers, fed whole, byte by byte and split anywhere."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_trio.upstream.failures import FailureCode
from slime_trio.upstream.parser import ResponseParser

MAX_HEAD = 2000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything one can learn from a parser at the end of the input."""

    status: int | None = None
    reason: bytes = b"OK"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    complete: bool = True
    reusable: bool = True
    fault: FailureCode | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    name: str
    wire: bytes
    seen: Seen
    is_head_request: bool = False


NOTHING = Seen(reason=b"", complete=False, reusable=False)
FRAMING = dataclasses.replace(NOTHING, fault="bad_response_framing")
TOO_LARGE = dataclasses.replace(NOTHING, fault="response_too_large")
LOST = dataclasses.replace(NOTHING, fault="connection_lost")
LENGTH_2 = (b"content-length", b"2")
CHUNKED = (b"transfer-encoding", b"chunked")
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

GOLDENS = [
    Golden(
        name="announced length",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A:  B c \r\nX-A: d\r\nY:\r\n\r\nhi",
        seen=Seen(
            status=200,
            headers=(LENGTH_2, (b"x-a", b"B c"), (b"x-a", b"d"), (b"y", b"")),
            body=b"hi",
        ),
    ),
    Golden(
        name="no body announced as such",
        wire=b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        seen=Seen(status=503, reason=b"Service Unavailable", headers=((b"content-length", b"0"),)),
    ),
    Golden(
        name="no reason",
        wire=b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi",
        seen=Seen(status=200, reason=b"", headers=(LENGTH_2,), body=b"hi"),
    ),
    Golden(
        name="chunks with an extension and trailers",
        wire=CHUNKED_HEAD + b"2;x=y\r\nhi\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
        seen=Seen(status=200, headers=(CHUNKED,), body=b"hi0123456789"),
    ),
    Golden(
        name="chunks without an end",
        wire=CHUNKED_HEAD + b"2\r\nhi\r\n",
        seen=Seen(
            status=200,
            headers=(CHUNKED,),
            body=b"hi",
            complete=False,
            reusable=False,
            fault="connection_lost",
        ),
    ),
    Golden(
        name="a chunk size that is none",
        wire=CHUNKED_HEAD + b"2\r\nhi\r\nxyz\r\n",
        seen=Seen(
            status=200,
            headers=(CHUNKED,),
            body=b"hi",
            complete=False,
            reusable=False,
            fault="bad_response_framing",
        ),
    ),
    Golden(
        name="a body shorter than announced",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh",
        seen=Seen(
            status=200,
            headers=(LENGTH_2,),
            body=b"h",
            complete=False,
            reusable=False,
            fault="connection_lost",
        ),
    ),
    Golden(
        name="a body that ends with the connection",
        wire=b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello",
        seen=Seen(status=200, headers=((b"x", b"y"),), body=b"hello", reusable=False),
    ),
    Golden(
        name="version 1.0",
        wire=b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        seen=Seen(status=200, headers=(LENGTH_2,), body=b"hi", reusable=False),
    ),
    Golden(
        name="version 1.0 kept alive",
        wire=b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\nhi",
        seen=Seen(status=200, headers=(LENGTH_2, (b"connection", b"Keep-Alive")), body=b"hi"),
    ),
    Golden(
        name="version 1.0 in chunks is not trusted further",
        wire=b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
        b"2\r\nhi\r\n0\r\n\r\n",
        seen=Seen(
            status=200,
            headers=(CHUNKED, (b"connection", b"keep-alive")),
            body=b"hi",
            reusable=False,
        ),
    ),
    Golden(
        name="close",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
        seen=Seen(
            status=200, headers=(LENGTH_2, (b"connection", b"close")), body=b"hi", reusable=False
        ),
    ),
    Golden(
        name="close, then more",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhiXY",
        seen=Seen(
            status=200, headers=(LENGTH_2, (b"connection", b"close")), body=b"hi", reusable=False
        ),
    ),
    Golden(
        name="interim responses",
        wire=b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        seen=Seen(status=200, headers=(LENGTH_2,), body=b"hi"),
    ),
    Golden(
        name="only an interim response",
        wire=b"HTTP/1.1 100 Continue\r\n\r\n",
        seen=LOST,
    ),
    Golden(
        name="a switch of protocols nobody asked for",
        wire=b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nabc",
        seen=FRAMING,
    ),
    Golden(
        name="204 has no body",
        wire=b"HTTP/1.1 204 No Content\r\n\r\n",
        seen=Seen(status=204, reason=b"No Content"),
    ),
    Golden(
        name="304 has no body, whatever it announces",
        wire=b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
        seen=Seen(status=304, reason=b"Not Modified", headers=(LENGTH_2,)),
    ),
    Golden(
        name="the answer to HEAD has no body, whatever it announces",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        is_head_request=True,
        seen=Seen(status=200, headers=(LENGTH_2,), reusable=False),
    ),
    Golden(
        name="a body that answers HEAD is not delivered",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        is_head_request=True,
        seen=Seen(status=200, headers=(LENGTH_2,), reusable=False),
    ),
    Golden(
        name="the answer to HEAD without any body",
        wire=b"HTTP/1.1 204 No Content\r\n\r\n",
        is_head_request=True,
        seen=Seen(status=204, reason=b"No Content"),
    ),
    Golden(
        name="garbage after the end",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiXY",
        seen=Seen(status=200, headers=(LENGTH_2,), body=b"hi", reusable=False),
    ),
    Golden(
        name="a second response after the end",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno",
        seen=Seen(status=200, headers=(LENGTH_2,), body=b"hi", reusable=False),
    ),
    Golden(
        name="a second response after the last chunk",
        wire=CHUNKED_HEAD + b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        seen=Seen(status=200, headers=(CHUNKED,), reusable=False),
    ),
    Golden(name="not HTTP", wire=b"SSH-2.0-OpenSSH\r\n", seen=FRAMING),
    Golden(name="another protocol", wire=b"RTSP/1.0 200 OK\r\n\r\n", seen=FRAMING),
    Golden(name="version 2", wire=b"HTTP/2.0 200 OK\r\n\r\n", seen=FRAMING),
    Golden(name="nothing", wire=b"", seen=LOST),
    Golden(name="half a head", wire=b"HTTP/1.1 200 OK\r\nContent-Le", seen=LOST),
    Golden(
        name="two lengths",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        seen=FRAMING,
    ),
    Golden(
        name="an empty length",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhi",
        seen=FRAMING,
    ),
    Golden(
        name="length and chunks",
        wire=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi",
        seen=FRAMING,
    ),
    Golden(
        name="a coding nobody asked for",
        wire=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        seen=FRAMING,
    ),
    Golden(
        name="a folded field",
        wire=b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n",
        seen=FRAMING,
    ),
    Golden(
        name="a head over the limit",
        wire=b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD + b"\r\nContent-Length: 0\r\n\r\n",
        seen=TOO_LARGE,
    ),
    Golden(
        name="a head without end",
        wire=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD,
        seen=TOO_LARGE,
    ),
    Golden(
        name="interim responses without end",
        wire=b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_HEAD,
        seen=TOO_LARGE,
    ),
    Golden(
        name="a trailer without end",
        wire=CHUNKED_HEAD + b"0\r\nX: " + b"y" * 2 * MAX_HEAD,
        seen=Seen(
            status=200,
            headers=(CHUNKED,),
            complete=False,
            reusable=False,
            fault="response_too_large",
        ),
    ),
]

golden_cases = pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)


def drive(pieces: Iterable[bytes], *, is_head_request: bool = False) -> Seen:
    """What a parser makes of pieces that arrive one after the other, then of the end.

    A real reader stops at the end of a response, and a piece that comes later makes an idle
    connection stale; here everything is fed, so that surplus bytes are seen in every split.
    """
    parser = ResponseParser(max_head_bytes=MAX_HEAD)
    parser.start(is_head_request=is_head_request)
    body = b""
    for piece in pieces:
        parser.feed(piece)
        body += parser.take()
    parser.feed_eof()
    assert parser.take() == b""
    head = parser.head
    return Seen(
        status=head.status if head else None,
        reason=head.reason if head else b"",
        headers=head.headers if head else (),
        body=body,
        complete=parser.is_complete,
        reusable=parser.is_reusable,
        fault=parser.fault,
    )


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data`` in the pieces that lie between the cuts."""
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places) if a < b]


@golden_cases
def test_golden_fed_whole(golden: Golden) -> None:
    pieces = [golden.wire] if golden.wire else []
    assert drive(pieces, is_head_request=golden.is_head_request) == golden.seen


@golden_cases
def test_golden_fed_byte_by_byte(golden: Golden) -> None:
    pieces = split(golden.wire, range(len(golden.wire)))
    assert drive(pieces, is_head_request=golden.is_head_request) == golden.seen


@given(st.sampled_from(GOLDENS), st.lists(st.integers(0, 150), max_size=12))
def test_golden_split_anywhere(golden: Golden, cuts: Sequence[int]) -> None:
    pieces = split(golden.wire, cuts)
    assert drive(pieces, is_head_request=golden.is_head_request) == golden.seen


def chunked(pieces: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=40), max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_any_bodies_come_out_of_one_connection_as_they_went_in(
    bodies: list[list[bytes]], cuts: list[int]
) -> None:
    parser = ResponseParser(max_head_bytes=MAX_HEAD)
    for pieces in bodies:
        parser.start()
        for piece in split(CHUNKED_HEAD + chunked(pieces), cuts):
            assert not parser.is_complete
            parser.feed(piece)
        assert parser.is_reusable
        assert parser.take() == b"".join(pieces)


@given(st.binary(max_size=300), st.sampled_from([b"", CHUNKED_HEAD, b"HTTP/1.1 200 OK\r\n"]))
def test_no_bytes_make_it_raise(junk: bytes, before: bytes) -> None:
    parser = ResponseParser(max_head_bytes=MAX_HEAD)
    for piece in split(before + junk, range(0, 400, 7)):
        parser.feed(piece)
    parser.feed_eof()
    assert parser.is_complete or parser.fault is not None


def test_what_was_well_formed_before_a_fault_is_delivered() -> None:
    parser = ResponseParser(max_head_bytes=MAX_HEAD)
    parser.feed(CHUNKED_HEAD + b"2\r\nhi\r\nzz\r\n")
    assert (parser.take(), parser.fault) == (b"hi", "bad_response_framing")


def test_the_end_of_the_stream_after_a_fault_is_no_clean_end() -> None:
    parser = ResponseParser(max_head_bytes=MAX_HEAD)
    parser.feed(CHUNKED_HEAD + b"zz\r\n")
    parser.feed_eof()
    assert not parser.is_complete


def test_body_bytes_may_exceed_the_limit_of_heads() -> None:
    body = b"x" * 5 * MAX_HEAD
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert drive(split(wire, range(0, len(wire), 11))).body == body


def test_many_chunks_are_no_head_without_end_however_they_are_split() -> None:
    wire = CHUNKED_HEAD + chunked([b"ab"] * MAX_HEAD)
    assert drive(split(wire, range(len(wire)))).body == b"ab" * MAX_HEAD
