"""JSON changed in place: some values are new, every other byte stays as it came.

msgspec finds the values; where they lie follows from their lengths, so nothing is scanned twice and
no number is ever read. A body that names a key twice has no place for it that is certain; such an
object is put together anew from what its last mention says, which is what every reader of it sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

__all__ = ["set_elements", "set_fields"]

_BLANK: Final = rb"[ \t\r\n]*"
_KEY: Final = re.compile(_BLANK + rb'("(?:[^"\\]|\\.)*")' + _BLANK + b":" + _BLANK)
_OPEN: Final = re.compile(_BLANK + rb"[{\[]")
_COMMA: Final = re.compile(_BLANK + b",")
_GAP: Final = re.compile(_BLANK)
_NAME: Final = msgspec.json.Decoder(str)

_Spans = dict[str, tuple[int, int]]


def set_fields(data: bytes, fields: Mapping[str, Raw], changes: Mapping[str, bytes]) -> bytes:
    """The object ``data`` with raw JSON values set; names that it lacks are added at its end.

    ``fields`` is what ``dict[str, Raw]`` reads of ``data``, which must be an object.
    """
    if not changes:
        return data
    known = [name for name in changes if name in fields]
    spans = _spans(data, fields) if known else {}
    if spans is None:
        return _joined({**fields, **changes})
    pieces: list[bytes] = []
    done = 0
    for start, end, name in sorted((*spans[name], name) for name in known):
        pieces += (data[done:start], changes[name])
        done = end
    added = {name: raw for name, raw in changes.items() if name not in fields}
    if added:
        close = data.rindex(b"}")
        pieces += (data[done:close], b"," if fields else b"", _joined(added)[1:-1])
        done = close
    pieces.append(data[done:])
    return b"".join(pieces)


def set_elements(data: bytes, elements: Sequence[Raw], new: Sequence[bytes]) -> bytes:
    """The array ``data`` with every element replaced; what stands between them stays.

    ``elements`` is what ``list[Raw]`` reads of ``data``, and as many as ``new``.
    """
    pieces: list[bytes] = []
    done = 0
    place = _end(_OPEN, data, 0)
    for element, value in zip(elements, new, strict=True):
        start = _end(_GAP, data, place)
        pieces += (data[done:start], value)
        done = start + len(memoryview(element))
        comma = _COMMA.match(data, done)
        place = comma.end() if comma else done
    pieces.append(data[done:])
    return b"".join(pieces)


def _spans(data: bytes, fields: Mapping[str, Raw]) -> _Spans | None:
    """Where each value lies, or ``None`` if a key occurs more than once."""
    spans: _Spans = {}
    place = _end(_OPEN, data, 0)
    while (key := _KEY.match(data, place)) is not None:
        name = _NAME.decode(key[1])
        start = key.end()
        if name in spans or name not in fields:
            return None
        end = start + len(memoryview(fields[name]))
        spans[name] = (start, end)
        comma = _COMMA.match(data, end)
        place = comma.end() if comma else end
    # With a key named twice the length belongs to another of its values, and the walk goes astray.
    closed = data[place:].strip(b" \t\r\n") == b"}"
    return spans if closed and len(spans) == len(fields) else None


def _end(pattern: re.Pattern[bytes], data: bytes, place: int) -> int:
    found = pattern.match(data, place)
    return place if found is None else found.end()


def _joined(fields: Mapping[str, Raw | bytes]) -> bytes:
    pairs = [msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in fields.items()]
    return b"{" + b",".join(pairs) + b"}"
