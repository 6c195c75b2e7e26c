"""Which tokens an answer's content shows: the entries of ``logprobs.content``.

An answer's tokens stand one behind the other in its text; only parts of that text are content. A
token is listed if any of its characters is, with the bytes that are, so that the entries' bytes add
up to the content's (OpenAI's specification 2.3.0, ``ChatCompletionTokenLogprob``). Nearly always
that is the whole token; it is a part where the parser drops whitespace or cuts inside a token. An
entry is told once all its characters have been decided.

Bytes come from the vocabulary, never from decoded text, in which split characters are U+FFFD.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections import deque
from collections.abc import Sequence

import msgspec

from slime_core.openai.logprobs import ShownToken, TokenLogprobs
from slime_core.vocabulary import Vocabulary

__all__ = ["ContentTokens"]

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


@dataclasses.dataclass(slots=True)
class _Token:
    """A token from its first character, whole or not, to behind its last, in the answer's text."""

    told: ShownToken
    head: bytes
    """The bytes of its first character that the tokens before it brought."""
    start: int = 0
    stop: int = 0
    parts: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Its characters that are content."""


class ContentTokens:
    """Follows the tokens of one answer along its content.

    Feed tokens with :meth:`push`, and say :meth:`close` when there are no more; call :meth:`show`
    for each piece of content in turn and :meth:`finish` at the end, which both give the tokens that
    they complete. ``top`` is how many alternatives are told for each.
    """

    def __init__(self, vocabulary: Vocabulary, *, top: int) -> None:
        self._vocabulary = vocabulary
        self._logprobs = TokenLogprobs(vocabulary, top=top)
        self._decoder = _utf8_decoder("replace")
        self._end = 0
        self._run: list[_Token] = []
        """Single bytes: whether they are characters is known at the end of their run."""
        self._waiting: deque[_Token] = deque()

    def push(
        self, ids: Sequence[int], logprobs: Sequence[float | None], top_logprobs: bytes = b""
    ) -> None:
        """The next sampled tokens. Raises :class:`WorkerError` if there is not a logprob each."""
        for token, told in zip(ids, self._logprobs.read(ids, logprobs, top_logprobs), strict=True):
            in_run = token in self._vocabulary.byte_fallback
            # An id that is no token does not end a run.
            if in_run or (self._run and told.data is None):
                self._run.append(_Token(told, b""))
            else:
                self._close_run()
                self._place(_Token(told, b""))

    def show(self, start: int, end: int) -> list[ShownToken]:
        """The content goes on with these characters of the answer's text, none of them half."""
        done = []
        while self._waiting and self._waiting[0].start < end:
            token = self._waiting[0]
            low, high = max(token.start, start), min(token.stop, end)
            if low < high:
                token.parts.append((low, high))
            if token.stop > end:
                break
            done += _listed(self._waiting.popleft())
        return done

    def close(self) -> None:
        """No more tokens come."""
        self._close_run()

    def finish(self) -> list[ShownToken]:
        """No more content comes: tokens of which only a part was shown."""
        left = [told for token in self._waiting for told in _listed(token)]
        self._waiting.clear()
        return left

    def _place(self, token: _Token) -> None:
        """Give a token its place behind those before it."""
        head = self._decoder.getstate()[0]
        text = self._decoder.decode(token.told.data or b"")
        is_cut = bool(self._decoder.getstate()[0])
        token.head, token.start = head, self._end
        self._end += len(text)
        # One without any bytes stands before the next character.
        token.stop = max(self._end + is_cut, token.start + 1)
        self._waiting.append(token)

    def _close_run(self) -> None:
        """Single bytes are characters if all of their run are; else each is one U+FFFD."""
        run, self._run = self._run, []
        try:
            b"".join(token.told.data or b"" for token in run).decode()
        except UnicodeDecodeError:
            for token in run:
                token.start, token.stop = self._end, self._end + 1
                self._end += token.told.data is not None
                self._waiting.append(token)
        else:
            for token in run:
                self._place(token)


def _listed(token: _Token) -> list[ShownToken]:
    """The token as it is told: not at all, whole, or as far as it is content."""
    told = token.told
    if not token.parts:
        return []
    shown = sum(high - low for low, high in token.parts)
    start = token.parts[0][0]
    if told.data is None or shown == token.stop - token.start:
        return [msgspec.structs.replace(told, start=start)]
    bounds = _bounds(token.head, told.data)
    pieces = [
        told.data[bounds[low - token.start] : bounds[high - token.start]]
        for low, high in token.parts
    ]
    return [msgspec.structs.replace(told, start=start, data=b"".join(pieces))]


def _bounds(head: bytes, data: bytes) -> list[int]:
    """Where in ``data`` its characters begin, and where it ends; ``head`` begins the first."""
    decoder, bounds = _utf8_decoder("replace"), [0]
    decoder.decode(head)
    for end in range(1, len(data) + 1):
        bounds += [end] * len(decoder.decode(data[end - 1 : end]))
    return bounds if bounds[-1] == len(data) else [*bounds, len(data)]
