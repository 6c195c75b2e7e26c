"""A real router for one family, a worker that samples what a test wants, and chats with them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio

from slime_core.parsing.detect import detect
from slime_core.types import Encoding
from slime_core.vocabulary import Vocabulary
from slime_trio.chatting import Chatting
from slime_trio.tokenizer import Checkpoint, Tokenizer
from tests.chat_families import Family
from tests.hard_cases.writing import FORMS, Form, Said, spelled, spelled_plain
from tests.server.harness import (
    Arrived,
    Events,
    FakeWorker,
    Served,
    answer_item,
    events_of,
    fake_worker,
    http_response,
    router_with,
    settled,
    until,
)

__all__ = [
    "CHAT",
    "TOOLS",
    "Agent",
    "Model",
    "Sampled",
    "Turn",
    "agent_of",
    "assistant",
    "result",
    "user",
]

Message = dict[str, Any]

CHAT = "/v1/chat/completions"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "finds a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "key": {"type": "string"},
                    "deep": {"type": "boolean"},
                    "n": {"type": "number"},
                    "list": {"type": "array"},
                },
            },
        },
    }
]


def user(text: str) -> Message:
    """What a user says."""
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    """What an assistant said, by the client's own account."""
    return {"role": "assistant", "content": text, **more}


def result(call: Mapping[str, Any], text: str) -> Message:
    """What a tool answered to ``call``."""
    return {"role": "tool", "tool_call_id": call["id"], "content": text}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A family ready to be served."""

    family: Family
    form: Form
    tokenizer: Tokenizer

    @classmethod
    def of(cls, family: Family, tokenizer: Tokenizer) -> Model:
        return cls(family=family, form=FORMS[family.name], tokenizer=tokenizer)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    @property
    def chatting(self) -> Chatting:
        """As the router makes it of a checkpoint's directory."""
        found = detect(self.family.source, list(self.family.ids))
        return Chatting(template=self.family.template, parsers=found)

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text."""
        return self.tokenizer.encode(text, encoding=Encoding.RENDERED, first=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown."""
        return self.vocabulary.decode(list(ids), skip_special=False, at_start=False)

    def render(self, messages: Sequence[Message], **asked: Any) -> str:
        """The template's own rendering of a conversation."""
        return self.family.template.render(
            list(messages), chat_template_kwargs=self.form.arguments, **asked
        )

    def controls(self, ids: Sequence[int]) -> list[str]:
        """The added tokens among ``ids``, in order."""
        added = self.vocabulary.added
        return [added[token].content for token in ids if token in added]

    def sampled(self, said: Said, *, ended: bool = True) -> Sampled:
        """What the model would sample for it. Not ``ended``: the limit came first."""
        ids = spelled(self.vocabulary, self.form.write(said))
        if not ended:
            return Sampled(ids, {"type": "length", "length": len(ids)})
        end = self.family.ids[self.form.end(said)]
        return Sampled([*ids, end], {"type": "stop", "matched": end})

    def quoting(self, text: str) -> Sampled:
        """A turn that answers with ``text``, whose special tokens are spelled by ordinary ids."""
        said = Said(
            content="@", reasoning="Hm." * self.form.thinks, begun=self.form.opens_reasoning
        )
        before, after = self.form.write(said).split("@")
        ids = [
            *spelled(self.vocabulary, before),
            *spelled_plain(self.vocabulary, text),
            *spelled(self.vocabulary, after),
        ]
        end = self.family.ids[self.form.ends]
        return Sampled([*ids, end], {"type": "stop", "matched": end})

    def text(self, text: str, *, ended: bool = True) -> Sampled:
        """A turn that answers a user with ``text``."""
        thought = "Hm." if self.form.thinks else ""
        said = Said(content=text, reasoning=thought, begun=self.form.opens_reasoning)
        return self.sampled(said, ended=ended)


@dataclass(frozen=True)
class Sampled:
    """What a worker samples: ids, and why it stopped, in SGLang's words."""

    ids: list[int]
    finish: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One chat call, from both sides."""

    prompt: list[int]
    """As the worker got it."""
    sampled: list[list[int]]
    """Of every choice, as the worker sampled it."""
    messages: list[Message]
    """Of every choice, as the client was given it."""
    finish_reasons: list[str]
    calls: list[str]
    flags: list[str]
    asked: Mapping[str, Any]
    """The body that the worker got."""
    response: httpx.Response

    @property
    def message(self) -> Message:
        (message,) = self.messages
        return message

    @property
    def held(self) -> list[int]:
        """All ids so far."""
        (sampled,) = self.sampled
        return [*self.prompt, *sampled]


@dataclass
class Agent:
    """Chats through a served router with a worker that follows a script."""

    model: Model
    served: Served
    worker: FakeWorker
    script: deque[Sampled] = field(default_factory=deque)
    given: dict[str, list[Sampled]] = field(default_factory=dict)
    """What was sampled, by the id of the request at the worker, as it was answered."""
    may_answer: Callable[[Arrived], object] = lambda arrived: True
    """Holds answers back as long as it gives nothing."""

    async def say(
        self,
        messages: Sequence[Message],
        *sampled: Sampled | Said | str,
        headers: Mapping[str, str] | None = None,
        path: str = CHAT,
        **more: Any,
    ) -> Turn:
        """Ask, have the worker sample this, and read the answer."""
        self.script.extend(self._script(one) for one in sampled)
        response = await self.served.client.post(
            path, json=self.body(messages, **more), headers=dict(headers or {})
        )
        assert response.status_code == 200, response.text
        calls = response.headers["x-slime-call-id"].split(",")
        asked = next(one for one in self._asked() if one["rid"] == calls[0])
        choices = choices_of(response)
        flags = response.headers.get("x-slime-flags", "")
        return Turn(
            prompt=asked["input_ids"],
            sampled=[one.ids for one in self.given[calls[0]]],
            messages=[choice["message"] for choice in choices],
            finish_reasons=[choice["finish_reason"] for choice in choices],
            calls=calls,
            flags=flags.split(",") if flags else [],
            asked=asked,
            response=response,
        )

    def _asked(self) -> list[Any]:
        return [arrived.json for arrived in self.worker.arrived]

    def body(self, messages: Sequence[Message], **more: Any) -> dict[str, Any]:
        """A chat request."""
        given = {"chat_template_kwargs": dict(self.model.form.arguments), "max_tokens": 1000}
        return {"model": "m", "messages": list(messages), **given, **more}

    def _script(self, sampled: Sampled | Said | str) -> Sampled:
        if isinstance(sampled, Sampled):
            return sampled
        if isinstance(sampled, str):
            return self.model.text(sampled)
        return self.model.sampled(sampled)

    async def trajectory(self, call: str) -> Any:
        """What was captured, up to the end of ``call``."""
        return await self.served.trajectory(call)

    async def answer(self, arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
        """As SGLang's ``/generate`` answers."""
        asked = arrived.json
        count = asked["sampling_params"]["n"]
        sampled = [self.script.popleft() for _ in range(count)]
        await until(lambda: self.may_answer(arrived))
        self.given[asked["rid"]] = sampled
        rids = [asked["rid"]] if count == 1 else [f"{asked['rid']}_{at}" for at in range(count)]
        if not asked["stream"]:
            items = [self._item(one, rid) for one, rid in zip(sampled, rids, strict=True)]
            value = items[0] if count == 1 else items
            return http_response(json.dumps(value).encode())
        events = Events(stream)
        await events.begin()
        for at, (one, rid) in enumerate(zip(sampled, rids, strict=True)):
            for end in range(1, len(one.ids)):
                part = answer_item(one.ids[:end], "", rid=rid, finished=False)
                await events.event(part | {"index": at})
            await events.event(self._item(one, rid) | {"index": at})
        await events.end()
        return None

    def _item(self, sampled: Sampled, rid: str) -> dict[str, Any]:
        return answer_item(sampled.ids, "", rid=rid, finish=sampled.finish)


def choices_of(response: httpx.Response) -> list[Any]:
    """The choices of a whole answer, or of a stream as its deltas add up."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        choices: list[Any] = response.json()["choices"]
        return choices
    told: dict[int, dict[str, Any]] = {}
    for event in events_of(response.text):
        for choice in event["choices"] if event != "[DONE]" else ():
            whole = told.setdefault(choice["index"], {"message": {"role": "assistant"}})
            _add(whole["message"], choice["delta"])
            whole["finish_reason"] = choice["finish_reason"] or whole.get("finish_reason")
    return [told[index] for index in sorted(told)]


def _add(message: Message, delta: Mapping[str, Any]) -> None:
    for name in ("content", "reasoning_content"):
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    for part in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if part["index"] == len(calls):
            calls.append({"id": part["id"], "type": "function", "function": {"arguments": ""}})
        function = calls[part["index"]]["function"]
        given = part["function"]
        function.setdefault("name", given.get("name"))
        function["arguments"] += given.get("arguments") or ""


@asynccontextmanager
async def agent_of(
    model: Model, *, context_length: int | None = None, **settings: Any
) -> AsyncIterator[Agent]:
    """A router for ``model`` with one worker, served."""
    checkpoint = Checkpoint(
        path=Path("m"), tokenizer=model.tokenizer, context_length=context_length
    )
    scripted: list[Agent] = []

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
        return await scripted[0].answer(arrived, stream)

    own = (checkpoint, model.chatting)
    async with (
        fake_worker(answer) as worker,
        router_with(worker.url, served=own, **settings) as served,
    ):
        agent = Agent(model, served, worker)
        scripted.append(agent)
        yield agent
        await settled(served)
