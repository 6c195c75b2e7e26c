"""Who may ask for what: a table of paths, and a decision that is pure.

Every path belongs to an :class:`Area`, by its written form. What no row names is passed through to
a worker, which is a tenant's business. A path that is not in its normal form (``/a/../b``, doubled
slashes, a slash at its end) may mean something else to whoever reads it next: it never belongs to
an area that less than a tenant's key opens, and to the control plane if its normal form does.

:func:`admit` says in which :class:`Role` a request is served, from its area, what it presents and
which keys there are; the shell finds out those and does nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from slime_core.errors import ClientError

__all__ = [
    "AREAS",
    "CONTROL_PATHS",
    "Area",
    "KeysThatAre",
    "Presented",
    "Role",
    "admit",
    "area_of",
    "session_of",
]


class Area(enum.Enum):
    """What a path is about, by who may ask for it."""

    OPEN = "open"
    """Health checks: everybody."""
    GENERATION = "generation"
    """What agents need: also a session's key, in its session."""
    TENANT = "tenant"
    """What a tenant has captured, its sessions, and whatever is passed through to a worker."""
    REPORT = "report"
    """What is told of model, health and numbers: to the operator all, to a tenant its own."""
    ABORT = "abort"
    """The operator may abort everything, a tenant its own."""
    REGISTRATION = "registration"
    """Workers that come and go: the operator, or by the rule of addresses."""
    CONTROL = "control"
    """What changes workers, or tells where they are: the operator only."""


class Presented(enum.Enum):
    """What a request presents as its key."""

    NOTHING = "nothing"
    UNKNOWN = "unknown"
    """A key that opens nothing here."""
    STRAY = "stray"
    """By its form a session's key, and no session's here."""
    SESSION = "session"
    TENANT = "tenant"
    ADMIN = "admin"


class Role(enum.Enum):
    """In what role a request is served."""

    NOBODY = "nobody"
    SESSION = "session"
    """An agent with a session's key."""
    TENANT = "tenant"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysThatAre:
    """Which keys this router was started with."""

    admin: bool
    tenants: bool


CONTROL_PATHS: Final = frozenset(
    {
        "abort_request",
        "begin_weight_update",
        "clear_hicache_storage_backend",
        "close_session",
        "configure_logging",
        "continue_generation",
        "convert_disaggregation_role",
        "destroy_weights_update_group",
        "dump_expert_distribution_record",
        "dumper",
        "end_weight_update",
        "flush_cache",
        "freeze_gc",
        "get_remote_instance_transfer_engine_info",
        "get_weights_by_name",
        "hicache",
        "init_weights_send_group_for_remote_instance",
        "init_weights_update_group",
        "load_lora_adapter",
        "load_lora_adapter_from_tensors",
        "open_session",
        "pause_generation",
        "pd_role_switch",
        "release_memory_occupation",
        "remote_instance_transfer_engine_info",
        "resume_memory_occupation",
        "send_weights_to_remote_instance",
        "set_internal_state",
        "set_trace_level",
        "slime_worker",
        "slow_down",
        "start_expert_distribution_record",
        "start_profile",
        "stop_expert_distribution_record",
        "stop_profile",
        "unload_lora_adapter",
        "update_weight_version",
        "update_weights_from_disk",
        "update_weights_from_distributed",
        "update_weights_from_ipc",
        "update_weights_from_tensor",
        "weights_checker",
    }
)
"""SGLang's paths that change a worker, or tell how to reach into its memory, by their first
segment. Passed through they would reach one worker by chance."""

_ROWS: Final = {
    Area.OPEN: ("/health", "/liveness", "/readiness", "/openapi.json"),
    Area.GENERATION: (
        "/generate",
        "/sessions/*/generate",
        "/sessions/*/v1/chat/completions",
        "/sessions/*/v1/completions",
        "/sessions/*/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/*",
    ),
    Area.TENANT: (
        "/",
        "/*",
        "/retrieve_from_messages_template",
        "/retrieve_from_text",
        "/sessions",
        "/sessions/*",
        "/trajectories/*",
        "/v1/chat/completions/*",
    ),
    Area.REPORT: (
        "/get_model_info",
        "/get_server_info",
        "/health_generate",
        "/metrics",
        "/model_info",
        "/server_info",
    ),
    Area.ABORT: ("/abort_request",),
    Area.REGISTRATION: (
        "DELETE /workers/*",
        "POST /add_worker",
        "POST /remove_worker",
        "POST /workers",
    ),
    Area.CONTROL: (
        "/add_worker",
        "/engine_metrics",
        "/get_load",
        "/get_loads",
        "/list_workers",
        "/remove_worker",
        "/v1/loads",
        "/v1/rl/*",
        "/workers",
        "/workers/*",
        *(f"/{name}" for name in sorted(CONTROL_PATHS - {"abort_request"})),
        *(f"/{name}/*" for name in sorted(CONTROL_PATHS)),
    ),
}

AREAS: Final[Mapping[str, Area]] = MappingProxyType(
    {row: area for area, rows in _ROWS.items() for row in rows}
)
"""The table: a path, perhaps with a method before it, and its area. ``*`` within is one segment,
at the end all that follows. The longest row that fits decides, one with a method before one
without."""

_STRICTER: Final[Mapping[Area, Area]] = MappingProxyType(
    {
        **dict.fromkeys((Area.OPEN, Area.GENERATION, Area.REPORT, Area.ABORT), Area.TENANT),
        Area.REGISTRATION: Area.CONTROL,
    }
)
"""Where paths belong whose normal form belongs to the former."""
_SESSIONS: Final = "sessions"
_WORKERS: Final = "/workers/"


def area_of(method: str, path: str) -> Area:
    """The area of a request; ``path`` is decoded and begins with a slash."""
    normal = _normal(path)
    area = _looked_up(method.upper(), normal)
    if normal == path or (area is Area.REGISTRATION and _names_worker_by_url(path)):
        return area
    return _STRICTER.get(area, area)


def _names_worker_by_url(path: str) -> bool:
    """Whether only the empty segment of a worker's URL keeps it from being normal."""
    below = path.removeprefix(_WORKERS)
    return below != path and not {".", ".."} & set(below.split("/"))


def _normal(path: str) -> str:
    """``path`` without empty segments, and with its dots followed."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _looked_up(method: str, path: str) -> Area:
    """Rows for ``path``, the most exact first."""
    parts = path.strip("/").split("/")
    forms = [path]
    if parts[0] == _SESSIONS and len(parts) > 2:
        forms.append("/" + "/".join((parts[0], "*", *parts[2:])))
    forms.extend("/" + "/".join((*parts[:end], "*")) for end in range(len(parts) - 1, 0, -1))
    for form in forms:
        for row in (f"{method} {form}", form):
            if row in AREAS:
                return AREAS[row]
    return Area.TENANT


def session_of(path: str) -> str | None:
    """The session that a path lies below, if it does."""
    parts = path.split("/")
    return parts[2] if len(parts) > 3 and parts[1] == _SESSIONS else None


def admit(area: Area, presented: Presented, keys: KeysThatAre, *, is_near: bool) -> Role:
    """The role in which a request is served.

    ``is_near``: it comes from this machine, and from no proxy. Where no admin key is set, such
    callers are the operator, and where no key is set at all, everybody is. Raises ``ClientError``:
    401 for a key that is missing or unknown, 403 for one of another kind.
    """
    if area is Area.OPEN:
        return Role.NOBODY
    if presented is Presented.STRAY:
        raise _unauthorized(presented)
    if presented is Presented.SESSION:
        if area is Area.GENERATION:
            return Role.SESSION
        raise ClientError(
            "a session key opens generation in its session and nothing else",
            status=403,
            code="session_key_forbids",
        )
    if area in (Area.GENERATION, Area.TENANT):
        return _admit_tenant(presented, keys)
    if area in (Area.REGISTRATION, Area.CONTROL):
        return _admit_operator(area, presented, keys, is_near)
    return _admit_either(presented, keys, is_near)


def _admit_tenant(presented: Presented, keys: KeysThatAre) -> Role:
    """Without tenants' keys, whatever else is presented is as good as nothing."""
    if not keys.tenants or presented is Presented.TENANT:
        return Role.TENANT
    if presented is Presented.ADMIN:
        raise ClientError(
            "the admin key opens the control plane; what tenants have takes a tenant's key "
            "(--api-key)",
            status=403,
            code="tenant_key_required",
        )
    raise _unauthorized(presented)


def _admit_operator(area: Area, presented: Presented, keys: KeysThatAre, is_near: bool) -> Role:
    if presented is Presented.ADMIN or not (keys.admin or keys.tenants):
        return Role.OPERATOR
    if keys.admin:
        if presented is Presented.TENANT:
            raise _not_the_operator("this takes the admin key (--admin-key); the key is a tenant's")
        raise _unauthorized(presented)
    if presented is Presented.UNKNOWN:
        raise _unauthorized(presented)
    if is_near:
        return Role.OPERATOR
    if area is Area.REGISTRATION:
        return Role.NOBODY
    raise _not_the_operator(
        "this takes the admin key, and none is set (--admin-key); without one only callers on the "
        "router's own machine may ask for it"
    )


def _admit_either(presented: Presented, keys: KeysThatAre, is_near: bool) -> Role:
    """A tenant gets its own part, the operator everything."""
    if presented is Presented.TENANT:
        return Role.TENANT
    if presented is Presented.ADMIN or not (keys.admin or keys.tenants):
        return Role.OPERATOR
    if not keys.tenants:
        return Role.TENANT
    if presented is Presented.NOTHING and is_near and not keys.admin:
        return Role.OPERATOR
    raise _unauthorized(presented)


def _unauthorized(presented: Presented) -> ClientError:
    words = {
        Presented.NOTHING: "You didn't provide an API key: send it as `Authorization: Bearer KEY`.",
    }
    unknown = "Incorrect API key provided: it is no key of this router, or no longer."
    return ClientError(words.get(presented, unknown), status=401, code="invalid_api_key")


def _not_the_operator(words: str) -> ClientError:
    return ClientError(words, status=403, code="admin_key_required")
