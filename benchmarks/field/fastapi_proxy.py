"""A proxy in the way of slime's own router: FastAPI on uvicorn, httpx behind it, JSON read whole.

``python fastapi_proxy.py PORT WORKER``; run by the peers' Python, which needs fastapi, uvicorn and
httpx. Every answer is read to its end; one that is JSON is decoded and encoded anew.
"""

from __future__ import annotations

import sys

import fastapi
import httpx
import uvicorn
from fastapi.responses import JSONResponse

__all__ = ["create_proxy", "main"]


def create_proxy(worker: str) -> fastapi.FastAPI:
    """The application; ``worker``: its base URL."""
    app = fastapi.FastAPI()
    limits = httpx.Limits(max_connections=None)
    client = httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(None))

    async def proxy(request: fastapi.Request) -> fastapi.Response:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in ("host", "content-length", "transfer-encoding")
        }
        url = worker + request.url.path
        body = await request.body()
        answer = await client.request(request.method, url, content=body, headers=headers)
        kind = answer.headers.get("content-type", "")
        if kind.startswith("application/json"):
            return JSONResponse(answer.json(), status_code=answer.status_code)
        return fastapi.Response(answer.content, status_code=answer.status_code, media_type=kind)

    app.add_api_route("/{path:path}", proxy, methods=["GET", "POST"], response_model=None)
    return app


def main() -> None:
    """Serve until ended."""
    port, worker = int(sys.argv[1]), sys.argv[2]
    uvicorn.run(create_proxy(worker), host="127.0.0.1", port=port, log_level="error", backlog=4096)


if __name__ == "__main__":
    main()
