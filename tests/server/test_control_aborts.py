"""Aborts: of one call among many, of a session's, of a tenant's, of everything with its queue."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_core.types import CallId, WorkerUrl
from slime_trio.control.aborts import AbortWish, Notice, meant, notices, parse_abort
from slime_trio.dispatch.entry import Live
from tests.server.harness import Served, embedded_worker, router_with, settled, until

PARAMS = {"max_new_tokens": 4000, "ignore_eos": True}
SLOW: dict[str, Any] = {"ms_per_token": 5}


class Calls:
    """Generations in the background, by name."""

    def __init__(self, nursery: trio.Nursery, served: Served) -> None:
        self._nursery = nursery
        self._served = served
        self.done: dict[str, httpx.Response] = {}

    def start(self, name: str, path: str = "/generate", *, key: str = "", **body: Any) -> None:
        """A generation that goes on until it is aborted."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if path == "/generate":
            body = {"text": "Hello", "sampling_params": PARAMS} | body
        self._nursery.start_soon(self._run, name, path, headers, body)

    async def _run(self, name: str, path: str, headers: dict[str, str], body: Any) -> None:
        self.done[name] = await self._served.client.post(path, json=body, headers=headers)

    async def answer(self, name: str) -> Any:
        """Its JSON once it has ended."""
        await until(lambda: name in self.done)
        assert self.done[name].status_code == 200, self.done[name].text
        return self.done[name].json()

    async def finish(self, name: str) -> Any:
        """Why it ended."""
        return (await self.answer(name))["meta_info"]["finish_reason"]


def at_workers(served: Served) -> int:
    """How many calls are at a worker."""
    return sum(bool(one.workers) for one in served.router.shared.dispatcher.live.values())


async def abort(served: Served, key: str = "", **body: Any) -> httpx.Response:
    """``POST /abort_request``; it answers 200 whatever it is."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = await served.client.post("/abort_request", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def test_one_of_many_is_aborted_by_its_client_s_id() -> None:
    async with (
        embedded_worker(**SLOW) as one,
        embedded_worker(**SLOW) as two,
        router_with(one.url, two.url) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        for name in ("w", "x", "y", "z"):
            calls.start(name, rid=name)
        await until(lambda: at_workers(served) == 4)
        told = (await abort(served, rid="y")).json()
        assert (told["success"], told["total"]) == (True, 1)
        assert (await calls.finish("y"))["type"] == "abort"
        assert set(calls.done) == {"y"}
        await abort(served, abort_all=True)
        for name in ("w", "x", "z"):
            assert (await calls.finish(name))["message"] == "Aborted"


async def test_one_is_aborted_by_the_router_s_id() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        calls.start("a")
        calls.start("b")
        await until(lambda: at_workers(served) == 2)
        first, second = served.router.shared.dispatcher.live
        await abort(served, rid=first)
        await until(lambda: len(calls.done) == 1)
        await abort(served, rid=second)
        assert (await calls.finish("a"))["type"] == (await calls.finish("b"))["type"] == "abort"


async def test_an_id_is_a_prefix_once_it_is_that_of_a_live_call() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        for name in ("r_1", "r_10", "r_2"):
            calls.start(name, rid=name)
        await until(lambda: at_workers(served) == 3)
        await abort(served, rid="r_")
        await abort(served, rid="r_1")
        await calls.finish("r_1")
        await calls.finish("r_10")
        assert "r_2" not in calls.done
        await abort(served, rid="r_2")


async def test_one_element_of_a_batch_is_aborted() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        calls.start("batch", text=["a", "b"], rid="x")
        await until(lambda: worker.worker.engine.load.running == 2)
        await abort(served, rid="x_1")
        await until(lambda: worker.worker.engine.load.running == 1)
        await abort(served, rid="x_0")
        first, second = await calls.answer("batch")
        assert first["meta_info"]["finish_reason"]["type"] == "abort"
        assert second["meta_info"]["completion_tokens"] < first["meta_info"]["completion_tokens"]


async def test_a_chat_is_aborted_by_the_id_that_its_stream_told() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 4000,
            "ignore_eos": True,
        }
        told: list[str] = []

        async def stream() -> None:
            url = "/v1/chat/completions"
            async with served.client.stream("POST", url, json=body | {"stream": True}) as answer:
                async for line in answer.aiter_lines():
                    told.append(line)

        nursery.start_soon(stream)
        calls.start("other")
        await until(lambda: len(told) > 4)
        name = httpx.Response(200, content=told[0].removeprefix("data: ")).json()["id"]
        await abort(served, rid=name)
        await until(lambda: "generation_aborted" in told[-2])
        assert "other" not in calls.done
        await abort(served, abort_all=True)


async def test_all_calls_of_a_session_are_aborted_and_no_others() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        opened = (await served.client.post("/sessions")).json()["session_id"]
        calls = Calls(nursery, served)
        for name in ("a", "b"):
            calls.start(name, f"/sessions/{opened}/generate", text="x", sampling_params=PARAMS)
        calls.start("other")
        await until(lambda: at_workers(served) == 3)
        await abort(served, session=opened)
        assert (await calls.finish("a"))["type"] == (await calls.finish("b"))["type"] == "abort"
        assert "other" not in calls.done
        await abort(served, abort_all=True)


async def test_an_abort_of_everything_empties_the_router_s_queue() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url, max_concurrent_requests=2) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        for name in ("a", "b", "c", "d"):
            calls.start(name)
        await until(lambda: len(served.router.shared.dispatcher.live) == 4)
        await abort(served, abort_all=True)
        reasons = [(await calls.finish(name)).get("message") for name in ("a", "b", "c", "d")]
        assert reasons.count("Aborted") == reasons.count("Abort in waiting queue") == 2
        await settled(served)
        assert worker.is_idle


async def test_one_that_waits_is_aborted_by_its_id() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url, max_concurrent_requests=1) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        calls.start("a", rid="runs")
        await until(lambda: at_workers(served) == 1)
        calls.start("b", rid="waits")
        await until(lambda: len(served.router.shared.dispatcher.live) == 2)
        told = (await abort(served, rid="waits")).json()
        assert told["total"] == 0
        assert (await calls.finish("b"))["message"] == "Abort in waiting queue"
        await abort(served, rid="runs")


async def test_an_id_that_nobody_here_knows_is_told_to_all_workers() -> None:
    async with (
        embedded_worker(**SLOW) as one,
        embedded_worker(**SLOW) as two,
        router_with(one.url, two.url) as served,
        httpx.AsyncClient(trust_env=False) as direct,
        trio.open_nursery() as nursery,
    ):
        done = trio.Event()

        async def elsewhere() -> None:
            body = {"text": "a", "rid": "mine", "sampling_params": PARAMS}
            await direct.post(f"{two.url}/generate", json=body, timeout=20)
            done.set()

        nursery.start_soon(elsewhere)
        await until(lambda: two.worker.engine.load.running)
        told = (await abort(served, rid="mine")).json()
        assert told["total"] == 2
        await done.wait()


@pytest.mark.parametrize("body", [{}, {"rid": ""}, {"rid": None}, {"abort_all": False}])
async def test_an_abort_of_nothing_is_ignored(body: dict[str, Any]) -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        calls.start("a")
        await until(lambda: at_workers(served) == 1)
        assert (await abort(served, **body)).json()["total"] == 0
        assert not calls.done
        await abort(served, abort_all=True)


async def test_an_abort_is_answered_although_a_worker_is_gone() -> None:
    async with router_with() as served:
        async with embedded_worker() as worker:
            await served.client.post("/add_worker", params={"url": worker.url})
        told = (await abort(served, abort_all=True)).json()
        assert (told["success"], told["failed"][0]["error"]) == (False, "upstream_unreachable")


async def test_an_abort_by_a_caller_that_leaves_is_done() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        calls = Calls(nursery, served)
        calls.start("a", rid="a")
        await until(lambda: at_workers(served) == 1)
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        head = b"POST /abort_request HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n"
        await stream.send_all(head + b'{"rid":"a"}')
        await stream.aclose()
        assert (await calls.finish("a"))["type"] == "abort"


# -- tenants -----------------------------------------------------------------------------------

KEYS: dict[str, Any] = {"admin_key": "the-admins-key", "api_key": ("first-tenant", "second-tenant")}


async def test_a_tenant_s_abort_of_everything_reaches_its_own_calls_only() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker_urls=(worker.url,), **KEYS) as served,
        trio.open_nursery() as nursery,
    ):
        await until(lambda: served.router.shared.fleet.fit())
        calls = Calls(nursery, served)
        calls.start("a", key="first-tenant", rid="a")
        calls.start("b", key="second-tenant", rid="b")
        await until(lambda: at_workers(served) == 2)
        await abort(served, key="first-tenant", abort_all=True)
        assert (await calls.finish("a"))["type"] == "abort"
        assert "b" not in calls.done
        await abort(served, key="the-admins-key", abort_all=True)
        assert (await calls.finish("b"))["type"] == "abort"


async def test_a_tenant_cannot_abort_another_s_nor_learn_whose_an_id_is() -> None:
    async with (
        embedded_worker(**SLOW) as worker,
        router_with(worker_urls=(worker.url,), **KEYS) as served,
        trio.open_nursery() as nursery,
    ):
        await until(lambda: served.router.shared.fleet.fit())
        calls = Calls(nursery, served)
        calls.start("b", key="second-tenant", rid="b")
        await until(lambda: at_workers(served) == 1)
        (live,) = served.router.shared.dispatcher.live
        answers = {
            (await abort(served, key="first-tenant", rid=rid)).content
            for rid in ("b", live, "nobody", "")
        }
        assert len(answers) == 1
        assert b"127.0.0.1" not in answers.pop()
        assert "b" not in calls.done
        await abort(served, key="second-tenant", rid="b")
        assert (await calls.finish("b"))["type"] == "abort"


# -- what is meant, and by which names workers know it -----------------------------------------


def live(call: str, *rids: str, session: str | None = None, tenant: str = "") -> Live:
    return Live(CallId(call), (call, *rids), session, tenant)


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        (b"", AbortWish()),
        (b"{}", AbortWish()),
        (b'{"rid":"a","abort_all":false}', AbortWish(rids=("a",))),
        (b'{"rid":["a","","b"]}', AbortWish(rids=("a", "b"))),
        (b'{"rid":null,"session":"s"}', AbortWish(session="s")),
        (b'{"rid":"a","prefix":true}', AbortWish(rids=("a",), by_prefix=True)),
        (b'{"abort_all":true,"abort_message":"x"}', AbortWish(everything=True)),
    ],
)
def test_an_abort_says_what_it_means(body: bytes, wish: AbortWish) -> None:
    assert parse_abort(body) == wish


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b'{"rid":1}',
        b'{"abort_all":"yes"}',
        b'{"session":[]}',
        b'{"rid":"a","prefix":1}',
    ],
)
def test_an_abort_that_says_it_wrongly_is_refused(body: bytes) -> None:
    with pytest.raises(ClientError):
        parse_abort(body)


def test_a_prefix_need_not_be_the_id_of_a_call_where_that_is_said() -> None:
    calls = [live("c1", "lora-1_a"), live("c2", "lora-1_b"), live("c3", "lora-2_a")]
    wish = AbortWish(rids=("lora-1_",), by_prefix=True)
    assert [one.call for one in meant(calls, wish, None)] == ["c1", "c2"]


NAMES = st.text(alphabet="ab_", min_size=1, max_size=3)


@given(
    st.lists(st.tuples(st.lists(NAMES, max_size=2), st.sampled_from(["", "t"]))),
    st.lists(NAMES, max_size=2),
    st.sampled_from([None, "", "t"]),
)
def test_sglang_s_rule_holds_for_the_fleet(
    known: list[tuple[list[str], str]], rids: list[str], tenant: str | None
) -> None:
    calls = [live(f"c{at}", *names, tenant=owner) for at, (names, owner) in enumerate(known)]
    chosen = meant(calls, AbortWish(rids=tuple(rids)), tenant)
    own = [one for one in calls if tenant is None or one.tenant == tenant]
    expected = [
        one
        for one in own
        if any(
            name.startswith(rid) and any(rid in other.rids for other in own)
            for rid in rids
            for name in one.rids
        )
    ]
    assert chosen == expected


def test_each_worker_is_told_each_name_once() -> None:
    pair = live("c1", "r")
    pair.workers = (WorkerUrl("p"), WorkerUrl("d"))
    twin = live("c2", "r")
    twin.workers = (WorkerUrl("p"),)
    told = notices([pair, twin, live("c3", "x")], lambda one: one.rids[1:])
    assert told == [Notice(WorkerUrl("p"), "r"), Notice(WorkerUrl("d"), "r")]
