"""What is taken means the same to two parsers that share no code: h11 and llhttp."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_trio.limits.head import HeadLimits, judge_head
from slime_trio.limits.protocol import StrictConnection

LIMITS = HeadLimits(head_bytes=4096, body_bytes=2**20)
BEHIND = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n" + b"a" * 40

_ODD = st.sampled_from(
    [b"", b" ", b"\t", b"\r", b"\n", b"\x00", b"\x0b", b"\xa0", b"\xff", b",", b";", b"+", b"0x"]
)
_NAMES = st.sampled_from(
    [b"Content-Length", b"content-length", b"Transfer-Encoding", b"Host", b"Connection", b"x-a",
     b"Content_Length", b"Trailer", b"TE", b"Expect"]
)  # fmt: skip
_VALUES = st.sampled_from(
    [b"", b"0", b"5", b"05", b"5, 5", b"chunked", b"Chunked", b"identity", b"gzip, chunked", b"x",
     b"close", b"keep-alive", b"99999999999999999999", b"trailers"]
)  # fmt: skip
_FIELDS = st.tuples(_ODD, _NAMES, _ODD, st.just(b":"), _ODD, _VALUES, _ODD).map(b"".join)
_ENDS = st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\r\n"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"POST", b"GET", b"PUT", b"post", b"HEAD"]))
    target = draw(st.sampled_from([b"/", b"/a?b", b"*", b"http://x/", b"a", b"/\xff", b"//x"]))
    version = draw(st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1"]))
    lines = [method + b" " + target + b" " + version, b"host: x", *draw(st.lists(_FIELDS))]
    return b"".join(line + draw(_ENDS) for line in lines) + draw(_ENDS)


@dataclass
class _Second:
    """llhttp's reading of the first request."""

    body: bytes = b""
    url: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    is_complete: bool = False

    def on_url(self, url: bytes) -> None:
        if not self.is_complete:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_complete:
            self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        if not self.is_complete:
            self.body += body

    def on_message_complete(self) -> None:
        self.is_complete = True


def _first(wire: bytes) -> tuple[h11.Request, bytes, bool] | None:
    """The first request as this server reads it: head, body, whether it ended; or a refusal."""
    connection: Any = StrictConnection(LIMITS)
    connection.receive_data(wire)
    head, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return head, body, True
            else:
                return None if head is None else (head, body, False)
    except h11.RemoteProtocolError:
        return None


@given(heads())
def test_what_is_taken_means_the_same_to_another_parser(head: bytes) -> None:
    read = _first(head + BEHIND)
    if read is None:
        return
    request, body, is_complete = read
    second = _Second()
    parser = httptools.HttpRequestParser(second)
    try:
        parser.feed_data(head + BEHIND)
    except httptools.HttpParserError:
        # What stands behind the first request is not its business.
        assert second.is_complete
    assert (second.url, second.body, second.is_complete) == (request.target, body, is_complete)
    framing = {b"content-length", b"transfer-encoding", b"host"}
    ours = [(name, value.lower()) for name, value in request.headers if name in framing]
    theirs = [(name, value.lower()) for name, value in second.fields if name in framing]
    assert ours == theirs


@given(st.binary(max_size=200), heads())
def test_no_bytes_make_it_raise(junk: bytes, head: bytes) -> None:
    for one in (junk, head, head[:20] + junk + head[20:]):
        judge_head(one + b"\r\n\r\n", LIMITS)


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_head_is_judged_however_it_arrives(cut: int) -> None:
    wire = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\n"
    connection = StrictConnection(LIMITS)
    pieces = [wire[start : start + cut] for start in range(0, len(wire), cut)]
    for piece in pieces[:-1]:
        connection.receive_data(piece)
        assert connection.next_event() is h11.NEED_DATA
    connection.receive_data(pieces[-1])
    with pytest.raises(h11.RemoteProtocolError, match="more than one content-length"):
        connection.next_event()
