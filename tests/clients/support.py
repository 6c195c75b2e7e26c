"""Rollouts for real clients: what the model says, the ways into a session, and what must be held.

The answers are hard on purpose: they are spelled in other tokens than the tokenizer would choose,
with reasoning, with arguments that every client spells anew, and with two calls at once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final, TypeVar

import openai
import pytest
import trio

from slime_core.engine import Reply
from tests.server.harness import (
    Arrived,
    EmbeddedWorker,
    Events,
    Served,
    answer_item,
    embedded_worker,
    encode,
    fake_worker,
    http_response,
    router_with,
    scripted,
    settled,
    tokenizer,
)

__all__ = [
    "ANSWER",
    "CARRIERS",
    "ODD_ANSWERS",
    "QUESTION",
    "ROUNDS",
    "RUN_BY",
    "TOOLS",
    "Rollout",
    "clock",
    "constrained_rollout",
    "needs_the_group",
    "openai_options",
    "rollout",
    "round_of",
    "spelled",
    "weather",
    "with_openai",
]

T = TypeVar("T")


def _called(inside: str) -> str:
    return f'<tool_call>\n{{"name": {inside}}}\n</tool_call>'


CARRIERS: Final = ("nothing", "path", "key")
"""How a client says which session its calls belong to: not at all, by its base URL, by its key."""

QUESTION: Final = "What is the weather in Zürich?"
ANSWER: Final = "It is 21 °C in Zürich, and 9:30. 🙂"
ROUNDS: Final = (
    "<think>\nZürich, in degrees C.\n</think>\n\nLet me look.\n<tool_call>\n"
    '{"name": "weather", "arguments": {"unit":"C",  "city":"Zürich", "days":1.0}}\n</tool_call>',
    '<tool_call>\n{"name": "weather", "arguments": {"city": "B\\u00e4rn", "days": 2}}\n'
    '</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {"place":"Zürich"}}\n</tool_call>',
    f"<think>\nNow I know.\n</think>\n\n{ANSWER}",
)
"""What the model says in each round of the rollout that all clients play."""

RUN_BY: Final[list[tuple[str, dict[str, Any]]]] = [
    ("weather", {"city": "Zürich", "unit": "C", "days": 1.0}),
    ("weather", {"city": "Bärn", "days": 2}),
    ("clock", {"place": "Zürich"}),
]
"""The calls in it: names and arguments."""

ODD_ANSWERS: Final = {
    "arguments that are no JSON": _called('"weather", "arguments": {"city": "Zür, "days": }'),
    "a call that does not end": 'Look: <tool_call>\n{"name": "weather", "arguments": {"city": "Z"',
    "a call without a name": '<tool_call>\n{"arguments": {"city": "Z"}}\n</tool_call>',
    "no arguments": _called('"weather"'),
    "empty arguments": _called('"weather", "arguments": {}'),
    "arguments in a string": _called('"weather", "arguments": "{\\"city\\": \\"Z\\"}"'),
    "a tool that nobody has": _called(
        '"nope", "arguments": {"a": [1.50, 1e3, -0.0, "\\u00fc\\/"]}'
    ),
    "a number beyond what doubles tell apart": _called(
        '"weather", "arguments": {"city": "Z", "days": 1234567890123456789}'
    ),
    "a number beyond doubles": _called('"weather", "arguments": {"city": "Z", "days": 1e400}'),
    "a key that comes twice": _called('"weather", "arguments": {"city": "A", "city": "B"}'),
    "content on both sides": "Before. " + _called('"clock", "arguments": {}') + " After.\n",
    "nothing but reasoning": "<think>\nOnly this.\n</think>\n\n",
    "reasoning that does not end": "<think>\nNever closed",
    "nothing at all": "",
    "nothing but blanks": "  \n ",
}
"""Answers of a policy that has not learned its form yet. What clients make of them, they send back:
a call that is no JSON is mended by one, emptied by another."""

TOOLS: Final[list[dict[str, Any]]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "unit": {"type": "string"},
                    "days": {"type": "number"},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "The time at a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}},
                "required": ["place"],
            },
        },
    },
]


def weather(city: str, unit: str = "C", days: float = 1.0) -> str:
    """The weather of a city."""
    return f"{city}: 21 °{unit}, for {days:g} days"


def clock(place: str) -> str:
    """The time at a place."""
    return f"{place}: 9:30"


def needs_the_group() -> None:
    """Skip a module of tests unless the group ``clients`` is installed."""
    for name in ("agents", "langchain_openai", "litellm", "pydantic_ai"):
        if find_spec(name) is None:
            pytest.skip("needs `pip install --group clients`", allow_module_level=True)


_TAGS = re.compile(r"(</?think>|</?tool_call>)")


def spelled(text: str) -> list[int]:
    """Ids that spell ``text`` as the tokenizer would not: two characters at a time, tags whole.

    They end with the token that ends a turn.
    """
    ids: list[int] = []
    for piece in _TAGS.split(text):
        step = len(piece) if _TAGS.fullmatch(piece) else 2
        for at in range(0, len(piece), step or 1):
            ids += encode(piece[at : at + step])
    return [*ids, min(tokenizer().eos_ids)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a worker with a grammar was asked, and what it said; named as an engine's records."""

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    asked: dict[str, Any]


@dataclass(frozen=True, slots=True)
class GrammarWorker:
    """A worker that takes every constraint, which the embedded one cannot, and says its lines."""

    lines: Iterator[list[int]]
    records: list[Told] = field(default_factory=list)

    async def answer(self, arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
        asked, ids = arrived.json, next(self.lines)
        end = {"type": "stop", "matched": ids[-1]}
        item = answer_item(ids, "", rid=asked["rid"], finish=end)
        logprobs = tuple(one[0] for one in item["meta_info"]["output_token_logprobs"])
        self.records.append(Told(
            prompt_ids=tuple(asked["input_ids"]),
            output_ids=tuple(ids),
            logprobs=logprobs,
            asked=asked,
        ))  # fmt: skip
        if not asked.get("stream"):
            return http_response(json.dumps(item).encode())
        events = Events(stream)
        await events.begin()
        for count in range(1, len(ids)):
            await events.event(answer_item(ids[:count], "", rid=asked["rid"], finished=False))
        await events.event(item)
        await events.end()
        return None


@dataclass(slots=True, kw_only=True)
class Rollout:
    """A router with one worker that has been told what to say, and the way in for a client."""

    served: Served
    worker: EmbeddedWorker | GrammarWorker
    base_url: str
    api_key: str
    session: str | None

    async def run(self, use: Callable[[], T]) -> T:
        """What a synchronous client does, in a thread."""
        return await trio.to_thread.run_sync(use)

    async def run_async(self, use: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a client on asyncio does, in a loop and a thread of its own."""
        return await trio.to_thread.run_sync(lambda: asyncio.run(use()))

    async def check(self, *, rounds: int = len(ROUNDS), flags: Sequence[str] = ()) -> None:
        """All that was sampled lies in one trajectory, as it was sampled.

        ``flags`` are those of the last call; no other has any.
        """
        await settled(self.served)
        records = self.worker.records
        assert len(records) == rounds
        for one, after in itertools.pairwise(records):
            held = [*one.prompt_ids, *one.output_ids]
            assert list(after.prompt_ids[: len(held)]) == held
        names = list(self.served.router.state.forest.calls)
        assert len(names) == rounds
        for before, name in zip([None, *names], names, strict=False):
            found = await self.served.trajectory(name)
            assert found["flags"] == (list(flags) if name == names[-1] else [])
            assert found["parent_id"] == before
            assert found["session_id"] == self.session
        _check_columns(found, records)
        if self.session is not None:
            await self._check_samples(names)

    async def _check_samples(self, names: list[Any]) -> None:
        records = self.worker.records
        response = await self.served.client.post(f"/sessions/{self.session}/samples", json={})
        assert response.status_code == 200, response.text
        (sample,) = response.json()["samples"]
        assert sample["call_ids"] == names
        before = [0] * sample["prompt_length"]
        assert sample["prompt_length"] == len(records[0].prompt_ids)
        columns = {
            "tokens": sample["tokens"],
            "loss_mask": [*before, *sample["loss_mask"]],
            "rollout_logp": [*before, *sample["rollout_log_probs"]],
        }
        _check_columns(columns, records)
        told = response.json()["accounting"]
        sampled = sum(len(one.output_ids) for one in records)
        assert (told["captured"], told["used"]) == (sampled, sampled)
        assert not told["context"]
        assert not told["dropped"]
        assert not told["lost_calls"]
        assert response.json()["findings"] == []


def _check_columns(found: dict[str, Any], records: list[Any]) -> None:
    """The tokens are the last call's prompt and answer; what was sampled is marked, in order."""
    last = records[-1]
    assert found["tokens"] == [*last.prompt_ids, *last.output_ids]
    columns = zip(found["tokens"], found["loss_mask"], found["rollout_logp"], strict=True)
    marked = [(token, logprob) for token, mask, logprob in columns if mask]
    sampled = [pair for one in records for pair in zip(one.output_ids, one.logprobs, strict=True)]
    assert marked == sampled


def round_of(prompt_ids: Sequence[int]) -> int:
    """How many turns of the assistant a prompt holds before the one that it asks for."""
    opener = encode("<|im_start|>assistant\n")
    ids, size = list(prompt_ids), len(opener)
    starts = range(len(ids) - size + 1)
    return sum(ids[at : at + size] == opener for at in starts) - 1


def _by_round(prompt_ids: Sequence[int]) -> Reply | None:
    number = round_of(prompt_ids)
    return Reply(ids=tuple(spelled(ROUNDS[number]))) if number < len(ROUNDS) else None


@asynccontextmanager
async def rollout(
    *answers: str, carrier: str = "nothing", **settings: Any
) -> AsyncIterator[Rollout]:
    """A rollout in which the model says ``answers`` in turn.

    Without any it says :data:`ROUNDS`, by the round that a prompt is in: so do several at once.
    """
    script = scripted(*(spelled(answer) for answer in answers)) if answers else _by_round
    async with (
        embedded_worker(script=script) as worker,
        router_with(worker.url, **settings) as served,
    ):
        yield await _entered(served, worker, carrier)


@asynccontextmanager
async def constrained_rollout(*answers: str, carrier: str = "nothing") -> AsyncIterator[Rollout]:
    """A rollout whose requests constrain the answers."""
    teller = GrammarWorker(iter([spelled(answer) for answer in answers]))
    async with fake_worker(teller.answer) as worker, router_with(worker.url) as served:
        yield await _entered(served, teller, carrier)


async def _entered(served: Served, worker: EmbeddedWorker | GrammarWorker, carrier: str) -> Rollout:
    base_url, key, session = f"{served.url}/v1", "none", None
    if carrier != "nothing":
        opened = (await served.client.post("/sessions")).json()
        session = opened["session_id"]
        if carrier == "path":
            base_url = f"{served.url}/sessions/{session}/v1"
        else:
            key = opened["session_key"]
    return Rollout(served=served, worker=worker, base_url=base_url, api_key=key, session=session)


def openai_options(play: Rollout) -> dict[str, Any]:
    """For the official client: no second tries, and every answer checked for its types."""
    return {
        "base_url": play.base_url,
        "api_key": play.api_key,
        "max_retries": 0,
        "timeout": 15,
        "_strict_response_validation": True,
    }


async def with_openai(play: Rollout, use: Callable[[Any], T]) -> T:
    """What ``use`` does with the official synchronous client."""

    def run() -> T:
        with openai.OpenAI(**openai_options(play)) as client:
            return use(client)

    return await play.run(run)
