"""Tenants: nothing of one is seen, changed or told apart from nothing by another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from slime_core.access import Area, area_of
from slime_core.transitions import VersionSeen
from slime_core.types import WorkerUrl
from slime_trio.trace import TraceRecorder, read_trace
from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    events_of,
    http_response,
    until,
)
from tests.server.key_support import (
    ADMIN,
    ONE,
    OTHER,
    OTHER_KEY,
    Keyed,
    bearer,
    keyed_router,
    open_session,
    scrubbed,
)
from tests.server.test_access import RULES, filled

_TEXT: Final = "The secret of one tenant is"
_ANSWER: Final = " kept."
_IDS: Final = [5, 6, 7]


async def _answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
    """Answers what samples, under the id it was sent; all else with an empty object."""
    body = arrived.json if arrived.body else {}
    rid = body.get("rid") if isinstance(body, dict) else None
    if not isinstance(rid, str):
        return http_response(b"{}")
    return http_response(json.dumps(answer_item([9], _ANSWER, rid=rid)).encode())


async def _never(arrived: Arrived, stream: trio.SocketStream) -> bytes:
    await trio.sleep_forever()
    raise AssertionError


_OTHERS: Final = frozenset({Area.OPEN, Area.REGISTRATION, Area.CONTROL})


class _Known:
    """What one tenant has, by all of its names; or names of the same forms that are nobody's."""

    def __init__(self, session: str, session_key: str, call: str) -> None:
        self.session, self.session_key, self.call = session, session_key, call
        self.alias, self.named_session, self.idempotency = (
            "rid-of-one",
            "rollout-of-one",
            "key-of-one",
        )
        self.text = _TEXT + _ANSWER

    @property
    def names(self) -> tuple[str, ...]:
        return (self.session, self.call, self.alias, self.named_session, self.idempotency)


class _Nobodys(_Known):
    def __init__(self) -> None:
        super().__init__("0" * 32, "sk-slime-" + "0" * 64, "f" * 32)
        self.alias, self.named_session, self.idempotency = (
            "rid-of-none",
            "rollout-of-none",
            "key-of-none",
        )
        self.text = "Of this nobody has said anything."


async def _captured(keyed: Keyed) -> _Known:
    """One tenant's session with a call, and one in a session that a header names."""
    session, session_key = await open_session(keyed.client, ONE)
    known = _Known(session, session_key, "")
    for headers in (
        {"x-session-id": session},
        {"x-session-id": known.named_session, "idempotency-key": known.idempotency},
    ):
        said = await keyed.client.post(
            "/generate", json={"text": _TEXT, "rid": known.alias}, headers=ONE | headers
        )
        assert said.status_code == 200, said.text
        known.call = said.headers["x-slime-call-id"]
    return known


def _requests(known: _Known) -> Iterator[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """Every endpoint that a tenant may ask, asked for what ``known`` names in its path, body and
    fields. The control plane opens to no tenant, which the tests of the guard show."""
    bodies: list[dict[str, Any]] = [
        {"text": known.text, "id": known.call},
        {"text": known.text, "id": known.alias, "rid": known.alias, "abort_all": False},
        {"text": _TEXT, "parent_id": known.call},
        {"messages": [{"role": "user", "content": known.text}], "id": known.call},
        {"calls": {known.call: {}}, "session_id": known.session},
    ]
    for method, rule in RULES:
        area = area_of(method, filled(rule))
        if rule in ("/<path:path>", "/") or area in _OTHERS:
            continue
        several = bodies if method in ("POST", "PUT") else bodies[:1]
        for name in (known.session, known.named_session, known.call, known.alias):
            path = filled(rule, session=name).replace("/x", f"/{name}")
            for body in several:
                yield method, path, body, {}
            if "<" not in rule:
                break
    for field in ("x-session-id", "x-smg-routing-key", "x-slime-parent-id", "idempotency-key"):
        for name in known.names:
            yield "POST", "/generate", {"text": known.text}, {field: name}


async def _told(keyed: Keyed, known: _Known) -> list[tuple[str, str, tuple[int, str]]]:
    """What the other tenant is told, with whatever is named taken out."""
    told = []
    for method, path, body, fields in _requests(known):
        response = await keyed.client.request(method, path, json=body, headers=OTHER | fields)
        names = (*known.names, known.text, json.dumps(known.text)[1:-1])
        shown = scrubbed(response, *names)
        for name in (*known.names, known.text):
            path = path.replace(name, "NAME")
        told.append((method, path, shown))
        if response.status_code == 200 and path == "/sessions" and method == "POST":
            made = response.json()["session_id"]
            await keyed.client.delete(f"/sessions/{made}", headers=OTHER)
    return told


async def _holdings(keyed: Keyed, known: _Known) -> list[Any]:
    """All that the first tenant can be shown of its own."""
    state = keyed.one.state
    forest = [(one.number, one.retrieved, one.answer) for one in state.forest.segments.values()]
    return [forest, state.sessions.facts(), dict(state.forest.aliases), keyed.one.attempts.joined]


async def test_on_no_endpoint_another_tenants_things_differ_from_nothing() -> None:
    async with keyed_router(_answer) as keyed:
        known = await _captured(keyed)
        before = await _holdings(keyed, known)
        of_one = await _told(keyed, known)
        assert await _holdings(keyed, known) == before
    async with keyed_router(_answer) as keyed:
        await _captured(keyed)
        of_nobody = await _told(keyed, _Nobodys())
    assert len(of_one) > 100
    differing = [pair for pair in zip(of_one, of_nobody, strict=True) if pair[0] != pair[1]]
    assert not differing


async def test_a_tenant_finds_its_own_by_every_name() -> None:
    async with keyed_router(_answer) as keyed:
        known = await _captured(keyed)
        for path in (f"/trajectories/{known.call}", f"/sessions/{known.named_session}"):
            assert (await keyed.client.get(path, headers=ONE)).status_code == 200
            assert (await keyed.client.get(path, headers=OTHER)).status_code == 404
        found = await keyed.client.post(
            "/retrieve_from_text", json={"text": known.text}, headers=ONE
        )
        assert found.json()["matched_length"] > 0


async def test_one_text_of_two_tenants_is_found_by_each_in_its_own_forest() -> None:
    async with keyed_router(_answer) as keyed:
        for key in (ONE, OTHER):
            await keyed.generate(key, text=_TEXT)
        for key, router in ((ONE, keyed.one), (OTHER, keyed.other)):
            asked = {"text": _TEXT + _ANSWER}
            found = await keyed.client.post("/retrieve_from_text", json=asked, headers=key)
            assert found.json()["ambiguous"] == 0
            assert len(router.state.forest.calls) == 1


async def test_one_idempotency_key_of_two_tenants_asks_for_two_generations() -> None:
    async with keyed_router(_answer) as keyed:
        for key in (ONE, ONE, OTHER):
            headers = key | {"idempotency-key": "same"}
            body = {"text": _TEXT}
            response = await keyed.client.post("/generate", json=body, headers=headers)
            assert response.status_code == 200
        assert (keyed.one.attempts.replayed, keyed.other.attempts.replayed) == (1, 0)
        assert keyed.other.state.counters.calls_captured == 1


async def test_one_tenants_key_of_a_session_is_worth_nothing_with_anothers() -> None:
    async with keyed_router(_answer) as keyed:
        session, session_key = await open_session(keyed.client, ONE)
        body = {"input_ids": _IDS}
        said = await keyed.client.post("/generate", json=body, headers=bearer(session_key))
        assert said.status_code == 200
        assert list(keyed.one.state.forest.sessions) == [session]
        assert not keyed.other.state.forest.segments
        both = bearer(session_key) | {"x-api-key": OTHER_KEY}
        assert (await keyed.client.post("/generate", json=body, headers=both)).status_code == 403


async def test_the_memory_is_divided_among_tenants() -> None:
    settings = {"radix_tree_max_size": 9000, "capture_max_mb": 6, "retry_memory_mb": 4}
    async with keyed_router(_answer, **settings) as keyed:
        limits = keyed.one._limits
        assert (limits.reuse_tokens, limits.data_bytes) == (4500, 3 * 2**20)


async def test_new_weights_let_every_tenant_collect_what_is_old() -> None:
    async with keyed_router(_answer, gc_threshold_k=1) as keyed:
        await keyed.generate(ONE, text=_TEXT)
        call = next(iter(keyed.one.state.forest.calls))
        await keyed.client.get(f"/trajectories/{call}", headers=ONE)
        for version in ("2", "3", "4"):
            worker = WorkerUrl(keyed.worker.url)
            keyed.other.commit(VersionSeen(worker=worker, version=version))
        await until(lambda: not keyed.one.state.forest.segments)


async def test_a_tenant_is_shown_its_own_numbers_only() -> None:
    async with keyed_router(_answer) as keyed:
        await keyed.generate(ONE, text=_TEXT)
        for query in ("", "?format=prometheus"):
            told = await keyed.client.get(f"/metrics{query}", headers=OTHER)
            assert told.status_code == 200
            assert keyed.worker.url not in told.text
        router = (await keyed.client.get("/metrics", headers=OTHER)).json()["router"]
        assert router["calls_captured"] == 0
        mine = (await keyed.client.get("/metrics", headers=ONE)).json()["router"]
        assert mine["calls_captured"] == 1
        whole = await keyed.client.get("/metrics", headers=ADMIN)
        assert keyed.worker.url in whole.text
        info = await keyed.client.get("/get_server_info", headers=ONE)
        assert set(info.json()) == {"slime_router"}


# -- ids upstream ------------------------------------------------------------------------------


def _is_own(rid: object) -> bool:
    return isinstance(rid, str) and len(rid) == 32 and int(rid, 16) >= 0


async def test_a_worker_never_sees_a_clients_id_and_the_client_sees_its_own() -> None:
    async with keyed_router(_answer) as keyed:
        response = await keyed.generate(ONE, input_ids=_IDS, rid="mine", return_logprob=True)
        assert response.json()["meta_info"]["id"] == "mine"
        assert response.headers["x-slime-call-id"] == keyed.worker.arrived[0].json["rid"]
        assert _is_own(keyed.worker.arrived[0].json["rid"])
        shown = await keyed.client.get("/trajectories/mine", headers=ONE)
        assert shown.json()["id"] == response.headers["x-slime-call-id"]


async def test_only_the_id_of_an_answer_is_changed() -> None:
    item = b'{"text":"a","output_ids":[9],"meta_info":{ "id" : "%s","x":1.50e-7,' + (
        b'"finish_reason":{"type":"stop"},"completion_tokens":1,"prompt_tokens":3,'
        b'"output_token_logprobs":[[-0.25000,9,null]]}}'
    )

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(item % arrived.json["rid"].encode())

    async with keyed_router(answer) as keyed:
        response = await keyed.generate(ONE, input_ids=_IDS, rid='a"b', return_logprob=True)
        assert response.content == item % rb"a\"b"


@pytest.mark.parametrize(
    ("rid", "shown"), [(["x", "y"], ["x", "y"]), ("x", ["x_0", "x_1"]), (None, None)]
)
async def test_the_ids_of_a_batch_are_put_back_one_by_one(rid: Any, shown: Any) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        items = [answer_item([9], "a", rid=own) for own in arrived.json["rid"]]
        return http_response(json.dumps(items).encode())

    async with keyed_router(answer) as keyed:
        response = await keyed.generate(ONE, input_ids=[_IDS, [8]], rid=rid)
        sent = keyed.worker.arrived[0].json["rid"]
        assert len(set(sent)) == 2
        assert all(map(_is_own, sent))
        assert [one["meta_info"]["id"] for one in response.json()] == (shown or sent)


async def test_a_list_of_ids_that_does_not_fit_is_refused_before_a_worker_is_asked() -> None:
    async with keyed_router(_answer) as keyed:
        response = await keyed.generate(ONE, input_ids=[_IDS, [8]], rid=["x", "x"])
        assert (response.status_code, response.json()["error"]["param"]) == (400, "rid")
        assert not keyed.worker.arrived


async def test_the_events_of_a_stream_bear_the_clients_id() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events, rid = Events(stream), arrived.json["rid"]
        await events.begin()
        await events.event(answer_item([9], "a", rid=rid, finished=False))
        await events.event(answer_item([9, 2], "ab", rid=rid))
        await events.end()

    async with keyed_router(answer) as keyed:
        response = await keyed.generate(ONE, input_ids=_IDS, rid="mine", stream=True)
        *events, done = events_of(response.text)
        assert [one["meta_info"]["id"] for one in events] == ["mine", "mine"]
        assert done == "[DONE]"


async def test_a_chat_is_known_to_workers_by_the_routers_id() -> None:
    async with keyed_router(_answer) as keyed:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "rid": "mine",
            "return_meta_info": True,
        }
        response = await keyed.client.post("/v1/chat/completions", json=body, headers=ONE)
        assert response.json()["choices"][0]["meta_info"]["id"] == "mine"
        assert _is_own(keyed.worker.arrived[0].json["rid"])


async def test_what_is_passed_through_is_renamed_too() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(b'{"a" : "%s", "b":1.0}' % arrived.json["rid"].encode())

    async with keyed_router(answer) as keyed:
        for path, body in (("/v1/messages", {}), ("/generate", {"text": "a", "image_data": "x"})):
            response = await keyed.client.post(path, json=body | {"rid": "mine"}, headers=ONE)
            assert response.content == b'{"a" : "mine", "b":1.0}'
        assert all(_is_own(one.json["rid"]) for one in keyed.worker.arrived)


async def test_a_stream_that_is_passed_through_bears_the_clients_id_however_it_is_cut() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        data = b'data: {"id":"%s"}\n\n' % arrived.json["rid"].encode()
        for place in range(0, len(data), 7):
            await events.raw(data[place : place + 7])
        await events.end()

    async with keyed_router(answer) as keyed:
        body = {"rid": "mine", "stream": True}
        response = await keyed.client.post("/v1/messages", json=body, headers=ONE)
        assert response.text == 'data: {"id":"mine"}\n\ndata: [DONE]\n\n'


async def test_without_keys_a_client_names_its_requests_itself() -> None:
    async with keyed_router(_answer, admin_key=None, api_key=()) as keyed:
        await keyed.generate({}, input_ids=_IDS, rid="mine")
        assert keyed.worker.arrived[0].json["rid"] == "mine"


async def test_a_tenant_that_leaves_aborts_its_own_call_only() -> None:
    async with keyed_router(_never) as keyed:
        async with trio.open_nursery() as nursery:
            for key in (ONE, OTHER):
                nursery.start_soon(partial(keyed.generate, key, input_ids=_IDS, rid="same"))
            await until(lambda: len(keyed.worker.arrived) == 2)
            sent = {one.json["rid"] for one in keyed.worker.arrived}
            assert len(sent) == 2
            nursery.cancel_scope.cancel()
        await until(lambda: set(keyed.worker.aborted) == sent)


# -- what is recorded --------------------------------------------------------------------------


async def test_a_trace_tells_tenants_rollouts_apart(tmp_path: Path) -> None:
    recorder = TraceRecorder(tmp_path / "trace.jsonl")
    async with keyed_router(_answer) as keyed:
        keyed.served.router.observers.append(recorder)
        for key in (ONE, OTHER):
            headers = key | {"x-session-id": "same"}
            await keyed.client.post("/generate", json={"text": _TEXT}, headers=headers)
    await trio.to_thread.run_sync(recorder.close)
    one, other = read_trace(tmp_path / "trace.jsonl")
    assert (one.session, other.session) == ("tenant-1/same", "tenant-2/same")
    assert one.prompt != other.prompt
