"""The guard: every endpoint there is, with every kind of key, against the table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest

from slime_core.access import AREAS, Area, KeysThatAre, Presented, admit, area_of
from slime_core.errors import ClientError
from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.router import Router
from tests.server.harness import answer_item, chatting, checkpoint, json_answer
from tests.server.key_support import (
    ADMIN_KEY,
    FAR,
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


@pytest.mark.parametrize("setup", ["admin", "tenants", "both"])
async def test_every_endpoint_opens_to_the_keys_of_the_table_only(setup: str) -> None:
    without: dict[str, dict[str, Any]] = {"admin": {"api_key": ()}, "tenants": {"admin_key": None}}
    settings = without.get(setup, {})
    keys = KeysThatAre(admin=setup != "tenants", tenants=setup != "admin")
    async with keyed_router(json_answer(answer_item([9], "a")), **settings) as keyed:
        session, session_key = await open_session(keyed.client, bearer(ONE_KEY))
        presented = {
            Presented.NOTHING: {},
            Presented.UNKNOWN: bearer("a-key-of-nobody"),
            Presented.STRAY: bearer("sk-slime-" + "0" * 64),
            Presented.SESSION: bearer(session_key),
        }
        if keys.tenants:
            presented[Presented.TENANT] = bearer(ONE_KEY)
        if keys.admin:
            presented[Presented.ADMIN] = bearer(ADMIN_KEY)
        wrong = []
        for method, path, kind, near in _asked(presented, session):
            headers = presented[kind] | ({} if near else FAR)
            response = await keyed.client.request(method, path, json={}, headers=headers)
            status = _decided(area_of(method, path), kind, keys, near=near)
            told = response.status_code if response.status_code in (401, 403) else 0
            # Registration is let in, and then judged by the rule of addresses.
            is_judged = told == 403 and "worker_" in response.json()["error"]["code"]
            if told != status and not is_judged:
                wrong.append((method, path, kind.value, near, told, status))
        assert not wrong


def _asked(kinds: Iterable[Presented], session: str) -> Iterator[tuple[str, str, Presented, bool]]:
    """Method, path, key and nearness; nearness counts for those without a key only.

    Of paths that take every method, two are asked for; and the session stays.
    """
    many = Counter(rule for _, rule in RULES)
    for method, rule in RULES:
        if (many[rule] > 3 and method not in ("GET", "POST")) or (
            (method, rule) == ("DELETE", "/sessions/<session>")
        ):
            continue
        for kind in kinds:
            yield method, filled(rule, session=session), kind, False
        yield method, filled(rule, session=session), Presented.NOTHING, True


async def test_a_session_is_ended_by_its_tenant_only() -> None:
    async with keyed_router(json_answer({})) as keyed:
        session, session_key = await open_session(keyed.client, bearer(ONE_KEY))
        told = []
        for key in ("a-key-of-nobody", session_key, OTHER_KEY, ADMIN_KEY, ONE_KEY):
            path = f"/sessions/{session}"
            told.append((await keyed.client.delete(path, headers=bearer(key))).status_code)
        assert told == [401, 403, 404, 403, 204]
