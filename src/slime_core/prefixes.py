"""What workers are believed to hold in their prefix caches: pages of token ids, and who has them.

A prompt is cut into pages, and a page is known by a digest of *all ids up to its end*, as bytes of
fixed width: so ``12`` is no prefix of ``123``, and a page is found by one look-up. Pages grow with
their distance from the beginning (by a sixteenth), which keeps the number of pages of a prompt of
100,000 tokens near 140 while a match is off by six hundredths at most. What is shorter than one
page is not worth a worker's cache.

A worker's cache is emptied at once (a flush, new weights, a restart): what it holds is known by a
*lease*, a number that is replaced when that happens. Leases that nobody has are left lying until
their pages are touched or evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

from slime_core.types import ID_BYTES, PackedIds, WorkerUrl, token_count

__all__ = ["FIRST_PAGE", "PAGES_MOST", "PrefixMap", "page_digests", "page_ends"]

FIRST_PAGE: Final = 16
"""Tokens of the first pages; later ones are a sixteenth of what stands before them."""
PAGES_MOST: Final = 2**16
"""Pages remembered, of all prompts and workers together; those longest unused are forgotten."""
_DIGEST_BYTES: Final = 12


def _next_end(end: int) -> int:
    return end + max(FIRST_PAGE, end // FIRST_PAGE)


def page_ends(tokens: int) -> list[int]:
    """Where the whole pages of a prompt of so many tokens end, in tokens."""
    ends, end = list[int](), _next_end(0)
    while end <= tokens:
        ends.append(end)
        end = _next_end(end)
    return ends


def page_digests(prompt: PackedIds) -> tuple[bytes, ...]:
    """The whole pages of a prompt, each known by all ids up to its end."""
    digests, chain, start = list[bytes](), blake2b(digest_size=_DIGEST_BYTES), 0
    for end in page_ends(token_count(prompt)):
        chain.update(prompt[start * ID_BYTES : end * ID_BYTES])
        digests.append(chain.copy().digest())
        start = end
    return tuple(digests)


class PrefixMap:
    """Pages, and the workers that hold them, as far as prompts that were sent tell."""

    def __init__(self, pages_most: int = PAGES_MOST) -> None:
        self._most = pages_most
        # A plain dictionary looks for its first entry past all that were there: 25 µs a page.
        self._pages = OrderedDict[bytes, dict[int, None]]()
        self._leases: dict[WorkerUrl, int] = {}
        self._next_lease = 1
        self._typical = 0

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def typical_uncached(self) -> int:
        """Tokens that a prompt lately brought which its worker did not hold: a running mean."""
        return self._typical // 16

    def matched(self, pages: Sequence[bytes]) -> Mapping[WorkerUrl, int]:
        """How many tokens of a prompt of these pages each worker holds; none: not mentioned."""
        holders = {lease: worker for worker, lease in self._leases.items()}
        found: dict[WorkerUrl, int] = {}
        end = 0
        for page in pages:
            held = self._pages.get(page, {})
            holders = {lease: worker for lease, worker in holders.items() if lease in held}
            if not holders:
                break
            end = _next_end(end)
            for worker in holders.values():
                found[worker] = end
        return found

    def note(self, worker: WorkerUrl, pages: Sequence[bytes]) -> None:
        """A prompt of these pages goes to ``worker``, which will hold them."""
        if not pages:
            return
        lease = self._lease(worker)
        known = 0
        while known < len(pages) and lease in self._pages.get(pages[known], {}):
            known += 1
        self._count_uncached(known, len(pages))
        live = set(self._leases.values())
        # The beginning is touched last, since without it the rest is of no use.
        for page in reversed(pages):
            held = self._pages.pop(page, {})
            self._pages[page] = {one: None for one in held if one in live} | {lease: None}
        while len(self._pages) > self._most:
            self._pages.popitem(last=False)

    def _count_uncached(self, known: int, pages: int) -> None:
        end, cached = 0, 0
        for number in range(1, pages + 1):
            end = _next_end(end)
            if number == known:
                cached = end
        self._typical += end - cached - self._typical // 16

    def _lease(self, worker: WorkerUrl) -> int:
        lease = self._leases.get(worker)
        if lease is None:
            lease = self._leases[worker] = self._next_lease
            self._next_lease += 1
        return lease

    def forget(self, worker: WorkerUrl) -> None:
        """``worker`` holds nothing any more."""
        self._leases.pop(worker, None)

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        pages = tuple((page, tuple(held)) for page, held in self._pages.items())
        return (pages, tuple(self._leases.items()), self._next_lease, self._typical)
