"""Who may ask for what: the table of paths, and every decision there is."""

from __future__ import annotations

import itertools
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.access import (
    AREAS,
    CONTROL_PATHS,
    Area,
    KeysThatAre,
    Presented,
    Role,
    admit,
    area_of,
    session_of,
)
from slime_core.errors import ClientError

NONE: Final = KeysThatAre(admin=False, tenants=False)
ADMIN: Final = KeysThatAre(admin=True, tenants=False)
TENANTS: Final = KeysThatAre(admin=False, tenants=True)
BOTH: Final = KeysThatAre(admin=True, tenants=True)
SETUPS: Final = {"none": NONE, "admin": ADMIN, "tenants": TENANTS, "both": BOTH}


def decided(area: Area, presented: Presented, keys: KeysThatAre, *, near: bool = False) -> str:
    """The role, or the status and code of the refusal."""
    try:
        return admit(area, presented, keys, is_near=near).value
    except ClientError as error:
        return f"{error.status} {error.code}"


@pytest.mark.parametrize(
    ("method", "path", "area"),
    [
        ("GET", "/health", Area.OPEN),
        ("POST", "/generate", Area.GENERATION),
        ("POST", "/sessions/x/v1/chat/completions", Area.GENERATION),
        ("GET", "/v1/models/some/model", Area.GENERATION),
        ("POST", "/sessions/x/retrieve_from_text", Area.TENANT),
        ("POST", "/sessions/x/generate/more", Area.TENANT),
        ("GET", "/v1/chat/completions/x", Area.TENANT),
        ("POST", "/v1/embeddings", Area.TENANT),
        ("GET", "/", Area.TENANT),
        ("GET", "/metrics", Area.REPORT),
        ("POST", "/abort_request", Area.ABORT),
        ("POST", "/abort_request/x", Area.CONTROL),
        ("POST", "/add_worker", Area.REGISTRATION),
        ("GET", "/add_worker", Area.CONTROL),
        ("POST", "/workers", Area.REGISTRATION),
        ("GET", "/workers", Area.CONTROL),
        ("delete", "/workers/x", Area.REGISTRATION),
        ("PATCH", "/workers/x", Area.CONTROL),
        ("POST", "/workers/x/flush_cache", Area.CONTROL),
        ("POST", "/flush_cache", Area.CONTROL),
        ("POST", "/start_profile/x/y", Area.CONTROL),
    ],
)
def test_a_path_belongs_to_its_area(method: str, path: str, area: Area) -> None:
    assert area_of(method, path) is area


@pytest.mark.parametrize(
    "path",
    ["//health", "/health/", "/x/../generate", "/./metrics", "/v1//models", "/abort_request/"],
)
def test_a_path_that_may_be_read_otherwise_takes_a_tenants_key_at_least(path: str) -> None:
    assert area_of("POST", path) is Area.TENANT


@pytest.mark.parametrize(
    "path",
    ["//flush_cache", "/flush_cache/", "/generate/../flush_cache", "/./workers", "/add_worker/"],
)
def test_no_spelling_leads_past_the_control_plane(path: str) -> None:
    assert area_of("POST", path) is Area.CONTROL


@given(st.lists(st.sampled_from(["", ".", "..", "health", "generate", "flush_cache", "x"])))
def test_only_normal_paths_are_open_to_more_than_tenants(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    if area_of("POST", path) in (Area.OPEN, Area.GENERATION):
        assert path in ("/health", "/generate")


def test_every_control_path_is_the_operators() -> None:
    for name in CONTROL_PATHS - {"abort_request"}:
        assert area_of("POST", f"/{name}") is Area.CONTROL
        assert AREAS[f"/{name}"] is Area.CONTROL


@pytest.mark.parametrize(
    "path",
    [
        "/hicache/storage-backend",
        "/dumper/configure",
        "/set_trace_level",
        "/remote_instance_transfer_engine_info",
        "/get_remote_instance_transfer_engine_info",
    ],
)
def test_what_sglang_keeps_for_its_own_operators_is_no_tenants(path: str) -> None:
    assert area_of("PUT", path) is Area.CONTROL
    assert path.split("/")[1] in CONTROL_PATHS


@pytest.mark.parametrize(
    ("path", "session"),
    [("/sessions/x/generate", "x"), ("/sessions/x", None), ("/v1/sessions/x/y", None)],
)
def test_a_path_tells_the_session_that_it_lies_below(path: str, session: str | None) -> None:
    assert session_of(path) == session


# -- decisions ---------------------------------------------------------------------------------

_UNKNOWN: Final = "401 invalid_api_key"
_NOT_A_TENANT: Final = "403 tenant_key_required"
_NOT_ADMIN: Final = "403 admin_key_required"
_SESSION_ONLY: Final = "403 session_key_forbids"

# For callers that are not on the router's own machine: nothing, unknown, tenant's, admin's key.
_FAR: Final = {
    (Area.GENERATION, "none"): ("tenant",) * 4,
    (Area.GENERATION, "admin"): ("tenant",) * 4,
    (Area.GENERATION, "tenants"): (_UNKNOWN, _UNKNOWN, "tenant", _NOT_A_TENANT),
    (Area.GENERATION, "both"): (_UNKNOWN, _UNKNOWN, "tenant", _NOT_A_TENANT),
    (Area.CONTROL, "none"): ("operator",) * 4,
    (Area.CONTROL, "admin"): (_UNKNOWN, _UNKNOWN, _NOT_ADMIN, "operator"),
    (Area.CONTROL, "tenants"): (_NOT_ADMIN, _UNKNOWN, _NOT_ADMIN, "operator"),
    (Area.CONTROL, "both"): (_UNKNOWN, _UNKNOWN, _NOT_ADMIN, "operator"),
    (Area.REGISTRATION, "none"): ("operator",) * 4,
    (Area.REGISTRATION, "admin"): (_UNKNOWN, _UNKNOWN, _NOT_ADMIN, "operator"),
    (Area.REGISTRATION, "tenants"): ("nobody", _UNKNOWN, "nobody", "operator"),
    (Area.REGISTRATION, "both"): (_UNKNOWN, _UNKNOWN, _NOT_ADMIN, "operator"),
    (Area.REPORT, "none"): ("operator", "operator", "tenant", "operator"),
    (Area.REPORT, "admin"): ("tenant", "tenant", "tenant", "operator"),
    (Area.REPORT, "tenants"): (_UNKNOWN, _UNKNOWN, "tenant", "operator"),
    (Area.REPORT, "both"): (_UNKNOWN, _UNKNOWN, "tenant", "operator"),
}
_KEYS: Final = (Presented.NOTHING, Presented.UNKNOWN, Presented.TENANT, Presented.ADMIN)


@pytest.mark.parametrize(("area", "setup"), sorted(_FAR, key=str))
def test_a_key_opens_what_the_table_says(area: Area, setup: str) -> None:
    told = tuple(decided(area, presented, SETUPS[setup]) for presented in _KEYS)
    assert told == _FAR[area, setup]


@pytest.mark.parametrize("setup", SETUPS)
def test_what_tenants_have_takes_what_generation_takes_but_no_sessions_key(setup: str) -> None:
    for presented in _KEYS:
        generation = decided(Area.GENERATION, presented, SETUPS[setup])
        assert decided(Area.TENANT, presented, SETUPS[setup]) == generation


@pytest.mark.parametrize("setup", SETUPS)
def test_aborts_are_admitted_as_reports_are(setup: str) -> None:
    for presented, near in itertools.product(Presented, (False, True)):
        report = decided(Area.REPORT, presented, SETUPS[setup], near=near)
        assert decided(Area.ABORT, presented, SETUPS[setup], near=near) == report


@pytest.mark.parametrize("area", [Area.CONTROL, Area.REGISTRATION, Area.REPORT, Area.ABORT])
def test_without_an_admin_key_the_routers_own_machine_is_the_operators(area: Area) -> None:
    assert decided(area, Presented.NOTHING, TENANTS, near=True) == "operator"


@pytest.mark.parametrize("area", list(Area))
def test_nearness_opens_nothing_where_there_is_an_admin_key(area: Area) -> None:
    for presented, keys in itertools.product(Presented, (ADMIN, BOTH)):
        far = decided(area, presented, keys)
        assert decided(area, presented, keys, near=True) == far


@pytest.mark.parametrize("area", [Area.GENERATION, Area.TENANT])
def test_nearness_makes_nobody_a_tenant(area: Area) -> None:
    assert decided(area, Presented.NOTHING, TENANTS, near=True) == _UNKNOWN


@pytest.mark.parametrize("area", list(Area))
def test_a_sessions_key_opens_generation_whatever_other_keys_there_are(area: Area) -> None:
    expected = {Area.OPEN: Role.NOBODY.value, Area.GENERATION: Role.SESSION.value}
    for keys, near in itertools.product(SETUPS.values(), (False, True)):
        told = decided(area, Presented.SESSION, keys, near=near)
        assert told == expected.get(area, _SESSION_ONLY)


@pytest.mark.parametrize("area", [area for area in Area if area is not Area.OPEN])
def test_what_looks_like_a_sessions_key_and_is_none_opens_nothing(area: Area) -> None:
    for keys, near in itertools.product(SETUPS.values(), (False, True)):
        assert decided(area, Presented.STRAY, keys, near=near) == _UNKNOWN


def test_health_checks_are_open_whatever_is_presented() -> None:
    for presented, keys in itertools.product(Presented, SETUPS.values()):
        assert decided(Area.OPEN, presented, keys) == "nobody"


def test_a_refusal_names_the_flag_that_would_change_it() -> None:
    with pytest.raises(ClientError, match="--admin-key"):
        admit(Area.CONTROL, Presented.TENANT, TENANTS, is_near=False)
    with pytest.raises(ClientError, match="--api-key"):
        admit(Area.TENANT, Presented.ADMIN, BOTH, is_near=False)
