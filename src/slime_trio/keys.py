"""Keys: kept as digests, compared in constant time, and shown to nobody.

A key is hashed as soon as it arrives; no key is kept, logged or shown. SHA-256 suffices where keys
are long and random, and tells nothing of them; comparisons look at every digest there is, so that
their time does not tell which one was close.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from slime_core.access import KeysThatAre
from slime_trio.config import ConfigurationError, Settings
from slime_trio.exchange import Headers

__all__ = [
    "CREDENTIALS",
    "SESSION_KEY_PREFIX",
    "Keyring",
    "credentials",
    "digest_of",
    "without_keys",
]

SESSION_KEY_PREFIX: Final = "sk-slime-"
CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"api-key"})
"""Where SDKs put a key: OpenAI's, Anthropic's, Azure's."""
_OURS: Final = frozenset({*CREDENTIALS, b"x-smg-tenant-id"})
_OVERRIDES: Final = b"x-override-"
"""With these SGLang, where it is told to, takes fields of the body from the head, the id among them
by which a request is aborted (SGLang 0.5.23, ``SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES``)."""
_WORDS_MOST: Final = 8
"""How many words of a request are tried as keys."""


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def credentials(headers: Headers) -> list[str]:
    """What a request presents as its key, in whatever scheme; the scheme's own name left out."""
    found = []
    for name, value in headers:
        if name in CREDENTIALS:
            words = value.decode("latin-1").split()
            found += words[1:] if len(words) > 1 else words
    return found[:_WORDS_MOST]


def without_keys(headers: Headers, *, keyed: bool) -> Headers:
    """``headers`` as anybody behind this router may see them.

    ``keyed``: keys are configured. Then every credential is for the router and none goes on, nor do
    fields by which a client could speak for another tenant or rename its request; otherwise only
    sessions' keys stay here.
    """
    if not keyed:
        return [
            field for field in headers if field[0] not in CREDENTIALS or not _is_session_key(field)
        ]
    return [
        (name, value)
        for name, value in headers
        if name not in _OURS and not name.startswith(_OVERRIDES)
    ]


def _is_session_key(field: tuple[bytes, bytes]) -> bool:
    return any(word.startswith(SESSION_KEY_PREFIX) for word in credentials([field]))


class Keyring:
    """The keys that the router was started with, as digests.

    Tenants are called ``tenant-1``, ``tenant-2`` … in the order of their keys.
    """

    __slots__ = ("_admin", "_tenants", "configured", "that_are")

    def __init__(self, *, admin: str | None = None, tenants: Iterable[str] = ()) -> None:
        self._admin: Final = None if admin is None else digest_of(admin)
        self._tenants: Final = [
            (f"tenant-{number}", digest_of(key)) for number, key in enumerate(tenants, 1)
        ]
        self.that_are: Final = KeysThatAre(admin=self.has_admin, tenants=self.has_tenants)
        """What :func:`slime_core.access.admit` must know; made once, as every request asks."""
        self.configured: Final = self.has_admin or self.has_tenants
        """Whether any key is set."""

    @classmethod
    def of(cls, settings: Settings) -> Keyring:
        """The keys of ``settings``. Raises :class:`ConfigurationError` for keys that collide."""
        keys = [*settings.api_key, *([settings.admin_key] if settings.admin_key else [])]
        if len(set(keys)) < len(keys):
            raise ConfigurationError(
                "--api-key, --admin-key: a key is given twice; each tenant needs its own, and the "
                "control plane another"
            )
        if any(key.startswith(SESSION_KEY_PREFIX) for key in keys):
            raise ConfigurationError(
                f"--api-key, --admin-key: keys that begin with {SESSION_KEY_PREFIX} are sessions'"
            )
        return cls(admin=settings.admin_key, tenants=settings.api_key)

    @property
    def has_admin(self) -> bool:
        """Whether the control plane has a key."""
        return self._admin is not None

    @property
    def has_tenants(self) -> bool:
        """Whether tenants have keys."""
        return bool(self._tenants)

    @property
    def tenants(self) -> list[str]:
        """The names of the tenants that have a key."""
        return [name for name, _ in self._tenants]

    def is_admin(self, digest: bytes) -> bool:
        """Whether it is the admin key's."""
        return self._admin is not None and hmac.compare_digest(self._admin, digest)

    def tenant_of(self, digest: bytes) -> str | None:
        """Whose key has this digest."""
        found = None
        for name, known in self._tenants:
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def __repr__(self) -> str:
        return f"Keyring(admin={self.has_admin}, tenants={len(self._tenants)})"
