"""Paths that lead straight to the relay: generations, which are nearly all of what is asked for,
and what was captured, by its text or messages, whose answers are long.

A request on one of them meets what it would meet on its way through Quart, in the same order and by
the same code: its id (:mod:`slime_trio.request_id`), the books (:mod:`slime_trio.observability`),
the guard (:mod:`slime_trio.auth`), its body's limits, its session (:mod:`slime_trio.in_session`)
and the words of an error (:mod:`slime_trio.error_answers`). Only paths that are written exactly as
in the table are hot; whatever else may mean the same is left to the application.

This module needs the application's own, so it is imported when there is a router.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from slime_core.access import Area, area_of
from slime_core.errors import SlimeError
from slime_trio.auth import Access, entered, of_anybody
from slime_trio.error_answers import error_answer, told_as
from slime_trio.exchange import GENERATING_PATHS, ClientGone, Headers, Inbound
from slime_trio.in_session import ENDPOINTS, Endpoint, serve_in_session
from slime_trio.keys import credentials
from slime_trio.limits.json_depth import check_depth
from slime_trio.listener.answer import Answer
from slime_trio.listener.connection import Connection, Refused, log_bug
from slime_trio.listener.request_head import RequestHead
from slime_trio.observability.counts import kind_of
from slime_trio.observability.watch import Watch
from slime_trio.offload import is_short, off_loop
from slime_trio.passthrough import refuse_strangers
from slime_trio.renaming import forward_renamed
from slime_trio.request_id import identified, named_after
from slime_trio.retrieval import RETRIEVALS
from slime_trio.router import Router
from slime_trio.shared import Shared

__all__ = ["HotPath", "HotPaths"]

_WITHIN: Final = re.compile(
    rb"/sessions/([A-Za-z0-9_-]+)(/generate|/v1/chat/completions|/v1/completions)"
)
"""Sessions whose names read the same however they are read."""


class HotPath(NamedTuple):
    """What becomes of a request; ``path`` as it is served, if it came for another."""

    endpoint: Endpoint
    area: Area
    path: str | None = None
    session: str | None = None
    is_passed: bool = False
    """Whether it is passed through, as everything that the router does not know."""
    kind: str = ""
    """What it counts as."""
    anybody: Access | None = None
    """How it is served where no key is presented, if that is the same for all."""
    is_call: bool = True
    """Whether it belongs to the session that it names, if it names one."""


class HotPaths:
    """The table of one router, and the serving of what is in it."""

    def __init__(self, router: Router) -> None:
        self._router: Final = router
        self._shared: Final = router.shared
        self._most_levels: Final = router.args.max_json_depth
        self._rows: Final = dict((*_rows(router), *_rows_retrieving(router)))
        self._within: Final = dict(_rows_within(router))

    def find(self, method: str, target: bytes) -> HotPath | None:
        """What serves such a request; ``None``: not a hot path."""
        path = target.partition(b"?")[0]
        found = self._rows.get((method, path))
        if found is not None or method != "POST":
            return found
        match = _WITHIN.fullmatch(path)
        if match is None:
            return None
        row = self._within.get(match[2])
        return None if row is None else row._replace(session=match[1].decode())

    async def serve(self, connection: Connection, head: RequestHead, hot: HotPath) -> None:
        """Serve a request. Raises ``ClientGone`` and :class:`Refused`."""
        headers = identified(head.headers, self._new_id)
        id = headers[-1][1]
        raw, mark, query = head.target.partition(b"?")
        path = raw.decode()
        scope = _scope(connection, head, path, headers)
        with Watch(self._shared, scope, id.decode(), kind=hot.kind) as watch:
            assert connection.answer is not None
            reply = _Reply(self._shared, connection.answer, watch, id)
            try:
                access = self._admitted(hot, scope)
                body = connection.body_at_hand()
                if body is None:
                    body = await connection.read_body()
                reply.has_read = True
                watch.received = len(body)
                if is_short(len(body)):
                    check_depth(body, self._most_levels)
                else:
                    await off_loop(len(body), check_depth, body, self._most_levels)
                inbound = Inbound(
                    method=head.method,
                    path=path,
                    target=raw if mark and not query else head.target,
                    headers=headers,
                    body=body,
                )
                connection.end_when_left()
                if hot.is_call:
                    await serve_in_session(
                        access, hot.endpoint, inbound, reply, session=hot.session, path=hot.path
                    )
                else:
                    await hot.endpoint(access.router, inbound, reply)
                await reply.end()
            except (ClientGone, Refused):
                raise
            except Exception as error:
                await self._tell(error, path, head, reply)
            finally:
                connection.on_leaving = None

    def _admitted(self, hot: HotPath, scope: dict[str, Any]) -> Access:
        """In whose name it is served. Raises ``ClientError``."""
        access, path, headers = hot.anybody, scope["path"], scope["headers"]
        if access is None or credentials(headers):
            access = entered(self._shared, hot.area, path, headers, scope)
        if hot.is_passed:
            refuse_strangers(access.role, path)
        return access

    def _new_id(self) -> str:
        return f"req_{self._router.new_call_id()}"

    async def _tell(self, error: Exception, path: str, head: RequestHead, reply: _Reply) -> None:
        """Answer with an error; an answer that has begun breaks off, which its client can see."""
        if reply.started:
            if not isinstance(error, SlimeError):
                log_bug("request")
            return
        status, headers, body = error_answer(told_as(error, path), path)
        kind = (b"content-type", b"application/json")
        length = (b"content-length", b"%d" % len(body))
        closes = head.has_body and not reply.has_read
        await reply.start(status, [kind, length, *headers], closes=closes)
        await reply.send(body)
        await reply.end()


def _scope(
    connection: Connection, head: RequestHead, path: str, headers: Headers
) -> dict[str, Any]:
    """As much of an ASGI scope as the guard and the books look at."""
    return {
        "method": head.method,
        "path": path,
        "scheme": "https" if connection.ends.is_secure else "http",
        "headers": headers,
        "client": connection.ends.client,
    }


class _Reply:
    """A :class:`slime_trio.exchange.Reply`, and a ``Flushing``, straight to the connection."""

    __slots__ = ("_answer", "_id", "_shared", "_watch", "has_read")

    def __init__(self, shared: Shared, answer: Answer, watch: Watch, id: bytes) -> None:
        self._shared = shared
        self._answer = answer
        self._watch = watch
        self._id = id
        self.has_read = False
        """Whether the request's body was read; where one was not, the connection ends."""

    @property
    def started(self) -> bool:
        """Whether the status has been given."""
        return self._answer.started

    @property
    def flushed(self) -> bool:
        """Whether all that was sent has left for the client."""
        return self._answer.flushed

    async def flush(self) -> None:
        """Send what waits. Raises ``ClientGone``."""
        await self._answer.flush()

    async def start(self, status: int, headers: Headers, *, closes: bool = False) -> None:
        """Give status and header fields."""
        self._watch.status = status
        closes = closes or self._shared.is_stopping
        await self._answer.start(status, named_after(headers, self._id), closes=closes)

    async def send(self, data: bytes) -> None:
        """Send a piece. Raises ``ClientGone``."""
        if data:
            self._watch.sends(len(data))
            await self._answer.send(data)

    @property
    def is_direct(self) -> bool:
        """Whether pieces may leave by :meth:`send_now`."""
        return self._answer.is_direct

    def send_now(self, data: bytes) -> bool:
        """Send a piece as far as can be; whether nothing waits. Raises ``ClientGone``."""
        self._watch.sends(len(data))
        return self._answer.send_now(data)

    async def end(self) -> None:
        """The answer is complete."""
        await self._answer.end()
        self._watch.has_ended = True


def _rows(router: Router) -> Iterator[tuple[tuple[str, bytes], HotPath]]:
    """What is served, and every other generation, which is passed through."""
    own = {path: ENDPOINTS[path] for path in _own(router)}
    reason = "not_capturable" if router.captures else None
    passed = partial(forward_renamed, reason=reason)
    for path in sorted(GENERATING_PATHS | own.keys()):
        for method in ("POST", "PUT") if path == "generate" else ("POST",):
            area = area_of(method, f"/{path}")
            endpoint = own.get(path, passed)
            row = HotPath(
                endpoint,
                area,
                is_passed=path not in own,
                kind=kind_of(path),
                anybody=of_anybody(router.shared, area, f"/{path}"),
            )
            yield (method, f"/{path}".encode()), row


def _rows_retrieving(router: Router) -> Iterator[tuple[tuple[str, bytes], HotPath]]:
    """What tells what was captured."""
    for path, endpoint in RETRIEVALS.items():
        area = area_of("POST", f"/{path}")
        row = HotPath(
            endpoint,
            area,
            kind=kind_of(path),
            anybody=of_anybody(router.shared, area, f"/{path}"),
            is_call=False,
        )
        yield ("POST", f"/{path}".encode()), row


def _rows_within(router: Router) -> Iterator[tuple[bytes, HotPath]]:
    """What is served in sessions."""
    for path in _own(router) if router.captures else ():
        area = area_of("POST", f"/sessions/x/{path}")
        row = HotPath(
            ENDPOINTS[path],
            area,
            path=f"/{path}",
            kind=kind_of(f"sessions/x/{path}"),
            anybody=of_anybody(router.shared, area, f"/sessions/x/{path}"),
        )
        yield f"/{path}".encode(), row


def _own(router: Router) -> list[str]:
    """The paths below which this router itself serves generations."""
    chats = router.captures and router.args.enable_openai_chat_completion
    return list(ENDPOINTS) if chats else ["generate"]
