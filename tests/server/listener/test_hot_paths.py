"""Hot paths: the same answers as through the application, by fewer steps."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from slime_trio.app import create_app
from slime_trio.config import BUILT_IN_CAPTURE, Settings
from slime_trio.listener.hot_paths import HotPaths
from slime_trio.listener.server import has_middleware
from slime_trio.router import Router
from tests.server.harness import checkpoint, router_with
from tests.server.listener.support import Client, opened, request
from tests.server.relay_support import (
    AtStep,
    Journal,
    answering,
    assert_at_rest,
    relay_router,
    sweep,
)
from tests.server.upstream_support import Peer, answer

ASKED = {"text": "Hello", "sampling_params": {"max_new_tokens": 4}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def post(path: str, body: Any, *, method: str = "POST", more: str = "") -> bytes:
    """A request with this JSON, or these bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request(path, method=method, body=data, more="x-request-id: mine\r\n" + more)


# -- the same as through the application ---------------------------------------------------------

_CHUNKED = request("/generate", method="POST", more="transfer-encoding: chunked\r\n")
_DEEP = b"[" * 300 + b"]" * 300

REQUESTS = [
    post("/generate", ASKED),
    post("/generate", ASKED, method="PUT"),
    post("/generate?x=%20y", ASKED),
    post("/generate", {**ASKED, "stream": True}),
    post("/generate", {"input_ids": [5, 6], "sampling_params": {"n": 2}}),
    post("/generate", {"text": 7}),
    post("/generate", b"{"),
    post("/generate", _DEEP),
    request("/generate", method="POST", more="x-request-id: mine\r\n"),
    _CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    post("/generate", ASKED, more="connection: close\r\n"),
    post("/generate", ASKED, more="authorization: Bearer sk-slime-nobodys\r\n"),
    post("/generate", ASKED, more="x-session-id: one\r\n"),
    post("/generate", ASKED, more="idempotency-key: k\r\n"),
    post("/generate", ASKED, more="idempotency-key: " + "k" * 300 + "\r\n"),
    post("/v1/chat/completions", CHAT),
    post("/v1/chat/completions", {**CHAT, "stream": True}),
    post("/v1/chat/completions", {"model": "m"}),
    post("/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
    post("/v1/completions", {"model": "m", "prompt": 7}),
    post("/sessions/unknown/generate", ASKED),
    post("/sessions/unknown/v1/chat/completions", CHAT),
    post("/invocations", CHAT),
    post("/v1/messages", CHAT),
    post("/retrieve_from_text", ASKED),
    post("/retrieve_from_text", {"text": ""}),
    post("/retrieve_from_text", {"text": 7}),
    post("/retrieve_from_text", {"text": "x", "id": "unknown"}),
    post("/retrieve_from_text", b"{"),
    post("/retrieve_from_text", ASKED, more="x-session-id: one\r\n"),
    post("/retrieve_from_text", ASKED, more="authorization: Bearer sk-slime-nobodys\r\n"),
    post("/retrieve_from_text", ASKED, method="PUT"),
    post("/retrieve_from_messages_template", {"messages": CHAT["messages"]}),
    post("/retrieve_from_messages_template", {}),
]
_MADE = re.compile(rb"(req_)?[0-9a-f]{32}|\"created\":[0-9]+")


async def _answers(requests: list[bytes], *, hot: bool, **settings: Any) -> list[bytes]:
    """All that is answered to each request, on a connection of its own; but for ids and times."""
    async with relay_router(answering, **settings) as (router, _):
        app = create_app(router.args, router=router)
        async with opened(app, router=router, hot=hot) as door:
            return [_MADE.sub(b"*", await _until_quiet(door.connect(), sent)) for sent in requests]


async def _until_quiet(client: Client, sent: bytes) -> bytes:
    await client.send(sent)
    got = b""
    with trio.move_on_after(5):
        while data := await client.stream.receive_some():
            got += data
    await client.stream.aclose()
    return got


@pytest.mark.parametrize("settings", [{}, {"api_key": ("sk-1",)}, {"admin_key": "sk-2"}])
async def test_the_answers_are_the_applications(
    autojump_clock: MockClock, settings: dict[str, Any]
) -> None:
    direct = await _answers(REQUESTS, hot=True, **settings)
    around = await _answers(REQUESTS, hot=False, **settings)
    for sent, one, other in zip(REQUESTS, direct, around, strict=True):
        assert one == other, sent
    assert direct[0].startswith(b"HTTP/1.1 401 " if "api_key" in settings else b"HTTP/1.1 200 ")


async def test_so_are_they_where_chats_are_not_served_here(autojump_clock: MockClock) -> None:
    settings = {"enable_openai_chat_completion": False}
    direct = await _answers(REQUESTS, hot=True, **settings)
    assert direct == await _answers(REQUESTS, hot=False, **settings)
    assert any(b"x-slime-captured: false" in told for told in direct)


# -- which paths are hot -------------------------------------------------------------------------


def _hot(router: Router, targets: list[tuple[str, bytes]]) -> list[bool]:
    paths = HotPaths(router)
    return [paths.find(method, target) is not None for method, target in targets]


def test_only_paths_that_are_written_as_in_the_table_are_hot() -> None:
    router = Router(Settings(), checkpoint=checkpoint())
    hot = [
        ("POST", b"/generate"),
        ("PUT", b"/generate?x"),
        ("POST", b"/v1/completions"),
        ("POST", b"/sessions/a-b_1/v1/chat/completions"),
        ("POST", b"/api/generate"),
    ]
    cold = [
        ("GET", b"/generate"),
        ("POST", b"/generate/"),
        ("POST", b"//generate"),
        ("POST", b"/gener%61te"),
        ("POST", b"http://x/generate"),
        ("PUT", b"/v1/completions"),
        ("PUT", b"/sessions/a/generate"),
        ("POST", b"/sessions/a%2e/generate"),
        ("POST", b"/sessions/../generate"),
        ("POST", b"/sessions/a/v1/models"),
        ("POST", b"/sessions/a/api/generate"),
    ]
    assert all(_hot(router, hot))
    assert not any(_hot(router, cold))


def test_nothing_in_a_session_is_hot_where_nothing_is_captured() -> None:
    router = Router(Settings(capture=False), checkpoint=None)
    targets = [("POST", b"/v1/chat/completions"), ("POST", b"/sessions/a/generate")]
    assert _hot(router, targets) == [True, False]


def test_what_is_built_in_is_no_middleware() -> None:
    assert not has_middleware(Settings(slime_router_middleware_paths=(BUILT_IN_CAPTURE,)))
    assert has_middleware(Settings(slime_router_middleware_paths=("a.B", BUILT_IN_CAPTURE)))


async def test_where_there_is_middleware_no_request_goes_past_it(autojump_clock: MockClock) -> None:
    passed: list[str] = []

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])
        await app(scope, receive, send)

    async with relay_router(answering, slime_router_middleware_paths=("a.B",)) as (router, _):
        app = create_app(Settings(), router=router)
        async with opened(middleware, router=router) as door:
            client = door.connect()
            await client.send(post("/generate", ASKED))
            assert (await client.answer())[0] == 200
    assert passed == ["/generate"]


# -- clients that leave, and servers that end ----------------------------------------------------


async def _quiet(peer: Peer) -> None:
    """A worker that generates for ever, but for what it is told to abort."""
    while (asked := await peer.request()) is not None:
        if asked[0].startswith(b"POST /generate "):
            await trio.sleep_forever()
        await peer.send(answer(b"{}"))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("fields", ["", "x-session-id: s\r\n"])
async def test_a_request_ends_when_its_client_leaves(
    autojump_clock: MockClock, whole: bool, fields: str
) -> None:
    async with (
        relay_router(_quiet) as (router, journal),
        opened(create_app(router.args, router=router), router=router) as door,
    ):
        client = door.connect()
        await client.send(post("/generate", ASKED, more=fields))
        await wait_all_tasks_blocked()
        assert router.state.fleet.total_in_flight == 1
        began = trio.current_time()
        await (client.stream.aclose() if whole else client.stream.send_eof())
        await wait_all_tasks_blocked()
        assert trio.current_time() == began
        assert_at_rest(router, [journal])


async def _left_at(at: int, *, stream: bool, all_of_it: bool) -> AtStep:
    """The client leaves, or the whole listener is cancelled, before the ``at``-th step."""
    async with relay_router(answering) as (router, journal):
        app = create_app(router.args, router=router)
        async with opened(app, router=router) as door:
            client = door.connect()

            def leave() -> None:
                if all_of_it:
                    door.nursery.cancel_scope.cancel()
                else:
                    client.stream.send_stream.close()
                    client.stream.receive_stream.close()

            instrument = AtStep(at, leave, named=("serve_stream", "run", "_abort"))
            with instrument.watching():
                try:
                    await client.send(post("/generate", {**ASKED, "stream": stream}) * 2)
                    for _ in range(2):
                        assert (await client.answer())[0] == 200
                except (trio.ClosedResourceError, trio.BrokenResourceError, AssertionError):
                    assert instrument.has_acted
        await trio.sleep(1)
        _check(router, journal)
        return instrument


def _check(router: Router, journal: Journal) -> None:
    assert_at_rest(router, [journal])
    assert router.state.counters.calls_opened <= 2


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_ends_at_any_step_leaves_nothing_behind(
    stream: bool, all_of_it: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    async def run(at: int) -> AtStep:
        return await _left_at(at, stream=stream, all_of_it=all_of_it)

    assert sweep(run, stride=5) > 10
    assert "rror" not in "".join(capfd.readouterr())


async def test_start_up_says_that_middleware_costs_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(structlog, "get_logger", lambda *_: _Said(said))
    middleware = ("tests.server.listener.test_hot_paths.Nothing",)
    # Under Hypercorn all requests take that way anyhow, so it says nothing.
    async with router_with(middleware=middleware, listener="fast"):
        pass
    assert any(one.startswith("middleware: ") for one in said)


class _Said:
    def __init__(self, said: list[str]) -> None:
        self.warning = lambda event, **_: said.append(event)
        self.info = self.debug = self.error = lambda *_, **__: None


class Nothing:
    """Middleware that does nothing."""

    def __init__(self, app: Any, *, router: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)
