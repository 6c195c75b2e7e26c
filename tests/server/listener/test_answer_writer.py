"""The listener's answer writer: heads, framings, and what may never be sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import InvariantError
from slime_trio.listener.answer_writer import AnswerWriter
from slime_trio.listener.request_parser import RequestHead

DATE: Final = b"Sun, 06 Nov 1994 08:49:37 GMT"
DATED: Final = b"date: " + DATE + b"\r\n"
LENGTH_5: Final = (b"content-length", b"5")
REQUEST: Final = RequestHead("POST", b"/", [], "1.1", True, None, False, False)
CLOSING: Final = REQUEST._replace(keep_alive=False)
OLD: Final = CLOSING._replace(http_version="1.0")
HEAD: Final = REQUEST._replace(method="HEAD")

Fields = Sequence[tuple[bytes, bytes]]


def written(
    request: RequestHead | None,
    fields: Fields = (),
    *pieces: bytes,
    status: int = 200,
    closes: bool = False,
) -> tuple[bytes, bool]:
    """A whole answer, and whether another request may follow."""
    writer = AnswerWriter(request)
    wire = writer.start(status, fields, date=DATE, closes=closes)
    wire += b"".join(writer.data(piece) for piece in pieces) + writer.end()
    return wire, writer.keeps_alive


def test_a_body_of_announced_length_is_passed_on_behind_the_fields_in_their_order() -> None:
    fields = [(b"x-a", b"1"), LENGTH_5, (b"x-a", b"2")]
    assert written(REQUEST, fields, b"hel", b"", b"lo") == (
        b"HTTP/1.1 200 \r\nx-a: 1\r\ncontent-length: 5\r\nx-a: 2\r\n" + DATED + b"\r\nhello",
        True,
    )


def test_pieces_of_announced_length_are_not_copied() -> None:
    piece = b"hello" * 100
    writer = AnswerWriter(REQUEST)
    writer.start(200, [(b"content-length", b"500")], date=DATE)
    assert writer.data(piece) is piece


def test_a_body_of_unknown_length_goes_in_chunks_and_an_empty_piece_is_not_its_end() -> None:
    assert written(REQUEST, [], b"a" * 17, b"", b"b", status=404) == (
        b"HTTP/1.1 404 \r\n" + DATED + b"transfer-encoding: chunked\r\n\r\n"
        b"11\r\n" + b"a" * 17 + b"\r\n1\r\nb\r\n0\r\n\r\n",
        True,
    )


def test_an_older_client_gets_a_body_of_unknown_length_up_to_the_end_of_the_connection() -> None:
    assert written(OLD, [], b"hel", b"lo") == (
        b"HTTP/1.1 200 \r\n" + DATED + b"connection: close\r\n\r\nhello",
        False,
    )


@pytest.mark.parametrize(
    ("request_", "fields", "closes"),
    [
        (CLOSING, [], False),
        (OLD, [], False),
        (None, [], False),
        (REQUEST, [], True),
        (REQUEST, [(b"connection", b"close")], False),
        (REQUEST, [(b"connection", b"x, Close")], True),
    ],
)
def test_the_end_of_a_connection_is_announced_once(
    request_: RequestHead | None, fields: Fields, closes: bool
) -> None:
    assert written(request_, [LENGTH_5, *fields], b"hello", closes=closes) == (
        b"HTTP/1.1 200 \r\ncontent-length: 5\r\n" + DATED + b"connection: close\r\n\r\nhello",
        False,
    )


def test_a_connection_is_not_kept_before_the_answer_is_complete() -> None:
    writer = AnswerWriter(REQUEST)
    writer.start(200, [], date=DATE)
    assert not writer.keeps_alive
    writer.end()
    assert writer.keeps_alive


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        ([LENGTH_5], b"content-length: 5\r\n" + DATED),
        ([], DATED + b"transfer-encoding: chunked\r\n"),
    ],
)
def test_the_answer_to_head_is_the_head_of_the_other_answer(fields: Fields, framing: bytes) -> None:
    assert written(HEAD, fields, b"hello") == (b"HTTP/1.1 200 \r\n" + framing + b"\r\n", True)


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("fields", [[], [LENGTH_5]])
def test_an_answer_that_has_no_body_gets_none(status: int, fields: Fields) -> None:
    wire, keeps = written(REQUEST, fields, b"hello", status=status)
    assert wire.endswith(DATED + b"\r\n")
    assert keeps


def test_how_chunks_are_sent_is_nobody_else_s_business() -> None:
    coding = (b"transfer-encoding", b"gzip")
    assert written(REQUEST, [coding], b"a") == written(REQUEST, [], b"a")
    assert written(REQUEST, [LENGTH_5, coding], b"hello") == written(REQUEST, [LENGTH_5], b"hello")


def test_an_interim_answer_is_for_clients_that_know_it() -> None:
    assert AnswerWriter(REQUEST).interim(100, date=DATE) == b"HTTP/1.1 100 \r\n" + DATED + b"\r\n"
    assert AnswerWriter(OLD).interim(100, date=DATE) == b""


# -- our own mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"\r", b"\n", b"\0", b"\r\n", b"a\r\nset-cookie: a=b", b"\n "])
def test_no_field_ends_its_line(bad: bytes) -> None:
    for field in ((b"x-a", bad), (bad, b"a"), (b"x-a" + bad, b"a"), (b"x-a", b"b" + bad)):
        with pytest.raises(InvariantError):
            AnswerWriter(REQUEST).start(200, [field], date=DATE)


@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=4))
def test_a_head_has_as_many_lines_as_fields(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        head = AnswerWriter(REQUEST).start(204, fields, date=DATE)
    except InvariantError:
        return
    assert head.endswith(b"\r\n\r\n")
    kept = [name for name, _ in fields if name not in (b"connection", b"transfer-encoding")]
    closes = b"connection: close" in head
    assert len(head[:-4].split(b"\r\n")) == 2 + len(kept) + closes
    assert 0 not in head


def test_a_body_longer_than_announced_is_not_sent() -> None:
    writer = AnswerWriter(REQUEST)
    writer.start(200, [LENGTH_5], date=DATE)
    writer.data(b"hell")
    with pytest.raises(InvariantError, match="longer"):
        writer.data(b"oo")
    assert not writer.keeps_alive


def test_a_body_shorter_than_announced_has_no_end() -> None:
    writer = AnswerWriter(REQUEST)
    writer.start(200, [LENGTH_5], date=DATE)
    writer.data(b"hell")
    with pytest.raises(InvariantError, match="shorter"):
        writer.end()
    assert not writer.keeps_alive


@pytest.mark.parametrize("value", [b"", b"-1", b"5 ", b"5, 5", b"1e3", b"9" * 20])
def test_a_length_that_is_none_is_not_announced(value: bytes) -> None:
    with pytest.raises(InvariantError):
        AnswerWriter(REQUEST).start(200, [(b"content-length", value)], date=DATE)


def test_two_lengths_are_not_announced() -> None:
    with pytest.raises(InvariantError):
        AnswerWriter(REQUEST).start(200, [LENGTH_5, LENGTH_5], date=DATE)


@pytest.mark.parametrize("status", [99, 100, 101, 199, 1000])
def test_an_answer_has_a_status_of_one(status: int) -> None:
    with pytest.raises(InvariantError):
        AnswerWriter(REQUEST).start(status, [], date=DATE)


@pytest.mark.parametrize("status", [99, 200])
def test_an_interim_answer_has_a_status_of_one(status: int) -> None:
    with pytest.raises(InvariantError):
        AnswerWriter(REQUEST).interim(status, date=DATE)


def _state(part: str) -> AnswerWriter:
    writer = AnswerWriter(REQUEST)
    if part != "head":
        writer.start(204, [], date=DATE)
    if part == "end":
        writer.end()
    return writer


@pytest.mark.parametrize(
    ("part", "call"),
    [("head", "data"), ("head", "end"), ("body", "start"), ("body", "interim"), ("end", "data"),
     ("end", "end"), ("end", "start"), ("end", "interim")],
)  # fmt: skip
def test_a_call_out_of_order_is_a_mistake_that_ends_the_connection(part: str, call: str) -> None:
    writer = _state(part)
    calls: dict[str, Callable[[], bytes]] = {
        "interim": lambda: writer.interim(100, date=DATE),
        "start": lambda: writer.start(204, [], date=DATE),
        "data": lambda: writer.data(b"a"),
        "end": writer.end,
    }
    with pytest.raises(InvariantError):
        calls[call]()
    assert not writer.keeps_alive
