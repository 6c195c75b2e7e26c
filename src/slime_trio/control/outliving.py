"""Work that must be done to its end although whoever asked for it may leave meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from slime_core.errors import WorkerError

__all__ = ["outliving"]

T = TypeVar("T")


async def outliving(
    nursery: trio.Nursery | None,
    work: Callable[[], Awaitable[T]],
    *,
    left: Callable[[], None] = lambda: None,
) -> T:
    """``work()``, done in ``nursery``: it goes on when the caller is cancelled, and ``left`` is
    called then.

    Without a nursery it is done right here. Raises what ``work`` raises, and ``WorkerError`` (503)
    if the nursery ends before it.
    """
    if nursery is None:
        return await work()
    done = trio.Event()
    results: list[T] = []
    errors: list[Exception] = []

    async def run() -> None:
        try:
            results.append(await work())
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    nursery.start_soon(run)
    try:
        await done.wait()
    except trio.Cancelled:
        left()
        raise
    if errors:
        raise errors[0]
    if not results:
        raise WorkerError("the router is shutting down", status=503, code="shutting_down")
    return results[0]
