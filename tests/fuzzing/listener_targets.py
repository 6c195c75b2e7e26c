"""The listener's machines: what they read and write, against h11 as the reference."""

from __future__ import annotations

import random
from typing import Final

import h11

from slime_trio.limits.head import HeadLimits
from slime_trio.listener.answer_writer import AnswerWriter
from slime_trio.listener.request_parser import RequestHead
from tests.fuzzing.listener_reading import check_against_h11, read
from tests.fuzzing.mutate import alter_bytes, pieces
from tests.fuzzing.targets import Register, given

__all__ = ["REQUESTS", "TARGETS"]

_register = Register()
TARGETS: Final = _register.targets

_LIMITS: Final = HeadLimits(head_bytes=2**16, body_bytes=2**20)
_TIGHT: Final = HeadLimits(head_bytes=2**16, body_bytes=9, target_bytes=20, fields=6)

REQUESTS: Final = (
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /generate?a=b HTTP/1.1\r\nHost: x:80\r\nX-A:\t b  c \r\ncontent-length: 5\r\n\r\nhello",
    b"POST /x HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: Chunked\r\nexpect: 100-continue\r\n\r\n"
    b'5;a=b;c="d \\" e"\r\nhello\r\n0A\r\n and\r\nmore\r\n0\r\nX-T: 1\r\n\r\n',
    b"PUT http://x/y HTTP/1.1\r\nhost: X\r\nconnection: upgrade, Close\r\nupgrade: h2c\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0;q\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nconnection: keep-alive\r\nexpect: 100-continue\r\n\r\n",
    b"BREW /pot HTTP/1.1\r\nhost: [::1]:5\r\ncookie: \xe9\r\ncookie: b\r\n"
    b"content-length: 0\r\n\r\n",
)

_ODD: Final = (
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b" ", b"\t", b"\x00", b"\x0b", b"\x7f", b"\xff"),
    *(b":", b",", b";", b"=", b'"', b"\\", b"0", b"0" * 17, b"+", b"-", b"0x", b"#", b"?"),
    *(b"\r\n ", b"\r\nhost: y", b"\r\ncontent-length: 5", b"\r\ntransfer-encoding: chunked"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"chunked", b"identity"),
    *(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"GET ", b"get ", b"CONNECT ", b"*", b"http://y/"),
    *(b"1\r\na\r\n", b"0\r\n\r\n", b";;", b";a=", b"5 \r\n", b"connection: close\r\n", b"expect"),
)  # fmt: skip


_CHUNKED: Final = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
_BLANKS: Final = (*(b"",) * 12, b" ", b"\t")
_EXTENSIONS: Final = (
    *(b"",) * 12,
    *(b";a", b";a=b", b';a="b;c"', b';a="\\""', b";", b";=", b";a=", b";a b", b"; a", b";\xff"),
    *(b';a="', b';a="\r"', b";a\rb", b";\x01", b";a;b=c;d"),
)
_ENDS: Final = (*(b"\r\n",) * 30, b"\n", b"\r", b"\r\r\n", b"")
_TRAILERS: Final = (
    *(b"x-t: 1", b"x-t:", b"x_t: \xff\t", b" x: 1", b"\tx", b"x : 1", b": 1", b"x", b"x: \x01"),
    *(b"Content-Length: 5", b"transfer-encoding: chunked", b"host: y", b"x: \x00", b"x: a\rb"),
)


def _chunks(chance: random.Random) -> bytes:
    """A request in chunks that are odd now and then."""
    parts = [_CHUNKED]
    for size in [chance.randrange(1, 12) for _ in range(chance.randrange(3))] + [0]:
        said = size if chance.random() < 0.97 else chance.randrange(12)
        digits = b"%0*x" % (chance.choice((1, 1, 1, 2, 16, 17, 20, 21)), said)
        blank = chance.choice(_BLANKS)
        parts += [digits, blank, chance.choice(_EXTENSIONS), chance.choice(_BLANKS)]
        parts.append(chance.choice(_ENDS))
        if size:
            parts += [chance.choice((b"a", b"\n")) * size, chance.choice(_ENDS)]
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        parts += [chance.choice(_TRAILERS), chance.choice(_ENDS)]
    return b"".join(parts) + chance.choice(_ENDS)


def _conversation(chance: random.Random) -> bytes:
    """A few requests in a row, with something wrong in them more often than not."""
    wire = b"".join(chance.choice(REQUESTS) for _ in range(chance.choice((1, 1, 2, 3))))
    if chance.random() < 0.5:
        return _chunks(chance) + wire
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        at = chance.randrange(len(wire) + 1)
        taken = at + chance.choice((0, 0, 1, 2, 8))
        wire = wire[:at] + chance.choice(_ODD) + wire[taken:]
    if chance.random() < 0.3:
        wire = alter_bytes(wire, REQUESTS, chance)
    return wire + REQUESTS[0]


@_register
def listener_request(chance: random.Random) -> None:
    """Requests in a row: what is taken is taken by h11 too, alike, and ends at the same byte."""
    wire = _conversation(chance)
    limits = _TIGHT if chance.random() < 0.2 else _LIMITS
    with given(wire=wire, limits=limits):
        check_against_h11(wire, limits)


@_register
def listener_splits(chance: random.Random) -> None:
    """The same requests, bodies and refusals however they are split, and whenever answered."""
    wire = _conversation(chance)
    limits = _TIGHT if chance.random() < 0.2 else _LIMITS
    tight = HeadLimits(head_bytes=chance.randrange(1, 200), body_bytes=chance.randrange(20))
    limits = tight if chance.random() < 0.3 else limits
    ends = chance.random() < 0.5
    with given(wire=wire, limits=limits, ends=ends):
        whole = read([wire], limits, ends=ends)
        split = pieces(wire, chance)
        assert read(split, limits, ends=ends) == whole
        assert read(split, limits, ends=ends, late=True) == whole


# -- answers -----------------------------------------------------------------------------------

_FIELDS: Final = (
    *((b"content-type", b"a/b"), (b"x-a", b""), (b"x-a", b"\xe9 b"), (b"etag", b'"x"')),
    *((b"connection", b"close"), (b"connection", b"x-b"), (b"transfer-encoding", b"chunked")),
)
_DATE: Final = b"Sun, 06 Nov 1994 08:49:37 GMT"


@_register
def listener_answer(chance: random.Random) -> None:
    """An answer is read by h11 as it was meant, and says itself where it ends."""
    method, version = chance.choice(("GET", "HEAD", "POST")), chance.choice(("1.0", "1.1"))
    keeps = version == "1.1" and chance.random() < 0.8
    request = RequestHead(method, b"/", [], version, keeps, None, False, False)
    status = chance.choice((200, 204, 304, 404, 503))
    body = [chance.randbytes(chance.randrange(20)) for _ in range(chance.randrange(4))]
    fields = chance.sample(_FIELDS, chance.randrange(len(_FIELDS)))
    if chance.random() < 0.5:
        fields.append((b"content-length", b"%d" % len(b"".join(body))))
    with given(request=request, status=status, fields=fields, body=body):
        writer = AnswerWriter(request)
        wire = writer.interim(100, date=_DATE) if chance.random() < 0.3 else b""
        wire += writer.start(status, fields, date=_DATE, closes=chance.random() < 0.2)
        wire += b"".join(writer.data(piece) for piece in body) + writer.end()
        has_body = method != "HEAD" and status not in (204, 304)
        expected = status, b"".join(body) if has_body else b""
        assert _read_by_client(wire, method, keeps=writer.keeps_alive) == expected


def _read_by_client(wire: bytes, method: str, *, keeps: bool) -> tuple[int, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(wire)
    status, body = 0, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            assert not keeps  # only the end of the connection ends it
            client.receive_data(b"")
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            break
    assert client.trailing_data[0] == b""
    assert (client.their_state is h11.DONE) == keeps
    return status, body
