"""A vocabulary and a model small enough to check by hand, and an engine that runs to its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from slime_core.engine import (
    Emission,
    Engine,
    EngineOptions,
    Finish,
    Generation,
    LanguageModel,
    SamplingParams,
    Score,
    Script,
    Span,
)
from slime_core.vocabulary import AddedToken, Vocabulary

__all__ = [
    "END",
    "START",
    "VOCABULARY",
    "Collected",
    "asked",
    "drain",
    "encode",
    "make_engine",
    "make_model",
    "step_once",
]

WORDS = ("the ", "cat ", "sat ", "on ", "mat. ", "dog ", "ran ", "你好", "🙂", "##", "#!")
START, END = 256 + len(WORDS), 257 + len(WORDS)
VOCABULARY = Vocabulary(
    [*(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS)],
    {
        START: AddedToken(id=START, content="<s>", special=True),
        END: AddedToken(id=END, content="<e>", special=True),
    },
)
TEXTS = (
    "the cat sat on the mat. ",
    "the dog ran on the mat. ",
    "the cat ran. 🙂",
    "你好the dog sat on the cat ",
)


def encode(text: str) -> tuple[int, ...]:
    """Greedy longest match: good enough for a toy."""
    ids: list[int] = []
    while text:
        word = next((w for w in WORDS if text.startswith(w)), None)
        ids += [256 + WORDS.index(word)] if word else list(text[0].encode())
        text = text[len(word or text[0]) :]
    return tuple(ids)


def make_model(texts: Iterable[str] = TEXTS, order: int = 4) -> LanguageModel:
    documents = [(START, *encode(text), END) for text in texts]
    return LanguageModel(documents, support=range(len(VOCABULARY)), order=order)


def make_engine(
    *, version: str = "default", script: Script | None = None, options: EngineOptions | None = None
) -> Engine:
    return Engine(
        model=make_model(),
        vocabulary=VOCABULARY,
        end_ids=frozenset({END}),
        options=options,
        version=version,
        script=script,
    )


def asked(rid: str = "r", text: str = "the ", seed: int = 1, **params: object) -> Generation:
    return Generation(
        rid=rid,
        prompt_ids=(START, *encode(text)),
        params=SamplingParams(**params),  # type: ignore[arg-type]
        seed=seed,
    )


@dataclass
class Collected:
    """Everything one request emitted."""

    tokens: list[Score] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    spans: tuple[Span, ...] = ()
    emissions: list[Emission] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [score.token for score in self.tokens]


def step_once(engine: Engine, into: dict[str, Collected], now: float = 0.0) -> None:
    for emission in engine.advance(now):
        got = into.setdefault(emission.rid, Collected())
        got.tokens += emission.tokens
        got.text += emission.text
        got.finish, got.spans = emission.finish, emission.spans
        got.emissions.append(emission)


def drain(engine: Engine, *generations: Generation) -> dict[str, Collected]:
    """Submits and runs until nothing is left to do, in virtual time."""
    for generation in generations:
        engine.submit(generation)
    into: dict[str, Collected] = {}
    now = 0.0
    for _ in range(100_000):
        deadline = engine.next_deadline
        if deadline is None:
            return into
        now = max(now, deadline)
        step_once(engine, into, now)
    raise AssertionError("the engine never came to rest")
