"""Where names may lead: to the addresses that were judged when they were registered.

A name that was looked up anew for each connection could lead elsewhere once it was accepted (DNS
rebinding). So a worker's name is looked up once, when it is registered, and from then on every
connection to it, of requests, probes and control calls alike, goes to what was found then; ``host``
field and TLS go on using the name. A name that nobody registered leads nowhere. Only workers named
on the command line are looked up each time: they are the operator's own choice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from slime_trio.upstream.origin import parse_origin

__all__ = ["Pins", "UnpinnedError"]

_Place = tuple[str, int]

_FORMER: Final = 1024
"""So many removed workers' names still lead somewhere, for what is to be aborted there."""


class UnpinnedError(OSError):
    """A connection to a name that nobody registered."""


class Pins:
    """Addresses by host and port."""

    def __init__(self, *, trusted: Iterable[str] = ()) -> None:
        self._trusted = {_place(url) for url in trusted}
        self._pinned: dict[_Place, tuple[str, ...]] = {}
        self._urls: dict[_Place, set[str]] = {}
        self._former: OrderedDict[_Place, tuple[str, ...]] = OrderedDict()

    def pin(self, url: str, addresses: Sequence[str]) -> None:
        """Let ``url``'s host lead to ``addresses``; a later call replaces them."""
        place = _place(url)
        self._former.pop(place, None)
        self._pinned[place] = tuple(addresses)
        self._urls.setdefault(place, set()).add(url)

    def forget(self, url: str) -> None:
        """The worker is gone; its pin goes with the last URL that shares it, a while later."""
        place = _place(url)
        urls = self._urls.get(place, set())
        urls.discard(url)
        if urls or place not in self._pinned:
            return
        del self._urls[place]
        self._former[place] = self._pinned.pop(place)
        if len(self._former) > _FORMER:
            self._former.popitem(last=False)

    def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Where to connect to instead of ``host``; empty: to what it says.

        Raises :class:`UnpinnedError` for a name that is neither pinned nor trusted.
        """
        place = host.lower(), port
        found = self._pinned.get(place) or self._former.get(place)
        if found is not None:
            return found
        if place in self._trusted or ":" in host or _is_number(host):
            return ()
        raise UnpinnedError("a worker whose name was never looked up")


def _place(url: str) -> _Place:
    origin = parse_origin(url)
    return origin.host.lower(), origin.port


def _is_number(host: str) -> bool:
    """Whether it is an address of four numbers already."""
    parts = host.split(".")
    return len(parts) == 4 and all(part.isascii() and part.isdigit() for part in parts)
