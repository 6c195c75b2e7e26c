"""The router's own document is true, and requests made from it never break anything.

``python -m tests.server.fuzz_openapi 300`` searches longer.
"""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import pytest

from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.openapi import OPERATIONS, document
from slime_trio.router import Router
from tests.server.harness import CHECKPOINT, checkpoint, router_with
from tests.server.openapi_support import Target, operations, search

_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>|\{(\w+)\}")
_LEFT_OVER = {"pass_through", "no_such_method", "no_such_method_of_workers", "stored",
              "within_session"}  # fmt: skip
"""Routes that stand for what is not there, or for several rows."""


def _bare(path: str) -> str:
    return _PARAMETER.sub("{}", path)


def _app() -> Any:
    chosen = Settings(hf_checkpoint=CHECKPOINT)
    return create_app(chosen, router=Router(chosen, checkpoint=checkpoint()))


def test_every_route_is_in_the_document() -> None:
    documented = {(row.method, _bare(row.path)) for row in OPERATIONS}
    routes = {
        (method, _bare(rule.rule))
        for rule in _app().url_map.iter_rules()
        if rule.endpoint not in _LEFT_OVER
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert routes - documented == set()


@pytest.mark.parametrize("captures", [False, True])
def test_everything_in_the_document_is_served(captures: bool) -> None:
    chosen = Settings(capture=False)
    app = _app() if captures else create_app(chosen, router=Router(chosen))
    adapter = app.url_map.bind("router")
    for path, methods in document(captures=captures)["paths"].items():
        for method in methods:
            rule, _ = adapter.match(_bare(path).replace("{}", "x"), method, return_rule=True)
            assert rule.endpoint != "pass_through", (method, path)


def test_names_are_unique_and_references_lead_somewhere() -> None:
    told = document(captures=True)
    names = [one["operationId"] for methods in told["paths"].values() for one in methods.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)
    for name in re.findall(r"#/components/schemas/(\w+)", repr(told)):
        assert name in told["components"]["schemas"]
    for schema in told["components"]["schemas"].values():
        assert jsonschema_rs.meta.is_valid(schema)


async def test_it_is_served_to_everybody() -> None:
    async with router_with(api_key=("sk-tenant-1",), admin_key="sk-admin-1") as served:
        answer = await served.client.get("/openapi.json")
        assert answer.json()["openapi"] == "3.1.0"
        assert answer.json()["paths"].keys() == document(captures=True)["paths"].keys()


@pytest.fixture(scope="module")
def target() -> Any:
    with Target() as running:
        yield running


@pytest.mark.parametrize("name", [row.id for row in OPERATIONS])
def test_requests_made_from_the_document_never_break_anything(name: str, target: Target) -> None:
    search(target, *operations(target)[name])
