"""What the relay knows of a client: a request that has arrived, and a way to answer it.

Neither side is ASGI: a listener makes an :class:`Inbound` from whatever it speaks and supplies a
:class:`Reply`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol, cast

from msgspec import Struct
from msgspec.structs import force_setattr

__all__ = [
    "GENERATING_PATHS",
    "ClientGone",
    "DirectReply",
    "Headers",
    "Inbound",
    "Reply",
    "direct",
    "for_client",
    "for_worker",
]

Headers = list[tuple[bytes, bytes]]
"""Header fields in their order; names in lower case."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that mean one connection only (RFC 9110, 7.6.1)."""
_NO_FIELDS: Final[Mapping[bytes, bytes]] = MappingProxyType({})
_NOT_FOR_WORKERS: Final = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_NOT_FOR_WORKERS_TO_BE_READ: Final = _NOT_FOR_WORKERS | {b"accept-encoding", b"content-encoding"}
_NOT_FOR_CLIENTS: Final = _HOP_BY_HOP | {b"server", b"date"}
_NOT_WITH_ANOTHER_BODY: Final = _NOT_FOR_CLIENTS | {b"content-length", b"content-encoding"}

GENERATING_PATHS: Final = frozenset(
    {
        "api/chat",
        "api/generate",
        "generate",
        "generate_from_file",
        "invocations",
        "v1/chat/completions",
        "v1/completions",
        "v1/messages",
        "v1/responses",
        "vertex_generate",
    }
)
"""Paths that generate. Where one is passed through, nothing is captured, and the answer says so."""


class ClientGone(Exception):
    """The client takes nothing any more: it left, or it stalled for too long."""


class Inbound(Struct, frozen=True, kw_only=True):
    """A request: ``target`` is path and query as they came, ``path`` the decoded path.

    What is asked of its fields again and again is found when it is made.
    """

    method: str
    path: str
    target: bytes
    headers: Headers
    body: bytes
    resolved_session: str | None = None
    """The session as the listener found it, by path or key; it outweighs the header fields."""
    call: str | None = None
    """The router's id that its body bears, or that those in its body begin with."""
    client_ids: tuple[str, ...] = ()
    """Its client's ids, where they have been taken out of its body."""
    own_ids: bool = False
    """Whether a worker is to know its calls by the router's ids, whatever the client calls them."""
    is_agents: bool = False
    """Whether it bears a session's key: then its answer shows what OpenAI's parameters give, and
    nothing that only a trainer needs."""

    first: Mapping[bytes, bytes] = _NO_FIELDS
    """The first value of each field: never given, but found."""
    session: str | None = None
    """The rollout this request belongs to, if it says so: found likewise."""

    def __post_init__(self) -> None:
        force_setattr(self, "first", dict(reversed(self.headers)))
        force_setattr(self, "session", self.resolved_session or self.named_session)

    def header(self, name: bytes) -> str | None:
        """The first value of a field, or ``None``."""
        value = self.first.get(name)
        return None if value is None else value.decode("latin-1").strip()

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Whether any of these fields is there."""
        return not names.isdisjoint(self.first)

    @property
    def named_session(self) -> str | None:
        """The session that its header fields name."""
        first = self.first
        if b"x-session-id" not in first and b"x-smg-routing-key" not in first:
            return None
        return self.header(b"x-session-id") or self.header(b"x-smg-routing-key")

    @property
    def generates(self) -> bool:
        """Whether it asks for a generation, as far as its path says."""
        return self.method in ("POST", "PUT") and self.path.strip("/") in GENERATING_PATHS


class Reply(Protocol):
    """The way back to the client. Errors before ``start`` may be raised; after it they may not.

    The answer ends when the relay returns. If it raises after ``start``, the listener must break
    the message off visibly.
    """

    @property
    def started(self) -> bool:
        """Whether the status has been given."""

    async def start(self, status: int, headers: Headers) -> None:
        """Give status and header fields, once."""

    async def send(self, data: bytes) -> None:
        """Send a piece of the body. Raises :class:`ClientGone`."""


class DirectReply(Reply, Protocol):
    """A reply that can be given pieces by a plain call, once it has been started."""

    @property
    def is_direct(self) -> bool:
        """Whether that is of use: whether pieces may leave by it without waiting."""

    def send_now(self, data: bytes) -> bool:
        """Send a piece as far as can be without waiting; whether nothing is left for ``flush``.
        Raises :class:`ClientGone`."""

    async def flush(self) -> None:
        """Wait until all has left. Raises :class:`ClientGone`."""


def direct(reply: Reply) -> DirectReply | None:
    """``reply``, if it can be given pieces by plain calls."""
    if not hasattr(reply, "send_now"):
        return None
    able = cast("DirectReply", reply)
    return able if able.is_direct else None


def _without(headers: Sequence[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    """The fields that mean the message and not the connection, but for those ``dropped``."""
    named = [value for name, value in headers if name == b"connection"]
    if named:
        dropped |= frozenset(map(bytes.strip, b",".join(named).lower().split(b",")))
    return [field for field in headers if field[0] not in dropped]


def for_worker(headers: Sequence[tuple[bytes, bytes]], *, readable: bool) -> Headers:
    """A client's fields for a worker; framing and host are the upstream client's to set.

    ``readable``: the answer will be read here, so it must not come compressed.
    """
    return _without(headers, _NOT_FOR_WORKERS_TO_BE_READ if readable else _NOT_FOR_WORKERS)


def for_client(headers: Sequence[tuple[bytes, bytes]], *, same_body: bool) -> Headers:
    """A worker's fields for the client; ``server`` and ``date`` are the listener's to set.

    ``same_body``: the body passes byte for byte, so its length and coding still hold.
    """
    return _without(headers, _NOT_FOR_CLIENTS if same_body else _NOT_WITH_ANOTHER_BODY)
