"""What goes through ASGI: every request but those on hot paths.

The application runs in the connection's task, and reads the request's body from the connection as
it asks for it. What a client does wrong meanwhile ends the request as under Hypercorn: it is told
that its client has gone, and what it sends from then on goes nowhere.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote

import trio

from slime_trio.exchange import ClientGone
from slime_trio.listener.answer import Answer
from slime_trio.listener.connection import Connection, Refused, log_bug
from slime_trio.listener.request_head import RequestHead

__all__ = ["serve_asgi"]

_TURNS: Final = 16
"""Turns of the scheduler that an application has between a request's body and being told that its
client has gone. What was asked for is begun, however soon its client left: who aborts a generation
need not wait for the answer, and Quart cancels a handler that has not begun as well."""


async def serve_asgi(
    app: Any, state: dict[str, Any], connection: Connection, head: RequestHead
) -> None:
    """Have ``app`` serve a request; ``state`` is what its life span left for it."""
    call = _Call(connection, head)
    connection.on_leaving = call.disconnect
    if connection.has_left:
        call.disconnect()
    try:
        await app(_scope(connection, head, state), call.receive, call.send)
    except Exception:
        log_bug("application")
    finally:
        connection.on_leaving = None
    await call.finish()


def _scope(connection: Connection, head: RequestHead, state: dict[str, Any]) -> dict[str, Any]:
    path, _, query = head.target.partition(b"?")
    ends = connection.ends
    return {
        "type": "http",
        "http_version": head.http_version,
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": head.method,
        "scheme": "https" if ends.is_secure else "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": head.headers,
        "client": ends.client,
        "server": ends.server,
        "state": state.copy(),
        "extensions": {},
    }


class _Call:
    """One request as its application sees it."""

    def __init__(self, connection: Connection, head: RequestHead) -> None:
        assert connection.answer is not None
        self._connection = connection
        self._answer: Answer = connection.answer
        self._was_read = False
        self._over = trio.Event()

    def disconnect(self) -> None:
        """Nobody waits for the answer any more, or there is nothing left to wait for."""
        self._over.set()

    async def receive(self) -> dict[str, Any]:
        """Some of the body; behind it, once the client has left, that."""
        if not self._was_read and self._connection.is_body_unwanted:
            self._was_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if not self._was_read:
            try:
                piece = await self._connection.next_piece()
                self._was_read = piece is None
                return {
                    "type": "http.request",
                    "body": piece or b"",
                    "more_body": not self._was_read,
                }
            except Refused as error:
                self._over.set()
                with suppress(ClientGone):
                    await self._connection.refuse(error.refusal)
            except ClientGone:
                self._over.set()
        await self._over.wait()
        for _ in range(_TURNS):
            await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Some of the answer; of no effect where nobody waits for it any more."""
        if self._over.is_set():
            return
        try:
            if message["type"] == "http.response.start":
                fields = message.get("headers", ())
                # ASGI wants names in lower case; not all middleware gives them so.
                headers = [
                    (bytes(key).strip().lower(), bytes(value).strip()) for key, value in fields
                ]
                await self._answer.start(int(message["status"]), headers)
            elif message["type"] == "http.response.body":
                await self._answer.send(bytes(message.get("body", b"")))
                if not message.get("more_body", False):
                    await self._answer.end()
                    self._over.set()
        except ClientGone:
            self._over.set()

    async def finish(self) -> None:
        """The application has returned. Raises ``ClientGone``."""
        if not self._answer.started and not self._over.is_set():
            await self._answer.start(500, [(b"content-length", b"0")], closes=True)
            await self._answer.end()
