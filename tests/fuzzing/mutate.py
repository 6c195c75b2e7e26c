"""Altered bytes and altered JSON, decided by a generator alone.

JSON is altered as a tree whose objects are lists of pairs, so that keys may repeat and stand in any
order, and whose leaves may be raw bytes, so that what is no JSON (``NaN``, half a character, an
endless nesting) can stand anywhere. Lengths are bounded: a decoder is to be found wrong, not slow.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["alter_bytes", "alter_json", "pieces", "put_anywhere", "random_bytes"]


@dataclass(frozen=True, slots=True)
class _Raw:
    """Bytes that stand where a value should."""

    data: bytes


class _Pairs(list[tuple[str, Any]]):
    """An object: keys may repeat."""


_Container = _Pairs | list[Any]

_WORDS: Final = (
    *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80"),
    *(b"\xef\xbb\xbf", b'"', b"\\", b"\\u", b"\\ud800", b"\\udc00", b"{", b"}", b"[", b"]", b","),
    *(b":", b": ", b"data: ", b"data:", b"event: x\n", b"id: 1\n", b"null", b"NaN", b"-Infinity"),
    *(b"1e999", b"-0", b"0", b"-1", b"00", b"0x10", b"\x7f", b"\x1f", b"\xe2\x80\xa8", b"[DONE]"),
    *(b"chunked", b"content-length: 1\r\n", b"HTTP/1.1 200 OK\r\n", b"%00", b"//", b"@", b"?"),
)

_RAW_VALUES: Final[tuple[Any, ...]] = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"01", b"+1", b".5"),
    *(b"1.", b"0x10", b"tru", b"nul", b"undefined", b"", b"'a'", b'"\\ud800"', b'"\\udc00\\ud800"'),
    *(b'"\xff"', b'"\xc3\x28"', b'"\xed\xa0\x80"', b'"\0"', b'"\\u0000"', b'"\\x"', b'"unended'),
    *(b"9" * 400, b"-" + b"9" * 400, b"9" * 5000, b"0." + b"3" * 400, b"1" + b"0" * 300 + b".0"),
    *(b"[1,]", b'{"a":}', b"/**/1", b"1 2", b'{"a":1,"a":2}', b"\xef\xbb\xbf1"),
)

_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 7, 200, 503, 1.5, -0.0, 1e308, -1e308, 5e-324, 0.1),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30),
    *("", " ", "a", "0", "-1", "null", "stop", "length", "abort", "text", "🙂", "\u0301", "\ufeff"),
    *("٣", "\u2028", "\r\n", "\0", "[DONE]", "a\u0000b", "function", "user", "assistant", "tool"),
    *([], [[]], {}, [None], [1], [[1]], [{}], {"a": 1}, [1, "a", None], ["a"], [[1, 2], [3]]),
    *([0.5, 1], [[-0.5, 1, None]], {"type": "stop"}, {"type": "abort", "status_code": 400}),
    *("context length 7", "context length " + "9" * 5000, "a{99999999999}", "(" * 90, "[[a]", "\\"),
)

_DEPTHS: Final = (2, 20, 200, 100_000)
_LONG: Final = 20_000


def random_bytes(chance: random.Random) -> bytes:
    """Bytes that mean nothing, or words of the formats in no order."""
    if chance.random() < 0.5:
        return chance.randbytes(chance.randrange(1, 200))
    return b"".join(chance.choice(_WORDS) for _ in range(chance.randrange(1, 40)))


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    """``data`` split anywhere: whole, byte by byte, or at a few places. No piece is empty."""
    how = chance.random()
    if how < 0.15 or len(data) < 2:
        return [data] if data else []
    if how < 0.3 and len(data) < 5000:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted({chance.randrange(1, len(data)) for _ in range(chance.randrange(1, 12))})
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def alter_bytes(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """``data`` with one to four alterations; ``others`` are what it may be spliced with."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = _altered(data, others, chance)
    return data


def _altered(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    if not data:
        return random_bytes(chance)
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.choice((1, 2, 8, 64)))
    match chance.randrange(9):
        case 0:  # flip
            return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
        case 1:  # delete
            return data[:at] + data[end:]
        case 2:  # duplicate
            return data[:end] + data[at:end] * chance.choice((1, 3)) + data[end:]
        case 3 | 4:  # insert
            return data[:at] + chance.choice(_WORDS) + data[at:]
        case 5:  # put another in its place
            return data[:at] + chance.choice(_WORDS) + data[end:]
        case 6:  # truncate
            return data[:at]
        case 7:  # splice
            other = chance.choice(others)
            return data[:at] + other[chance.randrange(len(other) + 1) :]
        case _:  # move
            rest = data[:at] + data[end:]
            to = chance.randrange(len(rest) + 1)
            return rest[:to] + data[at:end] + rest[to:]


def alter_json(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """A JSON text with one to three values or keys altered, now and then its bytes too."""
    tree = _parsed(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        tree = _changed(tree, others, chance)
    written = b"".join(_written(tree))
    return alter_bytes(written, others, chance) if chance.random() < 0.1 else written


def put_anywhere(data: bytes, value: bytes, chance: random.Random) -> bytes:
    """A JSON text with ``value`` as it stands in the place of one of its own."""
    tree = _parsed(data)
    _put(*chance.choice(list(_places(tree))), _Raw(value))
    return b"".join(_written(tree))


def _parsed(data: bytes) -> Any:
    return json.loads(data, object_pairs_hook=_Pairs)


def _changed(tree: Any, others: Sequence[bytes], chance: random.Random) -> Any:
    places = list(_places(tree))
    if not places or chance.random() < 0.03:
        return _value(chance)
    inside, at = chance.choice(places)
    match chance.randrange(10):
        case 0:
            del inside[at]
        case 1:
            inside.insert(at, inside[at])  # in an object: the key twice
        case 2:
            _put(inside, at, _get(*chance.choice(places)))
        case 3:
            _put(inside, at, _get(*chance.choice(list(_places(_parsed(chance.choice(others)))))))
        case 4 if isinstance(inside, _Pairs):
            name = chance.choice(places)
            other = name[0][name[1]][0] if isinstance(name[0], _Pairs) else _text(chance)
            inside[at] = (other, inside[at][1])
        case 5 if isinstance(inside, _Pairs):
            inside.append((inside[at][0], _value(chance)))
        case _:
            _put(inside, at, _value(chance))
    return tree


def _places(tree: Any) -> Iterator[tuple[_Container, int]]:
    """Every place where a value stands below the root."""
    waiting = [tree]
    while waiting:
        here = waiting.pop()
        if isinstance(here, list):
            for at in range(len(here)):
                yield here, at
                waiting.append(_get(here, at))


def _get(inside: _Container, at: int) -> Any:
    return inside[at][1] if isinstance(inside, _Pairs) else inside[at]


def _put(inside: _Container, at: int, value: Any) -> None:
    value = _copied(value)  # lest a tree come to hold itself
    if isinstance(inside, _Pairs):
        inside[at] = (inside[at][0], value)
    else:
        inside[at] = value


def _copied(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return _Pairs((key, _copied(each)) for key, each in value)
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _value(chance: random.Random) -> Any:
    how = chance.random()
    if how < 0.8:
        return _copied(chance.choice(_VALUES))
    if how < 0.94:
        return _Raw(chance.choice(_RAW_VALUES))
    if how < 0.97:
        return _Raw(_nested(chance))
    return _Raw(b'"' + _text(chance).encode() * (_LONG // 4) + b'"')


def _nested(chance: random.Random) -> bytes:
    """Lists or objects in each other; ended or not."""
    depth = chance.choice(_DEPTHS)
    begin, end = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return begin * depth + b"1" + end * chance.choice((depth, depth, 0))


def _text(chance: random.Random) -> str:
    return chance.choice(("a", "é", "🙂", "text", "index", "error", "type", "n", "x_y"))


def _written(value: Any) -> Iterator[bytes]:
    if isinstance(value, _Raw):
        yield value.data
    elif isinstance(value, _Pairs):
        for place, (key, each) in enumerate(value):
            yield b"," if place else b"{"
            yield json.dumps(key).encode() + b":"
            yield from _written(each)
        yield b"}" if value else b"{}"
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield b"," if place else b"["
            yield from _written(each)
        yield b"]" if value else b"[]"
    else:
        yield json.dumps(value).encode()
