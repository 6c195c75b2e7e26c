"""The start-up probe that finds out which added tokens are safe to cut behind.

``slime_core.boundaries`` says what a hard token is; this module shows it for the tokenizer at
hand, by its description first and by trial second. A description can only rule a token out. What
is left is tried between neighbours that tokenizers are known to treat specially, and is hard only
if the parts, encoded one by one, give the ids of the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from slime_core.boundaries import HardTokens

__all__ = ["probe_hard_tokens"]

_NEIGHBOURS: Final = (
    *("a", "", " ", "  b ", "\n", "\n\n\tc", "7", "'s", ". ", "<", "|", "_"),
    *("é", "\u0301e", "\u0338", "中文", "▁", "\u200d👩", "\u00a0", "Ａ"),
)
"""What stands between two occurrences: letters, digits, blanks and line ends, which pre-tokenisers
attach to what follows; combining marks and a joiner, which normalisers attach to what precedes;
characters that added tokens are made of; the mark that stands for a space; a full-width letter."""

_BATCH: Final = 256
"""Probe texts encoded in one call: bounds memory, and is enough to use every core."""


def probe_hard_tokens(
    head: RawTokenizer, tail: RawTokenizer, description: Mapping[str, Any]
) -> HardTokens:
    """Which added tokens of a tokenizer are hard.

    ``head`` encodes the beginning of a text, ``tail`` what comes later (it adds no prefix space;
    the same object where there is none). ``description`` is the parsed ``tokenizer.json``. Blocks
    for a fraction of a second with a thousand added tokens.
    """
    tokens = head.get_added_tokens_decoder()
    raw = {token.content: token_id for token_id, token in tokens.items() if not token.normalized}
    late = {}
    if _second_pass_is_literal(tokens.values(), description):
        late = {token.content: token_id for token_id, token in tokens.items() if token.normalized}
    candidates = [
        (token_id, token.content)
        for token_id, token in sorted(tokens.items())
        if (token.content in raw or token.content in late) and _may_be_hard(token, tokens)
    ]
    emitted = _emitted_by_model(head, candidates, description)
    candidates = [candidate for candidate in candidates if candidate[0] not in emitted]
    hard = set(_passing(head, tail, candidates))
    if tail is not head:
        # A run may also begin behind a sampled answer; then all of it is encoded by `tail`.
        hard &= set(_passing(tail, tail, candidates))
    return HardTokens(raw, frozenset(hard), late)


def _may_be_hard(token: AddedToken, tokens: Mapping[int, AddedToken]) -> bool:
    """What the flags rule out.

    A token that strips takes blanks from its neighbours. One that must be a single word depends on
    both of them; where such a token exists, the one *before* it decides whether it is found, so a
    word character at a hard token's end would make a difference to a tail. Blanks at the edge of a
    content may be taken along by a stripping neighbour.
    """
    if token.lstrip or token.rstrip or token.single_word:
        return False
    if token.content != token.content.strip():
        return False
    last = token.content[-1]
    return not (last.isalnum() or last == "_") or not any(
        other.single_word for other in tokens.values()
    )


def _second_pass_is_literal(tokens: Iterable[AddedToken], description: Mapping[str, Any]) -> bool:
    """Whether the text itself tells where tokens flagged ``normalized`` are found.

    They are looked for in the normalised text of what the first pass left over. That is the text
    itself if the normaliser changes nothing and the first pass takes nothing beyond the contents
    it is looking for.
    """
    first_pass = [token for token in tokens if not token.normalized]
    return _changes_nothing(description.get("normalizer")) and not any(
        token.lstrip or token.rstrip or token.single_word for token in first_pass
    )


def _changes_nothing(normalizer: Mapping[str, Any] | None) -> bool:
    """No normaliser, or a sequence of such (DeepSeek has an empty one)."""
    if normalizer is None:
        return True
    return normalizer.get("type") == "Sequence" and all(
        map(_changes_nothing, normalizer["normalizers"])
    )


def _emitted_by_model(
    head: RawTokenizer, candidates: Sequence[tuple[int, str]], description: Mapping[str, Any]
) -> set[int]:
    """The candidates whose id the model behind them may also give to ordinary text.

    Then counting ids would not count occurrences. A byte-pair model gives out what its merges make,
    single characters, byte tokens and the unknown token. Models of other kinds give out any entry
    they have.
    """
    entries = {
        content: token_id
        for token_id, content in candidates
        if head.model.id_to_token(token_id) is not None
    }
    if not entries:
        return set()
    model = description["model"]
    if model.get("type", "BPE") != "BPE":
        return set(entries.values())
    emitted = {model.get("unk_token"), *_made_by_merges(model["merges"], entries)}
    emitted.update(entry for entry in entries if len(entry) == 1 or entry.startswith("<0x"))
    if model.get("ignore_merges"):
        # Any entry, for a word that spells it. The matcher takes such words away before, unless
        # something other than the entry's own text ends up spelling it.
        literal = _changes_nothing(description.get("normalizer"))
        emitted.update(entry for entry in entries if not (literal and entry.isascii()))
    return {token_id for content, token_id in entries.items() if content in emitted}


def _made_by_merges(merges: Iterable[Any], entries: Collection[str]) -> Iterator[str]:
    """The entries that some merge results in; merges are written as text or as pairs."""
    for merge in merges:
        result = merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
        if result in entries:
            yield result


def _passing(
    first: RawTokenizer,
    tail: RawTokenizer,
    candidates: Sequence[tuple[int, str]],
) -> Iterator[int]:
    """The candidates for which parts and whole agree, tried with all neighbours at once."""
    behind = [_plain(tail, [text])[0] for text in _NEIGHBOURS]
    begin = _plain(first, [_NEIGHBOURS[0]])[0]
    for at in range(0, len(candidates), _BATCH):
        batch = candidates[at : at + _BATCH]
        inside = _plain(first, [content.join(_NEIGHBOURS) for _, content in batch])
        leading = _plain(first, [content + content + _NEIGHBOURS[0] for _, content in batch])
        for (token_id, _), found, found_leading in zip(batch, inside, leading, strict=True):
            expected = list(begin)
            for ids in behind[1:]:
                expected += [token_id, *ids]
            if found == expected and found_leading == [token_id, token_id, *behind[0]]:
                yield token_id


def _plain(tokenizer: RawTokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text, nothing added."""
    return [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
