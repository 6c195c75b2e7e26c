"""Which workers are meant, by what is known of them.

Terms are ``k=v``, ``k!=v``, ``k in (a, b)`` and ``k notin (a, b)``, joined by commas; all must
hold. The grammar is that of the SGLang Model Gateway's selectors (its RL interface), which is
Kubernetes' without its existence terms. A key that a worker does not have differs from every value,
so ``!=`` and ``notin`` hold for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from slime_core.errors import ClientError

__all__ = ["Selector", "parse_selector"]

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
_WORD: Final = re.compile(r"[^\s,()=!]+")
_OPERATOR: Final = re.compile(r"==?|!=|(?:not)?in(?=[\s(])")
_BLANKS: Final = re.compile(r"\s*")
_LONGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class _Term:
    key: str
    values: tuple[str, ...]
    holds_inside: bool

    def holds(self, facts: Mapping[str, str]) -> bool:
        return (facts.get(self.key) in self.values) == self.holds_inside


@dataclass(frozen=True, slots=True)
class Selector:
    """What :func:`parse_selector` has read."""

    terms: tuple[_Term, ...]

    def matches(self, facts: Mapping[str, str]) -> bool:
        """Whether a worker of which these facts are known is meant."""
        return all(term.holds(facts) for term in self.terms)


def parse_selector(text: str) -> Selector:
    """Raises :class:`ClientError` (``invalid_selector``) that names the offset of the fault."""
    if len(text) > _LONGEST:
        raise _fault("a selector of at most 4096 characters", _LONGEST)
    reader = _Reader(text)
    terms = [reader.term()]
    while not reader.is_at_end:
        reader.take(",")
        terms.append(reader.term())
    return Selector(tuple(terms))


def _fault(expected: str, offset: int) -> ClientError:
    return ClientError(
        f"the selector is not valid at offset {offset}: expected {expected}",
        param="selector",
        code="invalid_selector",
    )


class _Reader:
    """Reads from left to right; blanks between words mean nothing."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip()

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._text)

    def term(self) -> _Term:
        key = self._match(_KEY, "a key")
        operator = self._match(_OPERATOR, "one of = != in notin")
        if operator in ("in", "notin"):
            return _Term(key, self._set(), operator == "in")
        return _Term(key, (self._match(_WORD, "a value"),), operator != "!=")

    def take(self, mark: str) -> None:
        if not self._text.startswith(mark, self._at):
            raise _fault(f"{mark!r}", self._at)
        self._at += len(mark)
        self._skip()

    def _set(self) -> tuple[str, ...]:
        self.take("(")
        values = [self._match(_WORD, "a value")]
        while self._text.startswith(",", self._at):
            self.take(",")
            values.append(self._match(_WORD, "a value"))
        self.take(")")
        return tuple(values)

    def _match(self, pattern: re.Pattern[str], expected: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _fault(expected, self._at)
        self._at = found.end()
        self._skip()
        return found[0]

    def _skip(self) -> None:
        blanks = _BLANKS.match(self._text, self._at)
        assert blanks is not None
        self._at = blanks.end()
