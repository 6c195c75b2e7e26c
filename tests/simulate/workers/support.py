"""A worker with a story, asked by hand, for the tests of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from slime_core import sglang, sse
from slime_core.engine import EngineOptions
from slime_core.errors import SlimeError
from slime_core.types import unpack_ids, unpack_logprobs
from tests.simulate import tokens
from tests.simulate.chance import derive
from tests.simulate.faults import NO_FAULTS, FaultRates
from tests.simulate.story import Sampled, Story
from tests.simulate.workers.worker import (
    Answering,
    Cut,
    Data,
    End,
    Head,
    Piece,
    Raw,
    Request,
    SimWorker,
)

__all__ = ["Asked", "Shop", "body_of", "head_of", "kept_of", "reads_as", "told_problem"]

PROMPT = "The quick brown fox"


@dataclass(frozen=True)
class Asked:
    """One request and what came."""

    body: bytes
    answering: Answering
    pieces: list[Piece] = field(default_factory=list)

    def take(self) -> list[Piece]:
        """All pieces so far."""
        self.pieces.extend(self.answering.pieces)
        self.answering.pieces.clear()
        return self.pieces


class Shop:
    """One worker, its story, and a clock that stands unless moved."""

    def __init__(
        self,
        *,
        faults: FaultRates = NO_FAULTS,
        incremental: bool = False,
        name: str = "bytes",
        seed: int = 1,
        options: EngineOptions | None = None,
    ) -> None:
        self.story = Story()
        self.tokens = tokens.of(name)
        self.now = 0.0
        self.requests = 0
        self.worker = SimWorker(
            "http://w1",
            tokens=self.tokens,
            story=self.story,
            chance=derive(seed, "worker"),
            options=options or EngineOptions(),
            version="1",
            faults=faults,
            incremental=incremental,
            seed=seed,
        )

    @property
    def sampled(self) -> list[Sampled]:
        return self.story.sampled

    def ask(self, *, stream: bool = True, n: int = 1, **others: Any) -> Asked:
        """A generation, as the router asks for it."""
        self.requests += 1
        params = {"max_new_tokens": 6, "n": n} | others.pop("params", {})
        body = {"text": PROMPT} | others
        body |= {"stream": stream, "return_logprob": True, "sampling_params": params}
        if n == 1 and "rid" not in others:
            prompts = body["text"]
            name = f"call-{self.requests}"
            body["rid"] = (
                name if isinstance(prompts, str) else [f"{name}-{at}" for at in range(len(prompts))]
            )
        return self.send("/generate", msgspec.json.encode(body))

    def send(self, path: str, body: bytes = b"", method: str = "POST") -> Asked:
        request = Request(method=method, target=path, body=body)
        return Asked(body, self.worker.receive(request, self.now))

    def step(self) -> None:
        self.worker.advance(self.now)

    def run(self) -> None:
        """Until nothing happens by itself, however late."""
        while (due := self.worker.next_deadline) is not None:
            self.now = max(self.now, due)
            self.worker.advance(self.now)


def head_of(pieces: Sequence[Piece]) -> Head:
    assert isinstance(pieces[0], Head)
    return pieces[0]


def body_of(pieces: Sequence[Piece]) -> bytes:
    return b"".join(piece.data for piece in pieces if isinstance(piece, Data))


def reads_as(asked: Asked) -> list[sglang.Answer | None]:
    """The answers as the router's own reader has them, as far as it came; per sample."""
    request = sglang.parse_generate(asked.body)
    pieces = asked.take()
    if not pieces or not isinstance(pieces[0], Head) or pieces[0].status != 200:
        return [None] * request.samples
    broken = any(isinstance(piece, Cut | Raw) for piece in pieces)
    if not dict(pieces[0].headers)["content-type"].startswith("text/event-stream"):
        whole = not broken and any(isinstance(piece, End) for piece in pieces)
        return _whole(body_of(pieces), request) if whole else [None] * request.samples
    if not request.stream:
        return _whole(body_of(pieces), request)
    return _streamed(body_of(pieces), request)


def _whole(body: bytes, request: sglang.GenerateRequest) -> list[sglang.Answer | None]:
    try:
        return list(sglang.parse_answer(body, request))
    except SlimeError:
        return [None] * request.samples


def _streamed(body: bytes, request: sglang.GenerateRequest) -> list[sglang.Answer | None]:
    """What is kept of each sample: at its finish, or where the stream broke off."""
    assembler, kept = sglang.StreamAssembler(request), dict[int, sglang.Answer | None]()
    try:
        for event in sse.Decoder().receive(body):
            for step in assembler.receive(event):
                if step.sample is not None and step.finish_reason is not None:
                    kept[step.sample] = assembler.partial(step.sample)
    except SlimeError:
        pass
    return [kept_of(assembler, sample, kept) for sample in range(request.samples)]


def kept_of(
    assembler: sglang.StreamAssembler, sample: int, kept: dict[int, sglang.Answer | None]
) -> sglang.Answer | None:
    if sample in kept:
        return kept[sample]
    try:
        return assembler.partial(sample)
    except SlimeError:
        return None


def told_problem(answer: sglang.Answer, sampled: Sampled) -> str | None:
    """Where an answer that can be captured says more than the wire did; ``None``: nowhere."""
    count = len(unpack_ids(answer.ids))
    if unpack_ids(answer.ids) != sampled.told_ids[:count] or count > sampled.told:
        return f"ids {unpack_ids(answer.ids)}, told were {sampled.told_ids}"
    if unpack_logprobs(answer.logprobs, count) != sampled.told_logprobs[:count]:
        return "logprobs"
    versions = [run.version for run in answer.versions for _ in range(run.start, run.end)]
    if (versions or [None] * count) != sampled.told_versions[:count]:
        return f"versions {versions}, told were {sampled.told_versions}"
    finish = None if answer.finish_reason is None else msgspec.json.decode(answer.finish_reason.raw)
    if finish is not None and (finish != sampled.told_finish or count != sampled.told):
        return f"finish {finish}, told was {sampled.told_finish}"
    return None
