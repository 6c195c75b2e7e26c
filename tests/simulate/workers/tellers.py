"""Emissions as JSON, byte by byte what ``AnswerBuilder`` would say, and several times faster.

A cumulative stream repeats everything in each event. Here the lists grow as bytes, so an event
costs a copy of what it repeats and no more. Requests with rare wishes (top logprobs, prompt
logprobs, texts beside the logprobs) go through the builder itself.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from slime_core.engine import (
    Abort,
    AnswerBuilder,
    Emission,
    GenerateCall,
    Generation,
    Prompt,
    finish_json,
)
from slime_core.vocabulary import Vocabulary

__all__ = ["Teller", "make_teller"]

_encode = msgspec.json.encode


class Teller(Protocol):
    """One sample's answer."""

    def add(self, emission: Emission) -> None:
        """Takes the next emission."""

    def chunk(self, emission: Emission, timing: dict[str, float]) -> bytes:
        """The JSON after ``emission``, the one that was added last."""


def make_teller(
    call: GenerateCall,
    prompt: Prompt,
    asked: Generation,
    *,
    incremental: bool,
    vocabulary: Vocabulary,
) -> Teller:
    """The teller for a sample. ``incremental``: text, ids and logprobs are deltas."""
    wishes = call.return_text_in_logprobs or call.return_prompt_token_ids
    scored = asked.top or asked.watched or asked.prompt_scores_from is not None
    if prompt.return_logprob and not wishes and not scored:
        return _Plain(asked, incremental=incremental)
    return _Built(call, prompt, asked, incremental=incremental, vocabulary=vocabulary)


class _Built:
    """Any answer, made by the builder."""

    def __init__(
        self,
        call: GenerateCall,
        prompt: Prompt,
        asked: Generation,
        *,
        incremental: bool,
        vocabulary: Vocabulary,
    ) -> None:
        self._builder = AnswerBuilder(
            call,
            prompt,
            asked,
            incremental=incremental,
            experts=None,
            piece=lambda token: vocabulary.decode([token], skip_special=False, at_start=False),
        )

    def add(self, emission: Emission) -> None:
        self._builder.add(emission)

    def chunk(self, emission: Emission, timing: dict[str, float]) -> bytes:
        return _encode(self._builder.chunk(emission, timing))


class _Plain:
    """The answer to a request that wants the sampled tokens' logprobs and nothing else."""

    __slots__ = ("_count", "_ids", "_incremental", "_last", "_prompt", "_rid", "_text", "_triples")

    def __init__(self, asked: Generation, *, incremental: bool) -> None:
        self._rid = _encode(asked.rid)
        self._prompt = len(asked.prompt_ids)
        self._incremental = incremental
        self._count = 0
        self._last = b""
        self._text = ""
        self._ids = bytearray()
        self._triples = bytearray()

    def add(self, emission: Emission) -> None:
        if self._incremental:
            self._ids.clear()
            self._triples.clear()
        for score in emission.tokens:
            token = b"%d" % score.token
            self._ids += token + b","
            self._triples += b"[%b,%b,null]," % (_encode(score.logprob), token)
            self._last = token
        self._count += len(emission.tokens)
        self._text += emission.text

    def chunk(self, emission: Emission, timing: dict[str, float]) -> bytes:
        finish, count = emission.finish, self._count
        ids, text = self._ids[:-1], self._text
        queued = isinstance(finish, Abort) and finish.queued
        if self._incremental and queued:
            ids = bytearray(self._last)
        elif self._incremental:
            text = emission.text
        prompt = b"" if queued else self._counts(emission)
        spans = b"" if finish is None else b',"weight_versions":' + _encode(_spans(emission))
        return (
            b'{"text":%b,"output_ids":[%b],"meta_info":{"id":%b,"finish_reason":%b,'
            b'"weight_version":%b,"completion_tokens":%d,"reasoning_tokens":0%b%b,'
            b'"input_token_logprobs":[],"output_token_logprobs":[%b],'
            b'"output_token_logprobs_length":%d%b}}'
        ) % (
            _encode(text),
            bytes(ids),
            self._rid,
            b"null" if finish is None else _encode(finish_json(finish)),
            _encode(emission.version),
            count,
            prompt,
            spans,
            bytes(self._triples[:-1]),
            count,
            b"," + _encode(timing)[1:-1] if timing else b"",
        )

    def _counts(self, emission: Emission) -> bytes:
        return b',"prompt_tokens":%d,"cached_tokens":%d,"num_retractions":%d' % (
            self._prompt,
            emission.cached_tokens,
            emission.retractions,
        )


def _spans(emission: Emission) -> list[dict[str, Any]]:
    return [
        {"version": span.version, "start": span.start, "end": span.end} for span in emission.spans
    ]
