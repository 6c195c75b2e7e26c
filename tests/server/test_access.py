"""The guard: every endpoint there is, with every kind of key, against the table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest

from slime_core.access import AREAS, Area, KeysThatAre, Presented, admit, area_of
from slime_core.errors import ClientError
from slime_core.transitions import SessionOpened
from slime_trio.app import create_app
from slime_trio.auth import enter
from slime_trio.config import Settings
from slime_trio.keys import digest_of
from slime_trio.router import Router
from tests.server.harness import answer_item, chatting, checkpoint, json_answer
from tests.server.key_support import (
    ADMIN_KEY,
    FAR,
    KEYS,
    ONE_KEY,
    OTHER_KEY,
    bearer,
    keyed_router,
    open_session,
)

_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")


def rules() -> list[tuple[str, str]]:
    """Every method and path that the application has a route for, in the form of its rules."""
    router = Router(Settings(hf_checkpoint="x"), checkpoint=checkpoint())
    router.shared.use_chatting(chatting())
    app = create_app(router.args, router=router)
    return sorted(
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) & set(_METHODS)
    )


RULES: Final = rules()


def rows_of(method: str, rule: str) -> Iterator[str]:
    """The rows of the table by which a rule may be named."""
    form = re.sub(r"<path:[^>]+>$", "*", rule)
    form = re.sub(r"<[^>]+>", "*", form)
    parts = form.strip("/").split("/")
    forms = [form, *("/" + "/".join((*parts[:end], "*")) for end in range(len(parts) - 1, 0, -1))]
    for one in forms:
        yield from (f"{method} {one}", one)


def filled(rule: str, *, session: str = "x") -> str:
    """A path that a rule matches."""
    rule = re.sub(r"<(?:path:)?session>", session, rule)
    return re.sub(r"<(?:[a-z]+(?:\([^)]*\))?:)?([a-z_]+)>", "x", rule)


def test_there_are_routes_to_guard() -> None:
    assert ("POST", "/generate") in RULES
    assert ("GET", "/sessions/<session>") in RULES
    assert len(RULES) > 30


@pytest.mark.parametrize(("method", "rule"), RULES)
def test_every_route_has_a_row_of_its_own(method: str, rule: str) -> None:
    assert any(row in AREAS for row in rows_of(method, rule)), (
        "a new route needs a row in slime_core.access"
    )


def _decided(area: Area, presented: Presented, keys: KeysThatAre, *, near: bool) -> int:
    """The status of the refusal, 0 if there is none."""
    try:
        admit(area, presented, keys, is_near=near)
    except ClientError as error:
        return error.status
    return 0


_OF_CONTROL: Final = frozenset({Presented.TENANT, Presented.ADMIN})
"""Which keys the control plane is asked with over HTTP: it has many paths, and the guard is asked
with all of them below."""


def _presented(session_key: str) -> dict[Presented, dict[str, str]]:
    """Header fields that present each kind of key."""
    return {
        Presented.NOTHING: {},
        Presented.UNKNOWN: bearer("a-key-of-nobody"),
        Presented.STRAY: bearer("sk-slime-" + "0" * 64),
        Presented.SESSION: bearer(session_key),
        Presented.TENANT: bearer(ONE_KEY),
        Presented.ADMIN: bearer(ADMIN_KEY),
    }


async def test_every_endpoint_opens_to_the_keys_of_the_table_only() -> None:
    keys = KeysThatAre(admin=True, tenants=True)
    async with keyed_router(json_answer(answer_item([9], "a"))) as keyed:
        session, session_key = await open_session(keyed.client, bearer(ONE_KEY))
        presented = _presented(session_key)
        wrong = []
        for method, path, kind in _asked(presented, session):
            if area_of(method, path) is Area.CONTROL and kind not in _OF_CONTROL:
                continue
            response = await keyed.client.request(method, path, json={}, headers=presented[kind])
            status = _decided(area_of(method, path), kind, keys, near=True)
            told = response.status_code if response.status_code in (401, 403) else 0
            # Registration is let in, and then judged by the rule of addresses.
            is_judged = told == 403 and "worker_" in response.json()["error"]["code"]
            if told != status and not is_judged:
                wrong.append((method, path, kind.value, told, status))
        assert not wrong


@pytest.mark.parametrize(
    "settings", [{"api_key": ()}, {"admin_key": None}, {}], ids=["admin", "tenants", "both"]
)
@pytest.mark.parametrize("near", [True, False], ids=["near", "far"])
def test_the_guard_decides_as_the_table_whichever_keys_there_are(
    settings: dict[str, Any], near: bool
) -> None:
    shared = Router(Settings(capture=False, **(KEYS | settings))).shared
    keys = shared.keys.that_are
    opened = SessionOpened(session="mine", now=0.0, key_digest=digest_of("sk-slime-mine"))
    shared.routers["tenant-1" if keys.tenants else ""].commit(opened)
    presented = _presented("sk-slime-mine")
    if not keys.admin:
        del presented[Presented.ADMIN]
    if not keys.tenants:
        del presented[Presented.TENANT]
    wrong = []
    for method, path, kind in _asked(presented, "mine"):
        fields = presented[kind] | ({} if near else FAR)
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        scope = {"client": ("127.0.0.1", 1), "headers": headers}
        status = _decided(area_of(method, path), kind, keys, near=near)
        try:
            enter(shared, method, path, scope)
            told = 0
        except ClientError as error:
            told = error.status
        if told != status:
            wrong.append((method, path, kind.value, told, status))
    assert not wrong


def _asked(kinds: Iterable[Presented], session: str) -> Iterator[tuple[str, str, Presented]]:
    """Every endpoint, with every kind of key.

    Of paths that take every method, two are asked for; and the session stays.
    """
    many = Counter(rule for _, rule in RULES)
    for method, rule in RULES:
        ends = (method, rule) == ("DELETE", "/sessions/<session>")
        if not ends and (many[rule] <= 3 or method in ("GET", "POST")):
            for kind in kinds:
                yield method, filled(rule, session=session), kind


async def test_a_session_is_ended_by_its_tenant_only() -> None:
    async with keyed_router(json_answer({})) as keyed:
        session, session_key = await open_session(keyed.client, bearer(ONE_KEY))
        told = []
        for key in ("a-key-of-nobody", session_key, OTHER_KEY, ADMIN_KEY, ONE_KEY):
            path = f"/sessions/{session}"
            told.append((await keyed.client.delete(path, headers=bearer(key))).status_code)
        assert told == [401, 403, 404, 403, 204]
