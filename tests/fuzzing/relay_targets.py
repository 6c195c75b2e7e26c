"""Whole requests through the relay in memory, with clients or workers that send nonsense."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import httpx
import msgspec
import structlog
import trio
from trio.testing import MockClock

from slime_core import sse
from slime_core.errors import ClientError, InvariantError, SlimeError, as_openai
from slime_core.types import WorkerUrl
from slime_trio import retrieval
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import Inbound, Reply
from slime_trio.router import Router
from slime_trio.tending import contact
from tests.fuzzing.edge_targets import RESPONSES
from tests.fuzzing.goldens import (
    ANSWERS,
    CHATS,
    COMPLETIONS,
    GENERATES,
    STREAMS,
    altered_json,
)
from tests.fuzzing.mutate import alter_bytes, pieces
from tests.fuzzing.targets import Register, given
from tests.server.harness import answer_item
from tests.server.relay_support import Sink, assert_at_rest, chunk, inbound, relay_router
from tests.server.upstream_support import URL, Peer, answer

__all__ = ["TARGETS"]

_register = Register()
TARGETS: Final = _register.targets


# -- whole requests ----------------------------------------------------------------------------

_PATHS: Final[tuple[tuple[str, Callable[[Router, Inbound, Reply], Awaitable[None]], Any], ...]] = (
    ("/generate", generate, GENERATES),
    ("/v1/chat/completions", chat_completions, CHATS),
    ("/v1/completions", completions, COMPLETIONS),
)


def _run(work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    trio.run(partial(work, *arguments), clock=MockClock(autojump_threshold=0))


@_register
def client_body(chance: random.Random) -> None:
    """A whole request with an altered body: an answer or a named error, and nothing left behind."""
    path, serve, goldens = chance.choice(_PATHS)
    body = altered_json(goldens, chance)
    whole = answer(json.dumps(answer_item([5, 6], "ab")).encode())
    with given(path=path, body=body):
        _run(_ask, serve, inbound(path, body), [whole])


@_register
def worker_bytes(chance: random.Random) -> None:
    """A whole request whose worker answers altered bytes, split anywhere."""
    path, serve, _ = chance.choice(_PATHS)
    body = chance.choice(_BODIES[path])
    sent = _answered(b'"stream":true' in body, chance)
    with given(path=path, body=body, sent=sent):
        _run(_ask, serve, inbound(path, body), sent)


_BODIES: Final = {
    "/generate": (
        b'{"text":"Hello"}',
        b'{"text":"Hello","stream":true}',
        b'{"text":["a","b"]}',
        b'{"input_ids":[5,6],"sampling_params":{"n":2},"stream":true,"return_logprob":true}',
    ),
    "/v1/chat/completions": (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"logprobs":true,'
        b'"top_logprobs":2,"return_meta_info":true}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"logprobs":true}',
    ),
    "/v1/completions": (
        b'{"model":"m","prompt":"x","logprobs":2}',
        b'{"model":"m","prompt":"x","n":2,"stream":true,"stream_options":{"include_usage":true}}',
    ),
}


def _answered(stream: bool, chance: random.Random) -> list[bytes]:
    if stream != (chance.random() < 0.05):
        data = alter_bytes(chance.choice(STREAMS), STREAMS, chance)
        kind, parts = b"text/event-stream", list(map(chunk, pieces(data, chance)))
        if chance.random() < 0.5:
            events = [block + b"\n\n" for block in chance.choice(STREAMS).split(b"\n\n") if block]
            at = chance.randrange(len(events))
            if events[at].startswith(b"data: {"):
                altered = altered_json([events[at][6:].strip()], chance)
                events[at] = b"data: " + altered.replace(b"\n", b"\ndata: ") + b"\n\n"
            parts = list(map(chunk, events))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        sent = [head, *parts, b"0\r\n\r\n"]
    else:
        status = chance.choice((b"200 OK",) * 9 + (b"400 Bad", b"503 No"))
        sent = [answer(altered_json(ANSWERS, chance), status=status)]
    if chance.random() < 0.15:
        return pieces(alter_bytes(b"".join(sent), RESPONSES, chance), chance)
    return sent


async def _ask(
    serve: Callable[[Router, Inbound, Reply], Awaitable[None]],
    request: Inbound,
    sent: list[bytes],
) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            for piece in sent:
                await peer.send(piece)
            return  # which closes the connection

    async with relay_router(script) as (router, journal):
        sink = Sink()
        try:
            await serve(router, request, sink)
        except InvariantError:
            raise
        except SlimeError as error:
            # A refusal passes through as it comes, and may be cut off as it comes.
            assert not sink.started or sink.status != 200
            msgspec.json.encode(as_openai(error))
        assert_at_rest(router, [journal])
        if sink.status == 200 and request.path.startswith("/v1/"):
            _check_openai(b"".join(sink.got))
        for call in list(router.state.forest.calls):
            json.loads(await retrieval.by_call(router, call))


def _check_openai(body: bytes) -> None:
    """Whatever the worker sent: a client of this dialect gets JSON, whole or in events."""
    if not body.startswith(b"data: "):
        json.loads(body)
        return
    decoder = sse.Decoder()
    for event in decoder.receive(body):
        assert event.data == b"[DONE]" or json.loads(event.data)
    decoder.close()


_RETRIEVALS: Final = (
    b'{"text":"Helloab","id":"%032x"}' % 0,
    b'{"text":"Hello","id":null}',
    b'{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":"assistant",'
    b'"content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":'
    b'{"a":1}}}]},{"role":"tool","tool_call_id":"c","content":"ok"}],"tools":[{"type":"function",'
    b'"function":{"name":"f","parameters":{}}}],"add_generation_prompt":true,'
    b'"chat_template_kwargs":{"a":1},"id":"x"}',
)


@_register
def retrieval_body(chance: random.Random) -> None:
    """Retrieval by text, by messages and by name, after a call was captured."""
    bodies = [altered_json(_RETRIEVALS, chance) for _ in range(8)]
    with given(bodies=bodies):
        _run(_retrieve, bodies)


async def _retrieve(bodies: list[bytes]) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(answer(json.dumps(answer_item([5, 6], "ab")).encode()))

    async with relay_router(script) as (router, journal):
        await generate(router, inbound("/generate", {"text": "Hello"}), Sink())
        for body in bodies:
            for retrieve in (retrieval.by_text, retrieval.by_messages):
                with given(body=body), suppress(ClientError):
                    json.loads(await retrieve(router, body))
            with suppress(ClientError):
                await retrieval.by_call(router, body[:40].decode("latin-1"))
        assert_at_rest(router, [journal])


_TOLD: Final = (
    b'{"model_path":"m","weight_version":"12"}',
    b'{"tokens":[1,2,3],"count":3,"max_model_len":4096}',
)


@_register
def first_contact(chance: random.Random) -> None:
    """A worker that tells nonsense of itself is unfit or not, and never the router's problem."""
    bodies = [altered_json(_TOLD, chance) for _ in range(2)]
    statuses = [chance.choice((200, 200, 200, 404, 500)) for _ in range(2)]
    with given(bodies=bodies, statuses=statuses):
        _run(_contact, bodies, statuses)


async def _contact(bodies: list[bytes], statuses: list[int]) -> None:
    def told(request: httpx.Request) -> httpx.Response:
        which = int(request.url.path == "/tokenize")
        return httpx.Response(statuses[which], content=bodies[which])

    async def nobody(peer: Peer) -> None:
        await peer.close()

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(told)) as client,
        relay_router(nobody) as (router, journal),
    ):
        router.component_registry.register("admin_client", client)
        with structlog.testing.capture_logs() as lines:
            await contact(router, WorkerUrl(URL))
        # Whoever tends the workers goes on after a bug, and says so.
        assert not [line for line in lines if line["event"] == "internal error"]
        assert_at_rest(router, [journal])
        assert router.context_length is None or isinstance(router.context_length, int)
