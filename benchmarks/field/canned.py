"""What the canned worker says and what it is asked: answers and requests of known lengths.

Everything is cut from the corpus that travels with the package, so that text and ids belong
together and every run sends the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.grove import checkpoint
from benchmarks.prose import prose
from slime_core.types import Encoding

__all__ = [
    "Body",
    "Payload",
    "conversation",
    "ids_request",
    "sampled",
    "script",
    "spoken",
    "text_request",
    "write_bodies",
]

_ID: Final = "@" * 32
"""Where the worker writes an answer's id."""
_NUMBER: Final = "0,1,2,3,4,5,6,7"
"""Where the generator writes a conversation's number, digit by digit: eight ids, or text."""
_VERSION: Final = "1"
_PAGES: Final[dict[str, Any]] = {
    "/health": {},
    "/health_generate": {},
    "/ready": {},
    "/get_model_info": {
        "model_path": "canned",
        "tokenizer_path": "canned",
        "is_generation": True,
        "weight_version": _VERSION,
    },
    "/get_server_info": {"model_path": "canned", "served_model_name": "canned", "dp_size": 1},
    "/v1/models": {
        "object": "list",
        "data": [{"id": "canned", "object": "model", "created": 0, "owned_by": "sglang"}],
    },
}
_ALIASES: Final = {"/model_info": "/get_model_info", "/server_info": "/get_server_info"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """An answer of so many ``tokens``. As a stream: so many ``events``, ``interval_us`` apart
    (0: all at once), and ``[DONE]``."""

    tokens: int
    events: int = 0
    interval_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """One request's body; from ``number_at`` on the generator writes a number (−1: nowhere)."""

    data: bytes
    number_at: int

    @classmethod
    def of(cls, value: Any) -> Body:
        """A body without a number: ``value`` as JSON."""
        return cls(data=msgspec.json.encode(value), number_at=-1)

    def numbered(self, number: int) -> bytes:
        """The body as the generator sends it in the conversation of this number."""
        data = bytearray(self.data)
        if self.number_at >= 0:
            data[self.number_at : self.number_at + 16 : 2] = f"{number % 10**8:08d}".encode()
        return bytes(data)


@cache
def sampled(tokens: int) -> tuple[tuple[int, ...], str]:
    """The ids and the text of the one answer that has so many tokens."""
    tokenizer = checkpoint().tokenizer
    ids = _prose_ids(0)
    first = tokens * 7919 % len(ids)
    turned = (ids[first:] + ids[:first]) * (tokens // len(ids) + 1)
    said = tuple(turned[:tokens])
    return said, tokenizer.vocabulary.decode(said, skip_special=True, at_start=False)


@cache
def _prose_ids(seed: int) -> list[int]:
    text = prose(seed, 60_000)
    return checkpoint().tokenizer.encode(text, encoding=Encoding.RENDERED, first=False)


def script(payloads: Iterable[Payload]) -> bytes:
    """The canned worker's script: its pages and an answer for each of ``payloads``.

    Raises ``ValueError`` where two that differ would be asked for in the same words.
    """
    pages = {**_PAGES, **{alias: _PAGES[path] for alias, path in _ALIASES.items()}}
    records = [_record(f"page {path}", msgspec.json.encode(page)) for path, page in pages.items()]
    asked: dict[tuple[int, bool], Payload] = {}
    for payload in payloads:
        if asked.setdefault((payload.tokens, payload.events > 0), payload) != payload:
            raise ValueError(f"two answers of {payload.tokens} tokens")
    for payload in asked.values():
        ids, text = sampled(payload.tokens)
        if payload.events:
            words = f"stream {payload.tokens} {payload.interval_us}"
            records.append(_record(words, b"".join(_events(payload, ids))))
        else:
            records.append(_record(f"answer {payload.tokens}", _answer(ids, text, 0, len(ids))))
    return b"".join(records)


def _record(words: str, body: bytes) -> bytes:
    return f"{words} {len(body)}\n".encode() + body


def _events(payload: Payload, ids: Sequence[int]) -> Iterator[bytes]:
    """Events of what is new, as ``--incremental-streaming-output`` gives them."""
    decode = checkpoint().tokenizer.vocabulary.decode
    before = ""
    for number in range(payload.events):
        start, stop = (len(ids) * place // payload.events for place in (number, number + 1))
        text = decode(ids[:stop], skip_special=True, at_start=False)
        yield b"data: " + _answer(ids, text[len(before) :], start, stop) + b"\n\n"
        before = text
    yield b"data: [DONE]\n\n"


def _answer(ids: Sequence[int], text: str, start: int, stop: int) -> bytes:
    new = ids[start:stop]
    ended = stop == len(ids)
    meta = {
        "id": _ID,
        "finish_reason": {"type": "length", "length": stop} if ended else None,
        "prompt_tokens": 64,
        "completion_tokens": stop,
        "cached_tokens": 0,
        "weight_version": _VERSION,
        "output_token_logprobs": [
            (_logprob(place), token, None) for place, token in enumerate(new, start)
        ],
        "e2e_latency": 0.01,
    }
    return msgspec.json.encode({"text": text, "output_ids": new, "meta_info": meta})


def _logprob(place: int) -> float:
    """A 32-bit float, which as a double has as many digits as engines write."""
    value: float = struct.unpack("f", struct.pack("f", -0.1 - place % 997 / 701))[0]
    return value


def ids_request(prompt: int, answer: int, *, stream: bool = False, seed: int = 1) -> Body:
    """A request with ``prompt`` ids; the first eight become a number."""
    some = _prose_ids(seed)
    ids = (some * (prompt // len(some) + 1))[: prompt - 8]
    words = f"[{_NUMBER}," + ",".join(map(str, ids)) + "]"
    return _body("input_ids", words, answer, stream=stream)


def text_request(characters: int, answer: int, *, seed: int = 1) -> Body:
    """A request with text, which begins with a number."""
    text = f"{_NUMBER} {prose(seed, characters)}"
    return _body("text", msgspec.json.encode(text).decode(), answer)


def conversation(turns: int, question: int, answers: Sequence[int]) -> list[Body]:
    """The requests of a conversation by text: each holds all that was said before it.

    ``question``: characters of every turn's new text; ``answers``: tokens of every turn's answer,
    all different, so that the worker can tell them apart. What it will say is known beforehand.
    """
    text = f"{_NUMBER} "
    requests = []
    for turn in range(turns):
        asked = prose(turn + 100, question)
        text += f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        requests.append(_body("text", msgspec.json.encode(text).decode(), answers[turn]))
        text += sampled(answers[turn])[1] + "<|im_end|>\n"
    return requests


def spoken(requests: Sequence[Body], answers: Sequence[int]) -> str:
    """The text of a whole conversation, its last answer included; its number is 0."""
    text: str = msgspec.json.decode(requests[-1].data)["text"]
    return text.replace(_NUMBER, ",".join("0" * 8), 1) + sampled(answers[-1])[1]


def _body(field: str, value: str, answer: int, *, stream: bool = False) -> Body:
    words = (
        f'{{"{field}":{value},"sampling_params":{{"max_new_tokens":{answer},"temperature":1.0}},'
        f'"return_logprob":true,"stream":{"true" if stream else "false"}}}'
    )
    data = words.encode()
    return Body(data=data, number_at=data.index(_NUMBER.encode()))


def write_bodies(path: Path, bodies: Iterable[Body]) -> None:
    """The file that the load generator reads."""
    records = (f"body {body.number_at} {len(body.data)}\n".encode() + body.data for body in bodies)
    path.write_bytes(b"".join(records))
