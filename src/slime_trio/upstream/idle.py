"""A bounded stack of idle things that grow too old: the pool's rule, without the connections."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["IdleStack"]

T = TypeVar("T", bound=Hashable)


class IdleStack(Generic[T]):
    """Last in, first out, at most ``limit`` long, nothing older than ``timeout_s``.

    The youngest is taken first because it is the least likely to have been closed by its peer,
    and so that a burst's surplus is left alone until it is old. Ages only grow towards the other
    end, so expiry looks there and every item is passed over once in its life: all operations cost
    O(1), spread over the items. What is dropped is returned: its owner has to close it.
    """

    __slots__ = ("_limit", "_since", "_timeout_s")

    def __init__(self, *, limit: int, timeout_s: float) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        # Ordered, because a plain dict looks for its first item through all that were deleted.
        self._since: OrderedDict[T, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._since)

    def push(self, item: T, now: float) -> T | None:
        """Keep ``item``; the one dropped for want of room, the oldest, or ``None``."""
        self._since[item] = now
        return self._since.popitem(last=False)[0] if len(self._since) > self._limit else None

    def pop(self) -> T | None:
        """Take the youngest; call :meth:`expire` first."""
        return self._since.popitem()[0] if self._since else None

    def take(self, now: float) -> T | None:
        """Take the youngest, unless it is too old, as then all are."""
        since = self._since
        if not since:
            return None
        item, pushed = since.popitem()
        if now - pushed < self._timeout_s:
            return item
        since[item] = pushed
        return None

    def remove(self, item: T) -> bool:
        """Take ``item``, wherever it is; whether it was there."""
        return self._since.pop(item, None) is not None

    def expire(self, now: float) -> list[T]:
        """Drop those that have been idle for ``timeout_s`` or longer."""
        dropped: list[T] = []
        since = self._since
        while since and now - since[oldest := next(iter(since))] >= self._timeout_s:
            del since[oldest]
            dropped.append(oldest)
        return dropped

    def clear(self) -> list[T]:
        """Drop all."""
        dropped = list(self._since)
        self._since.clear()
        return dropped
