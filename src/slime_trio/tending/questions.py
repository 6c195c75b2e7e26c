"""What workers are asked about themselves, and what their answers mean.

Every question has a connection of its own, which is closed behind it: SGLang closes idle
connections after 5 s, less than the time between two polls, and a question that finds its
connection closed would look like a worker that fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
import trio

from slime_core import sglang
from slime_core.errors import WorkerError
from slime_core.types import WorkerUrl
from slime_trio.registration_transport import PinnedTransport
from slime_trio.router import Router
from slime_trio.shared import Shared

__all__ = ["ADMIN_CLIENT", "NoAnswer", "Questions", "admin_client"]

ADMIN_CLIENT: Final = "admin_client"
"""The registered component that asks workers about themselves: an ``httpx.AsyncClient``."""

PATIENCE_S: Final = 10.0
"""How long a question may take that costs the worker nothing."""

_MOST_BYTES: Final = 4 * 2**20
_MODEL_INFO: Final = ("/model_info", "/get_model_info")
_FAILURES: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError)
"""What asking may raise that the worker, or its URL, is to blame for."""
_NO_CONNECTION: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
    UnicodeError,
)


class NoAnswer(Exception):
    """A worker did not answer a question; ``refused``: it did not even take a connection."""

    def __init__(self, words: str, *, refused: bool) -> None:
        super().__init__(words)
        self.refused = refused


class Questions:
    """Asks workers; everything raises :class:`NoAnswer` where none comes."""

    def __init__(self, shared: Shared, client: httpx.AsyncClient) -> None:
        self._shared = shared
        self._client = client

    async def model_info(self, worker: WorkerUrl) -> sglang.ModelInfo | None:
        """What it says of its model; ``None`` if it answers nothing of the kind."""
        for path in _MODEL_INFO:
            status, body = await self._ask("GET", worker, path)
            if status == 200:
                try:
                    return sglang.parse_model_info(body)
                except WorkerError:
                    continue
        return None

    async def tokenized(self, worker: WorkerUrl, text: str) -> sglang.Tokenized | None:
        """``text`` as its tokenizer has it; ``None`` if it will not tell."""
        question = sglang.encode_tokenize(text, add_special_tokens=True)
        status, body = await self._ask("POST", worker, "/tokenize", question)
        try:
            return sglang.parse_tokenize(body) if status == 200 else None
        except WorkerError:
            return None

    async def loads(self, worker: WorkerUrl) -> sglang.WorkerLoads | None:
        """What occupies it; ``None`` if it does not tell."""
        status, body = await self._ask("GET", worker, "/v1/loads?include=core")
        try:
            return sglang.parse_loads(body) if status == 200 else None
        except WorkerError:
            return None

    async def is_ready(self, worker: WorkerUrl) -> bool | None:
        """Whether it takes requests at all: SGLang's says no while paused. ``None``: an older
        worker, which does not tell."""
        status, _ = await self._ask("GET", worker, "/ready")
        return {200: True, 503: False}.get(status)

    async def generates(self, worker: WorkerUrl, *, patience_s: float) -> bool:
        """Whether it generates: SGLang's health check samples a token, and takes 1 s at least.

        A server without such a path (404) is taken at its word: it answers.
        """
        status, _ = await self._ask("GET", worker, "/health", patience_s=patience_s)
        return status in (200, 404)

    async def generated(self, worker: WorkerUrl, body: bytes) -> bytes | None:
        """What it answers a generation with; ``None`` if it refuses."""
        status, answer = await self._ask("POST", worker, "/generate", body)
        return answer if status == 200 else None

    async def _ask(
        self,
        method: str,
        worker: WorkerUrl,
        path: str,
        body: bytes | None = None,
        *,
        patience_s: float = PATIENCE_S,
    ) -> tuple[int, bytes]:
        connect_s = self._shared.args.connect_timeout_s
        headers = [(b"connection", b"close"), *self._shared.worker_headers(worker)]
        if body is not None:
            headers.append((b"content-type", b"application/json"))
        try:
            # Its own timeouts begin anew with every byte.
            with trio.fail_after(connect_s + patience_s):
                async with self._client.stream(
                    method,
                    worker.rstrip("/") + path,
                    content=body,
                    headers=headers,
                    timeout=httpx.Timeout(patience_s, connect=connect_s),
                ) as response:
                    body = await _read(response)
                    self._count(path, str(response.status_code))
                    return response.status_code, body
        except _FAILURES as error:
            self._count(path, "unreachable")
            refused = isinstance(error, _NO_CONNECTION)
            raise NoAnswer(type(error).__name__, refused=refused) from error
        except trio.TooSlowError:
            self._count(path, "timeout")
            raise NoAnswer("TooSlowError", refused=False) from None

    def _count(self, path: str, result: str) -> None:
        self._shared.counts.probes.add((path.partition("?")[0], result))


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for data in response.aiter_bytes():
        body += data
        if len(body) > _MOST_BYTES:
            raise NoAnswer("answer too large", refused=False)
    return bytes(body)


@asynccontextmanager
async def admin_client(router: Router) -> AsyncIterator[httpx.AsyncClient]:
    """The client that asks workers: the registered one, which whoever registered it closes.

    That is how another way to the workers (a proxy, a private authority, a simulated network) is
    given. Where none is registered, or only one that a former run has closed, one is made here.
    """
    registry = router.component_registry
    given = registry.get(ADMIN_CLIENT) if ADMIN_CLIENT in registry else None
    if given is not None and not given.is_closed:
        yield given
        return
    transport = PinnedTransport(router.pool.pins, tls=router.shared.worker_tls())
    async with httpx.AsyncClient(transport=transport, timeout=PATIENCE_S) as client:
        registry.register(ADMIN_CLIENT, client)
        yield client
