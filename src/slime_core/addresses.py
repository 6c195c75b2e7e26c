"""Which addresses may be registered as workers, and by whom.

Whoever registers a worker has the router send requests to an address of their choosing, from the
router's place in the network. So some addresses are never registered, whoever asks; all others by
the holder of the admin key; and without it only the caller's own, which it could contact anyway,
unless the caller sits on the router's own machine, or the operator allowed more.

Names are looked up by the shell, once: what is judged here are the addresses that were found, and
only to those that passed may connections be opened later (a name may mean another address the next
time it is asked for: DNS rebinding).

Sources of the ranges: RFC 6890 and its registries for special addresses, RFC 6052 (NAT64),
RFC 3056 (6to4), RFC 4380 (Teredo), RFC 4291 (the rest of IPv6); the clouds' documents for theirs.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from slime_core.errors import ClientError

__all__ = ["Caller", "Patterns", "canonical", "judge", "literal", "never", "parse_patterns"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER: Final[tuple[tuple[str, str], ...]] = (
    # The clouds' first: some of them lie in a wider range below.
    ("169.254.169.254/32", "a cloud's metadata address"),
    ("169.254.170.2/32", "a cloud's metadata address"),
    ("100.100.100.200/32", "a cloud's metadata address"),
    ("168.63.129.16/32", "a cloud's metadata address"),
    ("192.0.0.192/32", "a cloud's metadata address"),
    ("fd00:ec2::/32", "a cloud's metadata address"),
    ("fd20:ce::254/128", "a cloud's metadata address"),
    ("fd00:42::42/128", "a cloud's metadata address"),
    ("0.0.0.0/8", "an unspecified address"),
    ("169.254.0.0/16", "a link-local address"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::/128", "an unspecified address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site-local address, which is no longer in use"),
    ("ff00::/8", "a multicast address"),
    # ``::1`` is looked for before.
    ("::/96", "another spelling of an IPv4 address"),
    ("::ffff:0:0/96", "another spelling of an IPv4 address"),
    ("::ffff:0:0:0/96", "another spelling of an IPv4 address"),
    ("64:ff9b::/96", "another spelling of an IPv4 address"),
    ("64:ff9b:1::/48", "another spelling of an IPv4 address"),
    ("2001::/32", "another spelling of an IPv4 address"),
    ("2002::/16", "another spelling of an IPv4 address"),
)
"""Networks that no worker is registered in, and what they are called; the first match counts."""

_NEVER_NETWORKS: Final = tuple((ipaddress.ip_network(text), what) for text, what in _NEVER)
_NEVER_NAMES: Final = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.azure.internal",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    }
)
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_NUMERIC: Final = re.compile(r"[0-9./]+")
_NUMERIC_GLOB: Final = re.compile(r"[0-9.*]*[0-9][0-9.*]*")
_GLOB: Final = re.compile(r"[a-z0-9_*]([a-z0-9_*.-]*[a-z0-9_*])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks for a registration.

    ``address`` is where the caller truly is, canonical, or ``None`` where nobody can tell: the
    request came through a proxy that is not trusted, or from a page in somebody's browser.
    ``is_direct``: nothing says that anything stands between the caller and the router.
    """

    address: str | None
    is_direct: bool
    is_admin: bool = False

    @property
    def is_local(self) -> bool:
        """Whether it sits on the router's own machine."""
        direct = self.is_direct and self.address is not None
        return direct and ipaddress.ip_address(self.address or "").is_loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """What the operator allows anybody to register: names, which may hold ``*``, and networks."""

    names: tuple[str, ...] = ()
    networks: tuple[_Network, ...] = ()

    def holds_name(self, name: str) -> bool:
        """Whether a name is allowed; ``*`` stands for any characters, dots included."""
        return any(_matches(pattern, name) for pattern in self.names)

    def holds_address(self, address: str) -> bool:
        """Whether an address is in a network that is allowed."""
        found = ipaddress.ip_address(address)
        return any(found.version == net.version and found in net for net in self.networks)


def parse_patterns(words: Iterable[str]) -> Patterns:
    """Patterns as the operator writes them. Raises ``ValueError`` for a word that is none.

    What could pass for an address must be an address or a network: ``10.*`` would hold for the
    name ``10.example`` too.
    """
    names: list[str] = []
    networks: list[_Network] = []
    for word in words:
        name = _plain(word)
        if ":" in word or _NUMERIC.fullmatch(word):
            networks.append(ipaddress.ip_network(word, strict=False))
        elif _GLOB.fullmatch(name) and not _NUMERIC_GLOB.fullmatch(name):
            names.append(name)
        else:
            raise ValueError("expected a host name, a pattern with *, an address or a network")
    if "*" in names:
        networks += [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
    return Patterns(names=tuple(names), networks=tuple(networks))


def canonical(address: str) -> str | None:
    """An address in its one spelling, without a zone; ``None`` if it is none.

    A caller that reached an IPv6 socket over IPv4 is known by its IPv4 address.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(found)


def literal(host: str) -> str | None:
    """The address that a URL's host spells, or ``None`` for a name that has to be looked up.

    Raises ``ClientError`` for a number that is no plain address: resolvers read ``0x7f.1``,
    ``017700000001``, ``2130706433`` and ``127.1`` as addresses, and so would whoever connects.
    """
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    name = _plain(host)
    if not _NUMBER.fullmatch(_last_label(name)):
        return None
    try:
        if name == host.lower():
            return str(ipaddress.IPv4Address(name))
    except ValueError:
        pass
    raise ClientError(
        f"{host!r} is no IPv4 address of four decimal numbers", param="url", code="worker_address"
    )


def never(host: str, addresses: Sequence[str]) -> str | None:
    """What is so special about a host that nobody may register it; ``None`` if nothing is."""
    if _plain(host) in _NEVER_NAMES:
        return "the name of a cloud's metadata service"
    return next((what for one in addresses if (what := _special(one)) is not None), None)


def judge(
    host: str, addresses: Sequence[str], caller: Caller, allowed: Patterns
) -> tuple[str, ...]:
    """Those of a worker's ``addresses`` that ``caller`` may have contacted; at least one.

    ``host`` is the host of its URL, ``addresses`` what :func:`literal` gave or a look-up found
    (none: it found nothing). One address that is never registered spoils them all.

    Raises ``ClientError``: 403 ``worker_never_allowed`` or ``worker_not_allowed``, which names the
    settings that would allow it; 400 ``worker_address`` for a name that nobody knows, but only to
    those who may register any: others must not find out which names exist here.
    """
    what = never(host, addresses)
    is_name = literal(host) is None
    anything = caller.is_admin or caller.is_local
    anything = anything or (is_name and allowed.holds_name(_plain(host)))
    if what is not None and (anything or not is_name or not addresses):
        raise ClientError(
            f"{host} is {what}: no worker is ever registered there",
            status=403,
            code="worker_never_allowed",
            param="url",
        )
    good = [
        one for one in addresses if anything or one == caller.address or allowed.holds_address(one)
    ]
    if good and what is None:
        return tuple(good)
    if anything:
        raise ClientError(
            f"the host {host!r} cannot be resolved", code="worker_address", param="url"
        )
    raise ClientError(_refusal(host, caller), status=403, code="worker_not_allowed", param="url")


def _refusal(host: str, caller: Caller) -> str:
    said = (
        f"{host} is not the caller's own address"
        if caller.address is not None
        else "the caller's own address is not known: the request came through a proxy or a browser "
        "(--trusted-proxy names proxies whose word is taken)"
    )
    return (
        f"{said}. Start the router with --allow-worker {host} (a host, *.pattern or network), "
        "or send the admin key (--admin-key)"
    )


def _special(address: str) -> str | None:
    found: _Address = ipaddress.ip_address(address)
    if found.is_loopback and found == ipaddress.ip_address("::1"):
        return None
    for network, what in _NEVER_NETWORKS:
        if found.version == network.version and found in network:
            return what
    return None


def _plain(host: str) -> str:
    """A name in its one spelling: lower case, without the dot of the root."""
    return host.lower().removesuffix(".")


def _last_label(host: str) -> str:
    return host.rpartition(".")[2]


def _matches(pattern: str, name: str) -> bool:
    """Whether the pieces between the pattern's stars stand in the name, in their order.

    Greedy from the left, as a glob without choices allows: linear, whatever the pattern.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    if not name.startswith(first):
        return False
    position = len(first)
    for piece in rest[:-1]:
        found = name.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return len(name) - position >= len(rest[-1]) and name.endswith(rest[-1])
