"""Requests that are passed through to a worker and back, byte for byte; nothing is captured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from slime_core import sglang
from slime_core.disaggregation import GENERATION_PATHS
from slime_core.errors import ClientError
from slime_core.lifted import lift
from slime_core.sglang.queued import aborted_in_queue
from slime_core.strict_json import BAD_JSON
from slime_core.transitions import CallLost, CallOpened
from slime_core.types import CallId
from slime_trio.dispatch.dispatcher import Answered, Wish
from slime_trio.dispatch.wish import terms_of
from slime_trio.exchange import Headers, Inbound, Reply, direct, for_client
from slime_trio.offload import LIFTED, is_short, off_loop
from slime_trio.router import Router
from slime_trio.upstream import GivenAnswer, WorkerAnswer

__all__ = ["aborted_answer", "forward", "pass_answer", "rids_of"]

_OPENAI_PATHS: Final = "/v1/"
_NATIVE: Final = "/generate"
_MOST_OF_A_REFUSAL: Final = 2**20
_SHORT: Final = 4096
"""Of so short a body nothing is taken before it is parsed."""
_ABORT: Final = b'"abort"'
_ABORTED: Final = re.compile(
    rb'"finish_reason"\s*:\s*\{\s*"type"\s*:\s*"abort"(?![^{}]*"status_code"\s*:\s*[0-9])'
)
"""An abort, but for one with a status, which is a refusal of this very request. No text can hold
this: within a JSON string every quote is escaped."""


class _Named(msgspec.Struct):
    rid: str | list[str] | None = None
    input_ids: msgspec.Raw = msgspec.Raw()


_NAMED: Final = msgspec.json.Decoder(_Named)


async def forward(
    router: Router, inbound: Inbound, reply: Reply, *, reason: str | None = None
) -> None:
    """Pass a request and its answer through, byte for byte; under ``/v1/`` a refusal in OpenAI's
    words, for which its clients look.

    With ``reason`` it is a generation that cannot be captured: it is counted, and says so.
    """
    call = router.new_call_id() if inbound.call is None else CallId(inbound.call)
    rids = inbound.client_ids
    if not rids and inbound.generates:
        size, body = len(inbound.body) // LIFTED, inbound.body
        rids = rids_of(body) if is_short(size) else await off_loop(size, rids_of, body)
    wish = _wish(inbound, call, rids)
    generated = False

    async def take(answered: Answered) -> None:
        nonlocal generated
        response = answered.response
        generated = response.status == 200 and asking.tries > 0
        marks = answered.marks() if wish.generates else []
        if reason is not None:
            marks.append((b"x-slime-captured", b"false"))
        if response.status >= 400 and inbound.path.startswith(_OPENAI_PATHS):
            body = await response.read(max_bytes=_MOST_OF_A_REFUSAL)
            raise sglang.passed_error(response.status, body)
        await pass_answer(response, reply, marks, answered)

    if reason is not None:
        router.commit(CallOpened(call=call, parent=None, session=inbound.session))
    try:
        asking = router.shared.dispatcher.ask(
            router,
            wish,
            inbound.method,
            inbound.target,
            lambda worker: router.shared.worker_headers(worker, inbound.headers),
            inbound.body,
        )
        await asking.run(take)
    finally:
        if reason is not None:
            router.commit(CallLost(call=call, reason=reason, sampled=generated))


def _wish(inbound: Inbound, call: CallId, rids: tuple[str, ...]) -> Wish:
    """What is wanted of the fleet; a worker knows the request by its client's ids, if by any."""
    if not inbound.generates:
        return terms_of(inbound, calls=(call,), generates=False)
    return terms_of(
        inbound,
        calls=(call,),
        rids=((call, *rids),),
        pairs=inbound.path in GENERATION_PATHS,
        aborted=lambda: _aborted(inbound, call),
    )


def rids_of(body: bytes) -> tuple[str, ...]:
    """The ids by which its client names a request, as far as they can be read."""
    named = None if len(body) <= _SHORT else _named_beside_ids(body)
    named = _named(body) if named is None else named
    if named is None:
        return ()  # the worker says what is wrong with it
    return (named.rid,) if isinstance(named.rid, str) else tuple(named.rid or ())


def _named_beside_ids(body: bytes) -> _Named | None:
    """The same without a look at every one of its ids, only to skip it, where that can be."""
    lifted = lift(body, b'"input_ids"')
    named = None if lifted is None else _named(lifted.rest)
    if named is None or lifted is None or not lifted.stands_in(named.input_ids):
        return None
    return named


def _named(body: bytes) -> _Named | None:
    try:
        return _NAMED.decode(body)
    except BAD_JSON:
        return None


def _aborted(inbound: Inbound, call: CallId) -> GivenAnswer:
    """The answer where it was aborted while it waited. Raises ``SlimeError`` where it is one."""
    if inbound.path != _NATIVE:
        raise sglang.abort_error(None, None)
    try:
        asked = sglang.parse_generate(inbound.body)
    except ClientError:
        raise sglang.abort_error(None, None) from None
    rids = asked.client_rids
    ids = [rids[0] if len(rids) == 1 else call] * asked.samples
    if len(rids) > 1:
        ids = [rids[sample // asked.n] for sample in range(asked.samples)]
    return aborted_answer(ids, array=asked.array, stream=asked.stream)


def aborted_answer(ids: Sequence[str], *, array: bool, stream: bool) -> GivenAnswer:
    """The answer to a generation that was aborted in the queue, as a worker gives it."""
    kind = b"text/event-stream; charset=utf-8" if stream else b"application/json"
    body = aborted_in_queue(ids, array=array, stream=stream)
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    return GivenAnswer(200, headers[:1] if stream else headers, body)


async def pass_answer(
    response: WorkerAnswer, reply: Reply, marks: Headers, answered: Answered | None = None
) -> None:
    """A worker's answer as it is; ``answered`` is told if it ends with an abort."""
    await reply.start(response.status, for_client(response.headers, same_body=True) + marks)

    def look_at(data: bytes) -> None:
        if answered is not None and _ABORT in data and _ABORTED.search(data):
            answered.is_aborted = True

    streams = response.content_length is None
    sender = direct(reply) if streams else None
    if sender is None:
        while data := await response.receive_some():
            look_at(data)
            await reply.send(data)
        return
    send_now = sender.send_now

    def take(data: bytes) -> bool:
        look_at(data)
        return send_now(data)

    while not await response.pass_on(take):
        await sender.flush()
