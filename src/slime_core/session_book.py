"""The book of sessions: which were opened, which are sealed, which ended, and why.

Sessions that a header merely names need no entry: their answers are found in
``Forest.sessions``. An entry adds what only a session of its own can have: a key, metadata, a seal,
an end after idling, and a count of what it lost. Changed by ``RouterState.apply`` only; what may
happen to a session is decided in :mod:`slime_core.sessions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from slime_core.errors import InvariantError
from slime_core.transitions import (
    SessionCollected,
    SessionEnded,
    SessionFreed,
    SessionOpened,
    SessionSealed,
    SessionUsed,
)

__all__ = ["Ended", "Gone", "Leaving", "Session", "SessionBook"]


@dataclass(slots=True, kw_only=True)
class Gone:
    """Answers that were captured and are no longer kept."""

    calls: int = 0
    tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Session:
    """A session that was opened and has not ended. Times are seconds of the shell's clock."""

    name: str
    serial: int
    """Counts sessions in the order of their opening."""
    key_digest: bytes | None
    opened_at: float
    used_at: float
    metadata: bytes
    """What its opener attached: a JSON object."""
    sealed: bool = False
    requests: int = 0
    """Requests that are being served: meanwhile it is not idle."""
    calls: int = 0
    """Answers captured, whatever became of them."""
    tokens: int = 0
    """Tokens sampled in them."""
    lost: dict[str, int] = field(default_factory=dict)
    """Calls that ended without a capture, by reason."""
    gone: dict[str, Gone] = field(default_factory=dict)
    """Answers that left memory, by reason."""
    collected_to: int = 0
    """The last segment that a trainer was given in samples."""

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        own = (self.name, self.serial, self.key_digest, self.opened_at, self.used_at)
        counts = (self.metadata, self.sealed, self.requests, self.calls, self.tokens)
        return (*own, *counts, repr(self.lost), repr(self.gone), self.collected_to)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What is remembered of a session that ended: ``deleted`` or ``expired``."""

    reason: str
    key_digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A session that ended and may still hold memory."""

    reason: str
    collected_to: int


class SessionBook:
    """Sessions by name and by key; up to ``remembered`` that ended are remembered."""

    def __init__(self, remembered: int = 4096) -> None:
        self._remembered: Final = remembered
        self.known: Final[dict[str, Session]] = {}
        """In the order of their opening."""
        self.ended: Final[dict[str, Ended]] = {}
        """The oldest end first."""
        self.leaving: Final[dict[str, Leaving]] = {}
        """What is to be freed yet."""
        self._by_key: Final[dict[bytes, str]] = {}
        self._idle: Final[dict[str, None]] = {}
        """Sessions without a request, the one that was used longest ago first."""
        self._next = 1

    def name_of_key(self, key_digest: bytes) -> str | None:
        """The session, open or ended, whose key has this digest."""
        return self._by_key.get(key_digest)

    def longest_idle(self) -> Session | None:
        """Of the sessions without a request, the one that was used longest ago."""
        name = next(iter(self._idle), None)
        return None if name is None else self.known[name]

    # -- what happens to a session -------------------------------------------------------

    def open(self, fact: SessionOpened, calls: int, tokens: int) -> None:
        """A session is opened; ``calls`` answers of ``tokens`` bear its name already."""
        name, digest = fact.session, fact.key_digest
        if name in self.known or name in self.ended:
            raise InvariantError("a session is opened once")
        if digest is not None:
            if digest in self._by_key:
                raise InvariantError("two sessions cannot have one key")
            self._by_key[digest] = name
        self.known[name] = Session(
            name=name,
            serial=self._next,
            key_digest=digest,
            opened_at=fact.now,
            used_at=fact.now,
            metadata=fact.metadata,
            calls=calls,
            tokens=tokens,
        )
        self._next += 1
        self._idle[name] = None

    def use(self, fact: SessionUsed) -> None:
        """A session is used, and perhaps a request of it begins or ends."""
        session = self._session(fact.session)
        session.used_at = fact.now
        session.requests += fact.requests
        if session.requests < 0:
            raise InvariantError("more requests of a session ended than began")
        self._idle.pop(session.name, None)
        if not session.requests:
            self._idle[session.name] = None

    def seal(self, fact: SessionSealed) -> None:
        """A session takes no more calls."""
        self._session(fact.session).sealed = True

    def collect(self, fact: SessionCollected) -> None:
        """Everything of it up to a segment was given to a trainer."""
        session = self._session(fact.session)
        session.collected_to = max(session.collected_to, fact.segment)

    def end(self, fact: SessionEnded) -> None:
        """A session is over; what only it needs is freed step by step."""
        if fact.session in self.ended:
            raise InvariantError("a session ends once")
        session = self.known.pop(fact.session, None)
        self._idle.pop(fact.session, None)
        digest = None if session is None else session.key_digest
        collected = 0 if session is None else session.collected_to
        self.ended[fact.session] = Ended(reason=fact.reason, key_digest=digest)
        self.leaving[fact.session] = Leaving(reason=fact.reason, collected_to=collected)
        if len(self.ended) > self._remembered:
            oldest = next(iter(self.ended))
            gone = self.ended.pop(oldest)
            if gone.key_digest is not None:
                del self._by_key[gone.key_digest]

    def free(self, fact: SessionFreed) -> None:
        """Nothing is left that can be freed of a session that ended."""
        if self.leaving.pop(fact.session, None) is None:
            raise InvariantError("only a session that ended is freed")

    def _session(self, name: str) -> Session:
        session = self.known.get(name)
        if session is None:
            raise InvariantError("this session is not open")
        return session

    # -- what happens to its calls -------------------------------------------------------

    def captured(self, name: str | None, tokens: int) -> None:
        """An answer of ``tokens`` was captured."""
        session = None if name is None else self.known.get(name)
        if session is not None:
            session.calls += 1
            session.tokens += tokens

    def lost(self, name: str | None, reason: str) -> None:
        """A call ended without a capture."""
        session = None if name is None else self.known.get(name)
        if session is not None:
            session.lost[reason] = session.lost.get(reason, 0) + 1

    def withdrawn(self, name: str | None, reason: str, tokens: int) -> None:
        """An answer of ``tokens`` that was captured is none: its call counts as lost."""
        session = None if name is None else self.known.get(name)
        if session is not None:
            session.calls -= 1
            session.tokens -= tokens
            self.lost(name, reason)

    def gone(self, name: str | None, reason: str, tokens: int) -> None:
        """A captured answer left memory."""
        session = None if name is None else self.known.get(name)
        if session is not None:
            gone = session.gone.setdefault(reason, Gone())
            gone.calls += 1
            gone.tokens += tokens

    def look_again(self, name: str | None) -> None:
        """A call of a session ended: if that is over, what the call held can be freed now."""
        ended = None if name is None else self.ended.get(name)
        if name is not None and ended is not None and name not in self.leaving:
            self.leaving[name] = Leaving(reason=ended.reason, collected_to=0)

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        return (
            tuple(one.facts() for one in self.known.values()),
            tuple(self.ended.items()),
            tuple(self.leaving.items()),
            tuple(self._idle),
        )
