"""Retrieval: captured trajectories for the trainer, by text, by messages or by call."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec

from slime_core.chat.canonical import conversation
from slime_core.chat.plans import ChatAsk, plan_chat
from slime_core.chat.retrieval import plan_chat_retrieval
from slime_core.decide import Retrieval, find_call, plan_retrieval
from slime_core.errors import ClientError
from slime_core.long_lists import encode_ids, encode_numbers, encode_runs
from slime_core.lookup import Wish
from slime_core.segments import Segment
from slime_core.strict_json import BAD_JSON
from slime_core.trajectory import Trajectory, count_other_answers, trajectory
from slime_core.transitions import Retrieved
from slime_core.types import CallId, Encoding, PackedIds
from slime_core.versions import as_number
from slime_trio.exchange import Inbound, Reply
from slime_trio.offload import RENDERING_COSTS, off_loop
from slime_trio.router import Router

__all__ = ["RETRIEVALS", "by_call", "by_messages", "by_text"]


_BYTES_PER_TOKEN: Final = 12
"""How much JSON takes as long to read as a token takes to write: an id and a logprob, 60 ns, and up
to 180 where what is written was not in use. The other columns are runs."""


class _ByText(msgspec.Struct):
    text: str
    id: str | None = None


class _ByMessages(msgspec.Struct):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    id: str | None = None


async def by_text(router: Router, body: bytes) -> bytes:
    """``POST /retrieve_from_text``. Raises ``ClientError``."""
    asked = _read(body, _ByText)
    plan = partial(plan_retrieval, router.state, router.facts, asked.text)
    return await _retrieve(router, asked.text, asked.id, plan)


async def by_messages(router: Router, body: bytes) -> bytes:
    """``POST /retrieve_from_messages_template``. Raises ``ClientError``.

    Messages are looked up as a chat's are; what is known by its text only is found by that.
    """
    asked = _read(body, _ByMessages)
    template = (await router.chatting()).template
    arguments = asked.chat_template_kwargs or {}
    size = RENDERING_COSTS * len(body)
    text = await off_loop(
        size,
        template.render,
        asked.messages,
        tools=asked.tools,
        add_generation_prompt=asked.add_generation_prompt,
        chat_template_kwargs=arguments,
    )
    ask = ChatAsk(
        conversation=conversation(
            asked.messages,
            tools=asked.tools or (),
            arguments=arguments,
            mode=router.args.special_tokens_in_content,
        ),
        add_generation_prompt=asked.add_generation_prompt,
    )

    call = None if asked.id is None else find_call(router.state, asked.id)
    planned = plan_chat(router.state, template, ask, Wish(parent_call=call))
    await off_loop(size, planned.render)

    def plan(call: CallId | None) -> Retrieval:
        found = plan_chat_retrieval(router.state, router.facts, template, ask, call, plan=planned)
        return found or plan_retrieval(router.state, router.facts, text, call)

    return await _retrieve(router, text, asked.id, plan)


async def _reply_by_text(router: Router, inbound: Inbound, reply: Reply) -> None:
    await _reply(reply, await by_text(router, inbound.body))


async def _reply_by_messages(router: Router, inbound: Inbound, reply: Reply) -> None:
    await _reply(reply, await by_messages(router, inbound.body))


async def _reply(reply: Reply, body: bytes) -> None:
    kind, length = (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))
    await reply.start(200, [kind, length])
    await reply.send(body)


RETRIEVALS: Final[Mapping[str, Callable[[Router, Inbound, Reply], Awaitable[None]]]] = (
    MappingProxyType(
        {
            "retrieve_from_text": _reply_by_text,
            "retrieve_from_messages_template": _reply_by_messages,
        }
    )
)
"""What answers a request for what was captured, by the path that is asked."""


async def _retrieve(
    router: Router, text: str, name: str | None, plan: Callable[[CallId | None], Retrieval]
) -> bytes:
    router.require_capture()
    if not text:
        nothing = trajectory(router.state.forest, None)
        return await _encoded(nothing, response="", matched_length=0, ambiguous=0, flags=())
    await router.tell_all()
    await router.settle()
    call = None if name is None else find_call(router.state, name)
    planned = plan(call)
    tail = PackedIds(b"")
    if planned.rest:
        tail = await router.tokenizer.encode_async(
            planned.rest, encoding=Encoding.RENDERED, first=False, plain=planned.plain
        )
        await router.settle()
        # The forest may have changed meanwhile; what was found may have moved or gone.
        again = plan(call)
        if (again.rest, again.plain) != (planned.rest, planned.plain):
            tail = router.tokenizer.encode_packed(
                again.rest, encoding=Encoding.RENDERED, first=False, plain=again.plain
            )
        planned = again
    body = await _encoded(
        planned.result(router.state.forest, tail),
        response=text,
        matched_length=planned.matched_length,
        ambiguous=planned.ambiguous,
        id=planned.call,
        flags=planned.flags,
    )
    _delivered(router, planned.delivered)
    return body


def _delivered(router: Router, fact: Retrieved) -> None:
    """From here on the answer is kept for reuse only: it is made, and about to be sent.

    It may have been evicted while it was being written; then nothing is left to be said of it.
    """
    if fact.call in router.state.forest.calls:
        router.commit(fact)


async def by_call(router: Router, name: str) -> bytes:
    """``GET /trajectories/{id}``. Raises ``ClientError``."""
    router.require_capture()
    await router.tell_all()
    await router.settle()
    call = find_call(router.state, name)
    forest = router.state.forest
    segment = forest.calls[call]
    answer = segment.answer
    assert answer is not None
    found = trajectory(forest, segment)
    facts = {
        "response": _text_of(router, segment),
        "matched_length": len(found),
        "ambiguous": count_other_answers(segment),
        "id": call,
        "parent_id": _parent_call(segment),
        "session_id": answer.session,
        "aliases": answer.aliases,
        "outcome": answer.outcome.value,
        "finish_reason": msgspec.Raw(answer.finish_reason),
        "answer_text": forest.own_text(segment) if segment.text_node is not None else None,
        "answer_length": segment.tokens,
        "flags": answer.flags,
        "origins": [
            {"origin": run.origin.value, "start": run.start, "end": run.end, "call": run.call}
            for run in found.origins
        ],
        "extras": {name: msgspec.Raw(value) for name, value in answer.extras},
    }
    body = await _encoded(found, **facts)
    _delivered(router, Retrieved(call=call))
    return body


def _text_of(router: Router, segment: Segment) -> str | None:
    """The whole text of a trajectory; ``None`` where only ids are known."""
    if segment.text_node is None:
        return None
    return router.state.forest.texts[segment.encoding].key(segment.text_node)


def _parent_call(segment: Segment) -> CallId | None:
    """The call whose answer this one's prompt extends."""
    here = segment.parent
    while here is not None and here.answer is None:
        here = here.parent
    return None if here is None or here.answer is None else here.answer.call


async def _encoded(found: Trajectory, **facts: Any) -> bytes:
    """The answer as JSON: the columns, which have one length, and ``facts``."""
    return await off_loop(_BYTES_PER_TOKEN * len(found), _encode, found, facts)


def _encode(found: Trajectory, facts: dict[str, Any]) -> bytes:
    columns = {
        "tokens": msgspec.Raw(encode_ids(found.ids)),
        "loss_mask": msgspec.Raw(encode_runs(len(found), _mask(found), b"0")),
        "rollout_logp": msgspec.Raw(encode_runs(len(found), _logprobs(found), b"0.0")),
        "generation_versions": msgspec.Raw(encode_runs(len(found), _versions(found), b"-1")),
        "weight_versions": [
            {"version": run.version, "start": run.start, "end": run.end}
            for run in found.version_runs
        ],
        "token_length": len(found),
        "loss_mask_length": len(found),
        "cut": found.cut,
        "logprob_kind": found.logprob_kind,
    }
    return msgspec.json.encode(columns | facts)


def _mask(found: Trajectory) -> Iterator[tuple[int, int, bytes]]:
    """1 for what was sampled."""
    for run in found.sampled:
        yield run.start, run.end, b"1"


def _logprobs(found: Trajectory) -> Iterator[tuple[int, int, bytes]]:
    """Of what was sampled; all else has none."""
    for run in found.sampled:
        yield run.start, run.end, encode_numbers(run.logprobs)


def _versions(found: Trajectory) -> Iterator[tuple[int, int, bytes]]:
    for run in found.version_runs:
        yield run.start, run.end, b"%d" % as_number(run.version)


def _read(body: bytes, shape: type[Any]) -> Any:
    """The body as ``shape``. Raises ``ClientError`` that names the field."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        words, _, path = str(error).partition(" - at `$")
        missing = re.search(r"missing required field `(\w+)`", words)
        if missing is not None:
            raise ClientError(
                f"Missing required parameter: {missing[1]!r}.",
                param=missing[1],
                code="missing_required_parameter",
            ) from None
        raise ClientError(
            words, param=path.rstrip("`").lstrip(".") or None, code="invalid_type"
        ) from None
    except BAD_JSON as error:
        raise ClientError(f"the body is not valid JSON: {error}", code="invalid_json") from None
