"""Streams as workers send them, and the requests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from benchmarks.grove import Speech, checkpoint
from slime_core.detokenize import IncrementalDetokenizer
from slime_core.types import Encoding
from slime_trio.tokenizer import Tokenizer

__all__ = ["CASES", "Case", "events_of"]

_PROMPT: Final = "Say something, please."
_CHAT: Final[dict[str, Any]] = {
    "model": "m",
    "messages": [{"role": "user", "content": _PROMPT}],
}
_COMPLETION: Final = {"model": "m", "prompt": _PROMPT, "max_tokens": 9999}
_TOOL: Final = {
    "type": "function",
    "function": {"name": "note", "parameters": {"type": "object", "properties": {"text": {}}}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked for, and how the worker streams."""

    path: str
    body: dict[str, Any]
    cumulative: bool = False
    captured: bool = True
    says: str = "prose"
    session: bool = False
    """Whether it names one, and so may be retried."""
    keyed: bool = False
    """Whether keys are configured, and so workers know requests by the router's ids."""

    @property
    def request(self) -> bytes:
        """The request's body."""
        return msgspec.json.encode({**self.body, "stream": True})


_NATIVE: Final[dict[str, Any]] = {"text": _PROMPT, "sampling_params": {"max_new_tokens": 9999}}
_LOGPROBS: Final = {"return_logprob": True}

CASES: Final = {
    "passed": Case(path="/generate", body=_NATIVE, captured=False),
    "native": Case(path="/generate", body=_NATIVE),
    "native logprobs": Case(path="/generate", body=_NATIVE | _LOGPROBS),
    "native session": Case(path="/generate", body=_NATIVE | _LOGPROBS, session=True),
    "native keyed": Case(path="/generate", body=_NATIVE | _LOGPROBS | {"rid": "a"}, keyed=True),
    "cumulative": Case(path="/generate", body=_NATIVE, cumulative=True),
    "cumulative logprobs": Case(path="/generate", body=_NATIVE | _LOGPROBS, cumulative=True),
    "completions": Case(path="/v1/completions", body=_COMPLETION),
    "completions logprobs": Case(path="/v1/completions", body=_COMPLETION | {"logprobs": 0}),
    "chat": Case(path="/v1/chat/completions", body=_CHAT),
    "chat logprobs": Case(path="/v1/chat/completions", body=_CHAT | {"logprobs": True}),
    "chat stop": Case(path="/v1/chat/completions", body=_CHAT | {"stop": ["\n\n\n", "END"]}),
    "chat cumulative": Case(path="/v1/chat/completions", body=_CHAT, cumulative=True),
    "chat tools": Case(path="/v1/chat/completions", body=_CHAT | {"tools": [_TOOL]}),
    "chat reasoning": Case(
        path="/v1/chat/completions", body=_CHAT | {"tools": [_TOOL]}, says="reasoning"
    ),
    "chat call": Case(path="/v1/chat/completions", body=_CHAT | {"tools": [_TOOL]}, says="call"),
}


def events_of(case: Case, tokens: int, *, with_logprobs: bool = True) -> list[bytes]:
    """The events of one answer of about so many tokens, one for each, and the end of the stream."""
    tokenizer = checkpoint().tokenizer
    ids = _ids(case, tokenizer, tokens)
    return [*_events(case, tokenizer, ids, with_logprobs), b"data: [DONE]\n\n"]


def _ids(case: Case, tokenizer: Tokenizer, tokens: int) -> list[int]:
    ids, text = Speech(tokenizer).say(tokens)
    if case.says == "prose":
        return ids
    words = msgspec.json.encode(text).decode()
    whole = {
        "reasoning": f"<think>\n{text}\n</think>\n\nDone.",
        "call": f'<tool_call>\n{{"name": "note", "arguments": {{"text": {words}}}}}\n</tool_call>',
    }[case.says]
    return list(tokenizer.encode(whole, encoding=Encoding.RENDERED, first=False))


def _events(
    case: Case, tokenizer: Tokenizer, ids: list[int], with_logprobs: bool
) -> Iterator[bytes]:
    detokenizer = IncrementalDetokenizer(tokenizer.vocabulary, skip_special=True, at_start=False)
    text = ""
    triples = [[-(place % 1024) / 256 - 2**-20, token, None] for place, token in enumerate(ids)]
    for place in range(len(ids)):
        new = detokenizer.push(ids[place : place + 1])
        text += new
        ended = place + 1 == len(ids)
        first = 0 if case.cumulative else place
        meta: dict[str, Any] = {
            "id": "4f3c1a7be0d94a6c8f7c5b1d2e3f4a5b",
            "finish_reason": {"type": "length", "length": len(ids)} if ended else None,
            "prompt_tokens": 6,
            "weight_version": "1",
            "total_retractions": 0,
            "input_token_logprobs": [],
            "output_token_logprobs": triples[first : place + 1],
            "reasoning_tokens": 0,
            "completion_tokens": place + 1,
            "cached_tokens": 0,
            "cached_tokens_details": None,
        }
        if not with_logprobs:
            del meta["input_token_logprobs"], meta["output_token_logprobs"]
        shown = text if case.cumulative else new
        value = {"text": shown, "output_ids": ids[first : place + 1], "meta_info": meta}
        yield b"data: " + msgspec.json.encode(value) + b"\n\n"
