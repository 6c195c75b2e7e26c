"""Sessions in the shell: whose request it is, and the life of a session from POST to DELETE.

A request belongs to the session of its path, else to that of a session key used as API key, else
to the one that ``X-Session-ID`` or ``X-SMG-Routing-Key`` names. A session key opens generation in
its session and nothing else (:mod:`slime_core.access`). It is shown once and kept as a digest only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import msgspec
import trio
from msgspec.structs import replace

from slime_core.errors import ClientError
from slime_core.session_book import Session
from slime_core.sessions import (
    expire,
    next_deadline,
    next_leaving,
    require_known,
    require_writable,
)
from slime_core.strict_json import BAD_JSON
from slime_core.transitions import SessionEnded, SessionOpened, SessionSealed, SessionUsed
from slime_trio.exchange import Inbound
from slime_trio.keys import SESSION_KEY_PREFIX, digest_of
from slime_trio.router import Router

__all__ = [
    "create",
    "delete",
    "entered",
    "expire_sessions",
    "free_ended",
    "listed",
    "seal",
    "used",
]

_SESSIONS_MOST: Final = 65_536
_METADATA_BYTES: Final = 64 * 1024
_LONGEST_NAME: Final = 1024
"""Names that headers give are kept with every call; nothing else bounds how many there are."""
_PAGE_MOST: Final = 1000
_LOOK_S: Final = 1.0
"""How late an idle session may be noticed at most."""


class _Opening(msgspec.Struct):
    metadata: dict[str, Any] | None = None


# -- whose request it is -----------------------------------------------------------------------


def entered(
    router: Router, inbound: Inbound, *, path: str | None = None, key: str | None = None
) -> Inbound:
    """``inbound`` with its session resolved, which must take calls. Raises ``ClientError``.

    ``path`` is the session of its path, ``key`` the one whose key it bears: who bears one is an
    agent, and stays in that session.
    """
    if key is not None:
        for other in (path, inbound.named_session):
            if other is not None and other != key:
                raise ClientError(
                    "this key is another session's", status=403, code="session_key_forbids"
                )
    if path is not None:
        require_known(router.state, path)
    resolved = path or key
    session = resolved or inbound.session
    if session is not None:
        _require_short(session)
        require_writable(router.state, session)
    is_agents = key is not None
    own_ids = is_agents or router.shared.own_ids
    if resolved is None and not own_ids:
        return inbound
    return replace(inbound, resolved_session=resolved, is_agents=is_agents, own_ids=own_ids)


def _require_short(session: str) -> None:
    if len(session) > _LONGEST_NAME:
        raise ClientError(
            f"the name of a session or routing key has {_LONGEST_NAME} characters at most",
            param="X-Session-ID",
        )


def used(router: Router, session: str | None) -> AbstractContextManager[None]:
    """A request of ``session`` is being served: until it ends, the session is not idle."""
    entry = None if session is None else router.state.sessions.known.get(session)
    return _NO_SESSION if entry is None else _used(router, entry)


_NO_SESSION: Final = nullcontext()


@contextmanager
def _used(router: Router, entry: Session) -> Iterator[None]:
    book, session = router.state.sessions, entry.name
    router.commit(SessionUsed(session=session, now=trio.current_time(), requests=1))
    try:
        yield
    finally:
        if book.known.get(session) is entry:
            router.commit(SessionUsed(session=session, now=trio.current_time(), requests=-1))
        elif book.leaving:
            router.housekeeping.set()


# -- the life of a session ---------------------------------------------------------------------


def create(router: Router, body: bytes) -> bytes:
    """``POST /sessions``. Raises ``ClientError``."""
    router.require_capture()
    metadata = _metadata(body)
    if len(router.state.sessions.known) >= _SESSIONS_MOST:
        raise ClientError(
            f"{_SESSIONS_MOST} sessions are open: delete those that are over",
            status=429,
            code="too_many_sessions",
            retry_after_s=1.0,
        )
    session = str(router.new_call_id())
    key = SESSION_KEY_PREFIX + router.new_call_id() + router.new_call_id()
    router.commit(
        SessionOpened(
            session=session, now=trio.current_time(), key_digest=digest_of(key), metadata=metadata
        )
    )
    facts = {"session_id": session, "session_key": key, "path": f"/sessions/{session}"}
    return msgspec.json.encode(facts)


def _metadata(body: bytes) -> bytes:
    if not body.strip():
        return b"{}"
    try:
        found = msgspec.json.decode(body, type=_Opening)
    except BAD_JSON as error:
        raise ClientError(
            f"the body must be a JSON object, and its `metadata` one too: {error}",
            code="invalid_json",
        ) from None
    metadata = msgspec.json.encode(found.metadata or {})
    if len(metadata) > _METADATA_BYTES:
        raise ClientError(
            f"metadata of {len(metadata)} bytes; a session takes {_METADATA_BYTES}",
            param="metadata",
            code="metadata_too_large",
        )
    return metadata


def seal(router: Router, session: str) -> bytes:
    """``POST /sessions/{id}/seal``; safe to repeat. Raises ``ClientError``."""
    adopt(router, session)
    if not router.state.sessions.known[session].sealed:
        router.commit(SessionSealed(session=session))
    return msgspec.json.encode({"session_id": session, "state": "sealed"})


def adopt(router: Router, session: str) -> Session:
    """The session's entry, made now if a header alone has named it. Raises ``ClientError``."""
    router.require_capture()
    known = require_known(router.state, session)
    if known is None:
        router.commit(SessionOpened(session=session, now=trio.current_time()))
        known = router.state.sessions.known[session]
    return known


async def delete(router: Router, session: str) -> None:
    """``DELETE /sessions/{id}``: over at once, and freed by the time this returns.

    Raises ``ClientError``. Memory is given back a slice at a time; if the client leaves meanwhile,
    the housekeeper does the rest.
    """
    router.require_capture()
    require_known(router.state, session)
    router.commit(SessionEnded(session=session, reason="deleted"))
    router.housekeeping.set()
    await free_ended(router)


async def free_ended(router: Router) -> None:
    """Free what only ended sessions need, letting others run between the slices."""
    while (step := next_leaving(router.state)) is not None:
        router.commit(step)
        await trio.lowlevel.checkpoint()


async def expire_sessions(router: Router) -> None:
    """End sessions that idle for too long, until cancelled."""
    idle_s = router.args.session_idle_s
    look_s = min(_LOOK_S, idle_s)
    while True:
        while (end := expire(router.state, trio.current_time(), idle_s)) is not None:
            router.commit(end)
            await free_ended(router)
        deadline = next_deadline(router.state, idle_s)
        wait_s = look_s if deadline is None else deadline - trio.current_time()
        await trio.sleep(min(max(wait_s, 0.0), look_s))


# -- what is known of sessions -----------------------------------------------------------------


def listed(router: Router, *, limit: int, after: int) -> bytes:
    """``GET /sessions``: those that were opened behind serial number ``after``, oldest first."""
    router.require_capture()
    limit = min(max(limit, 1), _PAGE_MOST)
    behind = (one for one in router.state.sessions.known.values() if one.serial > after)
    page = [one for _, one in zip(range(limit + 1), behind, strict=False)]
    shown = page[:limit]
    return msgspec.json.encode(
        {
            "sessions": [_line(router, one) for one in shown],
            "next": str(shown[-1].serial) if len(page) > limit else None,
        }
    )


def _line(router: Router, session: Session) -> dict[str, Any]:
    now = trio.current_time()
    return {
        "session_id": session.name,
        "state": "sealed" if session.sealed else "open",
        "calls": session.calls,
        "tokens": session.tokens,
        "calls_lost": sum(session.lost.values()),
        "requests": session.requests,
        "idle_s": 0.0 if session.requests else max(0.0, now - session.used_at),
    }
