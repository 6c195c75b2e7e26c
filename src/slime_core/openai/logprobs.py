"""Logprobs as OpenAI's clients see them: exactly the tokens of the text they were shown.

A worker's ids hold more than its text: the end-of-sequence token, or the tokens of a stop string.
The entries shown are those of the tokens that *begin* before the text ends, so that their bytes
add up to the text's (a stop string that ends inside a token leaves that token whole). One rule
for whole answers and streams makes the chunks' entries add up to the whole list.

Bytes come from the vocabulary, never from decoded text, in which split characters are U+FFFD.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from slime_core.errors import WorkerError
from slime_core.sglang import Answer
from slime_core.strict_json import FieldTypeError, decode_typed
from slime_core.types import unpack_ids, unpack_logprobs

__all__ = [
    "LogprobCursor",
    "ShownToken",
    "TokenBook",
    "TokenLogprobs",
    "answer_logprobs",
    "chat_entry",
]

_IMPOSSIBLE: Final = -9999.0
"""OpenAI's own figure for a logprob too small to tell."""


class TokenBook(Protocol):
    """What a vocabulary knows of a token (:class:`slime_core.vocabulary.Vocabulary` fits)."""

    def bytes_of(self, token: int, /) -> bytes:
        """The token's bytes. Raises ``KeyError`` for an id outside the vocabulary."""

    def is_special(self, token: int, /) -> bool:
        """Whether the token is left out of text when special tokens are skipped."""


class _Alternative(msgspec.Struct, array_like=True, frozen=True, gc=False):
    logprob: float | None
    token: int


_TOPS: Final[msgspec.json.Decoder[list[tuple[_Alternative, ...] | None]]] = msgspec.json.Decoder(
    list[tuple[_Alternative, ...] | None]
)


class ShownToken(msgspec.Struct, frozen=True, kw_only=True):
    """One token of the text shown."""

    start: int
    """Where it begins in the text, in characters."""
    data: bytes | None
    """Its bytes; ``None`` for an id outside the vocabulary."""
    logprob: float | None
    """``None`` for the first token of an echoed prompt, of which nothing is known."""
    top: tuple[tuple[bytes | None, float], ...]
    """Bytes and logprob of the most probable tokens at its place."""


class TokenLogprobs:
    """Tokens with their logprobs, and the ``top`` most probable ones at their places."""

    def __init__(self, book: TokenBook, *, top: int) -> None:
        self._book = book
        self._top = top

    def read(
        self, ids: Sequence[int], logprobs: Sequence[float | None], top_logprobs: bytes = b""
    ) -> list[ShownToken]:
        """The tokens, all at place 0. Raises :class:`WorkerError` if there is not a logprob each.

        ``top_logprobs`` is the worker's JSON.
        """
        if len(ids) != len(logprobs):
            raise WorkerError("The worker gave no logprobs for the tokens of its answer.")
        tops = _read_tops(top_logprobs, len(ids)) if self._top else [None] * len(ids)
        return [
            ShownToken(
                start=0,
                data=self._bytes(token),
                logprob=_IMPOSSIBLE if logprob is None else logprob,
                top=self._alternatives(top or ()),
            )
            for token, logprob, top in zip(ids, logprobs, tops, strict=True)
        ]

    def _bytes(self, token: int) -> bytes | None:
        try:
            return self._book.bytes_of(token)
        except KeyError:
            return None

    def _alternatives(self, top: Sequence[_Alternative]) -> tuple[tuple[bytes | None, float], ...]:
        return tuple(
            (self._bytes(each.token), _IMPOSSIBLE if each.logprob is None else each.logprob)
            for each in top[: self._top]
        )


class LogprobCursor:
    """Follows the tokens of one answer along its text.

    Feed tokens with :meth:`push` and ask :meth:`take` for those that begin before a position.
    """

    def __init__(self, book: TokenBook, *, top: int, skip_special: bool) -> None:
        self._book = book
        self._logprobs = TokenLogprobs(book, top=top)
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._start = 0
        self._waiting: deque[ShownToken] = deque()

    def push(
        self, ids: Sequence[int], logprobs: Sequence[float | None], top_logprobs: bytes = b""
    ) -> None:
        """The next sampled tokens. Raises :class:`WorkerError` if there is not a logprob each."""
        for token, told in zip(ids, self._logprobs.read(ids, logprobs, top_logprobs), strict=True):
            self._waiting.append(msgspec.structs.replace(told, start=self._start))
            if told.data and not (self._skip_special and self._book.is_special(token)):
                self._start += len(self._decoder.decode(told.data))

    def take(self, end: int | None = None) -> list[ShownToken]:
        """The tokens not yet taken, or those that begin before character ``end`` of the text."""
        taken = []
        while self._waiting and (end is None or self._waiting[0].start < end):
            taken.append(self._waiting.popleft())
        return taken


def answer_logprobs(
    answer: Answer, book: TokenBook, *, top: int, skip_special: bool
) -> list[ShownToken]:
    """The shown tokens of a whole answer."""
    cursor = LogprobCursor(book, top=top, skip_special=skip_special)
    ids = unpack_ids(answer.ids)
    known = unpack_logprobs(answer.logprobs, len(ids)) if answer.logprobs else []
    cursor.push(ids, known, answer.top_logprobs)
    return cursor.take(len(answer.text or ""))


def chat_entry(token: ShownToken) -> dict[str, Any]:
    """One element of ``logprobs.content``."""
    return {
        **_told(token.data, token.logprob),
        "top_logprobs": [_told(data, logprob) for data, logprob in token.top],
    }


def _told(data: bytes | None, logprob: float | None) -> dict[str, Any]:
    return {
        "token": (data or b"").decode("utf-8", "replace"),
        "logprob": logprob,
        "bytes": None if data is None else list(data),
    }


def _read_tops(raw: bytes, count: int) -> list[tuple[_Alternative, ...] | None]:
    if not raw:
        return [None] * count
    try:
        tops = decode_typed(_TOPS, raw)
    except FieldTypeError as error:
        raise WorkerError(f"The worker's top logprobs cannot be read: {error.message}.") from None
    if len(tops) != count:
        raise WorkerError(f"The worker gave {len(tops)} top logprobs for {count} tokens.")
    return tops
