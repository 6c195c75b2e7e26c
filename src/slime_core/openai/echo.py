"""``echo``: a prompt shown before its answers, with the logprobs of its tokens where asked for.

A worker tells the logprobs of a prompt's tokens in ``meta_info.input_token_logprobs``, one for each
with ``logprob_start_len: 0``, the first without a number (SGLang 0.5.23). It is ``null`` for the
client too, as with OpenAI's own models, though the SDK's types know of no null there. The tokens
shown are those of the echoed text; what a tokenizer puts in front of a text (a token for its
beginning, a space) is none of it.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec
from msgspec import Raw

from slime_core import sse
from slime_core.errors import WorkerError
from slime_core.openai.completions import CompletionRequest
from slime_core.openai.logprobs import LogprobCursor, ShownToken
from slime_core.sglang.errors import read_json
from slime_core.strict_json import is_null
from slime_core.types import PackedIds, unpack_ids
from slime_core.vocabulary import Vocabulary

__all__ = ["Echo", "PromptScores", "echo_of", "event_scores", "prompt_scores"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """A prompt's text, and its tokens where their logprobs were asked for."""

    text: str
    tokens: tuple[ShownToken, ...] = ()


class _Triple(msgspec.Struct, array_like=True, frozen=True, gc=False):
    logprob: float | None
    token: int


class PromptScores(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker told of a prompt's tokens."""

    input_token_logprobs: list[_Triple] | None = None
    input_top_logprobs: Raw = Raw(b"null")


class _Item(msgspec.Struct):
    meta_info: PromptScores


_ITEM: Final = msgspec.json.Decoder(_Item)
_ITEMS: Final = msgspec.json.Decoder(list[_Item])


def prompt_scores(body: bytes, request: CompletionRequest) -> list[PromptScores]:
    """What the body of a whole answer tells of each prompt, as its first sample has it."""
    if not request.array:
        return [read_json(_ITEM, body, "the answer").meta_info]
    items = read_json(_ITEMS, body, "the answers")
    return [item.meta_info for item in items[:: request.n]]


def event_scores(raw: bytes) -> PromptScores:
    """What an event of a stream tells of its sample's prompt."""
    (event,) = sse.Decoder().receive(raw)
    return read_json(_ITEM, event.data, "the event").meta_info


def echo_of(
    text: str, ids: PackedIds, scores: PromptScores, vocabulary: Vocabulary, *, top: int
) -> Echo:
    """The echo of a prompt with its tokens' logprobs.

    Raises :class:`WorkerError` where the worker did not tell one for each token of ``ids``.
    """
    tokens = unpack_ids(ids)
    triples = scores.input_token_logprobs or []
    if [triple.token for triple in triples] != tokens:
        raise WorkerError("The worker gave no logprobs for the tokens of the prompt.")
    cursor = LogprobCursor(vocabulary, top=top, skip_special=False)
    tops = b"" if is_null(scores.input_top_logprobs) else bytes(scores.input_top_logprobs)
    cursor.push(tokens, [triple.logprob for triple in triples], tops)
    full = vocabulary.decode(tokens, skip_special=False, at_start=False)
    before = len(full) - len(text) if full.endswith(text) else 0
    placed = cursor.take()
    ends = [*(token.start for token in placed[1:]), len(full)]
    return Echo(
        text=text,
        tokens=tuple(
            msgspec.structs.replace(
                token,
                start=max(0, token.start - before),
                # Nothing stands before the first token, so nothing is known of it.
                logprob=None if triple.logprob is None else token.logprob,
            )
            for token, triple, end in zip(placed, triples, ends, strict=True)
            if end > before or token.start >= before
        ),
    )
