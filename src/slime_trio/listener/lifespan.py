"""An application's life: what it does before it serves and after, as ASGI has it."""

from __future__ import annotations

from typing import Any

import trio

__all__ = ["Lifespan", "LifespanError"]


class LifespanError(Exception):
    """The application could not start, or not end as it should; the words are its own."""


class Lifespan:
    """The ``lifespan`` scope of ``app``. ``state`` is what it leaves for its requests."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        self._send, self._receive = trio.open_memory_channel[dict[str, Any]](2)
        self._started = trio.Event()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Be the application's life, to its end. Raises what it raises, and `LifespanError`."""
        scope = {
            "type": "lifespan",
            "asgi": {"spec_version": "2.0", "version": "3.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive.receive, self._told)
        finally:
            self._started.set()
            self._ended.set()
            self._send.close()
            self._receive.close()

    async def start(self) -> None:
        """Have it start, and wait until it has."""
        self._send.send_nowait({"type": "lifespan.startup"})
        await self._started.wait()

    async def end(self) -> None:
        """Have it end, and wait until it has."""
        if not self._ended.is_set():
            self._send.send_nowait({"type": "lifespan.shutdown"})
            await self._ended.wait()

    async def _told(self, message: dict[str, Any]) -> None:
        what = message["type"]
        if what == "lifespan.startup.complete":
            self._started.set()
        elif what == "lifespan.shutdown.complete":
            self._ended.set()
        else:
            raise LifespanError(f"{what}: {message.get('message', '')}")
        await trio.lowlevel.checkpoint()
