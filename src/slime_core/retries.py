"""Which request is a retry of which: told by evidence, never by an identical body alone.

An OpenAI client that retries sends the same body again, and so does an agent that wants a second
sample of the same prompt. Taking a twin for a retry loses a sample; taking a retry for a twin has
one turn trained twice. What tells them apart (openai-python 2.x and openai-node 6.x send
``x-stainless-retry-count``, and no key):

* the same ``Idempotency-Key``: the client says so itself;
* ``x-stainless-retry-count`` of *k* ≥ 1: some attempt with a lower count, the same body and in the
  same session came to nothing. Which one is known only if there is one;
* in one session, the same body after an attempt whose connection closed before its answer was
  through: loops above a client start their count at 0 again.

Whoever presents another credential is another client: nothing of this crosses from one to the
other.

An attempt that one retry has claimed is the retry's from then on: no other with that count or a
lower one may claim it. Where several attempts might be meant, or only such as were delivered as far
as can be known, the retry is a new generation that says so (:class:`Unresolved`).

A :class:`Book` holds what is known of recent attempts; how many bytes are kept of their answers is
in it, the bytes themselves are with whoever keeps it. Time is an argument, in seconds.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

__all__ = [
    "AGE_S",
    "MOST_ATTEMPTS",
    "RETRY",
    "UNRESOLVED_RETRY",
    "Attempt",
    "Book",
    "Conflict",
    "Decision",
    "Evidence",
    "Join",
    "New",
    "Replay",
    "State",
    "Unresolved",
    "decide",
]

AGE_S: Final = 600.0
"""How long an attempt that has ended is remembered. The clients above wait 120 s at the most."""

MOST_ATTEMPTS: Final = 16_384
"""How many attempts that have ended are remembered: some ten MiB beside the bytes of answers."""

RETRY: Final = "retry"
UNRESOLVED_RETRY: Final = "unresolved_retry"
_RETRY_OF: Final = "retry_of:"

_Body: TypeAlias = tuple[str, bytes, str, bytes]
"""What requests that are alike have in common: session, credentials, path and body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a request says of itself.

    ``scope`` is its session, or empty; ``client`` stands for its credentials; ``digest`` for the
    body and all else that changes what is generated; ``key`` is its ``Idempotency-Key``; ``count``
    how often it was tried before, by its own word.
    """

    scope: str
    path: str
    digest: bytes
    client: bytes = b""
    key: str | None = None
    count: int = 0


class State(enum.Enum):
    """What became of an attempt."""

    IN_FLIGHT = "in_flight"
    DELIVERED = "delivered"
    """All of its answer was given to a client, as far as can be known."""
    LOST = "lost_reply"
    """It was answered, and nobody was there to take all of the answer."""
    ABORTED = "aborted"
    """Its clients left before the answer was complete."""
    FAILED = "failed"
    """It was told an error."""


_LEFT: Final = (State.LOST, State.ABORTED)


class Attempt(Struct, frozen=True, kw_only=True):
    """One generation, asked for once or several times.

    ``count`` is the highest retry count that asked for it; ``since`` when it began or ended;
    ``calls`` those that a retry would supersede, none where the answer stands or where nothing was
    sampled; ``kept`` whether all that was sent of its answer is still there.
    """

    number: int
    evidence: Evidence
    state: State
    since: float
    count: int
    calls: tuple[str, ...] = ()
    kept: bool = True


@dataclass(frozen=True, slots=True)
class New:
    """Generate. ``after``: the attempt that this one takes the place of."""

    after: Attempt | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """``retry`` and ``retry_of:<call>`` for every call that is superseded, if any is."""
        if self.after is None or not self.after.calls:
            return ()
        return (RETRY, *(_RETRY_OF + call for call in self.after.calls))


@dataclass(frozen=True, slots=True)
class Join:
    """Wait for the answer of an attempt in flight, from its first byte on."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Replay:
    """Send again the answer that an attempt was given."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Generate, and say that this may be a retry of something."""

    flags: tuple[str, ...] = (UNRESOLVED_RETRY,)


@dataclass(frozen=True, slots=True)
class Conflict:
    """The key was used for another request."""


Decision = New | Join | Replay | Unresolved | Conflict


def decide(book: Book, evidence: Evidence, now: float) -> Decision:
    """What to do with a request that comes ``now``. Changes nothing."""
    if evidence.key is not None:
        named = book.under_key(evidence, now)
        return New() if named is None else _by_key(named, evidence)
    if evidence.count:
        alike = book.alike(evidence, now)
        candidates = [one for one in alike if one.count < evidence.count]
        if not candidates and book.was_delivered(evidence, now):
            return Unresolved()
        return _by_count(candidates)
    if evidence.scope:
        alike = book.alike(evidence, now)
        return _only([one for one in alike if one.state in _LEFT]) if alike else New()
    return New()


def _by_key(attempt: Attempt, evidence: Evidence) -> Decision:
    """An error that was told is no answer: nothing was saved under the key."""
    is_same = _body(attempt.evidence) == _body(evidence)
    if attempt.state is State.FAILED:
        return New(attempt if is_same else None)
    return _follow(attempt) if is_same else Conflict()


def _by_count(candidates: list[Attempt]) -> Decision:
    """Errors that were told call for retries; what is in flight beside them has its client still.

    With a reply lost as well the retry may be of either, and then nothing is guessed.
    """
    failed = [one for one in candidates if one.state is State.FAILED]
    left = [one for one in candidates if one.state in _LEFT]
    if failed:
        return Unresolved() if left else New(failed[0])
    return _only(candidates)


def _only(candidates: list[Attempt]) -> Decision:
    if len(candidates) > 1:
        return Unresolved()
    return _follow(candidates[0]) if candidates else New()


def _follow(attempt: Attempt) -> Decision:
    if attempt.state is State.ABORTED:
        return New(attempt)
    if not attempt.kept:
        return Unresolved()
    return Join(attempt) if attempt.state is State.IN_FLIGHT else Replay(attempt)


class Book:
    """Recent attempts. Those in flight stay; those that have ended go by age, number and bytes.

    ``most_bytes`` bounds what is kept of answers, of those in flight too. Methods that give
    numbers name the attempts whose bytes are wanted no more.
    """

    def __init__(
        self, *, most_bytes: int, most_attempts: int = MOST_ATTEMPTS, age_s: float = AGE_S
    ) -> None:
        self._most_bytes: Final = most_bytes
        self._most_attempts: Final = most_attempts
        self._age_s: Final = age_s
        self.next_number = 0
        self._attempts: Final[dict[int, Attempt]] = {}
        self._bytes: Final[dict[int, int]] = {}
        # A plain dictionary looks for its first entry past all that were there: for what loses its
        # oldest again and again that took 20 µs an attempt.
        self._ended: Final = OrderedDict[int, None]()  # in the order of their ends
        self._spare: Final = OrderedDict[int, None]()  # those of them with bytes, likewise
        self._by_key: Final[dict[tuple[str, bytes, str], int]] = {}
        self._by_body: Final[dict[_Body, list[int]]] = {}
        self._delivered: Final = OrderedDict[_Body, float]()  # when the last was, in this order
        self.bytes_kept = 0

    def __len__(self) -> int:
        return len(self._attempts)

    def get(self, number: int) -> Attempt | None:
        """The attempt of this number, if it is remembered."""
        return self._attempts.get(number)

    def under_key(self, evidence: Evidence, now: float) -> Attempt | None:
        """The last attempt with this key in this scope."""
        number = self._by_key.get(_named(evidence))
        return None if number is None else self._current(number, now)

    def alike(self, evidence: Evidence, now: float) -> list[Attempt]:
        """Attempts with this body in this scope and without a key whose answer no client has yet,
        the oldest first."""
        found = []
        for number in self._by_body.get(_body(evidence), ()):
            attempt = self._current(number, now)
            if attempt is not None:
                found.append(attempt)
        return found

    def was_delivered(self, evidence: Evidence, now: float) -> bool:
        """Whether a client has the answer to such a request of late: they are forgotten but for
        this."""
        since = self._delivered.get(_body(evidence))
        return since is not None and not self._is_old(since, now)

    def _current(self, number: int, now: float) -> Attempt | None:
        attempt = self._attempts[number]
        return None if number in self._ended and self._is_old(attempt.since, now) else attempt

    def _is_old(self, since: float, now: float) -> bool:
        return now - since > self._age_s

    # -- changes -------------------------------------------------------------------------------

    def begin(self, evidence: Evidence, now: float, *, after: Attempt | None = None) -> int:
        """Note a new attempt; its number. ``after`` is forgotten for it, its calls are not."""
        number, self.next_number = self.next_number, self.next_number + 1
        calls = () if after is None else after.calls
        if after is not None:
            self._forget(after.number)
        self._attempts[number] = Attempt(
            number=number,
            evidence=evidence,
            state=State.IN_FLIGHT,
            since=now,
            count=evidence.count,
            calls=calls,
        )
        self._bytes[number] = 0
        if evidence.key is not None:
            self._by_key[_named(evidence)] = number
        else:
            self._by_body.setdefault(_body(evidence), []).append(number)
        return number

    def claim(self, number: int, count: int) -> None:
        """A retry of this count waits for the answer. One that was lost is on its way again."""
        attempt = self._attempts[number]
        state = State.IN_FLIGHT if attempt.state is State.LOST else attempt.state
        self._attempts[number] = replace(attempt, state=state, count=max(attempt.count, count))
        if state is State.IN_FLIGHT:
            self._ended.pop(number, None)
            self._spare.pop(number, None)

    def grow(self, number: int, by: int) -> list[int]:
        """So many more bytes of an answer are kept, if there is room: else its own number is told.

        Answers that have ended make room, the oldest first.
        """
        gone: list[int] = []
        attempt = self._attempts.get(number)
        if attempt is None or attempt.state is not State.IN_FLIGHT or not attempt.kept:
            if attempt is not None and attempt.kept:
                self._drop_bytes(number)  # what grew behind its end is not what was kept
            return [number]
        while self._spare and self.bytes_kept + by > self._most_bytes:
            gone.append(next(iter(self._spare)))
            self._drop_bytes(gone[-1])
        if self.bytes_kept + by > self._most_bytes:
            self._attempts[number] = replace(attempt, kept=False)
            return [*gone, number]
        self._bytes[number] += by
        self.bytes_kept += by
        return gone

    def settle(
        self, number: int, state: State, now: float, *, calls: tuple[str, ...] = ()
    ) -> list[int]:
        """An attempt in flight has ended. ``calls``: those that a worker may have sampled for.

        One that failed without sampling stands where the attempt stood that it came after.
        """
        attempt = self._attempts.get(number)
        if attempt is None or attempt.state is not State.IN_FLIGHT:
            return []
        answered = state in (State.DELIVERED, State.LOST)
        if state is State.FAILED and not calls and attempt.calls:
            state = State.ABORTED
        if state is State.DELIVERED and attempt.evidence.key is None:
            self._forget(number)  # its client has it, so whoever asks again wants another
            body = _body(attempt.evidence)
            self._delivered.pop(body, None)
            self._delivered[body] = now
            return [number]
        calls = () if answered else attempt.calls + calls
        self._attempts[number] = replace(attempt, state=state, since=now, calls=calls)
        self._ended[number] = None
        if not answered or not attempt.kept:
            self._drop_bytes(number)
            return [number]
        self._spare[number] = None
        return []

    def expire(self, now: float) -> list[int]:
        """Forget what ended too long ago, and what is too much."""
        gone = []
        while self._ended:
            oldest = next(iter(self._ended))
            too_many = len(self._ended) > self._most_attempts
            if not too_many and not self._is_old(self._attempts[oldest].since, now):
                break
            self._forget(oldest)
            gone.append(oldest)
        while self._delivered:
            body, since = next(iter(self._delivered.items()))
            if len(self._delivered) <= self._most_attempts and not self._is_old(since, now):
                break
            del self._delivered[body]
        return gone

    def _drop_bytes(self, number: int) -> None:
        self._attempts[number] = replace(self._attempts[number], kept=False)
        self.bytes_kept -= self._bytes[number]
        self._bytes[number] = 0
        self._spare.pop(number, None)

    def _forget(self, number: int) -> None:
        evidence = self._attempts.pop(number).evidence
        self.bytes_kept -= self._bytes.pop(number)
        self._ended.pop(number, None)
        self._spare.pop(number, None)
        if evidence.key is not None:
            if self._by_key.get(_named(evidence)) == number:
                del self._by_key[_named(evidence)]
            return
        body = _body(evidence)
        alike = self._by_body[body]
        alike.remove(number)
        if not alike:
            del self._by_body[body]


def _body(evidence: Evidence) -> _Body:
    return (evidence.scope, evidence.client, evidence.path, evidence.digest)


def _named(evidence: Evidence) -> tuple[str, bytes, str]:
    """What an ``Idempotency-Key`` names an attempt by."""
    assert evidence.key is not None
    return (evidence.scope, evidence.client, evidence.key)
