"""Retrieval: captured trajectories for the trainer, by text, by messages or by call."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from slime_core.decide import find_call, plan_retrieval
from slime_core.errors import ClientError
from slime_core.segments import Segment
from slime_core.trajectory import Trajectory, count_other_answers, trajectory
from slime_core.transitions import Retrieved
from slime_core.types import CallId, Encoding, PackedIds, unpack_ids
from slime_trio.router import Router

__all__ = ["by_call", "by_messages", "by_text"]


class _ByText(msgspec.Struct):
    text: str
    id: str | None = None


class _ByMessages(msgspec.Struct):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    id: str | None = None


async def by_text(router: Router, body: bytes) -> dict[str, Any]:
    """``POST /retrieve_from_text``. Raises ``ClientError``."""
    asked = _read(body, _ByText)
    return await _retrieve(router, asked.text, asked.id)


async def by_messages(router: Router, body: bytes) -> dict[str, Any]:
    """``POST /retrieve_from_messages_template``. Raises ``ClientError``."""
    asked = _read(body, _ByMessages)
    template = await router.template()
    text = template.render(
        asked.messages,
        tools=asked.tools,
        add_generation_prompt=asked.add_generation_prompt,
        chat_template_kwargs=asked.chat_template_kwargs,
    )
    return await _retrieve(router, text, asked.id)


async def _retrieve(router: Router, text: str, name: str | None) -> dict[str, Any]:
    router.require_capture()
    if not text:
        return _columns(trajectory(router.state.forest, None), text="", matched=0, ambiguous=0)
    await router.tell_all()
    call = None if name is None else find_call(router.state, name)
    tail = PackedIds(b"")
    plan = plan_retrieval(router.state, router.facts, text, call)
    rest = text[plan.found.encode_from :]
    if rest:
        tail = await router.tokenizer.encode_async(rest, encoding=Encoding.RENDERED, first=False)
        # The forest may have changed meanwhile; what was found may have moved or gone.
        plan = plan_retrieval(router.state, router.facts, text, plan.call)
        if text[plan.found.encode_from :] != rest:
            tail = router.tokenizer.encode_packed(
                text[plan.found.encode_from :], encoding=Encoding.RENDERED, first=False
            )
    found = plan.result(router.state.forest, tail)
    matched = plan.found.token_start + len(plan.found.run_ids) // 4
    answer = _columns(found, text=text, matched=matched, ambiguous=plan.ambiguous)
    answer["id"] = plan.call
    if plan.delivered is not None:
        router.commit(plan.delivered)
    return answer


async def by_call(router: Router, name: str) -> dict[str, Any]:
    """``GET /trajectories/{id}``. Raises ``ClientError``."""
    router.require_capture()
    await router.tell_all()
    call = find_call(router.state, name)
    forest = router.state.forest
    segment = forest.calls[call]
    answer = segment.answer
    assert answer is not None
    found = trajectory(forest, segment)
    body = _columns(
        found,
        text=_text_of(router, segment),
        matched=len(found),
        ambiguous=count_other_answers(segment),
    )
    parent = _parent_call(segment)
    body |= {
        "id": call,
        "parent_id": parent,
        "session_id": answer.session,
        "aliases": list(answer.aliases),
        "outcome": answer.outcome.value,
        "finish_reason": msgspec.Raw(answer.finish_reason),
        "answer_text": forest.own_text(segment) if segment.text_node is not None else None,
        "answer_length": segment.tokens,
        "flags": list(answer.flags),
        "extras": {name: msgspec.Raw(value) for name, value in answer.extras},
    }
    router.commit(Retrieved(call=call))
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


def _columns(
    found: Trajectory, *, text: str | None, matched: int, ambiguous: int
) -> dict[str, Any]:
    """The fields that every retrieval answers, lists of one length."""
    return {
        "tokens": unpack_ids(found.ids),
        "response": text,
        "loss_mask": list(found.mask),
        "rollout_logp": found.logprobs.tolist(),
        "generation_versions": found.versions.tolist(),
        "weight_versions": [
            {"version": run.version, "start": run.start, "end": run.end}
            for run in found.version_runs
        ],
        "token_length": len(found),
        "loss_mask_length": len(found.mask),
        "matched_length": matched,
        "ambiguous": ambiguous,
        "cut": found.cut,
    }


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
    except msgspec.DecodeError as error:
        raise ClientError(f"the body is not valid JSON: {error}", code="invalid_json") from None
