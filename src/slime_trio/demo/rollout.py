"""Rollouts as agents make them: OpenAI's SDK for some, ``/generate`` for the others.

A rollout knows nothing of tokens unless it sends ids itself. It keeps what any agent keeps: the
messages or text so far, and the id of each call, for the check.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx
import msgspec
import openai
import trio
from tokenizers import Tokenizer

from slime_trio.demo.check import Said
from slime_trio.demo.failure import DemoFailure
from slime_trio.demo.options import DemoOptions
from slime_trio.demo.story import ANSWER_END, Message, appended, follow_up, opening

__all__ = [
    "Clients",
    "Rollout",
    "Way",
    "conversation",
    "open_clients",
    "plan_rollouts",
    "take_turn",
]

_CALL_ID: Final = "x-slime-call-id"
_TIMEOUT_S: Final = 30.0


class Way(enum.Enum):
    """How a rollout asks for its answers."""

    CHAT = "OpenAI SDK"
    TEXT = "/generate text"
    IDS = "/generate ids"
    """The first prompt in text, later ones in ids that the client put together itself."""


@dataclass(slots=True, kw_only=True)
class Rollout:
    """One conversation. ``said`` has an entry for each turn that was taken."""

    number: int
    group: int
    way: Way
    streams: bool
    messages: list[Message]
    """What was said to the model and by it; its reasoning is not repeated."""
    said: list[Said] = field(default_factory=list)

    @property
    def session(self) -> str:
        """The session that its calls name."""
        return f"rollout-{self.number}"

    @property
    def text(self) -> str:
        """The conversation as text, up to and including the last answer."""
        return "".join(turn.added + turn.answer for turn in self.said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """What the rollouts share. ``tokenizer`` is the plain library's, for those who send ids."""

    sdk: openai.OpenAI
    http: httpx.AsyncClient
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    call: str
    answer: str
    reasoning: str | None = None
    output_ids: tuple[int, ...] | None = None


def open_clients(router: str, tokenizer: Tokenizer) -> Clients:
    """Clients of the router. Blocks a little; close both when done."""
    return Clients(
        sdk=openai.OpenAI(
            base_url=f"{router}/v1",
            api_key="none-needed",
            max_retries=0,
            timeout=_TIMEOUT_S,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        ),
        http=httpx.AsyncClient(base_url=router, timeout=_TIMEOUT_S, trust_env=False),
        tokenizer=tokenizer,
    )


def plan_rollouts(options: DemoOptions) -> list[Rollout]:
    """Every second group chats, the others generate; every second sibling streams."""
    rollouts = []
    for number in range(options.rollouts):
        group, sibling = divmod(number, options.siblings)
        native = Way.TEXT if (sibling // 2) % 2 == 0 else Way.IDS
        rollouts.append(
            Rollout(
                number=number,
                group=group,
                way=Way.CHAT if group % 2 == 0 else native,
                streams=sibling % 2 == 1,
                messages=list(opening(group, options.seed)),
            )
        )
    return rollouts


async def take_turn(clients: Clients, rollout: Rollout, options: DemoOptions) -> None:
    """One answer, appended to the rollout; from the second turn on a message goes before it.

    Raises :class:`DemoFailure` if there is none.
    """
    new = rollout.messages
    if rollout.said:
        answer, turn = rollout.said[-1].answer, len(rollout.said)
        new = [follow_up(answer, rollout.number, turn, options.seed)]
        rollout.messages += [Message(role="assistant", content=answer), *new]
    added = appended(new, after_answer=bool(rollout.said))
    prompt_ids = _prompt_ids(clients.tokenizer, rollout, added)
    try:
        if rollout.way is Way.CHAT:
            chat = partial(_chat, clients.sdk, rollout, options)
            reply = await trio.to_thread.run_sync(chat, abandon_on_cancel=True)
        else:
            reply = await _generate(clients.http, rollout, added, prompt_ids, options)
    except (httpx.HTTPError, openai.OpenAIError) as error:
        raise DemoFailure(f"{rollout.way.value}: {type(error).__name__}: {error}") from error
    said = Said(
        call=reply.call,
        added=added,
        answer=reply.answer,
        reasoning=reply.reasoning,
        prompt_ids=prompt_ids,
        output_ids=reply.output_ids,
    )
    rollout.said.append(said)


def _prompt_ids(tokenizer: Tokenizer, rollout: Rollout, added: str) -> tuple[int, ...] | None:
    """The prompt in ids, if this rollout sends ids and has had its first answer."""
    if rollout.way is not Way.IDS or not rollout.said:
        return None
    last = rollout.said[-1]
    before = last.prompt_ids
    if before is None:
        before = tuple(tokenizer.encode(last.added, add_special_tokens=True).ids)
    ids = before + (last.output_ids or ())
    if ids[-1] == tokenizer.token_to_id(ANSWER_END):
        added = added.removeprefix(ANSWER_END)
    return ids + tuple(tokenizer.encode(added, add_special_tokens=False).ids)


def _seed(rollout: Rollout, options: DemoOptions) -> int:
    """Another one for each call, the same for each run."""
    return (options.seed * 1_000_003 + rollout.number * 1_009 + len(rollout.said)) % 2**31


# -- OpenAI's SDK, in a thread: it blocks --------------------------------------------------


def _chat(sdk: openai.OpenAI, rollout: Rollout, options: DemoOptions) -> _Reply:
    """One chat completion. Raises ``openai.OpenAIError``."""
    request: dict[str, Any] = {
        "model": "demo",
        "messages": [_openai_message(message) for message in rollout.messages],
        "max_tokens": options.max_tokens,
        "temperature": 1.0,
        "seed": _seed(rollout, options),
        # Siblings may have been given the same words; the session says whose they were.
        "extra_headers": {"x-session-id": rollout.session},
    }
    raw = sdk.chat.completions.with_raw_response
    if not rollout.streams:
        answer = raw.create(**request, stream=False)
        told = [answer.parse().choices[0].message]
        return _reply(answer.headers[_CALL_ID], told)
    stream = raw.create(**request, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream.parse() if chunk.choices]
    return _reply(stream.headers[_CALL_ID], deltas)


def _reply(call: str, told: Sequence[Any]) -> _Reply:
    """The message of an answer, or the deltas of a stream, added up."""
    return _Reply(
        call=call,
        answer="".join(one.content or "" for one in told),
        # SGLang's name for what OpenAI's own objects have no field for.
        reasoning="".join(getattr(one, "reasoning_content", None) or "" for one in told),
    )


def conversation(rollout: Rollout) -> list[dict[str, str]]:
    """A chat's messages, the last answer among them."""
    last = Message(role="assistant", content=rollout.said[-1].answer)
    return [_openai_message(message) for message in (*rollout.messages, last)]


def _openai_message(message: Message) -> dict[str, str]:
    fields = {"role": message.role, "content": message.content}
    return fields | ({"tool_call_id": "call_0"} if message.role == "tool" else {})


# -- /generate ---------------------------------------------------------------------------------


async def _generate(
    http: httpx.AsyncClient,
    rollout: Rollout,
    added: str,
    prompt_ids: tuple[int, ...] | None,
    options: DemoOptions,
) -> _Reply:
    """One generation. Raises ``httpx.HTTPError``."""
    body: dict[str, Any] = {
        "sampling_params": {
            "max_new_tokens": options.max_tokens,
            "temperature": 1.0,
            "sampling_seed": _seed(rollout, options),
        },
        "stream": rollout.streams,
    }
    body |= {"text": rollout.text + added} if prompt_ids is None else {"input_ids": prompt_ids}
    headers = {"x-slime-parent-id": rollout.said[-1].call} if rollout.said else {}
    async with http.stream("POST", "/generate", json=body, headers=headers) as response:
        raw = await response.aread()
        response.raise_for_status()
        answer = _last_event(raw) if rollout.streams else msgspec.json.decode(raw)
    return _Reply(
        call=response.headers[_CALL_ID],
        answer=answer["text"],
        output_ids=tuple(answer["output_ids"]),
    )


def _last_event(raw: bytes) -> Any:
    """The last answer of a stream; each repeats all that came before."""
    events = [line[6:] for line in raw.splitlines() if line.startswith(b"data: ")]
    if len(events) < 2 or events[-1] != b"[DONE]":
        raise DemoFailure("a stream of /generate ended without its end mark")
    return msgspec.json.decode(events[-2])
