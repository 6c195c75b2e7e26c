"""The plainest proxy of this project's stack: Quart-Trio under Hypercorn, httpx behind it.

``python -m benchmarks.field.plain_proxy PORT WORKER`` passes every request to one worker and its
answer back as it comes; nothing is kept, checked or tried again. It costs what the stack costs.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Final

import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio

__all__ = ["create_proxy", "main"]

_HOP_BY_HOP: Final = frozenset({"connection", "host", "keep-alive", "transfer-encoding"})
_METHODS: Final = ["GET", "POST", "PUT", "DELETE"]


def create_proxy(worker: str) -> QuartTrio:
    """The application; ``worker``: its base URL."""
    app = QuartTrio(__name__)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(base_url=worker, timeout=None, limits=limits)

    async def proxy(path: str) -> Response:
        headers = [pair for pair in request.headers.items() if pair[0].lower() not in _HOP_BY_HOP]
        body = await request.get_data()
        asked = client.build_request(request.method, "/" + path, headers=headers, content=body)
        answer = await client.send(asked, stream=True)
        kept = [pair for pair in answer.headers.items() if pair[0] not in _HOP_BY_HOP]
        response = Response(_pieces(answer), status=answer.status_code, headers=dict(kept))
        response.timeout = None
        return response

    app.add_url_rule("/<path:path>", "proxy", proxy, methods=_METHODS)
    return app


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
            await answer.aclose()


def main() -> None:
    """Serve until ended."""
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.errorlog = None
    config.keep_alive_max_requests = 1_000_000
    config.backlog = 1024
    trio.run(serve, create_proxy(sys.argv[2]), config)


if __name__ == "__main__":
    main()
