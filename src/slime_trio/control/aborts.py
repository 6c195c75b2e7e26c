"""Which calls an abort means, and what their workers are told.

SGLang's rule for one worker holds for the fleet: an id must be that of a live call, exactly; then
all whose ids begin with it are meant. The router adds ``{"session": id}``: all calls of a session;
and ``"prefix": true``, which some engines know too: the id need not be a call's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from slime_core.strict_json import decode_field, is_null
from slime_core.types import CallId, WorkerUrl
from slime_trio.control.requests import bool_in, object_of, text_in

__all__ = ["AbortWish", "LiveCall", "Notice", "meant", "notices", "parse_abort"]


class LiveCall(Protocol):
    """A generating call from its admission to its end, as the dispatcher holds it."""

    aborted: bool

    @property
    def call(self) -> CallId:
        """Its id, made by the router."""

    @property
    def rids(self) -> tuple[str, ...]:
        """Every name by which it can be aborted."""

    @property
    def session(self) -> str | None:
        """Its session or routing key."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def workers(self) -> tuple[WorkerUrl, ...]:
        """Where it is: nowhere while it waits, at two workers if a pair generates it."""


_RIDS: Final = msgspec.json.Decoder(str | list[str] | None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortWish:
    """What ``POST /abort_request`` asks for; nothing at all is legal, and ignored."""

    rids: tuple[str, ...] = field(default=())
    by_prefix: bool = False
    """Whether ``rids`` are beginnings of ids, and no ids."""
    session: str | None = None
    everything: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it asks for nothing."""
        return not (self.rids or self.session or self.everything)


def parse_abort(body: bytes) -> AbortWish:
    """What a body asks for. Raises ``ClientError`` for one that says it wrongly."""
    fields = object_of(body)
    rids: str | list[str] | None = None
    if "rid" in fields and not is_null(fields["rid"]):
        rids = decode_field(_RIDS, fields["rid"], "rid")
    listed = [rids] if isinstance(rids, str) else rids or []
    return AbortWish(
        rids=tuple(rid for rid in listed if rid),
        by_prefix=bool_in(fields, "prefix", False),
        session=text_in(fields, "session") or None,
        everything=bool_in(fields, "abort_all", False),
    )


def meant(live: Iterable[LiveCall], wish: AbortWish, tenant: str | None) -> list[LiveCall]:
    """The calls that are meant; ``tenant`` ``None`` reaches everybody's."""
    own = [one for one in live if tenant is None or one.tenant == tenant]
    if wish.everything:
        return own
    names = {name for one in own for name in one.rids}
    prefixes = tuple(rid for rid in wish.rids if wish.by_prefix or rid in names)
    return [
        one
        for one in own
        if (wish.session is not None and one.session == wish.session)
        or (prefixes and any(name.startswith(prefixes) for name in one.rids))
    ]


@dataclass(frozen=True, slots=True)
class Notice:
    """A worker is told to abort what has this id."""

    worker: WorkerUrl
    rid: str


def notices(
    calls: Iterable[LiveCall], names: Callable[[LiveCall], tuple[str, ...]]
) -> list[Notice]:
    """What workers are told so that ``calls`` end: each by the ``names`` that they know it by."""
    told = (Notice(worker, rid) for one in calls for worker in one.workers for rid in names(one))
    return list(dict.fromkeys(told))
