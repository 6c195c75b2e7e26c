"""May this caller register that worker? The look-ups behind :mod:`slime_core.addresses`.

``caller`` finds out who asks, ``check`` judges a worker's URL and pins what its name means: from
then on connections to it go there and nowhere else (:mod:`slime_trio.upstream.pins`).
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from slime_core.addresses import Caller, Patterns, canonical, judge, literal, never, parse_patterns
from slime_core.errors import ClientError
from slime_trio.config import Settings
from slime_trio.upstream import Pool, parse_origin

__all__ = ["Network", "caller", "check"]

_LOOK_UP_S: Final = 5.0
_LOOK_UPS_AT_ONCE: Final = 8
"""A look-up holds a thread; a name server that answers nothing must not take them all."""

_TRACES: Final = frozenset(
    {b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip"}
)
"""Fields that proxies add, besides all that begin with ``x-forwarded-``."""

_BROWSER: Final = frozenset({b"origin", b"sec-fetch-site", b"sec-fetch-mode"})
"""Fields that browsers add: a page of anybody's may send requests from the operator's machine."""

_FORWARDED_FOR: Final = re.compile(r"(?:^|[;,])\s*for=(\"[^\"]*\"|[^;,\s]*)", re.IGNORECASE)

_look_ups: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("slime_router.names")


class Network(Protocol):
    """What of the process is needed here: its settings, and its way to the workers."""

    @property
    def args(self) -> Settings:
        """The settings."""

    @property
    def pool(self) -> Pool:
        """The connections to workers."""


def caller(scope: Mapping[str, Any], settings: Settings, *, is_admin: bool = False) -> Caller:
    """Who sent the request of an ASGI ``scope``.

    Fields about forwarding are believed only where the peer is one of ``--trusted-proxy``, and then
    the last address in them that is not such a proxy itself is the caller's.
    """
    peer = canonical(str((scope.get("client") or ("",))[0]))
    headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    names = {name for name, _ in headers}
    is_forwarded = any(name in _TRACES or name.startswith(b"x-forwarded-") for name in names)
    if names & _BROWSER:
        return Caller(address=None, is_direct=False, is_admin=is_admin)
    if not is_forwarded:
        return Caller(address=peer, is_direct=True, is_admin=is_admin)
    proxies = _networks(settings.trusted_proxy)
    address = _behind(headers, proxies) if peer and _is_in(peer, proxies) else None
    return Caller(address=address, is_direct=False, is_admin=is_admin)


async def check(shared: Network, url: str, asking: Caller) -> tuple[str, ...]:
    """The addresses that ``url`` may be contacted at, to which its name is pinned from now on.

    Raises ``ClientError``: 400 for a URL that is none, 403 for one that ``asking`` may not register
    (``worker_not_allowed``) or nobody may (``worker_never_allowed``).
    """
    try:
        origin = parse_origin(url)
    except ValueError as error:
        raise ClientError(str(error), param="url") from None
    address = literal(origin.host)
    allowed = _patterns(shared.args.allow_worker)
    if address is not None:
        return judge(origin.host, [address], asking, allowed)
    found = [] if never(origin.host, []) else await _look_up(origin.host, origin.port)
    addresses = judge(origin.host, found, asking, allowed)
    if shared.pool.pins is not None:
        shared.pool.pins.pin(url, addresses)
    return addresses


async def _look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, each once; none if there are none or nobody answers in time."""
    with trio.move_on_after(_LOOK_UP_S):
        async with _limiter():
            try:
                rows = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                return []
        # As they are, not as ``canonical`` has them: another spelling is to be refused.
        found = (str(row[4][0]).partition("%")[0] for row in rows)
        return list(dict.fromkeys(str(ipaddress.ip_address(one)) for one in found))
    return []


def _limiter() -> trio.CapacityLimiter:
    try:
        return _look_ups.get()
    except LookupError:
        _look_ups.set(trio.CapacityLimiter(_LOOK_UPS_AT_ONCE))
        return _look_ups.get()


@functools.lru_cache(maxsize=8)
def _patterns(words: tuple[str, ...]) -> Patterns:
    return parse_patterns(words)


_IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@functools.lru_cache(maxsize=8)
def _networks(words: tuple[str, ...]) -> tuple[_IpNetwork, ...]:
    return tuple(ipaddress.ip_network(word, strict=False) for word in words)


def _is_in(address: str, networks: Sequence[_IpNetwork]) -> bool:
    found = ipaddress.ip_address(address)
    return any(found.version == net.version and found in net for net in networks)


def _behind(headers: list[tuple[bytes, bytes]], proxies: Sequence[_IpNetwork]) -> str | None:
    """Whom the proxies say they speak for; ``None`` where what they say does not agree.

    A proxy that writes one of the fields passes on what its client wrote into the others.
    """
    said = {_last_stranger(hops, proxies) for hops in _hops(headers) if hops}
    return said.pop() if len(said) == 1 else None


def _hops(headers: list[tuple[bytes, bytes]]) -> list[list[str]]:
    """The addresses that each kind of field lists, the farthest hop first."""
    text = {
        name: ",".join(value.decode("latin-1") for key, value in headers if key == name)
        for name in (b"x-forwarded-for", b"forwarded", b"x-real-ip")
    }
    return [
        [one.strip() for one in text[b"x-forwarded-for"].split(",") if one.strip()],
        [one.strip('"') for one in _FORWARDED_FOR.findall(text[b"forwarded"])],
        [one.strip() for one in text[b"x-real-ip"].split(",") if one.strip()],
    ]


def _last_stranger(hops: Sequence[str], proxies: Sequence[_IpNetwork]) -> str | None:
    """Going back from the nearest hop, the first that is no trusted proxy."""
    for hop in reversed(hops):
        address = canonical(_without_port(hop))
        if address is None or not _is_in(address, proxies):
            return address
    return None


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
