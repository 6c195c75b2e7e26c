"""How many connections there may be, and from whom."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any, Final

import trio

from slime_core.addresses import canonical
from slime_trio.config import Settings

__all__ = ["BUSY", "Admissions", "peer_of"]

_BUSY_BODY: Final = (
    b'{"error":{"message":"too many connections","type":"server_error","param":null,'
    b'"code":"too_many_connections"}}'
)

BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n%b"
) % (len(_BUSY_BODY), _BUSY_BODY)
"""What a connection too many is told, whatever it asks for."""


class Admissions:
    """The connections there are, by the address at their other end.

    An IPv6 host has a whole /64 to call from, so these are counted together. Proxies that are
    trusted stand for many clients: only the total bounds theirs.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_connections
        self._most_per_peer = settings.max_connections_per_peer
        self._proxies = [ipaddress.ip_network(one, strict=False) for one in settings.trusted_proxy]
        self._peers: Counter[str] = Counter()
        self.total = 0

    def enter(self, peer: str) -> bool:
        """Whether one more may come; if so, :meth:`leave` must follow."""
        if self.total >= self._most:
            return False
        if self._peers[_kin(peer)] >= self._most_per_peer and not self._is_proxy(peer):
            return False
        self.total += 1
        self._peers[_kin(peer)] += 1
        return True

    def leave(self, peer: str) -> None:
        """One connection less."""
        self.total -= 1
        self._peers[_kin(peer)] -= 1
        if not self._peers[_kin(peer)]:
            del self._peers[_kin(peer)]

    def _is_proxy(self, peer: str) -> bool:
        if not peer:
            return False
        address = ipaddress.ip_address(peer)
        return any(address.version == net.version and address in net for net in self._proxies)


def _kin(peer: str) -> str:
    """What all addresses of one host have in common."""
    return str(ipaddress.ip_network(f"{peer}/64", strict=False)) if ":" in peer else peer


def peer_of(stream: Any) -> str:
    """The address at the other end of a Trio stream; empty where there is none."""
    plain = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    try:
        name = plain.socket.getpeername()
    except (AttributeError, OSError):
        return ""
    return (canonical(name[0]) or "") if isinstance(name, tuple) else ""
