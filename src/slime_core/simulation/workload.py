"""The work: sessions as chains of calls, drawn by chance or rebuilt from a recorded trace.

A session is drawn in whole before it begins, and what is drawn of it depends on nothing else, so
that every policy gets the very same work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from slime_core.simulation.lengths import (
    Chance,
    Chances,
    Distribution,
    Exponential,
    draw_count,
    require,
)
from slime_core.simulation.prefix_cache import Passage
from slime_core.simulation.scenario import Trace, TraceEntry, Workload

__all__ = ["Call", "Session", "arrivals", "generated", "traced"]

_MOST_TURNS: Final = 10_000
"""Of one session, which is drawn in whole."""


@dataclass(slots=True, eq=False)
class Session:
    """A rollout.

    ``left``: its calls that have not ended; ``texts``: what the router keeps of it.
    """

    name: str
    left: int = 0
    failed: bool = False
    texts: list[Passage] = field(default_factory=list)


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One request that an agent makes, however often it must try.

    ``prompt`` and ``answer`` are the passages with which each ends; ``answer_tokens`` may be more
    than the last passage of the answer. It is made at ``at_s`` or ``think_s`` after the call that
    it follows, whatever is later. ``then``: the calls that follow it.

    The last two fields are its client's notes.
    """

    session: Session
    turn: int
    prompt: Passage
    answer: Passage
    answer_tokens: int
    at_s: float = 0.0
    think_s: float = 0.0
    then: list[Call] = field(default_factory=list)
    begun_at: float = 0.0
    retries: int = 0

    @property
    def prompt_tokens(self) -> int:
        """The length of the whole prompt."""
        return self.prompt.end


class _Tree:
    """Makes passages, numbered."""

    def __init__(self) -> None:
        self._count = 0

    def after(self, parent: Passage | None, tokens: int) -> Passage | None:
        """``tokens`` after ``parent``; ``parent`` itself if there are none."""
        return self.grow(parent, tokens) if tokens else parent

    def grow(self, parent: Passage | None, tokens: int) -> Passage:
        """At least one token after ``parent``."""
        self._count += 1
        return Passage(self._count, parent, tokens)


# -- drawn by chance -------------------------------------------------------------------------


def generated(workload: Workload, chances: Chances, *, exact: bool) -> Iterator[Call]:
    """The first call of each session, in order; the later ones are in ``then``.

    ``exact``: answers are sent again as they were sampled, so that none drifts. All else is drawn
    alike either way: turns, inputs, answers, thinking and drift have a generator each, so that
    another distribution of one changes nothing of the others. Raises ``ClientError`` for a session
    of more turns than can be simulated.
    """
    return _Drawing(workload, chances, exact=exact).sessions()


def arrivals(
    workload: Workload, sessions: Iterator[Call], chance: Chance
) -> Iterator[tuple[float, Call]]:
    """When each session begins, if groups come by chance at ``sessions_per_s``."""
    assert workload.sessions_per_s is not None
    gap = Exponential(workload.group_size / workload.sessions_per_s)
    at_s = 0.0
    for number, call in enumerate(sessions):
        if number % workload.group_size == 0:
            at_s += gap.draw(chance)
        yield at_s, call


class _Drawing:
    def __init__(self, workload: Workload, chances: Chances, *, exact: bool) -> None:
        self._of = workload
        self._turns = chances("workload/turns")
        self._inputs = chances("workload/inputs")
        self._answers = chances("workload/answers")
        self._thinking = chances("workload/thinking")
        self._drift = chances("workload/drift")
        self._exact = exact
        self._tree = _Tree()
        self._system = self._tree.after(None, workload.system_tokens)

    def sessions(self) -> Iterator[Call]:
        """See :func:`generated`."""
        question = self._system
        for number in range(self._of.sessions):
            if number % self._of.group_size == 0:
                question = self._input(self._system, 1)
            assert question is not None
            yield self._session(Session(f"session-{number}"), question)

    def _input(self, before: Passage | None, turn: int) -> Passage:
        inputs = self._of.input_tokens
        lengths: Distribution = inputs[min(turn, len(inputs)) - 1]
        return self._tree.grow(before, draw_count(lengths, self._inputs))

    def _session(self, session: Session, question: Passage) -> Call:
        session.left = draw_count(self._of.turns, self._turns)
        require(session.left <= _MOST_TURNS, "turns", f"came out as more than {_MOST_TURNS}")
        first = last = None
        prompt, think_s = question, 0.0
        for turn in range(1, session.left + 1):
            call, told = self._call(session, turn, prompt, think_s)
            if last is None:
                first = call
            else:
                last.then.append(call)
            last = call
            if turn < session.left:
                prompt = self._input(told, turn + 1)
                think_s = self._of.think_s.draw(self._thinking)
        assert first is not None
        return first

    def _call(
        self, session: Session, turn: int, prompt: Passage, think_s: float
    ) -> tuple[Call, Passage]:
        """A call, and what its answer is when it is sent again."""
        of = self._of
        tokens = min(draw_count(of.answer_tokens, self._answers), of.answer_tokens_max)
        drifts, place = self._drift.random() < of.drift, self._drift.random()
        if drifts and not self._exact:
            common = int(place * tokens)
            shared = self._tree.after(prompt, common)
            answer = self._tree.grow(shared, tokens - common)
            told = self._tree.grow(shared, tokens - common)
        else:
            answer = told = self._tree.grow(prompt, tokens)
        call = Call(
            session=session,
            turn=turn,
            prompt=prompt,
            answer=answer,
            answer_tokens=tokens,
            think_s=think_s,
        )
        return call, told


# -- recorded ----------------------------------------------------------------------------------


def traced(trace: Trace) -> list[Call]:
    """The calls of a trace that follow none, by time; the others are in ``then``."""
    return _Rebuilding(_with_system_prompt(trace)).calls()


def _with_system_prompt(trace: Trace) -> list[TraceEntry]:
    """The entries; those without a parent go on from where the system prompt ends in the longest
    of them so far."""
    entries: list[TraceEntry] = []
    longest: int | None = None
    for place, entry in enumerate(trace.entries):
        told = entry
        if entry.parent is None:
            if longest is not None:
                most = trace.entries[longest].new_tokens
                shared = min(trace.system_tokens, most, entry.new_tokens)
                new = entry.new_tokens - shared
                told = replace(entry, parent=longest, kept_tokens=shared, new_tokens=new)
            if longest is None or entry.new_tokens > trace.entries[longest].new_tokens:
                longest = place
        entries.append(told)
    return entries


@dataclass(slots=True, kw_only=True)
class _Piece:
    """What an entry adds to the text it repeats: offsets in its own text.

    ``cuts``: where passages must end because another entry leaves it there; ``ends``: the
    passages by where they end.
    """

    start: int
    prompt_end: int
    end: int
    cuts: set[int]
    ends: dict[int, Passage] = field(default_factory=dict)


class _Rebuilding:
    """Each entry owns the tokens that it added; a later one may leave the text at any of them."""

    def __init__(self, entries: Sequence[TraceEntry]) -> None:
        self._entries = entries
        self._pieces: list[_Piece] = []
        self._owners: list[int | None] = []
        self._answered: list[int | None] = []  # whose answer each repeats a part of, as its last
        self._tree = _Tree()
        for entry in entries:
            self._measure(entry)

    def calls(self) -> list[Call]:
        """See :func:`traced`."""
        sessions: dict[str, Session] = {}
        calls: list[Call] = []
        first: list[Call] = []
        for place, entry in enumerate(self._entries):
            session = sessions.setdefault(entry.session, Session(entry.session))
            session.left += 1
            call = self._call(place, session, calls)
            calls.append(call)
            answered = self._answered[place]
            (first if answered is None else calls[answered].then).append(call)
        return sorted(first, key=lambda call: call.at_s)

    def _measure(self, entry: TraceEntry) -> None:
        parent, kept = entry.parent, entry.kept_tokens
        if kept is None:
            kept = 0 if parent is None else self._pieces[parent].end
        owner = parent
        while owner is not None and kept <= self._pieces[owner].start:
            owner = self._owners[owner]
        if owner is not None:
            self._pieces[owner].cuts.add(kept)
        prompt_end = kept + entry.new_tokens
        end = prompt_end + entry.answer_tokens
        self._pieces.append(_Piece(start=kept, prompt_end=prompt_end, end=end, cuts={end}))
        self._owners.append(owner)
        if owner is not None and kept <= self._pieces[owner].prompt_end:
            # It leaves the owner within its prompt, so it repeats what that repeats.
            owner = self._answered[owner]
        self._answered.append(owner)

    def _call(self, place: int, session: Session, calls: list[Call]) -> Call:
        entry, piece, owner = self._entries[place], self._pieces[place], self._owners[place]
        at = None if owner is None else self._pieces[owner].ends[piece.start]
        start = piece.start
        if at is not None:
            piece.ends[start] = at
        for cut in sorted((piece.cuts | {piece.prompt_end}) - {start}):
            at = piece.ends[cut] = self._tree.grow(at, cut - start)
            start = cut
        answered = self._answered[place]
        before = None if answered is None else calls[answered]
        return Call(
            session=session,
            turn=before.turn + 1 if before is not None and before.session is session else 1,
            prompt=piece.ends[piece.prompt_end],
            answer=piece.ends[piece.end],
            answer_tokens=entry.answer_tokens,
            at_s=entry.at_s,
        )
