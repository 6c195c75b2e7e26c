"""The chunks of a request's body, read as strictly as anybody reads them (RFC 9112, 7.1).

llhttp does not read them, though it reads the heads: under httptools it goes on into the next
request, which must wait for the answer to this one, without telling where that begins; and it
bounds neither an extension nor a trailer. What is read here, both llhttp and h11 take. Each of
them takes more:

* llhttp takes sizes with any number of zeros before them, and ``;=`` for an extension;
* h11 takes blanks behind a size, anything but a line feed for an extension, folded trailers, lines
  of trailers that end in a line feed alone, and trailers that announce another length.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from slime_trio.limits.head import is_trailer

__all__ = ["ChunkedBody"]

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_SIZE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;%b(?:=(?:%b|%b))?)*+\r\n" % (_TOKEN, _TOKEN, _QUOTED)
)
_PLAIN_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")

_Part = Literal["size", "data", "data end", "trailer", "end"]


class ChunkedBody:
    """One body. After :meth:`feed`, ``pieces`` are its bytes so far that nobody has taken.

    ``is_complete`` and ``is_malformed`` are final; what ``pieces`` hold then was well-formed.
    ``max_line_bytes`` bounds a size with its extensions, and all trailers together.
    """

    __slots__ = ("_line", "_max_line_bytes", "_part", "_room", "_wanted", "is_malformed", "pieces")

    def __init__(self, *, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._part: _Part = "size"
        self._wanted = 0  # bytes of this chunk that are still to come
        self._line = bytearray()  # a line that has begun to come
        self._room = max_line_bytes  # how long it may get
        self.is_malformed = False
        self.pieces: list[bytes] = []

    @property
    def is_complete(self) -> bool:
        """Whether the end has come."""
        return self._part == "end"

    def feed(self, data: bytes) -> bytes:
        """Read on. Returns what stands behind the end of the body."""
        at = 0
        while at < len(data) and self._part != "end" and not self.is_malformed:
            if self._part == "data":
                at = self._take(data, at)
            else:
                if self._part == "size" and not self._line:
                    at = self._skim(data, at)
                at = self._gather(data, at)
        return data[at:] if self._part == "end" else b""

    def _skim(self, data: bytes, at: int) -> int:
        """Take the chunks that have come whole and have no extensions, as nearly all have.

        Not a step further in anything but time: 256 KiB in chunks of one byte, which anybody may
        send, would hold up everybody else six times as long.
        """
        while found := _PLAIN_SIZE.match(data, at):
            begin = found.end()
            end = begin + int(found[1], 16)
            if end == begin or data[end : end + 2] != b"\r\n":
                break
            self.pieces.append(data[begin:end])
            at = end + 2
        return at

    def _take(self, data: bytes, at: int) -> int:
        piece = data[at : at + self._wanted]
        self.pieces.append(piece)
        self._wanted -= len(piece)
        if not self._wanted:
            self._expect("data end", room=2)
        return at + len(piece)

    def _gather(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        if not end:
            self._line += data[at:]
            self.is_malformed = len(self._line) >= self._room
            return len(data)
        line = bytes(self._line) + data[at:end]
        self._line.clear()
        self.is_malformed = len(line) > self._room or not self._read(line)
        return end

    def _read(self, line: bytes) -> bool:
        """Whether a line is as it must be here. What is to come next follows from it."""
        if self._part == "size":
            return self._read_size(line)
        if self._part == "data end":
            self._expect("size", room=self._max_line_bytes)
            return line == b"\r\n"
        if line == b"\r\n":
            self._part = "end"
            return True
        self._room -= len(line)
        return is_trailer(line)

    def _read_size(self, line: bytes) -> bool:
        found = _SIZE.fullmatch(line)
        if found is None:
            return False
        self._wanted = int(found[1], 16)
        if self._wanted:
            self._part = "data"
        else:
            self._expect("trailer", room=self._max_line_bytes)
        return True

    def _expect(self, part: _Part, *, room: int) -> None:
        self._part, self._room = part, room
