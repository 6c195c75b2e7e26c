"""Where a JSON value ends, found while it arrives.

The scanner checks RFC 8259 character by character and keeps nothing of the value but the kinds of
its open containers, so a value of any size and depth is read in linear time without recursion. It
stops at the first character that no JSON value could have there: what was let through before is
the beginning of a value, however the text was cut.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

__all__ = ["JsonScanner", "is_json"]

_SPACE: Final = " \t\n\r"
_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]*')
_BLANK: Final = re.compile(r"[ \t\n\r]*")
_HEX: Final = "0123456789abcdefABCDEF"
_LITERALS: Final = {"t": "rue", "f": "alse", "n": "ull"}

_NUMBER: Final = {
    # The part of a number that was read → what may follow: a character's class → the next part.
    "minus": {"0": "zero", "1": "whole"},
    "zero": {".": "point", "e": "power"},
    "whole": {"0": "whole", "1": "whole", ".": "point", "e": "power"},
    "point": {"0": "fraction", "1": "fraction"},
    "fraction": {"0": "fraction", "1": "fraction", "e": "power"},
    "power": {"0": "exponent", "1": "exponent", "+": "sign", "-": "sign"},
    "sign": {"0": "exponent", "1": "exponent"},
    "exponent": {"0": "exponent", "1": "exponent"},
}
_CLASSES: Final = {**dict.fromkeys("123456789", "1"), "0": "0", "E": "e"}
_WHOLE_NUMBERS: Final = ("zero", "whole", "fraction", "exponent")


class _Wants(Enum):
    """What the scanner is about to read."""

    VALUE = "a value"
    VALUE_OR_END = "the first value of an array, or its end"
    KEY = "a key"
    KEY_OR_END = "the first key of an object, or its end"
    COLON = "a colon"
    COMMA_OR_END = "a comma, or the end of the container"
    STRING = "more of a string"
    ESCAPE = "the character behind a backslash"
    HEX = "a digit of a character's number"
    NUMBER = "more of a number"
    LITERAL = "more of true, false or null"
    NOTHING = "nothing: the value is complete"


class JsonScanner:
    """Eats the text of one JSON value in pieces of any size.

    Call :meth:`feed` until :attr:`done` or :attr:`broken`; whitespace before the value is part of
    it. A number that is no part of a container is complete only when something else follows, or
    at :meth:`close`.
    """

    __slots__ = ("_containers", "_in_key", "_part", "_rest", "_wants", "broken")

    def __init__(self) -> None:
        self._wants = _Wants.VALUE
        self._containers: list[str] = []
        """The closing brackets that are still to come, innermost last."""
        self._in_key = False
        self._part = ""
        """Which part of a number was read last."""
        self._rest = ""
        """What is left of a literal, or one character for each hexadecimal digit to come."""
        self.broken = False
        """A character came that no JSON value has there; it was not eaten."""

    @property
    def done(self) -> bool:
        """Whether the value is complete."""
        return self._wants is _Wants.NOTHING

    def feed(self, text: str, start: int = 0) -> int:
        """Eat ``text`` from ``start`` on; where the eaten part ends.

        It ends before the text's end if the value does, or if the text is no JSON from there on.
        """
        at, size = start, len(text)
        while at < size and not self.broken and self._wants is not _Wants.NOTHING:
            if self._wants is _Wants.STRING:
                at = self._string(text, at)
            elif self._wants in (_Wants.ESCAPE, _Wants.HEX, _Wants.NUMBER, _Wants.LITERAL):
                at += self._inside(text[at])
            elif text[at] in _SPACE:
                at = _end(_BLANK, text, at)
            elif self._between(text[at]):
                at += 1
            else:
                self.broken = True
        return at

    def close(self) -> bool:
        """The text has ended; whether a complete value was read."""
        if self._wants is _Wants.NUMBER and not self._containers:
            self._number_ends()
        return self.done

    def _string(self, text: str, at: int) -> int:
        at = _end(_PLAIN, text, at)
        if at == len(text):
            return at
        if text[at] == "\\":
            self._wants = _Wants.ESCAPE
        elif text[at] == '"':
            self._wants = _Wants.COLON if self._in_key else self._after_value()
        else:
            self.broken = True
            return at
        return at + 1

    def _inside(self, character: str) -> int:
        """Read a character of an escape, a number or a literal; how many were eaten."""
        match self._wants:
            case _Wants.NUMBER:
                return self._number(character)
            case _Wants.ESCAPE if character == "u":
                self._wants, self._rest = _Wants.HEX, "0000"
            case _Wants.ESCAPE if character in '"\\/bfnrt':
                self._wants = _Wants.STRING
            case _Wants.HEX if character in _HEX:
                self._rest = self._rest[1:]
                self._wants = self._wants if self._rest else _Wants.STRING
            case _Wants.LITERAL if character == self._rest[0]:
                self._rest = self._rest[1:]
                self._wants = self._wants if self._rest else self._after_value()
            case _:
                self.broken = True
        return 0 if self.broken else 1

    def _number(self, character: str) -> int:
        following = _NUMBER[self._part].get(_CLASSES.get(character, character))
        if following is not None:
            self._part = following
            return 1
        self._number_ends()
        return 0

    def _number_ends(self) -> None:
        if self._part in _WHOLE_NUMBERS:
            self._wants = self._after_value()
        else:
            self.broken = True

    def _between(self, character: str) -> bool:
        """Read a character outside of strings, numbers and literals; whether it may stand here."""
        match self._wants, character:
            case (_Wants.VALUE_OR_END, "]") | (_Wants.KEY_OR_END, "}"):
                self._containers.pop()
                self._wants = self._after_value()
            case (_Wants.COMMA_OR_END, "]" | "}") if character == self._containers[-1]:
                self._containers.pop()
                self._wants = self._after_value()
            case (_Wants.COMMA_OR_END, ","):
                self._wants = _Wants.KEY if self._containers[-1] == "}" else _Wants.VALUE
            case (_Wants.COLON, ":"):
                self._wants = _Wants.VALUE
            case (_Wants.KEY | _Wants.KEY_OR_END, '"'):
                self._wants, self._in_key = _Wants.STRING, True
            case (_Wants.VALUE | _Wants.VALUE_OR_END, _):
                return self._begin(character)
            case _:
                return False
        return True

    def _begin(self, character: str) -> bool:
        """Read a value's first character; whether it is one."""
        if character == "{":
            self._containers.append("}")
            self._wants = _Wants.KEY_OR_END
        elif character == "[":
            self._containers.append("]")
            self._wants = _Wants.VALUE_OR_END
        elif character == '"':
            self._wants, self._in_key = _Wants.STRING, False
        elif character in _LITERALS:
            self._wants, self._rest = _Wants.LITERAL, _LITERALS[character]
        elif character == "-" or character in "0123456789":
            self._wants = _Wants.NUMBER
            self._part = {"-": "minus", "0": "zero"}.get(character, "whole")
        else:
            return False
        return True

    def _after_value(self) -> _Wants:
        return _Wants.COMMA_OR_END if self._containers else _Wants.NOTHING


def is_json(text: str) -> bool:
    """Whether the text is one JSON value, with nothing but whitespace around it."""
    scanner = JsonScanner()
    end = scanner.feed(text)
    return scanner.close() and not text[end:].strip(_SPACE)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a run of the pattern's characters ends."""
    found = pattern.match(text, at)
    return found.end() if found else at
