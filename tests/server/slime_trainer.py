"""A trainer's side of the wire: the very requests of slime, in both of its ages, and of miles.

Nothing is imported from them; each method sends what theirs sends, in their order, and takes for
success what theirs takes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import h11
import httpx
import trio

__all__ = ["SAMPLING", "Engine", "Trainer", "trainer"]

SAMPLING: Final = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 8,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}
"""What slime sends as ``sampling_params`` in every request."""

_TRIES: Final = 60


class Engine:
    """One SGLang server of the trainer's, which it also talks to directly."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self.client, self.url = client, url

    async def post(self, path: str, body: Any = None) -> Any:
        """A direct request; any status from 300 on is an error."""
        response = await self.client.post(self.url + path, json={} if body is None else body)
        assert response.status_code < 300, response.text
        return response

    async def load(self) -> int:
        """Requests that run or wait there, as the abort loop counts them."""
        answer = await self.client.get(f"{self.url}/v1/loads?include=core")
        loads = answer.json()["loads"]
        return sum(one["num_running_reqs"] + one["num_waiting_reqs"] for one in loads)

    async def new_weights(self, version: str) -> None:
        """Pause, update and go on, beside the router."""
        await self.post("/pause_generation", {"mode": "retract"})
        flushed = await self.client.get(f"{self.url}/flush_cache")
        assert flushed.status_code == 200
        await self.post(
            "/update_weight_version", {"new_version": version, "abort_all_requests": False}
        )
        await self.post("/continue_generation")


class Trainer:
    """slime, as far as a router sees it."""

    def __init__(self, client: httpx.AsyncClient, router: str) -> None:
        self.client, self.router = client, router

    # -- the helpers ---------------------------------------------------------------------------

    async def post(
        self,
        path: str,
        body: Any,
        *,
        headers: dict[str, str] | None = None,
        before: Callable[[int], Awaitable[None]] | None = None,
    ) -> Any:
        """slime's ``post``: the very body again until it is answered with 2xx, 60 times.

        It waits a second between two tries, which here is no time at all.
        """
        for attempt in range(_TRIES):
            if before is not None:
                await before(attempt)
            try:
                response = await self.client.post(
                    self.router + path, json=body, headers=headers or {}
                )
                if response.status_code < 300:
                    try:
                        return response.json()
                    except ValueError:
                        return response.text
            except httpx.TransportError:
                pass
            await trio.lowlevel.checkpoint()
        raise AssertionError(f"{_TRIES} times without success: {path}")

    async def get(self, path: str) -> Any:
        """slime's ``get``: JSON, and no second try."""
        response = await self.client.get(self.router + path)
        response.raise_for_status()
        return response.json()

    # -- registration --------------------------------------------------------------------------

    async def register(self, url: str, kind: str = "regular", **more: Any) -> httpx.Response:
        """Today's ``POST /workers``; any 2xx will do."""
        body = {"url": url, "worker_type": kind, **more}
        response = await self.client.post(f"{self.router}/workers", json=body)
        response.raise_for_status()
        return response

    async def listed(self) -> dict[str, Any]:
        """Today's ``GET /workers``, by URL."""
        return {one["url"]: one for one in (await self.get("/workers"))["workers"]}

    async def remove(self, url: str) -> None:
        """Today's way at shutdown: find the entry by its exact URL, delete it by its id."""
        entry = (await self.listed()).get(url)
        if entry is not None:
            response = await self.client.delete(f"{self.router}/workers/{entry['id']}")
            response.raise_for_status()

    async def remove_by_url(self, url: str) -> None:
        """The way of gateways before 0.3: the URL itself, percent-encoded."""
        response = await self.client.delete(f"{self.router}/workers/{quote(url, safe='')}")
        response.raise_for_status()

    async def add(self, url: str) -> None:
        """The slime-router age: a query and no body."""
        response = await self.client.post(f"{self.router}/add_worker?url={url}")
        response.raise_for_status()

    async def take_out(self, url: str) -> None:
        """The slime-router age's removal."""
        response = await self.client.post(f"{self.router}/remove_worker?url={url}")
        response.raise_for_status()

    async def urls(self) -> list[str]:
        """The slime-router age's list."""
        urls: list[str] = (await self.get("/list_workers"))["urls"]
        return urls

    # -- rollouts ------------------------------------------------------------------------------

    async def generate(
        self, ids: list[int], *, headers: dict[str, str] | None = None, **more: Any
    ) -> Any:
        """One generation by ids, as rollouts ask for it."""
        sampling = SAMPLING | more.pop("sampling_params", {})
        body = {"input_ids": ids, "return_logprob": True, "sampling_params": sampling, **more}
        return await self.post("/generate", body, headers=headers)

    async def stream(
        self, ids: list[int], *, stop_after: int | None = None, **more: Any
    ) -> list[Any]:
        """The streaming variant: cumulative ``data:`` lines, dropped after so many."""
        sampling = SAMPLING | more.pop("sampling_params", {})
        body = {
            "input_ids": ids,
            "return_logprob": True,
            "sampling_params": sampling,
            "stream": True,
            **more,
        }
        seen: list[Any] = []
        async with aclosing(_lines(self.router, "/generate", json.dumps(body).encode())) as lines:
            async for line in lines:
                if not line.startswith(b"data:") or b"[DONE]" in line:
                    continue
                seen.append(json.loads(line.removeprefix(b"data:")))
                if len(seen) == stop_after:
                    break
        return seen

    async def abort(self, engines: list[Engine]) -> None:
        """The end of a rollout: abort on each worker itself, until none has anything left."""
        urls = {engine.url: engine for engine in engines}
        assert set(await self.listed()) == set(urls)
        for engine in urls.values():
            await engine.post("/abort_request", {"abort_all": True})
            while await engine.load():
                await engine.post("/abort_request", {"abort_all": True})
                await trio.sleep(0.01)


async def _lines(router: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """The lines of a stream as they come; left early, the connection is dropped in mid-stream."""
    host, port = router.removeprefix("http://").split(":")
    connection = h11.Connection(our_role=h11.CLIENT)
    head = h11.Request(
        method="POST",
        target=path,
        headers=[
            ("host", host),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
        ],
    )
    waiting = b""
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(
            connection.send(head)
            + connection.send(h11.Data(data=body))
            + connection.send(h11.EndOfMessage())
        )
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                assert event.status_code == 200
            elif isinstance(event, h11.Data):
                *lines, waiting = (waiting + bytes(event.data)).split(b"\n")
                for line in lines:
                    yield line


@asynccontextmanager
async def trainer(router: str) -> AsyncIterator[Trainer]:
    """A trainer with slime's HTTP client: one pool, no proxies, and no time-outs of its own."""
    limits = httpx.Limits(max_connections=1024)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:
        yield Trainer(client, router)
