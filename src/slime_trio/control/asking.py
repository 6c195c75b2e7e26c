"""Asking workers: one, or many at once, over connections of the control plane's own.

The data path's connections are left to generations: a worker that takes minutes for its weights
must not hold one of theirs, nor wait for one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from slime_core.types import WorkerUrl
from slime_trio.control.outcomes import Failure, Outcome, Target
from slime_trio.exchange import Headers
from slime_trio.upstream import Pool, UpstreamError

__all__ = ["AT_ONCE", "Order", "ask", "fan_out"]

K = TypeVar("K", bound=Hashable)

AT_ONCE: Final = 32
"""Workers that are asked at the same time."""

_FAILURES: Final[dict[str, Failure]] = {
    "connect_failed": "upstream_unreachable",
    "connect_timeout": "timeout",
    "worker_timeout": "timeout",
    "connection_lost": "upstream_unreachable",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What workers are asked: ``path`` without its slash, ``query`` without its question mark.

    ``headers`` gives the header fields for a worker, which may ask for a key of its own. ``body``
    is one object for all workers, however large. At most ``most`` bytes of an answer are read.
    """

    method: str
    path: str
    headers: Callable[[WorkerUrl], Headers]
    query: bytes = b""
    body: bytes = b""
    seconds: float = 60.0
    most: int = 2**26

    @property
    def target(self) -> bytes:
        """Path and query as they are sent."""
        path = b"/" + self.path.encode("ascii")
        return path + b"?" + self.query if self.query else path


async def ask(pool: Pool, target: Target, order: Order) -> Outcome:
    """One worker's outcome. Raises nothing; never follows a redirect."""
    start = trio.current_time()

    def passed_ms() -> int:
        return round((trio.current_time() - start) * 1000)

    with trio.move_on_after(order.seconds):
        try:
            async with pool.request(
                order.method, target.url, order.target, order.headers(target.url), order.body
            ) as response:
                body = await response.read(max_bytes=order.most)
        except UpstreamError as error:
            failure = _FAILURES.get(error.code, "upstream_error")
            return Outcome.without_answer(target, failure, error.message, passed_ms())
        kind = response.header(b"content-type") or b""
        return Outcome(
            target=target,
            status=response.status,
            latency_ms=passed_ms(),
            content_type=kind.decode("latin-1"),
            body=body,
        )
    words = f"the worker did not answer within {order.seconds:g} s"
    return Outcome.without_answer(target, "timeout", words, passed_ms())


async def fan_out(targets: Sequence[K], one: Callable[[K], Awaitable[Outcome]]) -> list[Outcome]:
    """``one`` for every target, :data:`AT_ONCE` at a time; their outcomes, in the same order."""
    limit = trio.Semaphore(AT_ONCE)
    outcomes: dict[K, Outcome] = {}

    async def run(target: K) -> None:
        async with limit:
            outcomes[target] = await one(target)

    async with trio.open_nursery() as nursery:
        for target in targets:
            nursery.start_soon(run, target)
    return [outcomes[target] for target in targets]
