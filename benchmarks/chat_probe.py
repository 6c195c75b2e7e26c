"""A middleware that tells what processor time the router's process has taken."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

__all__ = ["PATH", "CpuProbe"]

PATH: Final = "/_cpu"


class CpuProbe:
    """``GET /_cpu`` answers microseconds since the start, threads included; all else passes."""

    def __init__(self, app: Any, *, router: object) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        body = msgspec.json.encode({"us": time.process_time() * 1e6})
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
