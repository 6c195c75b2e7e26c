"""Tending: workers are contacted until they answer, and polled for their weights."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from slime_trio.config import Settings
from slime_trio.router import Router
from slime_trio.tending import tend
from tests.server.harness import (
    Arrived,
    FakeWorker,
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    json_answer,
    router_with,
    settled,
    worker_url,
)

OK = json_answer(answer_item([5], "a"))
_QUARANTINED = "in quarantine"
DEEP = b"[" * 100_000


async def _until(holds: Callable[[], bool], *, within_s: float = 4.0) -> None:
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.005)


def _unfit(served: Served, url: str) -> str | None:
    return served.router.state.fleet.workers[worker_url(url)].unfit


def _version(served: Served, url: str) -> str | None:
    return served.router.state.fleet.workers[worker_url(url)].version


async def _listening(
    serve: Callable[[trio.SocketStream], Awaitable[None]], task_status: trio.TaskStatus[Any]
) -> None:
    async def patient(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await serve(stream)

    await trio.serve_tcp(patient, 0, host="127.0.0.1", task_status=task_status)


def _info(version: object) -> dict[str, object]:
    return {"model_path": "fake", "weight_version": version}


class _Place:
    """A port that a worker may come to, leave, and come back to."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._serving: trio.CancelScope | None = None
        self.worker = FakeWorker(OK)
        self._port = 0

    async def arrive(self) -> None:
        """Listen from now on."""
        (listener,) = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
        self._port = listener.socket.getsockname()[1]
        self.worker.url = f"http://127.0.0.1:{self._port}"
        await self._nursery.start(self._serve, listener)

    async def _serve(self, listener: Any, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._serving:
            async with trio.open_nursery() as connections, listener:
                task_status.started()
                await trio.serve_listeners(
                    self.worker.serve, [listener], handler_nursery=connections
                )

    async def leave(self) -> None:
        """Close everything; connecting is refused."""
        assert self._serving is not None
        self._serving.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def _place() -> AsyncIterator[_Place]:
    async with trio.open_nursery() as nursery:
        place = _Place(nursery)
        await place.arrive()
        yield place
        nursery.cancel_scope.cancel()


# -- reachability ------------------------------------------------------------------------------


async def test_a_worker_that_starts_later_is_contacted_again_and_then_fit() -> None:
    async with _place() as place:
        await place.leave()
        async with router_with(place.worker.url, poll_interval_s=0.05) as served:
            assert _unfit(served, place.worker.url) == _QUARANTINED
            assert (await served.generate(text="x")).status_code == 503
            await place.arrive()
            await _until(lambda: _unfit(served, place.worker.url) is None)
            assert (await served.generate(text="x")).status_code == 200
            await settled(served)


async def test_a_worker_named_at_start_is_contacted_without_being_added() -> None:
    async with fake_worker(OK) as worker, router_with(worker_urls=(worker.url,)) as served:
        assert (await served.client.get("/list_workers")).json() == {"urls": [worker.url]}
        await _until(lambda: _unfit(served, worker.url) is None)


async def test_a_worker_that_refuses_connections_gets_no_more_work_until_it_answers() -> None:
    async with (
        _place() as place,
        fake_worker(OK) as other,
        router_with(place.worker.url, other.url, poll_interval_s=60.0) as served,
    ):
        assert (await served.generate(text="x")).status_code == 200
        await place.leave()
        seen = [(await served.generate(text="x")).status_code for _ in range(8)]
        assert sorted(seen) == [200] * 7 + [502] or seen == [200] * 8
        assert _unfit(served, place.worker.url) == _QUARANTINED
        ready = (await served.client.get("/readiness")).json()
        assert (ready["healthy_workers"], ready["total_workers"]) == (1, 2)
        await place.arrive()
        await _until(lambda: _unfit(served, place.worker.url) is None)
        before = len(place.worker.arrived)
        for _ in range(4):
            assert (await served.generate(text="x")).status_code == 200
        assert len(place.worker.arrived) > before
        await settled(served)


async def test_what_a_dead_worker_was_asked_is_not_counted_as_a_lost_answer() -> None:
    async with _place() as place, router_with(place.worker.url) as served:
        await place.leave()
        assert (await served.generate(text="x")).status_code == 502
        await settled(served)
        assert served.router.state.counters.answers_not_captured == 0
        assert served.router.state.counters.calls_lost == 1


async def test_a_worker_that_hangs_does_not_keep_others_from_being_contacted() -> None:
    async def never(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (silent,) = await nursery.start(_listening, never)
        hanging = f"http://127.0.0.1:{silent.socket.getsockname()[1]}"
        async with _place() as place:
            await place.leave()
            urls = (hanging, place.worker.url)
            async with router_with(worker_urls=urls, poll_interval_s=0.05) as served:
                await _until(lambda: _unfit(served, place.worker.url) == _QUARANTINED)
                await place.arrive()
                await _until(lambda: _unfit(served, place.worker.url) is None)
        nursery.cancel_scope.cancel()


# -- what workers tell -------------------------------------------------------------------------


async def test_a_worker_without_tokenize_is_fit_and_warned_of(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with fake_worker(OK) as worker, router_with(worker.url) as served:
        assert _unfit(served, worker.url) is None
    assert "tokenizer not compared: the worker does not tell" in capfd.readouterr().err


async def test_adding_a_mended_worker_again_makes_it_fit() -> None:
    async with (
        fake_worker(OK, tokenize=lambda text: [1]) as worker,
        router_with(worker.url) as served,
    ):
        assert (await served.client.get("/readiness")).status_code == 503
        worker.tokenize = None
        await served.client.post("/add_worker", params={"url": worker.url})
        assert (await served.client.get("/readiness")).status_code == 200


async def test_new_weights_are_learnt_from_polls() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url, poll_interval_s=0.05) as served:
        assert _version(served, worker.url) == "1"
        worker.model_info = _info("2")
        await _until(lambda: _version(served, worker.url) == "2")
        assert (await served.client.get("/metrics")).json()["router"]["weight_version"] == "2"


async def test_new_weights_are_learnt_from_answers() -> None:
    answer = json_answer(answer_item([5], "a", weight_version="3"))
    async with (
        fake_worker(answer) as worker,
        router_with(worker.url, poll_interval_s=60.0) as served,
    ):
        await served.generate(text="x")
        assert _version(served, worker.url) == "3"


async def test_new_weights_in_an_answer_take_the_work_from_who_holds_old_ones() -> None:
    answer = json_answer(answer_item([5], "a", weight_version="3"))
    async with (
        fake_worker(answer, model_info=_info("3")) as new,
        fake_worker(OK, model_info=_info("2")) as old,
        router_with(old.url, poll_interval_s=0.05) as served,
    ):
        assert _unfit(served, old.url) is None
        await served.client.post("/workers", json={"url": new.url})
        await _until(lambda: _unfit(served, old.url) == "holds old weights")
        for _ in range(4):
            assert (await served.generate(text="x")).status_code == 200
        assert (len(new.arrived), len(old.arrived)) == (4, 0)
        old.model_info = _info("3")
        await _until(lambda: _unfit(served, old.url) is None)
        await settled(served)


async def test_a_version_that_is_a_number_is_understood() -> None:
    async with (
        fake_worker(OK, model_info=_info(12)) as worker,
        router_with(worker.url) as served,
    ):
        assert _version(served, worker.url) == "12"


async def test_the_older_path_is_asked_where_the_newer_is_not_known() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        while True:
            request = await stream.receive_some()
            if not request:
                return
            known = request.startswith(b"GET /get_model_info ")
            body = b'{"model_path": "m", "weight_version": "8"}' if known else b"no"
            await stream.send_all(http_response(body, status="200 OK" if known else "404 No"))

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(_listening, serve)
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with router_with(url) as served:
            assert (_version(served, url), _unfit(served, url)) == ("8", None)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "said",
    [
        http_response(b""),
        http_response(b"{}"),
        http_response(b"[1]"),
        http_response(b'{"model_path": "m", "weight_version": {"a": 1}, "tokens": "many"}'),
        http_response(
            b'{"model_path": "m", "weight_version": 1.5, "tokens": [-1], "max_model_len": "x"}'
        ),
        http_response(b'{"tokens": ' + DEEP),
        http_response(DEEP + b"]" * len(DEEP)),
        http_response(b"\xff\xfe"),
        http_response(b"{}", status="500 Oops"),
        http_response(b"x", more="content-encoding: gzip\r\n"),
        http_response(b"{}", status="302 Found", more="location: http://127.0.0.1:1/\r\n"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{",
        b"SSH-2.0-OpenSSH_9.0\r\n",
        b"",
    ],
    ids=range(14),
)
async def test_a_worker_that_tells_garbage_ends_neither_its_adding_nor_the_tending(
    said: bytes,
) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        if await stream.receive_some():
            await stream.send_all(said)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(_listening, serve)
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with fake_worker(OK) as good, router_with(good.url, poll_interval_s=0.05) as served:
            added = await served.client.post("/add_worker", params={"url": url})
            assert added.status_code == 200
            good.model_info = _info("9")
            await _until(lambda: _version(served, good.url) == "9")
        nursery.cancel_scope.cancel()


# -- the client --------------------------------------------------------------------------------


@asynccontextmanager
async def _tended(router: Router) -> AsyncIterator[None]:
    """``router`` is looked after until the block ends."""
    async with trio.open_nursery() as nursery:
        await nursery.start(tend, router)
        yield
        nursery.cancel_scope.cancel()


def _telling(version: str) -> httpx.AsyncClient:
    """A client that reaches a worker with these weights, wherever it is sent."""
    answer = httpx.Response(200, json=_info(version))
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda _request: answer))


async def test_a_registered_client_probes_the_workers_and_is_left_open() -> None:
    url = worker_url("http://nowhere.invalid")
    router = Router(Settings(worker_urls=(url,), capture=False))
    async with _telling("7") as client:
        router.component_registry.register("admin_client", client)
        async with _tended(router):
            await _until(lambda: router.state.fleet.workers[url].unfit is None)
            assert router.state.fleet.workers[url].version == "7"
        assert not client.is_closed


async def test_a_client_that_was_closed_is_replaced() -> None:
    router = Router(Settings(capture=False))
    async with _telling("7") as client:
        router.component_registry.register("admin_client", client)
    async with _tended(router):
        made = router.component_registry.get("admin_client")
        assert made is not client
        assert not made.is_closed
    assert made.is_closed


# -- bad URLs ----------------------------------------------------------------------------------

BAD_URLS = [
    "http://a..b", "http://xn--a", "http://a b", "http:// a", " http://a", "http://a\n", "ftp://a",
    "a:1", "http://", "http://:1", "http://user:pass@a", "http://a:0", "http://a:70000",
    "http://a:x", "http://a?x=1", "http://a#x", "http://[::1", "http://[::1%25eth0]", "http://é",
    "http://" + "a" * 64, "http://a/b c", "file:///etc/passwd", "//a", "http:a",
]  # fmt: skip


async def test_a_bad_url_is_refused_by_name_and_tending_goes_on() -> None:
    async with fake_worker(OK) as good, router_with(good.url, poll_interval_s=0.05) as served:
        for url in BAD_URLS:
            for form in ({"params": {"url": url}}, {"json": {"url": url}}):
                response = await served.client.post("/add_worker", **form)  # type: ignore[arg-type]
                assert response.status_code == 400, (url, response.text)
                assert response.json()["error"]["param"] == "url"
        assert (await served.client.get("/list_workers")).json() == {"urls": [good.url]}
        good.model_info = _info("9")
        await _until(lambda: _version(served, good.url) == "9")


ODD_URLS = [
    "http://127.0.0.1:1/%zz", "http://0x7f.1:1", "http://1.2.3.4.5:1", "http://999.1:1",
    "http://a_b.invalid:1", "http://-a.invalid:1", "http://a-.invalid:1", "https://127.0.0.1:1",
    "http://127.0.0.1:1/a/../b", "http://xn--nxasmq6b.invalid", "http://[::1]:1",
    "http://" + ".".join(["a" * 60] * 4), "http://x.invalid.:1", "HTTP://127.0.0.1:1",
    "http://_:1", "http://a--b.invalid:1", "http://127.0.0.1:1//",
]  # fmt: skip


@pytest.mark.parametrize("url", ODD_URLS)
async def test_an_odd_url_is_refused_or_becomes_an_unreachable_worker(url: str) -> None:
    async with fake_worker(OK) as good, router_with(good.url, poll_interval_s=0.05) as served:
        added = await served.client.post("/add_worker", params={"url": url})
        if added.status_code == 200:
            assert _unfit(served, url) == _QUARANTINED
        else:
            assert added.status_code == 400
            assert added.json()["error"]["param"] == "url"
            assert worker_url(url) not in served.router.state.fleet.workers
        good.model_info = _info("9")
        await _until(lambda: _version(served, good.url) == "9")


# -- dealing -----------------------------------------------------------------------------------


async def test_round_robin_deals_in_turn_however_busy_workers_are() -> None:
    go = trio.Event()

    async def slow(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(json.dumps(answer_item([5], "a")).encode())

    async with (
        fake_worker(slow) as one,
        fake_worker(OK) as two,
        router_with(one.url, two.url, policy="round-robin") as served,
        trio.open_nursery() as nursery,
    ):
        for count in range(1, 9):
            nursery.start_soon(lambda: served.generate(text="x"))
            await _until(lambda count=count: len(one.arrived) + len(two.arrived) == count)  # type: ignore[misc]
        assert (len(one.arrived), len(two.arrived)) == (4, 4)
        go.set()


async def test_least_in_flight_spares_the_worker_that_is_slow() -> None:
    go = trio.Event()

    async def slow(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(json.dumps(answer_item([5], "a")).encode())

    async with (
        fake_worker(slow) as one,
        fake_worker(OK) as two,
        router_with(one.url, two.url) as served,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: served.generate(text="x"))
        await _until(lambda: len(one.arrived) == 1)
        for _ in range(6):
            assert (await served.generate(text="x")).status_code == 200
        loads = (await served.client.get("/metrics")).json()["router"]["worker_loads"]
        assert loads == {one.url: 1, two.url: 0}
        assert (len(one.arrived), len(two.arrived)) == (1, 6)
        go.set()


async def test_a_context_length_that_a_worker_tells_bounds_the_model() -> None:
    async with embedded_worker(context_length=777) as worker, router_with(worker.url) as served:
        (card,) = (await served.client.get("/v1/models")).json()["data"]
        assert card["max_model_len"] == 777


async def test_a_worker_that_has_left_bounds_the_model_no_longer() -> None:
    async with (
        embedded_worker(context_length=777) as short,
        embedded_worker(context_length=999) as worker,
        router_with(short.url, worker.url) as served,
    ):
        removed = await served.client.post("/remove_worker", params={"url": short.url})
        assert removed.is_success
        await _until(lambda: served.router.context_length == 999)
