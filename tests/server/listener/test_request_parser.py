"""The listener's request parser: tables of requests, fed whole, byte by byte and split anywhere."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.errors import InvariantError
from slime_trio.limits.head import HeadLimits, Refusal, judge_head, plain_head
from slime_trio.listener.request_parser import (
    Data,
    EndOfMessage,
    Event,
    RequestHead,
    RequestParser,
)
from tests.fuzzing.listener_reading import Read, Seen, read, read_by_h11
from tests.server.smuggling_cases import CASES, HIDDEN, chunked, post
from tests.server.test_limits_of_heads import heads

LIMITS: Final = HeadLimits(head_bytes=2**16, body_bytes=64 * 2**20)
SMALL: Final = HeadLimits(head_bytes=100, body_bytes=10)
GET: Final = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
HOST: Final = (b"host", b"x")
MALFORMED: Final = "the request is not well-formed HTTP"


def parsed(*pieces: bytes, limits: HeadLimits = LIMITS) -> tuple[RequestParser, list[Event]]:
    """A parser that was fed these, and what it gave."""
    parser = RequestParser(limits)
    for piece in pieces:
        parser.feed(piece)
    return parser, list(iter(parser.next_event, None))


def head_of(wire: bytes) -> RequestHead:
    """The head of the first request."""
    event = parsed(wire)[1][0]
    assert isinstance(event, RequestHead)
    return event


def single(wire: bytes) -> Sequence[bytes]:
    return [wire[at : at + 1] for at in range(len(wire))]


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_two_readers_could_read_in_two_ways_is_refused_as_hypercorn_s_is(name: str) -> None:
    status, wire = CASES[name]
    seen, other = read([wire + HIDDEN], LIMITS), read_by_h11(wire + HIDDEN, LIMITS)
    assert seen.refusal is not None
    assert seen.refusal.status == status
    assert (seen.refusal, seen.phase) == (other.refusal, "answer")
    assert len(seen.requests) == len(other.requests)


@pytest.mark.parametrize("name", [name for name in CASES if "without end" not in name])
def test_a_refusal_is_the_same_however_the_request_is_split(name: str) -> None:
    wire = CASES[name][1] + HIDDEN
    assert read(single(wire), LIMITS) == read([wire], LIMITS)


def test_bytes_behind_a_refusal_are_not_read() -> None:
    parser, events = parsed(b"GET /a HTTP/1.1\r\n\r\n", GET)
    assert events == []
    assert parser.bytes_held == 0
    with pytest.raises(InvariantError):
        parser.start_next()


@pytest.mark.parametrize("first", [b"\x16\x03\x01", b"\r", b"\n", b" ", b"\x00"])
def test_what_cannot_begin_a_request_is_refused_at_its_first_byte(first: bytes) -> None:
    refusal = Refusal(400, "malformed_request", "the request line is none")
    assert parsed(first)[0].refusal == refusal
    assert read_by_h11(first, LIMITS).refusal == refusal
    assert judge_head(first + GET, LIMITS) == refusal


def test_a_coding_with_a_blank_behind_it_is_not_passed_to_two_readers() -> None:
    wire = chunked(b"0\r\n\r\n", b"transfer-encoding: chunked \t")
    refusal = parsed(wire)[0].refusal
    assert refusal is not None
    assert (refusal.status, refusal.message) == (400, MALFORMED)


_TAKEN_BY: Final[dict[str, tuple[bytes, set[str]]]] = {
    "an empty line first": (b"\r\n" + GET, {"llhttp"}),
    "two blanks": (GET.replace(b" /", b"  /"), {"llhttp"}),
    "no version": (GET.replace(b" HTTP/1.1", b""), {"llhttp"}),
    "version 0.9": (GET.replace(b"1.1", b"0.9"), {"llhttp", "h11"}),
    "version 2.0": (GET.replace(b"1.1", b"2.0"), {"llhttp", "h11"}),
    "version 1.2": (GET.replace(b"1.1", b"1.2"), {"h11"}),
    "another protocol": (b"SOURCE /a ICE/1.0\r\nhost: x\r\n\r\n", {"llhttp"}),
    "no host": (GET.replace(b"host", b"hose"), {"llhttp"}),
    "two hosts": (GET.replace(b"x\r\n", b"x\r\nhost: x\r\n"), {"llhttp"}),
    "a coding first": (post(b"transfer-encoding: a, chunked", body=b"0\r\n\r\n"), {"llhttp"}),
    "a coding in 1.0": (
        post(b"transfer-encoding: chunked", version=b"1.0", body=b"0\r\n\r\n"),
        {"llhttp", "h11"},
    ),
    "a fragment": (GET.replace(b"/a", b"/a#b"), {"llhttp", "h11"}),
    "line feeds alone": (GET.replace(b"\r", b""), {"h11"}),
    "a folded field": (GET.replace(b"x\r\n", b"x\r\na: b\r\n c\r\n"), {"h11"}),
    "a control character": (GET.replace(b"x\r\n", b"x\r\na: \x1b\r\n"), {"h11"}),
    "equal lengths": (post(*[b"content-length: 0"] * 2, body=b""), {"h11"}),
    "lengths in a list": (post(b"content-length: 0, 0", body=b""), {"h11"}),
    "a length and a coding": (
        post(b"content-length: 0", b"transfer-encoding: chunked", body=b"0\r\n\r\n"),
        {"h11"},
    ),
    "a method in small letters": (GET.replace(b"GET", b"get"), {"h11"}),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", {"h11"}),
}


@pytest.mark.parametrize("name", _TAKEN_BY)
def test_what_only_one_of_two_parsers_takes_or_neither_should_is_refused(name: str) -> None:
    wire, takers = _TAKEN_BY[name]
    assert {
        one for one, takes in (("llhttp", _llhttp_takes), ("h11", _h11_takes)) if takes(wire)
    } == takers
    assert parsed(wire)[0].refusal is not None


def _llhttp_takes(wire: bytes) -> bool:
    whole = []

    class Told:
        def on_message_complete(self) -> None:
            whole.append(True)

    with suppress(httptools.HttpParserError):
        httptools.HttpRequestParser(Told()).feed_data(wire)
    return bool(whole)


def _h11_takes(wire: bytes) -> bool:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(wire)
    with suppress(h11.RemoteProtocolError):
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA
        return True
    return False


@pytest.mark.parametrize(
    "body",
    [
        b"1 \r\na\r\n0\r\n\r\n",
        b"1;\r\na\r\n0\r\n\r\n",
        b"1; a\r\na\r\n0\r\n\r\n",
        b"1;a=\r\na\r\n0\r\n\r\n",
        b"1;=\r\na\r\n0\r\n\r\n",
        b'1;a="\r\na\r\n0\r\n\r\n',
        b'1;a="b"c\r\na\r\n0\r\n\r\n',
        b'1;a="\x01"\r\na\r\n0\r\n\r\n',
        b"00000000000000001\r\na\r\n0\r\n\r\n",
        b"0\r\nx: 1\n\r\n",
        b"0\r\n\n",
        b"0\r\nx: 1\r\n y\r\n\r\n",
        b"0\r\nx: \x01\r\n\r\n",
        b"0\r\nx : 1\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_chunks_that_not_everybody_takes_are_refused(body: bytes) -> None:
    for wire in ([chunked(body)], single(chunked(body))):
        parser, _ = parsed(*wire)
        assert parser.refusal is not None
        assert (parser.refusal.status, parser.refusal.message) == (400, MALFORMED)


@pytest.mark.parametrize("wire", [GET[:1], GET[:-1], post(b"content-length: 5", body=b"hell"),
                                  chunked(b"5\r\nhello\r\n0\r\n")])  # fmt: skip
def test_an_end_in_the_middle_of_a_request_is_refused(wire: bytes) -> None:
    assert read([wire], LIMITS).refusal is None
    assert read([wire], LIMITS, ends=True).refusal == Refusal(400, "malformed_request", MALFORMED)


def test_an_end_between_requests_is_none_of_a_request() -> None:
    for pieces in ((), (GET,)):
        parser, _ = parsed(*pieces)
        parser.feed_eof()
        assert (parser.refusal, parser.has_ended) == (None, True)


def test_an_end_behind_half_a_request_that_is_held_is_told_when_its_turn_comes() -> None:
    parser, events = parsed(GET + GET[:5])
    parser.feed_eof()
    assert (len(events), parser.phase, parser.refusal) == (2, "answer", None)
    parser.start_next()
    assert parser.refusal == Refusal(400, "malformed_request", MALFORMED)


@given(heads())
def test_one_expression_knows_what_the_words_of_refusals_are_about(head: bytes) -> None:
    """A head is plain, or there are words for why it is not, and none of them for a plain one."""
    lax = HeadLimits(head_bytes=2**20, body_bytes=2**70)
    of_lines = {
        "a line of the head does not end in CR LF",
        "the head holds a control character",
        "the request line is none",
        "the method is none: methods are written in capital letters",
        "a header field is none, is folded, or has a space before its colon",
        "this server speaks HTTP/1.1",
    }
    refusal = judge_head(head, lax)
    assert (plain_head(head) is None) == (refusal is not None and refusal.message in of_lines)


# -- heads that come again -----------------------------------------------------------------------

_AGAIN: Final = (
    b"PUT /a?b HTTP/1.1\r\nX: content-length: 7\r\nHost: x\r\nContent-Length: %b\r\nY: z\r\n\r\n"
)


@pytest.mark.parametrize(
    "second",
    [
        *(b"12", b"0", b"007", b"10", b"11", b"999999999999999999", b"9999999999999999999"),
        *(b"1" * 20, b"", b"-1", b"+1", b"1 ", b"0x1", b"1\r\nContent-Length: 1", b"1\n", b"1\0"),
    ],
)
def test_a_head_that_comes_again_with_another_length_is_read_as_if_it_were_the_first(
    second: bytes,
) -> None:
    body = b"b" * 10
    limits = HeadLimits(head_bytes=200, body_bytes=11)
    first, again = _AGAIN % b"4" + b"wxyz", _AGAIN % second + body
    parser, _ = parsed(first, limits=limits)
    parser.start_next()
    parser.feed(again)
    alone, events = parsed(again, limits=limits)
    assert list(iter(parser.next_event, None)) == events
    assert (parser.refusal, parser.phase) == (alone.refusal, alone.phase)


def test_a_head_that_comes_again_says_what_was_sent_whatever_became_of_the_first() -> None:
    wire = _AGAIN % b"0"
    parser, (first, *_) = parsed(wire)
    assert isinstance(first, RequestHead)
    sent = list(first.headers)
    first.headers.append((b"x-role", b"operator"))
    parser.start_next()
    parser.feed(wire)
    again = parser.next_event()
    assert isinstance(again, RequestHead)
    assert again.headers == sent


def test_a_long_head_is_not_kept_while_its_connection_waits_for_another() -> None:
    long = _AGAIN.replace(b"\r\n", b"\r\nx-long: %b\r\n" % (b"a" * 50_000), 1) % b"0"
    tracemalloc.start()
    try:
        parser, events = parsed(long)
        events.clear()
        parser.start_next()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parser.phase == "idle"
    assert held < 10_000


def test_a_head_that_comes_again_with_one_byte_changed_is_not_the_same() -> None:
    first = _AGAIN % b"4" + b"wxyz"
    for place in range(first.index(b"\r\n\r\n") + 4):
        changed = first[:place] + bytes([first[place] ^ 1]) + first[place + 1 :]
        parser, _ = parsed(first)
        parser.start_next()
        parser.feed(changed)
        alone, events = parsed(changed)
        assert list(iter(parser.next_event, None)) == events
        assert (parser.refusal, parser.phase) == (alone.refusal, alone.phase)


def test_a_request_has_header_fields_of_its_own_though_its_head_came_before() -> None:
    parser, (head, *_) = parsed(_AGAIN % b"4" + b"wxyz")
    parser.start_next()
    parser.feed(_AGAIN % b"2" + b"yz")
    again = parser.next_event()
    assert isinstance(head, RequestHead)
    assert isinstance(again, RequestHead)
    assert (head.headers[2], again.headers[2]) == (
        (b"content-length", b"4"),
        (b"content-length", b"2"),
    )


# -- limits ------------------------------------------------------------------------------------


def _padded(size: int) -> bytes:
    """A head of so many bytes."""
    begin = b"GET / HTTP/1.1\r\nhost: x\r\na: "
    return begin + b"b" * (size - len(begin) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_head_may_be_as_large_as_the_limit_and_no_larger(cut: int) -> None:
    for size, refused in ((100, False), (101, True)):
        wire = _padded(size)
        refusal = read([wire[at : at + cut] for at in range(0, size, cut)], SMALL).refusal
        assert (refusal is not None and refusal.status == 431) == refused


def test_a_head_without_end_is_refused_once_it_is_too_large() -> None:
    assert parsed(b"a" * 100, limits=SMALL)[0].refusal is None
    refusal = parsed(b"a" * 100, b"a", limits=SMALL)[0].refusal
    assert refusal is not None
    assert (refusal.status, refusal.code) == (431, "head_too_large")


def test_targets_and_fields_have_limits_of_their_own() -> None:
    limits = replace(LIMITS, target_bytes=2, fields=2)
    assert parsed(GET.replace(b"/a", b"/ab"), limits=limits)[0].refusal == Refusal(
        414, "target_too_long", "the target of the request is too long"
    )
    assert parsed(GET.replace(b"\r\n\r\n", b"\r\na:\r\nb:\r\n\r\n"), limits=limits)[
        0
    ].refusal == Refusal(431, "too_many_fields", "the request has too many header fields")
    assert parsed(GET.replace(b"\r\n\r\n", b"\r\na:\r\n\r\n"), limits=limits)[0].refusal is None


def test_a_body_announced_over_the_limit_is_refused_before_anything_is_given() -> None:
    parser, events = parsed(post(b"content-length: 11", body=b""), limits=SMALL)
    assert events == []
    assert parser.refusal is not None
    assert parser.refusal.status == 413
    assert parsed(post(b"content-length: 10", body=b""), limits=SMALL)[0].refusal is None


@pytest.mark.parametrize("sizes", [(11,), (10, 1), (5, 5, 0xFFFF)])
def test_a_body_that_grows_over_the_limit_is_given_up_to_it(sizes: Sequence[int]) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (size, b"a" * size) for size in sizes)
    for pieces in ([chunked(body)], single(chunked(body))):
        (seen,) = (request := read(pieces, SMALL)).requests
        assert seen.body == b"a" * 10
        assert request.refusal is not None
        assert request.refusal.status == 413


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        (b"0;%b\r\n\r\n" % (b"a" * 96), False),
        (b"0;%b\r\n\r\n" % (b"a" * 97), True),
        (b"0\r\nx: %b\r\n\r\n" % (b"a" * 93), False),
        (b"0\r\nx: %b\r\n\r\n" % (b"a" * 96), True),
        (b"0\r\n" + b"x: 1\r\n" * 16 + b"\r\n", False),
        (b"0\r\n" + b"x: 1\r\n" * 17 + b"\r\n", True),
        (b"0;%b" % (b"a" * 98), True),
        (b"0\r\nx:%b" % (b"a" * 98), True),
    ],
)
def test_what_brings_no_body_is_bounded(body: bytes, refused: bool) -> None:
    for pieces in ([chunked(body)], single(chunked(body))):
        assert (read(pieces, SMALL).refusal is not None) == refused


# -- heads -------------------------------------------------------------------------------------


def test_a_head_is_given_with_everything_that_is_known_of_the_body() -> None:
    wire = post(b"X-A:\t b  c \t", b"x-a:", b"content-length: 5", body=b"hello")
    assert head_of(wire) == RequestHead(
        method="POST",
        target=b"/thing",
        headers=[HOST, (b"x-a", b"b  c"), (b"x-a", b""), (b"content-length", b"5")],
        http_version="1.1",
        keep_alive=True,
        content_length=5,
        has_body=True,
        expects_continue=False,
    )


@pytest.mark.parametrize(
    ("field", "length", "has_body"),
    [(b"x: y", None, False), (b"content-length: 0", 0, False), (b"content-length: 07", 7, True),
     (b"transfer-encoding: Chunked", None, True)],
)  # fmt: skip
def test_the_head_tells_whether_a_body_follows(
    field: bytes, length: int | None, has_body: bool
) -> None:
    head = head_of(post(field, body=b""))
    assert (head.content_length, head.has_body) == (length, has_body)


@pytest.mark.parametrize(
    ("version", "fields", "keeps"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: keep-alive"], True),
        (b"1.1", [b"connection: x, Close ,y"], False),
        (b"1.1", [b"connection: x", b"connection: close"], False),
        (b"1.1", [b"connection: closed"], True),
        (b"1.0", [], False),
        (b"1.0", [b"connection: keep-alive"], False),
    ],
)
def test_a_connection_is_kept_unless_either_side_is_known_to_end_it(
    version: bytes, fields: list[bytes], keeps: bool
) -> None:
    assert head_of(post(*fields, version=version, body=b"")).keep_alive == keeps


@pytest.mark.parametrize(
    ("version", "value", "expects"),
    [(b"1.1", b"100-Continue", True), (b"1.1", b"100-continued", False), (b"1.0", b"100-continue",
     False)],
)  # fmt: skip
def test_an_expectation_is_told(version: bytes, value: bytes, expects: bool) -> None:
    wire = post(b"expect: " + value, b"content-length: 1", version=version, body=b"")
    assert head_of(wire).expects_continue == expects


def test_an_upgrade_is_not_told_and_the_body_is_read_as_any_other() -> None:
    fields = (
        *(b"connection: Upgrade", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAAP__"),
        b"transfer-encoding: chunked",
    )
    (request,) = read([post(*fields, body=b"2\r\nhi\r\n0\r\n\r\n")], LIMITS).requests
    assert [name for name, _ in request.fields] == [b"host", b"connection", b"transfer-encoding"]
    assert (request.body, request.is_complete) == (b"hi", True)


@pytest.mark.parametrize("method", ["BREW", "PLAY", "PRI", "!", "HEAD"])
def test_any_method_in_capitals_is_one(method: str) -> None:
    assert head_of(GET.replace(b"GET", method.encode())).method == method


# -- bodies ------------------------------------------------------------------------------------


def test_a_body_in_one_read_with_its_head_is_one_piece() -> None:
    parser, events = parsed(post(b"content-length: 5", body=b"hello"))
    assert [type(event) for event in events] == [RequestHead, Data, EndOfMessage]
    assert events[1] == Data(b"hello")
    assert parser.phase == "answer"


def test_pieces_of_an_announced_body_are_passed_on_without_a_copy() -> None:
    first, last = b"a" * 600, b"b" * 400
    _, events = parsed(post(b"content-length: 1000", body=b""), first, last)
    assert [event.data is piece for event, piece in zip(events[1:3], (first, last), strict=True)
            if isinstance(event, Data)] == [True, True]  # fmt: skip


def test_chunks_of_one_read_are_one_piece() -> None:
    _, events = parsed(chunked(b"1\r\na\r\n" * 50 + b"0\r\n\r\n"))
    assert events[1] == Data(b"a" * 50)
    assert len(events) == 3


# -- one request behind another ----------------------------------------------------------------


def test_a_request_behind_another_is_held_until_its_turn() -> None:
    parser, events = parsed(GET + GET[:9], GET[9:])
    assert [type(event) for event in events] == [RequestHead, EndOfMessage]
    assert (parser.phase, parser.bytes_held) == ("answer", len(GET))
    parser.start_next()
    assert parser.bytes_held == 0
    assert isinstance(parser.next_event(), RequestHead)


def test_the_phase_follows_the_client() -> None:
    parser = RequestParser(LIMITS)
    phases = [parser.phase]
    for byte in single(post(b"content-length: 1", body=b"a")):
        parser.feed(byte)
        if parser.phase != phases[-1]:
            phases.append(parser.phase)
    list(iter(parser.next_event, None))
    parser.start_next()
    assert [*phases, parser.phase] == ["idle", "head", "body", "answer", "idle"]


@pytest.mark.parametrize("wire", [b"", GET[:-1], post(b"content-length: 5", body=b"hell"),
                                  GET.replace(b"1.1", b"1.0")])  # fmt: skip
def test_no_request_is_begun_before_the_last_one_is_over(wire: bytes) -> None:
    parser, _ = parsed(*([wire] if wire else []))
    with pytest.raises(InvariantError):
        parser.start_next()


def test_no_request_is_begun_before_the_last_one_was_taken() -> None:
    parser = RequestParser(LIMITS)
    parser.feed(GET + GET)
    parser.next_event()
    with pytest.raises(InvariantError):
        parser.start_next()


def test_what_stands_behind_the_last_request_of_a_connection_is_forgotten() -> None:
    parser, _ = parsed(post(b"connection: close", body=GET), GET)
    assert (parser.bytes_held, parser.refusal) == (0, None)


_REQUESTS: Final = st.sampled_from(
    [GET, post(b"content-length: 5", body=b"hello"), chunked(b"2;a\r\n\r\n\r\n0\r\nx: y\r\n\r\n"),
     post(b"content-length: 0", body=b""), GET[:-1], chunked(b"1\r\nab"), b"\r\n",
     post(b"connection: close", body=b"")]
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(_REQUESTS, max_size=5).map(b"".join), st.data())
def test_requests_in_a_row_are_read_alike_however_they_are_split(
    wire: bytes, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(wire) - 1)), max_size=6)))
    split = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    whole = read([wire] if wire else [], LIMITS)
    assert read([piece for piece in split if piece], LIMITS) == whole
    assert read([piece for piece in split if piece], LIMITS, late=True) == whole
    assert _all_bodies(whole) <= {b"", b"hello", b"\r\n", b"a"}


def _all_bodies(seen: Seen) -> set[bytes]:
    return {request.body for request in seen.requests}


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
def test_no_bytes_make_it_raise(pieces: list[bytes]) -> None:
    seen = read(pieces, SMALL, ends=True)
    assert seen.refusal is not None or all(one.is_complete for one in seen.requests)


def test_a_request_that_is_read_says_the_same_to_h11() -> None:
    wire = post(b"X-A: b", b"content-length: 5", body=b"hello")
    ours, theirs = read([wire], LIMITS), read_by_h11(wire, LIMITS)
    assert ours == theirs
    assert isinstance(ours.requests[0], Read)
