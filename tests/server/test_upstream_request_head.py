"""The head of a request, byte for byte, and what is kept out of it."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_trio.upstream.request_head import request_head

Headers = list[tuple[bytes, bytes]]


def test_a_post_as_it_goes_on_the_wire() -> None:
    headers = [(b"Content-Type", b"application/json"), (b"x-a", b"1"), (b"x-a", b"")]
    assert request_head(b"POST", b"w:1", b"/generate?x=1", headers, 5) == (
        b"POST /generate?x=1 HTTP/1.1\r\nhost: w:1\r\nContent-Type: application/json\r\n"
        b"x-a: 1\r\nx-a: \r\ncontent-length: 5\r\n\r\n"
    )


def test_an_empty_get_says_nothing_of_its_length() -> None:
    assert request_head(b"GET", b"w", b"/", [], 0) == b"GET / HTTP/1.1\r\nhost: w\r\n\r\n"


def test_an_empty_post_says_so() -> None:
    assert b"\r\ncontent-length: 0\r\n" in request_head(b"POST", b"w", b"/", [], 0)


@pytest.mark.parametrize(
    "field",
    [
        (b"Host", b"elsewhere"),
        (b"Content-Length", b"999"),
        (b"transfer-encoding", b"chunked"),
        (b"Connection", b"close"),
    ],
)
def test_the_callers_word_on_framing_and_connection_is_left_out(
    field: tuple[bytes, bytes],
) -> None:
    assert request_head(b"POST", b"w", b"/", [field], 3) == request_head(b"POST", b"w", b"/", [], 3)


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\nb", b"\xc3\xa4", b"a\0"])
def test_a_name_that_is_no_token_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="header field"):
        request_head(b"POST", b"w", b"/", [(name, b"x")], 0)


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nb", b"a\rb", b"a\0b"])
def test_a_value_that_would_end_its_line_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="line end or a null byte"):
        request_head(b"POST", b"w", b"/", [(b"x", value)], 0)


@pytest.mark.parametrize("target", [b"", b"x", b"/a b", b"/\r\n", b"/\0", b"http://w/", b"*"])
def test_a_target_that_is_no_path_is_refused(target: bytes) -> None:
    with pytest.raises(ValueError, match="target"):
        request_head(b"GET", b"w", target, [], 0)


@pytest.mark.parametrize("method", [b"", b"G ET", b"GET\r\n", b"CONNECT"])
def test_a_method_that_cannot_be_sent_is_refused(method: bytes) -> None:
    with pytest.raises(ValueError, match="method"):
        request_head(method, b"w", b"/", [], 0)


class Request:
    """What a server's parser understands."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: Headers = []
        self.complete = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        self.complete += 1


names = st.from_regex(rb"x-[a-z0-9]{1,10}", fullmatch=True)
values = st.from_regex(rb"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True)


@given(st.lists(st.tuples(names, values), max_size=6), st.binary(max_size=50))
def test_a_server_reads_what_was_meant(headers: Headers, body: bytes) -> None:
    request = Request()
    head = request_head(b"POST", b"w:1", b"/p?q", headers, len(body))
    httptools.HttpRequestParser(request).feed_data(head + body)
    assert request.complete == 1
    assert request.target == b"/p?q"
    assert request.headers[1:-1] == headers
