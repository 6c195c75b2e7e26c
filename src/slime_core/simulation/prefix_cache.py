"""Which prefixes a worker or the router still holds, told by lengths alone.

Whatever was said in all sessions forms a tree: a :class:`Passage` is a run of tokens that follows
another one, and two sessions share exactly the passages on both their ways to the root. A cache
holds passages whose predecessors it holds too, the last one of each way perhaps in part. It drops
the least recently used passage that nothing in it follows, as a radix cache drops leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

__all__ = ["Passage", "PassageCache"]


class Passage:
    """``tokens`` that follow ``parent`` (``None``: they begin a text).

    ``number`` counts passages, ``end`` is the length of the whole text up to and with this one.
    """

    __slots__ = ("end", "number", "parent", "tokens")

    def __init__(self, number: int, parent: Passage | None, tokens: int) -> None:
        before: int = 0 if parent is None else parent.end
        self.number = number
        self.parent = parent
        self.tokens = tokens
        self.end: int = before + tokens


@dataclass(slots=True, eq=False)
class _Kept:
    """What a cache knows of a passage that it holds. ``wanted``: reasons not to drop it."""

    passage: Passage
    tokens: int = 0
    used: int = 0
    children: int = 0
    wanted: int = 0
    queued: bool = False


class PassageCache:
    """At most ``capacity`` distinct tokens, those apart that are wanted (see :meth:`want`)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        """Distinct tokens that are held and not wanted."""
        self._kept: dict[int, _Kept] = {}
        self._leaves: list[tuple[int, int]] = []
        self._clock = 0

    def match(self, passage: Passage | None) -> int:
        """How many tokens of the text that ends with ``passage`` are held. Counts as a use."""
        while passage is not None:
            kept = self._kept.get(passage.number)
            if kept is not None:
                self._touch(kept)
                return passage.end - passage.tokens + kept.tokens
            passage = passage.parent
        return 0

    def add(self, passage: Passage, tokens: int | None = None) -> None:
        """Holds the text that ends with ``passage``, of which only ``tokens`` if given.

        A part never replaces more. Drops what no longer fits, the new text last.
        """
        self._touch(self._hold(passage, passage.tokens if tokens is None else tokens))
        self._drop()

    def want(self, passage: Passage) -> None:
        """Holds the text that ends with ``passage``, and keeps it until :meth:`release`.

        Wanted passages do not count towards the capacity.
        """
        tip = self._hold(passage, passage.tokens)
        self._touch(tip)
        kept: _Kept | None = tip
        while kept is not None:
            kept.wanted += 1
            if kept.wanted > 1:
                break
            self.size -= kept.tokens
            kept = self._parent(kept)
        self._drop()

    def release(self, passage: Passage) -> None:
        """Undoes one :meth:`want`."""
        kept: _Kept | None = self._kept[passage.number]
        while kept is not None:
            kept.wanted -= 1
            if kept.wanted:
                break
            self.size += kept.tokens
            self._queue(kept)
            kept = self._parent(kept)
        self._drop()

    def clear(self) -> None:
        """Drops everything; nothing may be wanted."""
        self._kept.clear()
        self._leaves.clear()
        self.size = 0

    # -- the tree ------------------------------------------------------------------------

    def _parent(self, kept: _Kept) -> _Kept | None:
        above = kept.passage.parent
        return None if above is None else self._kept[above.number]

    def _hold(self, passage: Passage, tokens: int) -> _Kept:
        """The entry of ``passage``, which holds ``tokens`` at least, all before it in full.

        By a loop: sessions may be longer than the interpreter's stack.
        """
        missing = []
        above = passage.parent
        while above is not None and not self._holds_all(above):
            missing.append(above)
            above = above.parent
        for one in reversed(missing):
            self._grow(one, one.tokens)
        return self._grow(passage, tokens)

    def _holds_all(self, passage: Passage) -> bool:
        kept = self._kept.get(passage.number)
        return kept is not None and kept.tokens == passage.tokens

    def _grow(self, passage: Passage, tokens: int) -> _Kept:
        """The entry of ``passage`` with ``tokens`` at least; its parent has one."""
        kept = self._kept.get(passage.number)
        if kept is None:
            kept = self._kept[passage.number] = _Kept(passage)
            parent = self._parent(kept)
            if parent is not None:
                parent.children += 1
        if tokens > kept.tokens:
            if not kept.wanted:
                self.size += tokens - kept.tokens
            kept.tokens = tokens
        return kept

    # -- the order of use ------------------------------------------------------------------

    def _touch(self, kept: _Kept) -> None:
        """Notes a use. What lies before it is no leaf, and inherits the use when it becomes one."""
        self._clock += 1
        kept.used = self._clock
        self._queue(kept)

    def _queue(self, kept: _Kept) -> None:
        """One entry per leaf suffices: its key may be too old, never too young."""
        if not kept.queued and not kept.children and not kept.wanted:
            kept.queued = True
            heappush(self._leaves, (kept.used, kept.passage.number))

    def _drop(self) -> None:
        while self.size > self.capacity:
            used, number = heappop(self._leaves)
            kept = self._kept[number]
            kept.queued = False
            if kept.children or kept.wanted:
                continue
            if kept.used > used:
                self._queue(kept)
                continue
            self._remove(kept)

    def _remove(self, kept: _Kept) -> None:
        del self._kept[kept.passage.number]
        self.size -= kept.tokens
        parent = self._parent(kept)
        if parent is not None:
            parent.children -= 1
            parent.used = max(parent.used, kept.used)
            self._queue(parent)
