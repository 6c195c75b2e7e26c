"""The guard: in whose name each request is served, found out once and before anything else of it.

:func:`enter` reads the keys of a request, finds whose they are and asks the table of paths
(:mod:`slime_core.access`). What it says is there for every handler as :func:`current`; whatever is
one tenant's (calls, sessions, aborts, numbers) goes through ``current().router``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from quart import g, request
from quart_trio import QuartTrio

from slime_core.access import Area, Presented, Role, admit, area_of, session_of
from slime_core.errors import ClientError
from slime_trio.exchange import Headers
from slime_trio.keys import SESSION_KEY_PREFIX, credentials, digest_of
from slime_trio.registration import caller
from slime_trio.router import Router
from slime_trio.shared import Shared

__all__ = ["Access", "add_guard", "current", "enter", "entered", "of_anybody"]

_HERE: Final = "slime_access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """In whose name a request is served.

    ``router`` is the tenant's; the operator, and who asks for what is open to all, gets the default
    tenant's. ``session`` is the one whose key the request bears.
    """

    role: Role
    router: Router
    session: str | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """Whose key was presented."""

    kind: Presented
    tenant: str = ""
    session: str | None = None


_NOBODY: Final = _Known(Presented.NOTHING)


def add_guard(app: QuartTrio, shared: Shared) -> None:
    """Have every request of ``app`` pass the guard, before it is known whether its path exists."""

    @app.before_request
    async def guard() -> None:
        setattr(g, _HERE, enter(shared, request.method, request.path, request.scope))


def current() -> Access:
    """In whose name the request being handled is served."""
    found = getattr(g, _HERE)
    assert isinstance(found, Access)
    return found


def enter(shared: Shared, method: str, path: str, scope: Mapping[str, Any]) -> Access:
    """In whose name the request of this ASGI ``scope`` may be served. Raises ``ClientError``."""
    headers = [(bytes(key).lower(), bytes(value)) for key, value in scope["headers"]]
    return entered(shared, area_of(method, path), path, headers, scope)


def entered(
    shared: Shared, area: Area, path: str, headers: Headers, scope: Mapping[str, Any]
) -> Access:
    """The same for a request whose area is known; ``headers`` are its fields, names lower-case."""
    if area is Area.OPEN:
        return Access(role=Role.NOBODY, router=shared.routers[""])
    known = _known(shared, headers)
    # Who asks from where costs more than all else here, and is not looked at by every area.
    is_near = area not in _FROM_ANYWHERE and caller(scope, shared.args).is_local
    role = admit(area, known.kind, shared.keys.that_are, is_near=is_near)
    if role is Role.SESSION and session_of(path) not in (None, known.session):
        raise _forbidden("this key is another session's")
    tenant = known.tenant if role in (Role.SESSION, Role.TENANT) else ""
    session = known.session if role is Role.SESSION else None
    return Access(role=role, router=shared.routers[tenant], session=session)


def of_anybody(shared: Shared, area: Area, path: str) -> Access | None:
    """How requests are served that bear no key, wherever they come from; ``None``: not all alike,
    or not at all. Holds as long as the process: keys are given at its start."""
    if area not in _FROM_ANYWHERE:
        return None
    try:
        return entered(shared, area, path, [], {})
    except ClientError:
        return None


_FROM_ANYWHERE: Final = frozenset({Area.GENERATION, Area.TENANT})
"""Areas that keys alone open, wherever they come from."""


def _known(shared: Shared, headers: Headers) -> _Known:
    """Whose key a request bears. Raises ``ClientError`` (403) if it bears several."""
    words = credentials(headers)
    if not words:
        return _NOBODY
    found = list(dict.fromkeys(_owner(shared, word) for word in words))
    known = [one for one in found if one.kind not in _STRANGE]
    if len(known) > 1:
        raise _forbidden("this request bears several keys, and they are not one and the same's")
    if known:
        return known[0]
    return min(found, key=lambda one: one.kind is not Presented.STRAY)


_STRANGE: Final = frozenset({Presented.UNKNOWN, Presented.STRAY})


def _owner(shared: Shared, word: str) -> _Known:
    """Whose key this is. All are looked at, whichever it is."""
    digest = digest_of(word)
    is_admin, tenant = shared.keys.is_admin(digest), shared.keys.tenant_of(digest)
    session = _session(shared, digest)
    if is_admin:
        return _Known(Presented.ADMIN)
    if tenant is not None:
        return _Known(Presented.TENANT, tenant)
    if session is not None:
        return session
    is_stray = word.startswith(SESSION_KEY_PREFIX)
    return _Known(Presented.STRAY if is_stray else Presented.UNKNOWN)


def _session(shared: Shared, digest: bytes) -> _Known | None:
    """The session, open or ended, whose key has this digest.

    Looking a digest up takes a time that tells something of digests at the most, and none can be
    turned into a key.
    """
    found = None
    for name, router in shared.routers.items():
        session = router.state.sessions.name_of_key(digest)
        if session is not None:
            found = _Known(Presented.SESSION, name, session)
    return found


def _forbidden(words: str) -> ClientError:
    return ClientError(words, status=403, code="session_key_forbids")
