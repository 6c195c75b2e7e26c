"""Which heads of requests are taken: one meaning for everybody who reads them, and a bounded size.

Between a client and this router, and between the router and whoever stands in front of it, nobody
may disagree about where a request ends: that is how requests are smuggled. HTTP leaves several
repairs to the reader (RFC 9112, sections 2.2, 3.2, 5.1, 5.2, 6.1 and 6.3); none of them is made
here. What needs one is refused and the connection closed. All of it is decided on the bytes, before
any parser has read them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["HeadLimits", "Refusal", "body_refusal", "judge_fields", "judge_head"]

_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9.]+)")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]+\](:[0-9]*)?")
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not served: the HTTP status, a stable word, and words for the client."""

    status: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Sizes in bytes: of a whole head, of its target, of the body that it announces."""

    head_bytes: int
    body_bytes: int
    target_bytes: int = 16 * 1024
    fields: int = 128


def judge_head(head: bytes, limits: HeadLimits) -> Refusal | None:
    """Why a request is refused; ``head`` are its bytes up to the end of the empty line."""
    if len(head) > limits.head_bytes:
        return Refusal(431, "head_too_large", "the head of the request is too large")
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
    if len(target) > limits.target_bytes:
        return Refusal(414, "target_too_long", "the target of the request is too long")
    if len(lines) > limits.fields:
        return Refusal(431, "too_many_fields", "the request has too many header fields")
    fields = []
    for one in lines:
        name, colon, value = one.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            return _malformed("a header field is none, is folded, or has a space before its colon")
        fields.append((name.lower(), value.strip(b" \t")))
    wrong = judge_fields(fields, version) or _judge_host(fields, version, method, target)
    return wrong or _judge_size(fields, limits)


def judge_fields(fields: list[tuple[bytes, bytes]], version: bytes) -> Refusal | None:
    """Why the framing that header fields announce is not plain; names in lower case."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if lengths and codings:
        return _malformed("content-length and transfer-encoding exclude each other")
    if len(lengths) > 1:
        return _malformed("there is more than one content-length")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        return _malformed("the content-length is no number")
    if codings and version == b"1.0":
        return _malformed("HTTP/1.0 has no transfer-encoding")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        return _malformed("the only transfer-encoding is chunked")
    return None


def _judge_host(
    fields: list[tuple[bytes, bytes]], version: bytes, method: bytes, target: bytes
) -> Refusal | None:
    hosts = [value for name, value in fields if name == b"host"]
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


def _judge_size(fields: list[tuple[bytes, bytes]], limits: HeadLimits) -> Refusal | None:
    length = next((int(value) for name, value in fields if name == b"content-length"), 0)
    return body_refusal(limits) if length > limits.body_bytes else None


def body_refusal(limits: HeadLimits) -> Refusal:
    """What is said to a body that is, or gets, too large."""
    size = limits.body_bytes // 2**20
    return Refusal(413, "body_too_large", f"the body is over {size} MiB (--max-body-mb)")


def _malformed(words: str) -> Refusal:
    return Refusal(400, "malformed_request", words)
