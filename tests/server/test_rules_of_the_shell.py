"""Rules 8 and 9 as properties of the relay, and that breaking them is noticed.

The relay is driven without a listener, so that the state can be looked at in the very moment in
which a piece is handed to the client.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core import sglang
from slime_trio.capture import Capture
from slime_trio.endpoints import chat_completions, generate
from slime_trio.exchange import Headers, Inbound
from slime_trio.router import Router
from tests.server.harness import Arrived, Events, Served, answer_item, fake_worker, router_with

_IDS = [5, 6, 7, 8]
_TEXT = "abcd"


@dataclass
class WatchfulReply:
    """Notes with each piece how many calls were captured when it was handed over."""

    router: Router
    started: bool = False
    pieces: list[tuple[bytes, int]] = field(default_factory=list)

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        assert status == 200

    async def send(self, data: bytes) -> None:
        self.pieces.append((data, len(self.router.state.forest.calls)))
        await trio.lowlevel.checkpoint()


def _inbound(path: str, **body: Any) -> Inbound:
    return Inbound(
        method="POST",
        path=path,
        target=path.encode(),
        headers=[],
        body=json.dumps(body).encode(),
    )


async def _answer(arrived: Arrived, stream: trio.SocketStream) -> None:
    """All tokens one by one, streamed; the last event finishes."""
    events = Events(stream)
    await events.begin()
    for count in range(1, len(_IDS) + 1):
        finished = count == len(_IDS)
        await events.event(answer_item(_IDS[:count], _TEXT[:count], finished=finished))
    await events.end()


def _check_rule_8(reply: WatchfulReply, tells_the_end: bytes) -> None:
    """Whatever tells the client that its answer is complete is handed over after the commit."""
    telling = [captured for data, captured in reply.pieces if tells_the_end in data]
    assert telling, "the client was never told"
    assert all(telling), "the client was told before the turn was committed"


async def _streamed(served: Served, serve: Any, inbound: Inbound) -> WatchfulReply:
    reply = WatchfulReply(served.router)
    await serve(served.router, inbound, reply)
    return reply


_STREAMS = [
    (generate, _inbound("/generate", text="x", stream=True), b'"type": "stop"'),
    (
        chat_completions,
        _inbound(
            "/v1/chat/completions",
            model="m",
            messages=[{"role": "user", "content": "x"}],
            stream=True,
        ),
        b'"finish_reason":"stop"',
    ),
]


@pytest.mark.parametrize(("serve", "inbound", "end"), _STREAMS)
async def test_rule_8_a_turn_is_committed_before_the_client_is_told_that_it_is_complete(
    serve: Any, inbound: Inbound, end: bytes
) -> None:
    async with fake_worker(_answer) as worker, router_with(worker.url) as served:
        _check_rule_8(await _streamed(served, serve, inbound), end)


@pytest.mark.parametrize(("serve", "inbound", "end"), _STREAMS)
async def test_rule_8_has_teeth_for_a_commit_that_comes_too_late(
    serve: Any, inbound: Inbound, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Capture, "keep", lambda self, *_, **__: True)
    async with fake_worker(_answer) as worker, router_with(worker.url) as served:
        reply = await _streamed(served, serve, inbound)
        with pytest.raises(AssertionError, match="before the turn was committed"):
            _check_rule_8(reply, end)


_FORGED_IDS = st.lists(st.integers(0, 1000), min_size=1, max_size=6)
_FORGERIES = st.fixed_dictionaries(
    {},
    optional={
        "output_ids": _FORGED_IDS,
        "prompt_token_ids": _FORGED_IDS,
        "loss_mask": st.lists(st.integers(0, 1), max_size=6),
        "rollout_logp": st.lists(st.floats(-9, 0), max_size=6),
        "weight_version": st.just("999"),
        "meta_info": st.fixed_dictionaries(
            {"weight_version": st.just("999"), "output_token_logprobs": st.just([[-1.0, 1, None]])}
        ),
    },
)


async def _retrieved(served: Served, **more: Any) -> dict[str, Any]:
    """What a trainer gets of one call that was asked for with ``more`` in its request."""
    response = await served.generate(text="x", **more)
    call = response.headers["x-slime-call-id"]
    body: dict[str, Any] = await served.trajectory(call)
    columns = ("tokens", "loss_mask", "rollout_logp", "generation_versions", "weight_versions")
    return {name: body[name] for name in columns}


async def _check_rule_9(forgery: dict[str, Any]) -> None:
    """What an agent sends changes nothing in what is captured."""

    async def honest(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        body = json.dumps(answer_item(_IDS, _TEXT)).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async with fake_worker(honest) as worker, router_with(worker.url) as served:
        assert await _retrieved(served, **forgery) == await _retrieved(served)


@settings(max_examples=15)
@given(forgery=_FORGERIES)
def test_rule_9_nothing_an_agent_sends_is_believed_as_captured(forgery: dict[str, Any]) -> None:
    trio.run(_check_rule_9, forgery)


async def test_rule_9_has_teeth_for_a_version_taken_from_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse = sglang.parse_answer

    def gullible(body: bytes, asked: Any, **options: Any) -> Any:
        sent = dict(asked.fields).get("weight_version")
        if sent is not None:
            body = body.replace(b'"weight_version": "1"', b'"weight_version": ' + bytes(sent))
        return parse(body, asked, **options)

    monkeypatch.setattr(sglang, "parse_answer", gullible)
    with pytest.raises(BaseExceptionGroup) as caught:
        await _check_rule_9({"weight_version": "999"})
    assert caught.group_contains(AssertionError)
