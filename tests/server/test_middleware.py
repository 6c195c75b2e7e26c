"""Pluggable middleware: plain ASGI and Starlette's, around every kind of answer."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response

from slime_trio.config import BUILT_IN_CAPTURE, ConfigurationError
from slime_trio.middleware import load_middleware, wrap
from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    embedded_worker,
    events_of,
    fake_worker,
    json_answer,
    raw_client,
    router_with,
    settled,
    until,
)

HERE = "tests.server.test_middleware"


class Plain:
    """Plain ASGI: marks every answer."""

    def __init__(self, app: Any, *, router: Any) -> None:
        self._app = app
        router.component_registry.register("plain", self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-plain", b"1")]}
            await send(message)

        await self._app(scope, receive, marked)


class Fancy(BaseHTTPMiddleware):
    """Starlette's: marks every answer, and reads the settings."""

    def __init__(self, app: Any, *, router: Any) -> None:
        super().__init__(app)
        self._policy = router.args.policy

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-fancy"] = self._policy
        return response


class Needy:
    """Needs a component nobody registered."""

    def __init__(self, app: Any, *, router: Any) -> None:
        self._needed = router.component_registry.get("x")


class OldStyle:
    """Takes no router."""

    def __init__(self, app: Any) -> None:
        self._app = app


@pytest.mark.parametrize(("name", "mark"), [("Plain", "x-plain"), ("Fancy", "x-fancy")])
@pytest.mark.parametrize("stream", [False, True])
async def test_answers_pass_through_middleware(name: str, mark: str, stream: bool) -> None:
    async with (
        embedded_worker() as worker,
        router_with(worker.url, middleware=[f"{HERE}.{name}"]) as served,
    ):
        params = {"max_new_tokens": 4, "ignore_eos": True}
        response = await served.generate(text="a", stream=stream, sampling_params=params)
        assert response.headers[mark]
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert found["answer_length"] == 4
        await settled(served)


@pytest.mark.parametrize("name", ["Plain", "Fancy"])
async def test_an_event_passes_through_middleware_at_once(name: str) -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        await go.wait()
        await events.event(answer_item([5, 6], "ab"))
        await events.end()

    async with (
        fake_worker(answer) as worker,
        router_with(worker.url, middleware=[f"{HERE}.{name}"]) as served,
    ):
        async with raw_client(served) as client:
            await client.post("/generate", {"text": "x", "stream": True})
            with trio.fail_after(3):
                await client.until(b'"a"', step=4096)
            go.set()
            await client.until(b"[DONE]", step=4096)
        await settled(served)


@pytest.mark.parametrize("name", ["Plain", "Fancy"])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_goes_is_noticed_through_middleware(name: str, begun: bool) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        if begun:
            events = Events(stream)
            await events.begin()
            await events.event(answer_item([5], "a", finished=False))
        await trio.sleep_forever()

    async with (
        fake_worker(answer) as worker,
        router_with(worker.url, middleware=[f"{HERE}.{name}"]) as served,
    ):
        async with raw_client(served) as client:
            await client.post("/generate", {"text": "x", "stream": begun})
            await until(lambda: worker.arrived)
            if begun:
                await client.until(b'"a"', step=4096)
        await settled(served)


async def test_the_first_path_is_the_outermost_and_both_apply() -> None:
    async with fake_worker(json_answer(answer_item([5], "a"))) as worker:
        paths = [f"{HERE}.Plain", BUILT_IN_CAPTURE, f"{HERE}.Fancy"]
        async with router_with(worker.url, middleware=paths) as served:
            response = await served.generate(text="a")
            assert response.headers["x-plain"]
            assert response.headers["x-fancy"]
            assert isinstance(served.router.component_registry.get("plain"), Plain)


async def test_errors_and_other_paths_pass_through_middleware() -> None:
    async with router_with(middleware=[f"{HERE}.Fancy"]) as served:
        response = await served.generate(text="")
        assert (response.status_code, response.headers["x-fancy"]) == (400, "least-in-flight")
        assert (await served.client.get("/health")).headers["x-fancy"]


async def test_a_worker_cut_under_middleware_is_visible() -> None:
    from slime_trio.worker import Fault

    async with (
        embedded_worker(faults=(Fault("cut-stream", 2),)) as worker,
        router_with(worker.url, middleware=[f"{HERE}.Fancy"]) as served,
    ):
        params = {"max_new_tokens": 9, "ignore_eos": True}
        response = await served.generate(text="a", stream=True, sampling_params=params)
        assert "error" in events_of(response.text)[-1]
        await settled(served)


def test_the_documents_path_means_the_built_in_capture() -> None:
    assert load_middleware([BUILT_IN_CAPTURE]) == []


def test_middleware_that_takes_no_router_is_named() -> None:
    with pytest.raises(ConfigurationError, match="OldStyle"):
        wrap(object(), [OldStyle], object())
