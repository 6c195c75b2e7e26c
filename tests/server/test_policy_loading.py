"""Policies by name, and policies of one's own by dotted path."""

from __future__ import annotations

import functools

import pytest

from slime_core.policies import POLICIES, cache_aware, least_in_flight
from slime_trio.config import ConfigurationError
from slime_trio.policies import load_policy

no_policy = 7


def alone(workers: object) -> None: ...


def wants_more(workers: object, placement: object, more: object) -> None: ...


async def waits(workers: object, placement: object) -> None: ...


def fits(workers: object, placement: object, *, more: object = None) -> None: ...


rounded = functools.partial(fits, more=1)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_has_a_name_in_two_spellings(name: str) -> None:
    assert load_policy(name) is load_policy(name.replace("-", "_")) is POLICIES[name]


@pytest.mark.parametrize(
    "path", ["slime_core.policies.cache_aware", "slime_core.policies:cache_aware"]
)
def test_a_policy_may_be_named_by_its_path(path: str) -> None:
    assert load_policy(path) is cache_aware
    assert load_policy("slime_core.policies.loads.least_in_flight") is least_in_flight


@pytest.mark.parametrize("name", ["fits", "rounded"])
def test_whatever_can_be_called_with_workers_and_a_placement_is_one(name: str) -> None:
    assert load_policy(f"{__name__}.{name}") is globals()[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no.such.module.at_all", "No module named 'no'"),
        (f"{__name__}.nobody", "has no function nobody"),
        (f"{__name__}.no_policy", "has no function no_policy"),
        (f"{__name__}.alone", "does not take"),
        (f"{__name__}.wants_more", "does not take"),
        (f"{__name__}.waits", "does not take"),
    ],
)
def test_what_is_no_policy_is_named_before_anything_starts(name: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        load_policy(name)
    assert name in str(caught.value)
