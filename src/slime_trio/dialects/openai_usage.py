"""What the two OpenAI dialects share: usage and header fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from slime_core import sglang
from slime_core.types import PackedIds, token_count
from slime_trio.exchange import Headers

__all__ = ["PromptUsage", "StreamedUsage", "json_headers", "prompt_usage"]


class PromptUsage(TypedDict):
    """Prompt tokens, each prompt once, and how many of them the worker had cached."""

    prompt_tokens: int
    cached_tokens: int


class _Usage(PromptUsage):
    completion_tokens: int


def prompt_usage(prompts: Sequence[PackedIds], answers: Sequence[sglang.Answer]) -> PromptUsage:
    """Usage of a whole answer; samples of one prompt share its cached tokens."""
    per_prompt = max(1, len(answers) // max(1, len(prompts)))
    cached = (
        max(answer.cached_tokens for answer in answers[at : at + per_prompt])
        for at in range(0, len(answers), per_prompt)
    )
    return {"prompt_tokens": sum(map(token_count, prompts)), "cached_tokens": sum(cached)}


class StreamedUsage:
    """Counts the tokens of a stream as they come."""

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}

    def note(self, step: sglang.StreamStep) -> None:
        """Take notice of a worker event."""
        if step.sample is not None:
            self._tokens[step.sample] = step.tokens

    def counts(self, prompt_tokens: int) -> _Usage:
        """Usage so far. Streams do not tell apart what was cached."""
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": sum(self._tokens.values()),
            "cached_tokens": 0,
        }


def json_headers(*, streams: bool) -> Headers:
    """Header fields of a JSON answer, or of an event stream."""
    if streams:
        return [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
        ]
    return [(b"content-type", b"application/json")]
