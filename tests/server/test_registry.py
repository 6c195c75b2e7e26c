"""The component registry: what is shared, by name."""

from __future__ import annotations

import pytest

from slime_trio.config import Settings
from slime_trio.registry import ComponentRegistry, MissingComponentError
from slime_trio.router import Router
from tests.server.harness import checkpoint


def test_what_was_registered_is_got() -> None:
    registry = ComponentRegistry()
    one = object()
    registry.register("one", one)
    assert registry.get("one") is one
    assert "one" in registry
    assert "two" not in registry


def test_a_later_registration_replaces_an_earlier_one() -> None:
    registry = ComponentRegistry()
    registry.register("one", 1)
    registry.register("one", 2)
    assert registry.get("one") == 2


def test_a_missing_component_is_named_with_what_there_is() -> None:
    registry = ComponentRegistry()
    registry.register("tokenizer", 1)
    registry.register("radix_tree", 2)
    with pytest.raises(MissingComponentError) as caught:
        registry.get("x")
    assert str(caught.value) == (
        "Required component 'x' not found. Available components: ['radix_tree', 'tokenizer']"
    )


def test_the_router_shares_its_parts() -> None:
    names = Router(Settings(), checkpoint=checkpoint()).component_registry.names()
    assert {"settings", "state", "pool", "tokenizer", "radix_tree"} <= set(names)


def test_without_a_checkpoint_there_is_no_tokenizer() -> None:
    names = Router(Settings(capture=False)).component_registry.names()
    assert "tokenizer" not in names
    assert "radix_tree" not in names
