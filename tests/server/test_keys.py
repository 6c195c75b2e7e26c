"""Keys: how they are kept, in which fields they come, and that nobody else sees them."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

import pytest
import structlog

from slime_trio.config import ConfigurationError, Settings
from slime_trio.keys import Keyring, credentials, digest_of, without_keys
from slime_trio.router import Router
from tests.server.harness import (
    answer_item,
    fake_worker,
    json_answer,
    router_with,
    until,
)
from tests.server.key_support import (
    ADMIN,
    ADMIN_KEY,
    FAR,
    KEYS,
    ONE,
    ONE_KEY,
    OTHER,
    OTHER_KEY,
    bearer,
    keyed_router,
    open_session,
)

_PROMPT: Final[dict[str, Any]] = {"input_ids": [5, 6, 7]}
_SECRETS: Final = (ADMIN_KEY, ONE_KEY, OTHER_KEY)


# -- how they are kept -------------------------------------------------------------------------


def test_keys_are_kept_as_digests_only() -> None:
    router = Router(Settings(capture=False, **KEYS))
    registry = router.component_registry
    kept = [router.args, registry.get("settings"), router.shared.keys, router.shared, router]
    shown = repr([*kept, *(vars(one) for one in (router.shared, router))])
    assert not [key for key in _SECRETS if key in shown]
    assert (router.args.admin_key, router.args.api_key) == (None, ())


def test_settings_do_not_show_keys() -> None:
    shown = repr(Settings(worker_api_key="for-the-workers", **KEYS))
    assert not [key for key in (*_SECRETS, "for-the-workers") if key in shown]


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": (ONE_KEY, ONE_KEY)},
        {"api_key": (ONE_KEY,), "admin_key": ONE_KEY},
        {"api_key": ("sk-slime-0123456789",)},
    ],
    ids=["twice", "tenant and admin", "a session's form"],
)
def test_keys_that_collide_are_refused_without_being_shown(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Keyring.of(Settings(**settings))
    assert "--api-key" in str(refused.value)
    assert ONE_KEY not in str(refused.value)


def test_every_digest_is_compared_whichever_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("slime_trio.keys.hmac.compare_digest", compare)
    ring = Keyring(tenants=(ONE_KEY, OTHER_KEY))
    ring.tenant_of(digest_of(ONE_KEY))
    assert compared == [digest_of(ONE_KEY), digest_of(OTHER_KEY)]


def test_tenants_are_named_in_the_order_of_their_keys() -> None:
    ring = Keyring(tenants=(ONE_KEY, OTHER_KEY))
    assert ring.tenant_of(digest_of(OTHER_KEY)) == "tenant-2"
    assert ring.tenant_of(digest_of(ADMIN_KEY)) is None


# -- the fields they come in -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ((b"authorization", b"Bearer abc"), ["abc"]),
        ((b"authorization", b"bearer  abc"), ["abc"]),
        ((b"authorization", b"abc"), ["abc"]),
        ((b"x-api-key", b"abc"), ["abc"]),
        ((b"api-key", b"abc"), ["abc"]),
        ((b"x-other", b"abc"), []),
        ((b"authorization", b""), []),
    ],
)
def test_a_key_is_found_in_every_form(field: tuple[bytes, bytes], words: list[str]) -> None:
    assert credentials([field]) == words


def test_the_number_of_words_tried_has_a_bound() -> None:
    assert len(credentials([(b"authorization", b"a " * 1000)])) < 10


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
async def test_a_tenants_key_is_taken_from_every_field(name: str) -> None:
    async with keyed_router(json_answer(answer_item([9], "a"))) as keyed:
        scheme = "Bearer " if name == "authorization" else ""
        response = await keyed.generate({name: scheme + ONE_KEY}, **_PROMPT)
        assert response.status_code == 200, response.text
        assert keyed.one.state.counters.calls_captured == 1


async def test_the_keys_of_two_tenants_are_refused() -> None:
    async with keyed_router(json_answer(answer_item([9], "a"))) as keyed:
        response = await keyed.generate(ONE | {"x-api-key": OTHER_KEY}, **_PROMPT)
        assert response.status_code == 403


async def test_a_key_counts_beside_words_that_are_none() -> None:
    async with keyed_router(json_answer(answer_item([9], "a"))) as keyed:
        response = await keyed.generate(ONE | {"x-api-key": "none"}, **_PROMPT)
        assert response.status_code == 200


@pytest.mark.parametrize("headers", [{}, bearer("not-a-key-of-anybody")])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate"])
async def test_without_a_known_key_the_answer_is_openais(
    path: str, headers: dict[str, str]
) -> None:
    async with keyed_router(json_answer(answer_item([9], "a"))) as keyed:
        response = await keyed.client.post(path, json=_PROMPT, headers=headers)
        told = response.json()["error"]
        assert (response.status_code, told["code"]) == (401, "invalid_api_key")
        assert (told["type"], told["param"]) == ("invalid_request_error", None)
        assert response.headers["www-authenticate"] == "Bearer"
        assert "not-a-key" not in response.text


async def test_without_tenants_keys_any_bearer_is_the_default_tenant() -> None:
    async with keyed_router(json_answer(answer_item([9], "a")), api_key=()) as keyed:
        for headers in ({}, bearer("whatever-it-is"), ADMIN):
            assert (await keyed.generate(headers, **_PROMPT)).status_code == 200
        assert keyed.served.router.state.counters.calls_captured == 3


async def test_without_an_admin_key_callers_from_elsewhere_are_told_the_flag() -> None:
    async with keyed_router(json_answer({}), admin_key=None) as keyed:
        for headers in (FAR, FAR | ONE):
            response = await keyed.client.post("/flush_cache", headers=headers)
            assert response.status_code == 403
            assert "--admin-key" in response.json()["error"]["message"]


# -- who else sees them ------------------------------------------------------------------------


def test_with_keys_no_credential_goes_on() -> None:
    headers = [(b"authorization", b"Basic abc"), (b"x-api-key", b"b"), (b"accept", b"*/*")]
    assert without_keys(headers, keyed=True) == [(b"accept", b"*/*")]


def test_with_keys_no_field_renames_a_request_or_speaks_for_a_tenant() -> None:
    headers = [(b"x-override-rid", b"a"), (b"x-smg-tenant-id", b"b"), (b"x-data", b"c")]
    assert without_keys(headers, keyed=True) == [(b"x-data", b"c")]


def test_without_keys_only_sessions_keys_stay_here() -> None:
    headers = [(b"authorization", b"Bearer hf_abc"), (b"x-api-key", b"sk-slime-1")]
    assert without_keys(headers, keyed=False) == [(b"authorization", b"Bearer hf_abc")]


async def test_no_key_reaches_a_worker_on_any_way() -> None:
    async with keyed_router(json_answer(answer_item([9], "a"))) as keyed:
        _, session_key = await open_session(keyed.client, ONE)
        secrets = (*_SECRETS, session_key)
        ways = [
            ("/generate", _PROMPT),
            ("/generate", _PROMPT | {"image_data": "x"}),
            ("/v1/embeddings", {"input": "a"}),
        ]
        for key in secrets:
            for path, body in ways:
                for headers in (bearer(key), {"x-api-key": key}, {"api-key": key}):
                    await keyed.client.post(path, json=body, headers=headers)
        seen = json.dumps(
            [[one.target, one.headers, one.body.decode()] for one in keyed.worker.arrived]
        )
        assert len(keyed.worker.arrived) > 6
        assert not [key for key in secrets if key in seen]


async def test_the_workers_own_key_takes_the_place_of_the_clients() -> None:
    async with (
        fake_worker(json_answer(answer_item([9], "a"))) as worker,
        router_with(worker.url, worker_api_key="for-the-workers") as served,
    ):
        for path in ("/generate", "/v1/embeddings"):
            await served.client.post(path, json=_PROMPT, headers=bearer("somebodys"))
        seen = {one.headers.get("authorization") for one in worker.arrived}
        assert seen == {"Bearer for-the-workers"}


async def test_no_key_is_logged_or_shown_in_a_busy_run(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    async with keyed_router(
        json_answer(answer_item([9], "a")), verbose=True, worker_api_key="for-the-workers"
    ) as keyed:
        client = keyed.client
        _, session_key = await open_session(client, ONE)
        secrets = (*_SECRETS, session_key, "for-the-workers")
        for key in (*secrets, "sk-slime-unknown", "unknown-key"):
            for method, path in (
                ("POST", "/generate"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/retrieve_from_text"),
                ("GET", "/sessions"),
                ("GET", "/metrics"),
                ("GET", "/metrics?format=prometheus"),
                ("GET", "/get_server_info"),
                ("GET", "/workers"),
                ("GET", "/list_workers"),
                ("GET", "/nowhere"),
                ("POST", "/flush_cache"),
            ):
                headers = bearer(key)
                response = await client.request(method, path, json=_PROMPT, headers=headers)
                shown.append(f"{response.text} {response.headers}")
    structlog.reset_defaults()
    written = capsys.readouterr()
    everything = "\n".join([*shown, caplog.text, written.out, written.err])
    assert "captured" in written.err
    assert not [key for key in secrets if key in everything]


async def test_a_worker_may_be_registered_with_the_admin_key_only() -> None:
    async with (
        fake_worker(json_answer(answer_item([9], "a"))) as worker,
        router_with(**KEYS) as served,
    ):
        for headers, status in (({}, 401), (ONE, 403), (OTHER, 403), (ADMIN, 200)):
            asked = {"url": worker.url}
            response = await served.client.post("/add_worker", params=asked, headers=headers)
            assert response.status_code == status
        fleet = served.router.state.fleet
        await until(lambda: any(one.is_fit for one in fleet.listed()))
