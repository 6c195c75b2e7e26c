"""A bounded stack of idle things that grow too old: the pool's rule, without the connections."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["IdleStack"]

T = TypeVar("T")


class IdleStack(Generic[T]):
    """Last in, first out, at most ``limit`` long, nothing older than ``timeout_s``.

    The youngest is taken first because it is the least likely to have been closed by its peer,
    and so that a burst's surplus is left alone until it is old. Ages only grow towards the other
    end, so expiry looks there and every item is passed over once in its life: all operations cost
    O(1), spread over the items. What is dropped is returned: its owner has to close it.
    """

    __slots__ = ("_items", "_limit", "_timeout_s")

    def __init__(self, *, limit: int, timeout_s: float) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        self._items: deque[tuple[float, T]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: T, now: float) -> T | None:
        """Keep ``item``; the one dropped for want of room, the oldest, or ``None``."""
        self._items.append((now, item))
        return self._items.popleft()[1] if len(self._items) > self._limit else None

    def pop(self) -> T | None:
        """Take the youngest; call :meth:`expire` first."""
        return self._items.pop()[1] if self._items else None

    def expire(self, now: float) -> list[T]:
        """Drop those that have been idle for ``timeout_s`` or longer."""
        dropped = []
        while self._items and now - self._items[0][0] >= self._timeout_s:
            dropped.append(self._items.popleft()[1])
        return dropped

    def clear(self) -> list[T]:
        """Drop all."""
        dropped = [item for _, item in self._items]
        self._items.clear()
        return dropped
