"""Sessions over HTTP: whose request it is, what a key opens, and what ends a session."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import trio

from slime_core.sessions import next_deadline
from slime_core.transitions import SessionOpened
from slime_trio import sessions
from tests.server.harness import (
    Arrived,
    Events,
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    json_answer,
    router_with,
    settled,
    until,
)

_CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
_PROMPT = {"text": "Hello", "sampling_params": {"max_new_tokens": 4}}
_BODIES = {
    "generate": _PROMPT,
    "v1/chat/completions": _CHAT,
    "v1/completions": {"model": "m", "prompt": "Hello", "max_tokens": 4},
}


async def _open(served: Served, **body: Any) -> tuple[str, dict[str, str]]:
    """A new session and the header fields that carry its key."""
    response = await served.client.post("/sessions", json=body)
    assert response.status_code == 200, response.text
    found = response.json()
    return found["session_id"], {"authorization": f"Bearer {found['session_key']}"}


async def _calls(served: Served, session: str) -> list[str]:
    """The calls that the session's tree shows."""
    response = await served.client.get(f"/sessions/{session}")
    assert response.status_code == 200, response.text
    return [node["id"] for node in response.json()["nodes"]]


# -- whose request it is -----------------------------------------------------------------------


def _ways(session: str, bearer: dict[str, str]) -> dict[str, tuple[str, dict[str, str]]]:
    """The ways in which a request can carry its session: what its path begins with, its fields."""
    key = bearer["authorization"].removeprefix("Bearer ")
    return {
        "path": (f"/sessions/{session}/", {}),
        "bearer": ("/", bearer),
        "x-api-key": ("/", {"x-api-key": key}),
        "api-key": ("/", {"api-key": key}),
        "no scheme": ("/", {"authorization": key}),
        "x-session-id": ("/", {"x-session-id": session}),
    }


async def test_a_call_can_carry_its_session_in_every_way() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        session, bearer = await _open(served)
        calls = []
        for prefix, headers in _ways(session, bearer).values():
            for path, body in _BODIES.items():
                response = await served.client.post(prefix + path, json=body, headers=headers)
                assert response.status_code == 200, response.text
                calls.append(response.headers["x-slime-call-id"])
        assert await _calls(served, session) == calls


async def test_a_path_outweighs_a_header() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        session, _ = await _open(served)
        headers = {"x-session-id": "other"}
        await served.client.post(f"/sessions/{session}/generate", json=_PROMPT, headers=headers)
        assert len(await _calls(served, session)) == 1
        assert "other" not in served.router.state.forest.sessions


async def test_a_worker_sees_neither_the_key_nor_the_path_of_the_session() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        session, bearer = await _open(served)
        response = await served.client.post(
            f"/sessions/{session}/generate", json=_PROMPT, headers=bearer
        )
        assert response.status_code == 200, response.text
        (arrived,) = worker.arrived
        assert arrived.target == "/generate"
        assert "authorization" not in arrived.headers


async def test_a_request_that_is_passed_through_leaves_its_session_behind() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        session, _ = await _open(served)
        body = {"input_embeds": [[0.5]], "sampling_params": {}}
        response = await served.client.post(f"/sessions/{session}/generate?a=b", json=body)
        assert response.headers["x-slime-captured"] == "false"
        assert worker.arrived[0].target == "/generate?a=b"


async def test_another_api_key_is_passed_on_and_is_as_good_as_none() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        headers = {"authorization": "Bearer something"}
        response = await served.client.post("/generate", json=_PROMPT, headers=headers)
        assert response.status_code == 200
        assert worker.arrived[0].headers["authorization"] == "Bearer something"


# -- what a key opens --------------------------------------------------------------------------


async def test_a_key_is_kept_as_a_digest_only() -> None:
    async with router_with() as served:
        facts: list[object] = []
        served.router.observers.append(lambda fact, _state: facts.append(fact))
        session, bearer = await _open(served)
        key = bearer["authorization"].removeprefix("Bearer ")
        (opened,) = [fact for fact in facts if isinstance(fact, SessionOpened)]
        assert key not in repr(opened)
        assert key not in repr(served.router.state.sessions.facts())
        shown = await served.client.get(f"/sessions/{session}")
        listed = await served.client.get("/sessions")
        assert key not in shown.text + listed.text


_CLOSED = [
    ("GET", "/sessions"),
    ("POST", "/sessions"),
    ("GET", "/sessions/{own}"),
    ("DELETE", "/sessions/{own}"),
    ("POST", "/sessions/{own}/seal"),
    ("POST", "/sessions/{own}/samples"),
    ("POST", "/sessions/{own}/retrieve_from_text"),
    ("POST", "/sessions/{other}/generate"),
    ("POST", "/retrieve_from_text"),
    ("POST", "/retrieve_from_messages_template"),
    ("GET", "/trajectories/x"),
    ("GET", "/list_workers"),
    ("POST", "/add_worker"),
    ("POST", "/flush_cache"),
    ("POST", "/tokenize"),
    ("POST", "/v1/messages"),
    ("GET", "/metrics"),
]


async def test_a_key_opens_generation_in_its_session_and_nothing_else() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        own, bearer = await _open(served)
        other, _ = await _open(served)
        for method, path in _CLOSED:
            at = path.format(own=own, other=other)
            response = await served.client.request(method, at, json=_PROMPT, headers=bearer)
            told = (response.status_code, response.json()["error"]["code"])
            assert told == (403, "session_key_forbids"), path
        assert worker.records == []


async def test_a_key_with_the_name_of_another_session_is_refused() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        _, bearer = await _open(served)
        for field in ("x-session-id", "x-smg-routing-key"):
            headers = bearer | {field: "other"}
            response = await served.client.post("/generate", json=_PROMPT, headers=headers)
            assert response.status_code == 403
        assert worker.records == []


async def test_a_key_does_not_close_what_clients_ask_for_first() -> None:
    async with router_with() as served:
        own, bearer = await _open(served)
        for path in ("/v1/models", f"/sessions/{own}/v1/models", "/health"):
            response = await served.client.get(path, headers=bearer)
            assert response.status_code == 200, path


async def test_a_key_nobody_was_given_is_refused() -> None:
    async with router_with() as served:
        headers = {"authorization": "Bearer sk-slime-" + "0" * 64}
        response = await served.client.post("/generate", json=_PROMPT, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_the_keys_of_two_sessions_are_refused() -> None:
    async with router_with() as served:
        _, one = await _open(served)
        _, other = await _open(served)
        headers = one | {"x-api-key": other["authorization"].removeprefix("Bearer ")}
        response = await served.client.post("/generate", json=_PROMPT, headers=headers)
        assert response.status_code == 403


# -- what is below a session -------------------------------------------------------------------


_UNREACHABLE = [
    ("POST", "v1/embeddings", 404),
    ("POST", "flush_cache", 404),
    ("POST", "v1/../flush_cache", 404),
    ("GET", "server_info", 404),
    ("GET", "", 404),
    ("GET", "generate", 405),
    ("POST", "v1/models", 405),
    ("GET", "samples", 405),
    ("DELETE", "seal", 405),
]


async def test_nothing_else_can_be_reached_through_a_session() -> None:
    async with (
        fake_worker(json_answer({})) as worker,
        router_with(worker.url) as served,
    ):
        session, _ = await _open(served)
        for method, path, status in _UNREACHABLE:
            at = f"/sessions/{session}/{path}"
            response = await served.client.request(method, at, json={})
            assert response.status_code == status, path
        assert worker.arrived == []


async def test_a_method_that_sessions_do_not_have_is_refused() -> None:
    async with (
        fake_worker(json_answer({})) as worker,
        router_with(worker.url) as served,
    ):
        for path, allowed in (("/sessions", "GET, POST"), ("/sessions/x", "DELETE, GET")):
            response = await served.client.request("PATCH", path)
            assert (response.status_code, response.headers["allow"]) == (405, allowed)
        assert worker.arrived == []


async def test_retrieval_and_models_are_served_below_a_session() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        session, _ = await _open(served)
        said = await served.client.post(f"/sessions/{session}/generate", json=_PROMPT)
        text = "Hello" + said.json()["text"]
        found = await served.client.post(
            f"/sessions/{session}/retrieve_from_text", json={"text": text}
        )
        assert found.json()["response"] == text
        models = await served.client.get(f"/sessions/{session}/v1/models")
        assert models.json()["object"] == "list"


_IN_A_SESSION = [
    ("GET", "/sessions/x"),
    ("DELETE", "/sessions/x"),
    ("POST", "/sessions/x/seal"),
    ("POST", "/sessions/x/samples"),
    ("POST", "/sessions/x/generate"),
    ("GET", "/sessions/x/v1/models"),
]


async def test_a_session_nobody_opened_is_not_found() -> None:
    async with router_with() as served:
        for method, path in _IN_A_SESSION:
            response = await served.client.request(method, path)
            told = (response.status_code, response.json()["error"]["code"])
            assert told == (404, "session_not_found"), path


# -- the life of a session ---------------------------------------------------------------------


async def test_a_new_session_has_an_id_as_trainers_expect_and_shows_its_metadata() -> None:
    async with router_with() as served:
        session, _ = await _open(served, metadata={"task": 7})
        assert len(session) == 32
        assert int(session, 16) >= 0
        shown = (await served.client.get(f"/sessions/{session}")).json()
        assert (shown["state"], shown["metadata"], shown["nodes"]) == ("open", {"task": 7}, [])


async def test_a_session_is_opened_without_a_body() -> None:
    async with router_with() as served:
        response = await served.client.post("/sessions")
        assert response.status_code == 200


async def test_a_session_is_not_opened_with_what_is_no_object() -> None:
    async with router_with() as served:
        for body in (b"{", b"[]", b'{"metadata":[]}'):
            assert (await served.client.post("/sessions", content=body)).status_code == 400


async def test_metadata_has_a_bound() -> None:
    async with router_with() as served:
        response = await served.client.post("/sessions", json={"metadata": {"x": "y" * 70_000}})
        assert response.json()["error"]["code"] == "metadata_too_large"


async def test_open_sessions_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_SESSIONS_MOST", 1)
    async with router_with() as served:
        await _open(served)
        response = await served.client.post("/sessions")
        assert (response.status_code, response.json()["error"]["code"]) == (
            429,
            "too_many_sessions",
        )


async def test_the_tree_shows_messages_parents_and_leaves() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        session, bearer = await _open(served)
        first = await served.client.post("/v1/chat/completions", json=_CHAT, headers=bearer)
        said = first.json()["choices"][0]["message"]
        again = {"role": "user", "content": "and?"}
        chat = _CHAT | {"messages": [*_CHAT["messages"], said, again]}  # type: ignore[misc]
        second = await served.client.post("/v1/chat/completions", json=chat, headers=bearer)
        calls = [one.headers["x-slime-call-id"] for one in (first, second)]
        shown = (await served.client.get(f"/sessions/{session}")).json()
        nodes = shown["nodes"]
        assert [(node["id"], node["parent"]) for node in nodes] == [
            (calls[0], None),
            (calls[1], calls[0]),
        ]
        assert nodes[1]["appended"] == [again]
        assert nodes[0]["message"]["content"] == said["content"]
        assert shown["leaves"] == [{"node_id": calls[1], "path_node_ids": calls}]


async def test_sessions_are_listed_page_by_page() -> None:
    async with router_with() as served:
        opened = [(await _open(served))[0] for _ in range(3)]
        first = (await served.client.get("/sessions", params={"limit": 2})).json()
        rest = (await served.client.get("/sessions", params={"after": first["next"]})).json()
        pages = [[one["session_id"] for one in page["sessions"]] for page in (first, rest)]
        assert (pages, rest["next"]) == ([opened[:2], opened[2:]], None)


async def test_a_page_that_is_no_number_is_refused() -> None:
    async with router_with() as served:
        for query in ("limit=x", "after=-1", "after=" + "9" * 30):
            assert (await served.client.get(f"/sessions?{query}")).status_code == 400


async def test_a_session_that_a_header_names_needs_no_opening() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        headers = {"x-session-id": "mine"}
        await served.client.post("/generate", json=_PROMPT, headers=headers)
        shown = (await served.client.get("/sessions/mine")).json()
        assert (shown["state"], len(shown["nodes"])) == ("implicit", 1)


async def test_the_name_that_a_header_gives_has_a_bound() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        for field in ("x-session-id", "x-smg-routing-key"):
            named = {field: "s" * 1024}, {field: "s" * 1025}
            good, bad = [
                await served.client.post("/generate", json=_PROMPT, headers=one) for one in named
            ]
            assert good.status_code == 200
            assert bad.status_code == 400
            assert bad.json()["error"]["param"] == "X-Session-ID"


async def test_a_session_that_a_header_names_can_be_sealed() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        headers = {"x-session-id": "mine"}
        await served.client.post("/generate", json=_PROMPT, headers=headers)
        await served.client.post("/sessions/mine/seal")
        response = await served.client.post("/generate", json=_PROMPT, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "session_sealed")


async def test_a_sealed_session_refuses_calls_and_still_shows_what_it_has() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        session, bearer = await _open(served)
        await served.client.post("/generate", json=_PROMPT, headers=bearer)
        for _ in range(2):
            sealed = await served.client.post(f"/sessions/{session}/seal")
            assert sealed.json() == {"session_id": session, "state": "sealed"}
        for prefix, headers in _ways(session, bearer).values():
            late = await served.client.post(prefix + "generate", json=_PROMPT, headers=headers)
            assert (late.status_code, late.json()["error"]["code"]) == (409, "session_sealed")
            assert late.headers["x-should-retry"] == "false"
        assert len(await _calls(served, session)) == 1
        assert len(worker.records) == 1


async def test_a_deleted_session_is_freed_and_refuses_calls() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        session, bearer = await _open(served)
        said = await served.client.post("/generate", json=_PROMPT, headers=bearer)
        response = await served.client.delete(f"/sessions/{session}")
        assert (response.status_code, response.content) == (204, b"")
        assert served.router.state.forest.segments == {}
        for prefix, headers in _ways(session, bearer).values():
            late = await served.client.post(prefix + "generate", json=_PROMPT, headers=headers)
            assert (late.status_code, late.json()["error"]["code"]) == (410, "session_deleted")
        gone = await served.client.get(f"/trajectories/{said.headers['x-slime-call-id']}")
        assert gone.status_code == 410


async def test_a_session_is_deleted_once() -> None:
    async with router_with() as served:
        session, _ = await _open(served)
        codes = [(await served.client.delete(f"/sessions/{session}")).status_code for _ in "12"]
        assert codes == [204, 410]


async def test_an_idle_session_expires_and_says_so() -> None:
    async with embedded_worker() as worker, router_with(worker.url, session_idle_s=0.2) as served:
        session, bearer = await _open(served)
        await served.client.post("/generate", json=_PROMPT, headers=bearer)
        await until(lambda: not served.router.state.forest.segments)
        response = await served.client.post("/generate", json=_PROMPT, headers=bearer)
        assert (response.status_code, response.json()["error"]["code"]) == (410, "session_expired")
        shown = await served.client.get(f"/sessions/{session}")
        assert shown.json()["error"]["code"] == "session_expired"


async def test_looking_at_a_session_is_using_it() -> None:
    async with router_with() as served:
        session, _ = await _open(served)
        entry = served.router.state.sessions.known[session]
        opened = entry.used_at
        await _calls(served, session)
        assert entry.used_at > opened
        assert entry.requests == 0


# -- calls in flight ---------------------------------------------------------------------------


class _Slow:
    """A worker that answers when it is told to."""

    def __init__(self, *, stream: bool) -> None:
        self.asked = trio.Event()
        self.go = trio.Event()
        self._stream = stream

    async def __call__(self, arrived: Arrived, connection: trio.SocketStream) -> bytes | None:
        self.asked.set()
        item = answer_item([5, 6], "ab")
        if not self._stream:
            await self.go.wait()
            return http_response(json.dumps(item).encode())
        events = Events(connection)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        await self.go.wait()
        await events.event(item)
        await events.end()
        return None


async def _late_answer(served: Served, slow: _Slow, end: str, *, stream: bool) -> Any:
    """The response to a call whose session is sealed or deleted while it is in flight."""
    session, bearer = await _open(served)
    found = []

    async def ask() -> None:
        body = _PROMPT | {"stream": stream}
        found.append(await served.client.post("/generate", json=body, headers=bearer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await slow.asked.wait()
        if end == "seal":
            await served.client.post(f"/sessions/{session}/seal")
        else:
            await served.client.delete(f"/sessions/{session}")
        slow.go.set()
    return found[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("end", "reason"), [("seal", "session_sealed"), ("delete", "session_deleted")]
)
async def test_an_answer_that_comes_after_the_end_is_given_and_not_captured(
    end: str, reason: str, stream: bool
) -> None:
    slow = _Slow(stream=stream)
    async with fake_worker(slow) as worker, router_with(worker.url) as served:
        response = await _late_answer(served, slow, end, stream=stream)
        assert response.status_code == 200
        told = (
            response.text if stream else f"x-slime-captured: {response.headers['x-slime-captured']}"
        )
        assert "x-slime-captured: false" in told
        call = response.headers["x-slime-call-id"]
        gone = await served.client.get(f"/trajectories/{call}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, reason)
        await settled(served)
        assert served.router.state.forest.segments == {}


async def test_a_session_cannot_expire_while_a_call_of_it_is_in_flight() -> None:
    slow = _Slow(stream=False)
    async with fake_worker(slow) as worker, router_with(worker.url) as served:
        _, bearer = await _open(served)
        state = served.router.state
        async with trio.open_nursery() as nursery:
            ask = partial(served.client.post, "/generate", json=_PROMPT, headers=bearer)
            nursery.start_soon(ask)
            await slow.asked.wait()
            assert next_deadline(state, 1.0) is None
            slow.go.set()
        await until(lambda: next_deadline(state, 1.0) is not None)


async def test_a_router_without_capture_has_no_sessions() -> None:
    async with router_with(capture=False) as served:
        for method, path in (("POST", "/sessions"), ("GET", "/sessions"), ("GET", "/sessions/x")):
            assert (await served.client.request(method, path)).status_code == 501
