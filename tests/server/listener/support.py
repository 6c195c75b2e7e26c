"""A listener over streams in memory and in virtual time, in front of whatever a test puts there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from trio.testing import memory_stream_pair

from slime_trio.config import Settings
from slime_trio.listener.server import Listener
from slime_trio.router import Router

__all__ = ["DATE", "Client", "Door", "answer_of", "body_of", "echo", "opened", "request"]

DATE = b"Thu, 01 Jan 1970 00:00:00 GMT"

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def request(path: str = "/", *, method: str = "GET", body: bytes = b"", more: str = "") -> bytes:
    """A request's bytes; ``more``: further header lines."""
    length = f"content-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{length}{more}\r\n".encode() + body


@dataclass(slots=True)
class Client:
    """The other end of a connection."""

    stream: Any
    got: bytearray = field(default_factory=bytearray)

    async def send(self, data: bytes) -> None:
        """Send it."""
        await self.stream.send_all(data)

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        """The next answer: status, fields, body as announced or in chunks."""
        head = await self.until(b"\r\n\r\n")
        status, fields = _read_head(head)
        if b"content-length" in fields:
            return status, fields, await self._take(int(fields[b"content-length"]))
        if b"transfer-encoding" not in fields:
            return status, fields, b""
        body = b""
        while size := int((await self.until(b"\r\n")).strip(), 16):
            body += (await self._take(size + 2))[:-2]
        await self._take(2)
        return status, fields, body

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while data := await self.stream.receive_some():
            self.got += data
        return bytes(self.got)

    async def until(self, end: bytes) -> bytes:
        """What comes up to ``end``, with it."""
        while end not in self.got:
            await self._more()
        return await self._take(self.got.index(end) + len(end))

    async def _take(self, count: int) -> bytes:
        while len(self.got) < count:
            await self._more()
        data = bytes(self.got[:count])
        del self.got[:count]
        return data

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        assert data, bytes(self.got)
        self.got += data


def _read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    assert len(fields) == len(lines), head
    return int(first.split()[1]), fields


@dataclass(slots=True)
class Door:
    """A listener that is running."""

    listener: Listener
    nursery: trio.Nursery

    def connect(self) -> Client:
        """A new connection."""
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.listener.serve_stream, theirs)
        return Client(ours)


@asynccontextmanager
async def opened(
    app: Any, *, router: Router | None = None, hot: bool = True, **settings: Any
) -> AsyncIterator[Door]:
    """A listener in front of ``app``, with ``router`` behind paths that are ``hot``."""
    chosen = router.args if router is not None else Settings(**settings)
    found = router if hot else None
    listener = Listener(app, chosen, find_router=lambda: found, date=lambda: DATE)
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        yield Door(listener, nursery)
        nursery.cancel_scope.cancel()


async def answer_of(send: Any, body: bytes, *, status: int = 200) -> None:
    """Have an ASGI application answer so."""
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive: Any) -> bytes:
    """The whole body of an ASGI request."""
    body = bytearray()
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with what it was asked."""
    body = await body_of(receive)
    told = {"method": scope["method"], "path": scope["path"], "body": body.decode()}
    await answer_of(send, json.dumps(told).encode())
