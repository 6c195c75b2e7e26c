"""The application that is there before the application is there.

``slime-router serve`` listens first. What takes time (importing most of the program, reading the
tokenizer) happens in a thread beside the listener, which serves this small application meanwhile:

* ``/health`` and ``/liveness`` answer 200 at once;
* ``/readiness`` answers 503, with what is still being loaded as its reason;
* every other request is held, body unread, until the router is there, and then served by it. A
  client of the field that comes this early is a worker that registers, once and without a second
  try, or a trainer that would count a 503 as a failure; a few seconds are within the patience of
  all of them, and a request that was held needs no retry.

Whatever keeps the router from starting ends the server, with the same words and exit status as if
nothing had been served before. This module, and what the listener needs, import nothing that takes
long to import.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from slime_trio.config import ConfigurationError

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from slime_trio.router import Router

__all__ = ["Load", "Starting"]

_Message = dict[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]

Load = Callable[[Callable[[str], None]], Callable[[], "QuartTrio"]]
"""Loads, in a thread, and gives what then makes the application, on the event loop: middleware is
other people's code. It is given a function by which to say what is being loaded."""

_ALIVE: Final = ("/health", "/liveness")


class Starting:
    """An ASGI application that becomes the router's once that is loaded by :meth:`run`."""

    def __init__(self, load: Load) -> None:
        self._load: Final = load
        self._app: QuartTrio | None = None
        self._lives = trio.Event()
        self._made = trio.Event()
        self._begun = trio.Event()
        self._ready = trio.Event()
        self.loading = "the program"
        """What is being loaded."""
        self.failure: Exception | None = None
        """What kept the router from starting."""

    @property
    def router(self) -> Router | None:
        """The router, once it serves; from then on requests may go past this application."""
        if self._app is None or not self._ready.is_set():
            return None
        router: Router = self._app.extensions["slime_router"]
        return router

    async def run(self, server: trio.CancelScope) -> None:
        """Load the router once the server has begun this application's life span, and wait until
        it serves. The server is cancelled where the router cannot start (see ``failure``)."""
        # Two threads that import take turns of 5 ms: first what answers /health.
        await self._lives.wait()
        # Hardly anything that is made now is garbage: looking for it takes a sixth of the time.
        gc.disable()
        try:
            await self._run()
        except Exception as error:
            self.failure = error
        finally:
            gc.enable()
        if self.failure is not None:
            server.cancel()
            return
        self._ready.set()

    async def _run(self) -> None:
        # Whoever stops the server meanwhile does not wait for the thread.
        make = await trio.to_thread.run_sync(self._load, self._say, abandon_on_cancel=True)
        self._app = make()
        self._made.set()
        await self._begun.wait()

    def _say(self, what: str) -> None:
        self.loading = what

    # -- ASGI ----------------------------------------------------------------------------------

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer what can be answered now; hold the rest, and pass it on."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if not self._ready.is_set():
            if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
                if scope["path"] in _ALIVE:
                    await _answer(send, 200, b"text/plain; charset=utf-8", b"OK")
                    return
                if scope["path"] == "/readiness":
                    await _answer(send, 503, b"application/json", self._not_ready())
                    return
            await self._ready.wait()
        await self._loaded()(scope, receive, send)

    def _not_ready(self) -> bytes:
        told = {"status": "not ready", "reason": f"starting: loading {self.loading}"}
        return json.dumps(told, separators=(",", ":")).encode()

    def _loaded(self) -> Any:
        assert self._app is not None
        return self._app

    async def _live(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """A life span whose beginning is told at once, with the real application's inside it."""
        begin = await receive()
        await send({"type": "lifespan.startup.complete"})
        self._lives.set()
        await self._made.wait()
        messages = [begin]

        async def next_message() -> _Message:
            return messages.pop() if messages else await receive()

        async def told(message: _Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                words = message.get("message") or "the application could not start"
                self.failure = ConfigurationError(words)
            elif message["type"] != "lifespan.startup.complete":
                await send(message)
                return
            self._begun.set()

        await self._loaded()(scope, next_message, told)


async def _answer(send: _Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
