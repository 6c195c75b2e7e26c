"""Which heads of requests are taken: one meaning for everybody who reads them, and a bounded size.

Between a client and this router, and between the router and whoever stands in front of it, nobody
may disagree about where a request ends: that is how requests are smuggled. HTTP leaves several
repairs to the reader (RFC 9112, sections 2.2, 3.2, 5.1, 5.2, 6.1 and 6.3); none of them is made
here. What needs one is refused and the connection closed. All of it is decided on the bytes, before
any parser has read them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

__all__ = [
    "MALFORMED",
    "TELLING",
    "TOO_LARGE",
    "HeadLimits",
    "Phase",
    "PlainHead",
    "Refusal",
    "body_refusal",
    "end_of_head",
    "fields_of",
    "is_trailer",
    "judge_fields",
    "judge_head",
    "judge_plain",
    "judge_start",
    "plain_head",
]

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_FIELD_LINE: Final = rb"%b:[\t\x20-\x7e\x80-\xff]*+\r\n" % _TOKEN

_FIELD: Final = re.compile(_FIELD_LINE)
_SPLIT: Final = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_PLAIN: Final = re.compile(
    rb"([!#$%%&'*+.^_`|~0-9A-Z-]++) ([\x21-\x7e]++) HTTP/(1\.[01])\r\n((?:%b)*+)\r\n" % _FIELD_LINE
)
_LENGTHS: Final = re.compile(rb"(?:content-length|transfer-encoding):", re.IGNORECASE)
_END: Final = re.compile(rb"\n\r?\n")
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_REQUEST_LINE: Final = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9.]+)" % _TOKEN)
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)

_BLANK: Final = ord(" ")
_LENGTH_DIGITS: Final = 19

Phase = Literal["idle", "head", "body", "answer"]
"""What is awaited of the client: nothing, the rest of a head or of a body, or its patience."""

TELLING: Final = frozenset({b"content-length", b"host", b"transfer-encoding"})
"""The fields on which :func:`judge_plain` looks."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not served: the HTTP status, a stable word, and words for the client."""

    status: int
    code: str
    message: str


TOO_LARGE: Final = Refusal(431, "head_too_large", "the head of the request is too large")
MALFORMED: Final = Refusal(400, "malformed_request", "the request is not well-formed HTTP")
"""What has no words of its own, such as chunks that are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Sizes in bytes: of a whole head, of its target, of the body that it announces."""

    head_bytes: int
    body_bytes: int
    target_bytes: int = 16 * 1024
    fields: int = 128


class PlainHead(NamedTuple):
    """A head whose lines are what they seem: a request line and ``lines``, the fields as written.

    A named tuple: one is made for each request.
    """

    method: bytes
    target: bytes
    version: bytes
    lines: bytes


def end_of_head(data: bytes | bytearray, start: int = 0) -> int:
    """Where the first empty line of ``data`` ends, also one that is not written as it must be;
    -1 if there is none. ``start`` may be two bytes before what has not been searched yet."""
    found = _END.search(data, start)
    return -1 if found is None else found.end()


def judge_start(data: bytes | bytearray) -> Refusal | None:
    """Why what begins so is no request, whatever follows (``data`` is not empty).

    A client that speaks TLS to a port without it would otherwise wait for the end of its head.
    """
    return _malformed("the request line is none") if data[0] <= _BLANK else None


def judge_head(head: bytes, limits: HeadLimits) -> Refusal | None:
    """Why a request is refused; ``head`` are its bytes up to the end of the empty line."""
    plain = plain_head(head)
    if plain is None:
        return _why_not_plain(head, limits)
    return judge_plain(plain[0], len(head), fields_of(plain[0]), limits)


def plain_head(data: bytes) -> tuple[PlainHead, int] | None:
    """The head that ``data`` begins with, in its parts, and where it ends; ``None`` if anything in
    it is not written as RFC 9112 has it, or its end has not come.

    One expression for all of it: for the usual request this costs a tenth of going through its
    lines. Why a head is not plain is found out afterwards (:func:`judge_head`).
    """
    found = _PLAIN.match(data)
    return None if found is None else (PlainHead(*found.groups()), found.end())


def fields_of(plain: PlainHead) -> list[tuple[bytes, bytes]]:
    """The fields in their order: names in lower case, values without the blanks around them."""
    return [(name.lower(), value.rstrip(b"\t ")) for name, value in _SPLIT.findall(plain.lines)]


def _why_not_plain(head: bytes, limits: HeadLimits) -> Refusal:
    begun = judge_start(head)
    if begun is not None:
        return begun
    if len(head) > limits.head_bytes:
        return TOO_LARGE
    ends = head.count(b"\r\n")
    if head.count(b"\n") != ends or head.count(b"\r") != ends:
        return _malformed("a line of the head does not end in CR LF")
    if _CONTROLS.search(head):
        return _malformed("the head holds a control character")
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        return _malformed("the request line is none")
    method, target, version = line.groups()
    if version not in (b"1.0", b"1.1"):
        return Refusal(505, "http_version", "this server speaks HTTP/1.1")
    if method != method.upper():
        # Hypercorn would take it for the method in capitals, which it is not (RFC 9110, 9.1).
        return _malformed("the method is none: methods are written in capital letters")
    wrong = _judge_sizes(len(head), target, len(lines), limits)
    # Nothing else is left.
    return wrong or _malformed("a header field is none, is folded, or has a space before its colon")


def judge_plain(
    plain: PlainHead, size: int, fields: Sequence[tuple[bytes, bytes]], limits: HeadLimits
) -> Refusal | None:
    """Why a request is refused whose head is plain, and ``size`` bytes long.

    ``fields`` are those of its fields that are :data:`TELLING`, and may be more; names in lower
    case, values without the blanks around them.
    """
    method, target, version, lines = plain
    lengths: list[bytes] = []
    codings: list[bytes] = []
    hosts: list[bytes] = []
    for name, value in fields:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    wrong = (
        _judge_sizes(size, target, lines.count(b"\r\n"), limits)
        or _judge_framing(lengths, codings, version)
        or _judge_host(hosts, version, method, target)
    )
    if wrong is None and lengths and int(lengths[0]) > limits.body_bytes:
        return body_refusal(limits)
    return wrong


def is_trailer(line: bytes) -> bool:
    """Whether a line is a field that may stand behind a body.

    Not so one that announces the length of what is over already (RFC 9110, 6.5.1).
    """
    return _FIELD.fullmatch(line) is not None and not _LENGTHS.match(line)


def _judge_sizes(size: int, target: bytes, fields: int, limits: HeadLimits) -> Refusal | None:
    if size > limits.head_bytes:
        return TOO_LARGE
    if len(target) > limits.target_bytes:
        return Refusal(414, "target_too_long", "the target of the request is too long")
    if fields > limits.fields:
        return Refusal(431, "too_many_fields", "the request has too many header fields")
    return None


def judge_fields(fields: Sequence[tuple[bytes, bytes]], version: bytes) -> Refusal | None:
    """Why the framing that header fields announce is not plain; names in lower case."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    return _judge_framing(lengths, codings, version)


def _judge_framing(
    lengths: Sequence[bytes], codings: Sequence[bytes], version: bytes
) -> Refusal | None:
    if lengths and codings:
        return _malformed("content-length and transfer-encoding exclude each other")
    if len(lengths) > 1:
        return _malformed("there is more than one content-length")
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) <= _LENGTH_DIGITS):
        return _malformed("the content-length is no number")
    if codings and version == b"1.0":
        return _malformed("HTTP/1.0 has no transfer-encoding")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        return _malformed("the only transfer-encoding is chunked")
    return None


def _judge_host(
    hosts: Sequence[bytes], version: bytes, method: bytes, target: bytes
) -> Refusal | None:
    if len(hosts) > 1 or (not hosts and version == b"1.1"):
        return _malformed("there must be one host field")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return _malformed("the host field names no host")
    if b"#" in target or method == b"CONNECT":
        return _malformed("the target of the request is none of this server")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return None
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return _malformed("the target of the request is no path")
    if hosts and absolute[1].lower() != hosts[0].lower():
        return _malformed("the target of the request and its host field name different hosts")
    return None


def body_refusal(limits: HeadLimits) -> Refusal:
    """What is said to a body that is, or gets, too large."""
    size = limits.body_bytes // 2**20
    return Refusal(413, "body_too_large", f"the body is over {size} MiB (--max-body-mb)")


def _malformed(words: str) -> Refusal:
    return Refusal(400, "malformed_request", words)
