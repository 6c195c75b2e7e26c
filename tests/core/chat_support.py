"""Chats through ``Calls`` as the shell has them, with a template that is a Python function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from slime_core.calls import Calls
from slime_core.chat.bridge import Bridge, Delta
from slime_core.chat.canonical import conversation
from slime_core.chat.places import Shown
from slime_core.chat.plans import ChatAsk, History
from slime_core.chat.rendering import Rendered
from slime_core.chat.spellings import Spellings
from slime_core.lookup import Wish
from slime_core.sglang import Answer, FinishReason
from slime_core.types import (
    CallId,
    Encoding,
    PackedIds,
    WorkerUrl,
    pack_ids,
    pack_logprobs,
    unpack_ids,
)
from slime_core.versions import VersionRun
from tests.core.capture import EOS, TOY, Driver

__all__ = ["Asked", "Chats", "Message", "Template", "assistant", "spelled", "user"]

Message = dict[str, Any]
SPELLINGS: Final = Spellings(("<E>", "<B>"))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def spelled(text: str) -> list[int]:
    """``text`` byte by byte: ids that no encoding of it gives."""
    return list(text.encode())


class Template:
    """``<B>role\\nreasoning|content<E>\\n`` for each turn.

    With ``strips`` it writes reasoning behind the last user message only, as thinking models do.
    """

    def __init__(self, *, strips: bool = False, shows_reasoning: bool = True) -> None:
        self._strips = strips
        self._shows_reasoning = shows_reasoning
        self._bridge = Bridge(self._render, added=SPELLINGS, turn_ends=("<E>",))
        self.turn_ends = frozenset((EOS,))
        self.rendered_whole = 0

    def rendered(self, messages: Sequence[Mapping[str, Any]], **asked: Any) -> Rendered:
        self.rendered_whole += 1
        return self._render(messages, **asked)

    def delta(
        self,
        history: Sequence[Mapping[str, Any]],
        appended: Sequence[Mapping[str, Any]],
        **asked: Any,
    ) -> Delta | None:
        return self._bridge.delta(history, appended, **asked)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Any = None,
        arguments: Any = None,
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> Rendered:
        roles = [message["role"] for message in messages]
        asked = max((at for at, role in enumerate(roles) if role == "user"), default=-1)
        text, plain = "", []
        for at, message in enumerate(messages):
            reasoning = message.get("reasoning_content")
            text += f"<B>{message['role']}\n"
            if reasoning and self._shows_reasoning and not (self._strips and at < asked):
                text += f"{reasoning}|"
            content = message.get("content") or ""
            plain += [(a + len(text), b + len(text)) for a, b in SPELLINGS.found(content)]
            text += content
            for call in message.get("tool_calls") or ():
                text += f"[{call['id']} {call['function']['name']}]"
            if not (continue_final and at == len(messages) - 1):
                text += "<E>\n"
        return Rendered(text=text + "<B>assistant\n" * add_generation_prompt, plain=tuple(plain))


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat in flight."""

    calls: Calls
    prompt: list[int]

    @property
    def flags(self) -> tuple[str, ...]:
        return self.calls.flags


@dataclass
class Chats:
    """Conversations with one router's state."""

    template: Template = field(default_factory=Template)
    driver: Driver = field(default_factory=Driver)
    encoded: list[str] = field(default_factory=list)
    """Every text that had to be encoded."""
    _numbers: Any = field(default_factory=count)

    def ask(
        self,
        *messages: Message,
        session: str | None = None,
        parent: str | None = None,
        history: History = "exact",
        continues: bool = False,
        samples: int = 1,
        **told: Any,
    ) -> Asked:
        calls = Calls(
            self.driver.state,
            self.driver.facts,
            commit=self.driver.apply,
            new_id=lambda: CallId(f"c{next(self._numbers)}"),
            wish=Wish(session=session, parent_call=None if parent is None else CallId(parent)),
        )
        ask = ChatAsk(
            conversation=conversation(messages, **told), history=history, continues=continues
        )
        calls.open_chat(self.template, ask, samples)
        for place, prompt in calls.to_encode():
            ids: list[int] = []
            if prompt.rest is not None:
                self.encoded.append(prompt.rest)
                ids = _encode(prompt.rest, prompt.plain)
            calls.encoded(place, pack_ids(ids))
        return Asked(calls, unpack_ids(calls.prompts[0]))

    def answer(
        self,
        asked: Asked,
        ids: Sequence[int],
        *,
        sample: int = 0,
        matched: int | str | None = EOS,
        shown: Message | None = None,
        model_ids: tuple[str | None, ...] = (),
    ) -> Message:
        """The worker's answer ``ids``; the message that the client was given for it."""
        body = list(ids)
        if isinstance(matched, int) and body[-1:] == [matched]:
            body.pop()
        text = TOY.vocabulary.decode(body, skip_special=False, at_start=False)
        if isinstance(matched, str):
            text = text[: text.index(matched)]
        message = shown or assistant(text)
        kind = "length" if matched is None else "stop"
        reason = FinishReason(type=kind, matched=matched, raw=b"{}")
        kept = asked.calls.keep(
            sample,
            _answer(asked.calls.calls[sample], ids, text, reason),
            WorkerUrl("w"),
            shown=Shown(message=message, model_ids=model_ids),
        )
        assert kept
        return message

    def turn(self, *messages: Message, text: str = "", **asked: Any) -> Message:
        """One turn, answered with ``text`` byte by byte and the end of a turn."""
        return self.answer(self.ask(*messages, **asked), [*spelled(text), EOS])


def _encode(text: str, plain: Sequence[tuple[int, int]]) -> list[int]:
    """As the template's own tokens and, where the ranges lie, byte by byte."""
    ids, at = [], 0
    for start, end in (*plain, (len(text), len(text))):
        ids += TOY.encode(text[at:start], encoding=Encoding.RENDERED, first=False)
        ids += spelled(text[start:end])
        at = end
    return ids


def _answer(call: CallId, ids: Sequence[int], text: str, reason: FinishReason) -> Answer:
    count_ = len(ids)
    return Answer(
        id=call,
        text=text,
        ids=PackedIds(pack_ids(ids)),
        logprobs=pack_logprobs([-1.0] * count_),
        finish_reason=reason,
        weight_version="1",
        versions=(VersionRun("1", 0, count_),) if count_ else (),
        prompt_tokens=None,
        completion_tokens=count_,
        cached_tokens=0,
        reasoning_tokens=0,
        top_logprobs=b"",
        extras={},
        problem=None,
    )
