"""Where a worker listens: its URL, taken apart and checked once."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

__all__ = ["Origin", "parse_origin"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Letters, digits, hyphen and dot (RFC 1123), and the underscore that container networks use.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A worker's address.

    ``host`` is a name or an address without brackets; ``path_prefix`` is empty or starts with a
    slash and does not end with one. Connections belong to ``(scheme, host, port)``: two prefixes
    of one server are two origins that could share connections, and do not, which costs nothing.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    path_prefix: str = ""
    addresses: tuple[str, ...] = ()
    """Where to connect to instead of looking ``host`` up (:mod:`slime_trio.upstream.pins`)."""

    @property
    def authority(self) -> str:
        """The value of the ``host`` field: the default port is left out (RFC 9110, 4.2.3)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path_prefix}"


def parse_origin(url: str) -> Origin:
    """The origin that ``http://host:port/prefix`` names.

    Raises ``ValueError``, in words fit for whoever typed the URL, for anything that is not an
    absolute ``http`` or ``https`` URL of a plain server: credentials, a query or a fragment have
    no meaning for a worker and are more likely a mistake than a wish.
    """
    if any(ord(character) <= 0x20 or ord(character) >= 0x7F for character in url):
        raise ValueError(f"worker URL {url!r} holds white space or a character outside ASCII")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"worker URL {url!r} has brackets that hold no IPv6 address") from None
    scheme = parts.scheme
    if scheme not in ("http", "https"):
        raise ValueError(f"worker URL {url!r} must start with http:// or https://")
    if parts.username is not None:
        raise ValueError("a worker URL must not hold a user name or password")
    if "?" in url or "#" in url:
        raise ValueError(f"worker URL {url!r} must not have a query or a fragment")
    prefix = parts.path.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"worker URL {url!r} has a path with characters that must be escaped")
    return Origin(
        scheme="https" if scheme == "https" else "http",
        host=_host(parts, url),
        port=_port(parts, url),
        path_prefix=prefix,
    )


def _host(parts: SplitResult, url: str) -> str:
    host = parts.hostname
    if not host:
        raise ValueError(f"worker URL {url!r} names no host")
    if "[" in parts.netloc:
        # A zone ("%eth0") means something on this machine only, and not in a host field.
        try:
            if "%" not in host:
                return str(ipaddress.IPv6Address(host))
        except ValueError:
            pass
        raise ValueError(f"worker URL {url!r}: {host!r} is no IPv6 address without a zone")
    if not _HOST_NAME.fullmatch(host) or not _has_good_labels(host):
        raise ValueError(f"worker URL {url!r}: {host!r} is no host name or address")
    return host


def _has_good_labels(host: str) -> bool:
    """Whether every label can be looked up: 1 to 63 characters, and decodable where encoded."""
    try:
        host.encode("ascii").decode("idna").encode("idna")
    except UnicodeError:
        return False
    return all(host.removesuffix(".").split("."))


def _port(parts: SplitResult, url: str) -> int:
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"worker URL {url!r}: the port is no number from 1 to 65535") from None
    if port is None:
        if parts.netloc.endswith(":"):
            raise ValueError(f"worker URL {url!r} ends its host with a colon but names no port")
        return _DEFAULT_PORTS[parts.scheme]
    if port == 0:
        raise ValueError(f"worker URL {url!r}: the port is no number from 1 to 65535")
    return port
