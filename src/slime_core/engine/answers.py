"""Emissions as the JSON of ``/generate``: whole answers, cumulative chunks, incremental chunks."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.engine.generate_call import GenerateCall, Prompt
from slime_core.engine.generation import Abort, Emission, Finish, Generation, Score, finish_json

__all__ = ["AnswerBuilder", "ExpertShape", "routed_experts"]

_EXPERTS = 64


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """The pretended mixture of experts: ``layers`` layers that choose ``top_k`` experts each."""

    layers: int
    top_k: int


def routed_experts(
    sequence: Sequence[int], start: int, shape: ExpertShape, *, computed_from: int = 0
) -> str:
    """Base64 of little-endian int32, shape (tokens - 1 - start, layers, top_k).

    The pretended choice depends on the token, its position and the layer, so that a row which
    lands at the wrong position is noticed. The last token was never routed and has no row. What
    stands before ``computed_from`` was computed elsewhere; its rows are there and mean nothing.
    """
    rows = (
        (token * 31 + place * 17 + layer * 7 + rank) % _EXPERTS if place >= computed_from else 0
        for place, token in enumerate(sequence[:-1])
        if place >= start
        for layer in range(shape.layers)
        for rank in range(shape.top_k)
    )
    values = tuple(rows)
    return base64.b64encode(struct.pack(f"<{len(values)}i", *values)).decode()


class AnswerBuilder:
    """Collects one sample's emissions; its ``chunk`` is the JSON of what was collected so far.

    ``incremental`` makes text, output ids and output logprobs deltas (SGLang's
    ``--incremental-streaming-output``); counts and prompt-side lists stay totals.
    ``computed_from``: the first token whose experts are known here. ``piece`` gives the text of one
    id, for ``return_text_in_logprobs``.
    """

    def __init__(
        self,
        call: GenerateCall,
        prompt: Prompt,
        asked: Generation,
        *,
        incremental: bool,
        experts: ExpertShape | None,
        computed_from: int = 0,
        piece: Callable[[int], str],
    ) -> None:
        self._call = call
        self._prompt = prompt
        self._asked = asked
        self._incremental = incremental
        self._experts = experts
        self._computed_from = computed_from
        self._piece = piece if call.return_text_in_logprobs else None
        self._tokens: list[Score] = []
        self._texts: list[str] = []
        self._prompt_scores: tuple[Score, ...] = ()

    @property
    def completion_tokens(self) -> int:
        """How many tokens were collected."""
        return len(self._tokens)

    def add(self, emission: Emission) -> None:
        """Takes the next emission of this sample."""
        self._tokens += emission.tokens
        self._texts.append(emission.text)
        self._prompt_scores = self._prompt_scores or emission.prompt_scores

    def chunk(self, emission: Emission, timing: dict[str, float]) -> dict[str, Any]:
        """The answer up to and including ``emission``, the one that was added last.

        ``timing`` is added to ``meta_info``: ``e2e_latency`` and the like, in seconds.
        """
        whole = not self._incremental
        tokens = self._tokens if whole else list(emission.tokens)
        text = "".join(self._texts) if whole else emission.text
        ids = [score.token for score in tokens]
        if not whole and isinstance(emission.finish, Abort) and emission.finish.queued:
            # SGLang's quirk for a request that was retracted and then aborted in the queue.
            text, ids = "".join(self._texts), [score.token for score in self._tokens[-1:]]
        answer: dict[str, Any] = {"text": text, "output_ids": ids}
        if self._call.return_prompt_token_ids:
            answer["prompt_token_ids"] = list(self._asked.prompt_ids)
        answer["meta_info"] = self._meta_info(emission, tokens, timing)
        return answer

    def _meta_info(
        self, emission: Emission, tokens: list[Score], timing: dict[str, float]
    ) -> dict[str, Any]:
        finish = emission.finish
        meta: dict[str, Any] = {
            "id": self._asked.rid,
            "finish_reason": None if finish is None else finish_json(finish),
            "weight_version": emission.version,
            "completion_tokens": len(self._tokens),
            "reasoning_tokens": 0,
        }
        if not _is_queued(finish):
            meta["prompt_tokens"] = len(self._asked.prompt_ids)
            meta["cached_tokens"] = emission.cached_tokens
            meta["num_retractions"] = emission.retractions
        if finish is not None:
            meta["weight_versions"] = [
                {"version": span.version, "start": span.start, "end": span.end}
                for span in emission.spans
            ]
        if self._prompt.return_logprob:
            meta |= self._logprobs(tokens)
        if finish is not None and self._call.return_routed_experts and self._experts is not None:
            sequence = (*self._asked.prompt_ids, *(score.token for score in self._tokens))
            meta["routed_experts"] = routed_experts(
                sequence,
                self._call.routed_experts_start_len,
                self._experts,
                computed_from=self._computed_from,
            )
        return meta | timing

    def _logprobs(self, tokens: list[Score]) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "input_token_logprobs": [self._triple(s.token, s.logprob) for s in self._prompt_scores],
            "output_token_logprobs": [self._triple(s.token, s.logprob) for s in tokens],
            "output_token_logprobs_length": len(self._tokens),
        }
        if self._asked.top:
            meta["input_top_logprobs"] = self._lists(s.top for s in self._prompt_scores)
            meta["output_top_logprobs"] = self._lists(s.top for s in tokens)
        if self._asked.watched:
            meta["input_token_ids_logprobs"] = self._lists(s.watched for s in self._prompt_scores)
            meta["output_token_ids_logprobs"] = self._lists(s.watched for s in tokens)
        return meta

    def _lists(
        self, rows: Iterable[tuple[tuple[int, float | None], ...]]
    ) -> list[list[list[Any]] | None]:
        return [[self._triple(token, logprob) for token, logprob in row] or None for row in rows]

    def _triple(self, token: int, logprob: float | None) -> list[Any]:
        return [logprob, token, self._piece(token) if self._piece else None]


def _is_queued(finish: Finish | None) -> bool:
    return isinstance(finish, Abort) and finish.queued
