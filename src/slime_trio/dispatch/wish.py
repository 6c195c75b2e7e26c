"""What a request wants of the fleet: said by its header fields and by what its body became."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from slime_core.admission import PRIORITY_HEADER, Priority, parse_priority
from slime_core.errors import ClientError
from slime_core.placing import TARGET_HEADER
from slime_core.types import NO_IDS, CallId, PackedIds
from slime_core.weights import ANY_VERSION, VERSION_HEADER, VersionWish, parse_version_wish
from slime_trio.exchange import Inbound
from slime_trio.upstream import GivenAnswer

__all__ = ["TIMEOUT_HEADER", "Wish", "terms_of"]

TIMEOUT_HEADER: Final = "x-slime-timeout-s"
_OWN: Final = "x-slime-"
_ALIAS: Final = "x-smg-"
_FIELDS: Final = frozenset(
    name.encode()
    for field in (TIMEOUT_HEADER, TARGET_HEADER, VERSION_HEADER, PRIORITY_HEADER)
    for name in (field, field.replace(_OWN, _ALIAS), field.replace(_ALIAS, _OWN))
)
"""All that :func:`terms_of` looks at: most requests have none of it."""
_LONGEST_TARGET: Final = 2048
_LONGEST_NUMBER: Final = 32


class Wish(Struct, frozen=True, kw_only=True):
    """A request to the fleet.

    ``calls``: what occupies the worker. ``rids``: for each call the names by which it can be
    aborted. ``told``: those of them that a worker knows it by and that are the router's own, so
    that aborting them ends nobody else's. ``key``: where the calls of one session or routing key
    go, this one goes too. ``prompt``: its ids, as far as they are known. ``timeout_s``: the client
    waits so long, from now on. ``generates``: it is a generation, which may have to wait for its
    turn; all else goes to a worker at once or not at all. ``pairs``: a pair of workers may serve
    it. ``aborted``: the answer if it is aborted while it waits.
    """

    calls: tuple[CallId, ...] = ()
    rids: tuple[tuple[str, ...], ...] = ()
    told: tuple[str, ...] = ()
    session: str | None = None
    key: str | None = None
    prompt: PackedIds = NO_IDS
    target: str | None = None
    versions: VersionWish = ANY_VERSION
    priority: Priority = Priority.NORMAL
    timeout_s: float | None = None
    generates: bool = True
    pairs: bool = True
    aborted: Callable[[], GivenAnswer] | None = None


def terms_of(inbound: Inbound, **wanted: Any) -> Wish:
    """What the header fields ask for, and whatever else is ``wanted``, by the names of the fields
    of :class:`Wish`. Raises ``ClientError`` that names the one at fault.

    An agent's fields count for nothing but its deadline: which worker, which weights and whose turn
    it is are its trainer's to say, and answers to guesses would tell it of the fleet.
    """
    if not inbound.has_any(_FIELDS):
        return Wish(session=inbound.session, key=inbound.session, **wanted)
    if inbound.is_agents:
        timeout_s = _timeout(inbound.header(TIMEOUT_HEADER.encode()))
        return Wish(session=inbound.session, key=inbound.session, timeout_s=timeout_s, **wanted)
    return Wish(
        session=inbound.session,
        key=inbound.session,
        target=_target(inbound),
        versions=parse_version_wish(_either(inbound, VERSION_HEADER)),
        priority=parse_priority(_either(inbound, PRIORITY_HEADER)),
        timeout_s=_timeout(inbound.header(TIMEOUT_HEADER.encode())),
        **wanted,
    )


def _either(inbound: Inbound, name: str) -> str | None:
    """A field by the router's own name for it, or by that of gateways that had it before."""
    what = name.removeprefix(_OWN).removeprefix(_ALIAS)
    own = inbound.header(f"{_OWN}{what}".encode())
    return inbound.header(f"{_ALIAS}{what}".encode()) if own is None else own


def _target(inbound: Inbound) -> str | None:
    target = inbound.header(TARGET_HEADER.encode())
    if target is not None and not 0 < len(target) <= _LONGEST_TARGET:
        raise ClientError(f"{TARGET_HEADER} names no worker", param=TARGET_HEADER)
    return target


def _timeout(word: str | None) -> float | None:
    if word is None:
        return None
    try:
        seconds = float(word) if len(word) <= _LONGEST_NUMBER else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ClientError(
            f"{TIMEOUT_HEADER} must be a positive number of seconds", param=TIMEOUT_HEADER
        )
    return seconds
