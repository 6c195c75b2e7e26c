"""Samples of sessions over HTTP: what is asked, what is copied, and the words made in a thread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from slime_core.decide import find_call
from slime_core.errors import ClientError
from slime_core.samples import (
    DEFAULT_POLICY,
    POLICIES,
    SamplePolicy,
    Snapshot,
    Wanted,
    collect,
    grow,
    take,
)
from slime_core.samples.safetensors import encode as encode_safetensors
from slime_core.samples.wire import TextOf, as_json, as_tensors, described
from slime_core.sessions import require_known
from slime_core.strict_json import BAD_JSON
from slime_core.transitions import Retrieved, SessionCollected
from slime_core.types import CallId, PackedIds, unpack_ids
from slime_trio.offload import off_loop
from slime_trio.router import Router
from slime_trio.sessions import seal

__all__ = ["SAMPLE_POLICIES", "collect_samples", "describe"]

SAMPLE_POLICIES: Final = "sample_policies"
"""Under this name a component may be registered that maps further names to policies."""

_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"
_SAFETENSORS: Final = "application/safetensors"
_MILES_KEYS: Final = frozenset({"max_seq_len", "metadata"})
_BYTES_PER_TOKEN: Final = 40

_Length = Annotated[int, msgspec.Meta(ge=1)]
_Outcomes = Literal["partial", "aborted"]


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /sessions/{id}/samples``."""

    per: Literal["branch", "call"] = "branch"
    max_seq_len: _Length | None = None
    reward: float | None = None
    rewards: dict[str, float | None] = {}
    metadata: dict[str, Any] | None = None
    calls: dict[str, dict[str, Any]] = {}
    seal: bool = False
    policy: str = DEFAULT_POLICY
    include: list[_Outcomes] = []
    format: Literal["json", "safetensors"] | None = None
    routed_experts_shape: tuple[_Length, _Length] | None = None


async def describe(router: Router, session: str) -> bytes:
    """``GET /sessions/{id}``: the tree of its calls. Raises ``ClientError``."""
    router.require_capture()
    await router.settle()
    known = require_known(router.state, session)
    snapshot = take(router.state, session, with_ids=False)
    state = "implicit" if known is None else "sealed" if known.sealed else "open"
    facts = {
        "session_id": session,
        "state": state,
        "calls_in_flight": snapshot.in_flight,
        "calls_lost": dict(snapshot.lost),
        "calls_gone": {
            reason: {"calls": calls, "tokens": tokens} for reason, calls, tokens in snapshot.gone
        },
    }
    size = sum(
        one.answer.turn.size
        for one in snapshot.pieces.values()
        if one.own and one.answer is not None and one.answer.turn is not None
    )
    return await off_loop(size, _describe, snapshot, facts)


def _describe(snapshot: Snapshot, facts: dict[str, Any]) -> bytes:
    whole = facts | {"metadata": msgspec.Raw(snapshot.metadata)}
    return msgspec.json.encode(whole | described(snapshot, grow(snapshot)))


async def collect_samples(
    router: Router, session: str, body: bytes, *, accept: str
) -> tuple[str, bytes]:
    """``POST /sessions/{id}/samples``: the content type, and the samples. Raises ``ClientError``.

    Asking again gives the same, as long as nothing was captured meanwhile: what is given stays
    until the session ends. A session that only a header names has no end; of that, what was given
    is kept from then on for reuse only.
    """
    router.require_capture()
    await router.settle()
    asked = _read(body)
    policy = _policy(router, asked.policy)
    require_known(router.state, session)
    findings: list[dict[str, Any]] = []
    wanted = Wanted(
        per=asked.per,
        max_seq_len=asked.max_seq_len,
        include=tuple(asked.include),
        policy=policy,
        reward=asked.reward,
        rewards=_by_call(router, session, asked.rewards, "rewards", findings),
        metadata=asked.metadata or {},
        calls=_by_call(router, session, asked.calls, "calls", findings),
    )
    if asked.seal:
        seal(router, session)
    snapshot = take(router.state, session)
    binary = _is_binary(body, asked, accept)
    make = _tensors if binary else _json
    text_of = _text_of(router)
    size = _BYTES_PER_TOKEN * sum(one.tokens for one in snapshot.pieces.values())
    found = await off_loop(size, make, snapshot, wanted, text_of, findings, asked)
    _delivered(router, snapshot)
    return (_BINARY if binary else _JSON), found


def _json(
    snapshot: Snapshot, wanted: Wanted, text_of: TextOf, findings: list[Any], asked: _Asked
) -> bytes:
    return as_json(snapshot, wanted, collect(snapshot, wanted), text_of, findings)


def _tensors(
    snapshot: Snapshot, wanted: Wanted, text_of: TextOf, findings: list[Any], asked: _Asked
) -> bytes:
    made = as_tensors(
        snapshot,
        wanted,
        collect(snapshot, wanted),
        text_of,
        findings,
        shape=asked.routed_experts_shape,
    )
    return encode_safetensors(made)


def _text_of(router: Router) -> TextOf:
    vocabulary = router.facts.vocabulary

    def text_of(ids: PackedIds) -> str | None:
        if vocabulary is None:
            return None
        try:
            return vocabulary.decode(unpack_ids(ids), skip_special=False, at_start=False)
        except KeyError:  # an id that the tokenizer does not have
            return None

    return text_of


def _read(body: bytes) -> _Asked:
    try:
        return msgspec.json.decode(body if body.strip() else b"{}", type=_Asked)
    except msgspec.ValidationError as error:
        words, _, path = str(error).partition(" - at `$")
        unknown = re.search(r"unknown field `([^`]*)`", words)
        param = unknown[1] if unknown is not None else path.rstrip("`").lstrip(".")
        raise ClientError(words, param=param or None, code="invalid_type") from None
    except BAD_JSON as error:
        raise ClientError(f"the body is not valid JSON: {error}", code="invalid_json") from None


def _policy(router: Router, name: str) -> SamplePolicy:
    registry = router.component_registry
    further = registry.get(SAMPLE_POLICIES) if SAMPLE_POLICIES in registry else {}
    policies = {**POLICIES, **further}
    if name not in policies:
        raise ClientError(
            f"there is no policy {name!r}; there are {', '.join(sorted(policies))}",
            param="policy",
            code="unknown_policy",
        )
    found: SamplePolicy = policies[name]
    return found


def _by_call(
    router: Router, session: str, given: Mapping[str, Any], param: str, findings: list[Any]
) -> dict[CallId, Any]:
    """What the client says of calls, by their ids. Raises ``ClientError`` for a call that is not
    the session's; one that is gone is told as a finding."""
    found = {}
    for name, value in given.items():
        try:
            call = find_call(router.state, name)
        except ClientError as error:
            if error.status == 410:
                findings.append({"call": name, "finding": "call_gone", "detail": error.code})
                continue
            error.param = f"{param}.{name}"
            raise
        answer = router.state.forest.calls[call].answer
        if answer is None or answer.session != session:
            raise ClientError(
                "this call is not one of the session's",
                param=f"{param}.{name}",
                code="call_of_another_session",
            )
        found[call] = value
    return found


def _is_binary(body: bytes, asked: _Asked, accept: str) -> bool:
    """The form that is asked for: by ``format``, else by ``Accept``.

    Who says neither, and sends what clients of miles' session server send (``max_seq_len``, even if
    it is null, and nothing but ``metadata`` beside), gets what those read.
    """
    if asked.format is not None:
        return asked.format == "safetensors"
    if _JSON in accept:
        return False
    if _BINARY in accept or _SAFETENSORS in accept:
        return True
    keys = frozenset(msgspec.json.decode(body, type=dict[str, msgspec.Raw])) if body.strip() else ()
    return "max_seq_len" in keys and _MILES_KEYS.issuperset(keys)


def _delivered(router: Router, snapshot: Snapshot) -> None:
    """The samples are made and about to be sent."""
    if not snapshot.answers:
        return
    if snapshot.session in router.state.sessions.known:
        fact = SessionCollected(session=snapshot.session, segment=snapshot.answers[-1])
        router.commit(fact)
        return
    for number in reversed(snapshot.answers):
        segment = router.state.forest.segments.get(number)
        if segment is not None and not segment.retrieved:
            router.commit(Retrieved(call=snapshot.answer(number).call))
