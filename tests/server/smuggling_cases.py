"""Requests that two readers could read in two ways, each with the status that refuses it.

One table for all who read requests.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CASES", "CHUNKED", "HIDDEN", "chunked", "post"]

HIDDEN: Final = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
"""What an attacker would like to see served as a request of somebody else's."""


def post(*fields: bytes, version: bytes = b"1.1", body: bytes = HIDDEN) -> bytes:
    return b"".join(
        (b"POST /thing HTTP/%b\r\nhost: x\r\n" % version, *(one + b"\r\n" for one in fields))
    ) + (b"\r\n" + body)


CHUNKED: Final = b"transfer-encoding: chunked"


def chunked(body: bytes, coding: bytes = CHUNKED) -> bytes:
    return post(coding, body=body)


CASES: Final[dict[str, tuple[int, bytes]]] = {
    # Two lengths.
    "length and coding": (400, post(b"content-length: 6", CHUNKED, body=b"0\r\n\r\nG")),
    "coding and length": (400, post(CHUNKED, b"content-length: 4", body=b"5c\r\n" + HIDDEN)),
    "two lengths": (400, post(b"content-length: 0", b"content-length: 36")),
    "two equal lengths": (400, post(b"content-length: 0", b"content-length: 0")),
    "lengths in a list": (400, post(b"content-length: 0, 36")),
    "equal lengths in a list": (400, post(b"content-length: 0, 0")),
    "no length": (400, post(b"content-length:")),
    "positive length": (400, post(b"content-length: +0")),
    "negative length": (400, post(b"content-length: -1")),
    "hexadecimal length": (400, post(b"content-length: 0x24")),
    "length with a point": (400, post(b"content-length: 0.0")),
    "length with an exponent": (400, post(b"content-length: 1e1")),
    "length with an underscore": (400, post(b"content-length: 3_6")),
    "length in other digits": (400, post("content-length: ٣".encode())),
    "length of twenty digits": (400, post(b"content-length: 18446744073709551616")),
    "length of a thousand digits": (400, post(b"content-length: " + b"9" * 1000)),
    "length with a blank within": (400, post(b"content-length: 3 6")),
    "enormous length": (413, post(b"content-length: 999999999999999999")),
    # Codings.
    "coding in version 1.0": (400, post(CHUNKED, version=b"1.0", body=b"0\r\n\r\n" + HIDDEN)),
    "two codings": (400, chunked(b"0\r\n\r\n", CHUNKED + b"\r\ntransfer-encoding: identity")),
    "twice chunked": (400, chunked(b"0\r\n\r\n" + HIDDEN, b"transfer-encoding: chunked, chunked")),
    "another coding first": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: gzip, chunked")),
    "chunked not last": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked, identity")),
    "identity": (400, chunked(HIDDEN, b"transfer-encoding: identity")),
    "nearly chunked": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: xchunked")),
    "chunked in quotes": (400, chunked(b"0\r\n\r\n", b'transfer-encoding: "chunked"')),
    "chunked with a parameter": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked;q=1")),
    "chunked behind a tab": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: \x0bchunked")),
    "chunked before a null": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked\x00")),
    "chunked with a byte above": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked\xa0")),
    "empty coding": (400, chunked(HIDDEN, b"transfer-encoding:")),
    "coding before a blank": (400, chunked(b"0\r\n\r\n", b"transfer-encoding : chunked")),
    "coding behind a blank": (400, chunked(b"0\r\n\r\n", b" transfer-encoding: chunked")),
    "coding in a folded line": (400, chunked(b"0\r\n\r\n", b"transfer-encoding:\r\n chunked")),
    "coding behind a folded line": (400, chunked(b"0\r\n\r\n", b"x-a: 1\r\n\t" + CHUNKED)),
    # Lines.
    "line feeds alone": (400, b"GET /thing HTTP/1.1\nhost: x\n\n"),
    "one line feed alone": (400, post(b"x-a: 1\ncontent-length: 0")),
    "a return alone": (400, post(b"x-a: 1\rcontent-length: 0")),
    "a return before the end": (400, b"GET /thing HTTP/1.1\r\nhost: x\r\r\n\r\n"),
    "a null in a value": (400, post(b"x-a: 1\x002")),
    "a null in a name": (400, post(b"x\x00a: 1")),
    "an escape in a value": (400, post(b"x-a: \x1b[2J")),
    "a delete in a value": (400, post(b"x-a: \x7f")),
    "a blank before the colon": (400, post(b"content-length : 0")),
    "a tab before the colon": (400, post(b"content-length\t: 0")),
    "no colon": (400, post(b"content-length 0")),
    "no name": (400, post(b": 0")),
    "a name with a byte above": (400, post(b"content-length\xff: 0")),
    "a first field that is folded": (400, b"GET /thing HTTP/1.1\r\n x-a: 1\r\nhost: x\r\n\r\n"),
    # Request lines.
    "two blanks": (400, b"GET  /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a blank in the target": (400, b"GET /thing /x HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a tab": (400, b"GET\t/thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a blank at the start": (400, b" GET /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "an empty line at the start": (400, b"\r\nGET /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a blank at the end": (400, b"GET /thing HTTP/1.1 \r\nhost: x\r\n\r\n"),
    "no version": (400, b"GET /thing\r\n\r\n"),
    "version 2.0": (505, b"GET /thing HTTP/2.0\r\nhost: x\r\n\r\n"),
    "version 1.2": (505, b"GET /thing HTTP/1.2\r\nhost: x\r\n\r\n"),
    "version 1.10": (505, b"GET /thing HTTP/1.10\r\nhost: x\r\n\r\n"),
    "version in small letters": (400, b"GET /thing http/1.1\r\nhost: x\r\n\r\n"),
    "the preface of version 2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a method that is none": (400, b"G(T /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a method in small letters": (400, b"get /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a tunnel": (400, b"CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n"),
    "a target that is no path": (400, b"GET thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a target of another kind": (400, b"GET ftp://x/thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a star without its method": (400, b"GET * HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a fragment": (400, b"GET /thing#x HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a byte above in the target": (400, b"GET /th\xffng HTTP/1.1\r\nhost: x\r\n\r\n"),
    # Hosts.
    "no host": (400, b"GET /thing HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET /thing HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"),
    "two equal hosts": (400, b"GET /thing HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n"),
    "hosts in a list": (400, b"GET /thing HTTP/1.1\r\nhost: x y\r\n\r\n"),
    "a host with a path": (400, b"GET /thing HTTP/1.1\r\nhost: x/y\r\n\r\n"),
    "a host with a user": (400, b"GET /thing HTTP/1.1\r\nhost: u@x\r\n\r\n"),
    "another host in the target": (400, b"GET http://y/thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "another port in the target": (400, b"GET http://x:1/thing HTTP/1.1\r\nhost: x:2\r\n\r\n"),
    # Chunks.
    "a chunk of negative size": (400, chunked(b"-1\r\n" + HIDDEN)),
    "a chunk of positive size": (400, chunked(b"+1\r\na\r\n0\r\n\r\n")),
    "a chunk of prefixed size": (400, chunked(b"0x1\r\na\r\n0\r\n\r\n")),
    "a chunk of no size": (400, chunked(b"\r\na\r\n0\r\n\r\n")),
    "a chunk of a word": (400, chunked(b"ten\r\n")),
    "a chunk of enormous size": (400, chunked(b"f" * 21 + b"\r\n")),
    "a size behind a blank": (400, chunked(b" 1\r\na\r\n0\r\n\r\n")),
    "a size that ends in a line feed": (400, chunked(b"1\na\r\n0\r\n\r\n")),
    "a chunk longer than its size": (400, chunked(b"1\r\nabc\r\n0\r\n\r\n")),
    "a chunk shorter than its size": (400, chunked(b"3\r\na\r\n0\r\n\r\n" + HIDDEN)),
    "a chunk that ends in a line feed": (400, chunked(b"1\r\na\n0\r\n\r\n")),
    "an extension with a line feed": (400, chunked(b"1;a\nb\r\na\r\n0\r\n\r\n")),
    "an extension with a return": (400, chunked(b"1;a\rb\r\na\r\n0\r\n\r\n")),
    "an extension without end": (400, chunked(b"1;" + b"a" * 80_000)),
    "a trailer that is none": (400, chunked(b"0\r\nbad trailer\r\n\r\n")),
    "trailers without end": (400, chunked(b"0\r\n" + b"x-a: 1\r\n" * 12_000)),
}  # fmt: skip
