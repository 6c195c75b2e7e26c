"""Where sampled tokens lie in the text that a client was shown, and what it was not shown.

Text does not determine tokens, but tokens determine bytes. An answer's text is compared with the
bytes of its tokens; as far as they agree, every token has a place in the text. Beyond the first
disagreement (bytes that are no UTF-8, a decoder that cleans up spaces) nothing can be said, and
nothing is claimed: fewer tokens are kept, never a wrong one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol

__all__ = ["Place", "TokenBytes", "hidden_endings", "tokens_before"]


_BEYOND: Final = 256
"""How many characters behind a place are looked at to tell how special tokens were shown."""


class TokenBytes(Protocol):
    """What this module needs of a vocabulary."""

    def bytes_of(self, token: int) -> bytes:
        """The bytes that ``token`` stands for. Raises ``KeyError`` for an unknown id."""

    def is_special(self, token: int) -> bool:
        """Whether decoding with ``skip_special_tokens`` drops it."""

    def decode(self, ids: Iterable[int], *, skip_special: bool, at_start: bool = True) -> str:
        """The text of ``ids``; some vocabularies take a space off where a text starts."""


@dataclass(frozen=True, slots=True)
class Place:
    """``tokens`` tokens end exactly at ``chars`` characters of the text."""

    tokens: int
    chars: int


def tokens_before(ids: Sequence[int], text: str, chars: int, vocabulary: TokenBytes) -> Place:
    """The last place at or before ``text[:chars]`` where a token and a character end together.

    ``text`` is what the client was shown for ``ids``, with special tokens shown or skipped. Which
    of the two, the text itself must tell; where it does not, the fewer tokens are claimed.
    """
    target = text[:chars].encode("utf-8", "surrogatepass")
    around = text[: chars + _BEYOND].encode("utf-8", "surrogatepass")
    shown, skipped = _views(ids, vocabulary, len(around))
    if shown == skipped:
        return _place(shown, target)
    by_text = _common(b"".join(shown), around) - _common(b"".join(skipped), around)
    if by_text:
        return _place(shown if by_text > 0 else skipped, target)
    return min(_place(shown, target), _place(skipped, target), key=lambda place: place.tokens)


def _views(
    ids: Sequence[int], vocabulary: TokenBytes, enough: int
) -> tuple[list[bytes], list[bytes]]:
    """The bytes of the first tokens, with special tokens shown and skipped, until both are more
    than ``enough``.

    What lies behind the place need not be looked at: an answer may be long and a cut early.
    """
    shown: list[bytes] = []
    skipped: list[bytes] = []
    size = 0
    for token in ids:
        if size > enough:
            break
        try:
            piece = vocabulary.bytes_of(token)
        except KeyError:
            break
        plain = b"" if vocabulary.is_special(token) else piece
        size += len(plain)
        shown.append(piece)
        skipped.append(plain)
    return shown, skipped


def _place(pieces: list[bytes], target: bytes) -> Place:
    ends = list(accumulate(map(len, pieces)))
    tokens = bisect_right(ends, _common(b"".join(pieces), target))
    while tokens and _inside_character(target, ends[tokens - 1]):
        tokens -= 1
    if not tokens:
        return Place(0, 0)
    return Place(tokens, len(target[: ends[tokens - 1]].decode("utf-8", "surrogatepass")))


def _common(left: bytes, right: bytes) -> int:
    """How long the common prefix is."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _inside_character(text: bytes, at: int) -> bool:
    return at < len(text) and text[at] & 0xC0 == 0x80


def hidden_endings(
    ids: Sequence[int],
    text: str,
    matched: int | tuple[int, ...] | str | None,
    vocabulary: TokenBytes,
    *,
    is_whole: bool = False,
) -> tuple[str, ...]:
    """What the ids hold behind the text that the client saw, longest first.

    ``is_whole`` says that the worker came to the answer's end, and so gave all of its text but
    what it trimmed. Then only what stopped the answer has to be looked at; otherwise text and ids
    are compared in full.

    A stop token or stop string is trimmed from the text (SGLang: unless ``no_stop_trim``) but is
    among the ids. When the client's next text begins with exactly that, it must not be encoded
    again. A stop string may end inside a token, which then brings more than the string: both the
    whole rest and the bare stop string are endings, since a client that writes the stop string
    itself cannot know of the overhang. Nothing hidden: an empty tuple.
    """
    if is_whole and not isinstance(matched, str):
        stop = _stop_ids(ids, matched, vocabulary)
        if not stop:
            return ()
        spelled = vocabulary.decode(stop, skip_special=False, at_start=False)
        if not spelled:
            return ()
        if not text.endswith(spelled):
            # Of several special tokens a client writes the last, if any: it knows no others.
            last = vocabulary.decode(stop[-1:], skip_special=False, at_start=False)
            return tuple(dict.fromkeys((spelled, last)))
    rest = _hidden_rest(ids, text, vocabulary)
    endings = {rest} if rest is not None else set()
    if isinstance(matched, str) and (
        rest.startswith(matched) if rest is not None else not text.endswith(matched)
    ):
        endings.add(matched)
    endings.discard("")
    return tuple(sorted(endings, key=len, reverse=True))


def _stop_ids(
    ids: Sequence[int], matched: int | tuple[int, ...] | None, vocabulary: TokenBytes
) -> Sequence[int]:
    """The last ids, if they are what stopped the answer, or else if they are special tokens."""
    stop = (matched,) if isinstance(matched, int) else tuple(matched or ())
    if stop and tuple(ids[-len(stop) :]) == stop:
        return stop
    start = len(ids)
    while start and vocabulary.is_special(ids[start - 1]):
        start -= 1
    return ids[start:]


def _hidden_rest(ids: Sequence[int], text: str, vocabulary: TokenBytes) -> str | None:
    """The text of ``ids`` behind ``text``; ``None`` where the two cannot be compared.

    An answer goes on from its prompt, but not every worker decodes it so: both ways are tried.
    """
    rest = _rest_of(ids, text, vocabulary, at_start=False)
    return rest if rest is not None else _rest_of(ids, text, vocabulary, at_start=True)


def _rest_of(
    ids: Sequence[int], text: str, vocabulary: TokenBytes, *, at_start: bool
) -> str | None:
    try:
        full = vocabulary.decode(ids, skip_special=False, at_start=at_start)
        if text == full:
            return ""
        plain = vocabulary.decode(ids, skip_special=True, at_start=at_start)
        if text == plain:
            stop = _stop_ids(ids, None, vocabulary)
            return vocabulary.decode(stop, skip_special=False, at_start=False)
    except KeyError:
        return None
    for shown in (plain, full):
        if shown.startswith(text):
            return shown[len(text) :]
    return None
