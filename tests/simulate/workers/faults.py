"""One faulty answer: between what the worker has to say and what goes out.

A :class:`Misdeed` is asked at each point of an answer (its head, each event, its end, or the whole
body) and gives the pieces that go out instead. It marks its fault once it has really struck, and
keeps the account of what the wire told in spite of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tests.simulate.faults import Fault, FaultKind
from tests.simulate.story import Sampled
from tests.simulate.workers.answers import (
    CUT,
    DONE,
    END,
    STREAM,
    Event,
    Surroundings,
    data,
    whole,
    whole_steps,
)
from tests.simulate.workers.lies import LIES, Place, encode_item
from tests.simulate.workers.pieces import Account, Data, Head, Step
from tests.simulate.workers.strikes import EVENTS, WHOLES, aborted

__all__ = ["Misdeed"]

_EARLY: Final = (FaultKind.FINISH_EARLY, FaultKind.AFTER_FINISH)
_NEVER_LAST: Final = (*_EARLY, FaultKind.REORDERED, FaultKind.ABORTED)


class Misdeed:
    """The fault of one answer at work."""

    def __init__(self, fault: Fault, around: Surroundings) -> None:
        self.fault = fault
        self.around = around
        self.struck = False
        self.hangs = False
        """Nothing will ever follow."""
        self.healed = False
        self._unbelievable: list[str] = []
        """Samples of which nothing more counts as told, by rid."""
        self._held: Event | None = None
        if fault.kind is FaultKind.HANG:
            self.hangs = True
            self.strike()

    def heal(self) -> None:
        """What has not struck by now never will."""
        self.healed = True

    # The points of an answer

    def open(self) -> list[Step]:
        """The head of a stream."""
        match self.fault.kind:
            case FaultKind.HANG | FaultKind.DIE_BEFORE:
                return []
            case FaultKind.WRONG_STATUS:
                self._disbelieve_all()
                self.strike(lies=True)
                status = (500, 404, 202)[self.fault.variant % 3]
                return [Step(Head(status, STREAM.headers, streams=True))]
            case FaultKind.WRONG_TYPE:
                self._disbelieve_all()
                self.strike(lies=True)
                json = (("content-type", "application/json"),)
                return [Step(Head(200, json, streams=True))]
            case _:
                return [Step(STREAM)]

    def event(self, event: Event) -> list[Step]:
        """One event of a stream."""
        if self.hangs:
            return []
        if self.fault.kind in LIES:
            return self._lie(event)
        hook = EVENTS.get(self.fault.kind)
        steps = hook(self, event) if hook is not None else None
        return self._timed([self.step(event)] if steps is None else steps, event)

    def close(self) -> list[Step]:
        """The end of a stream, all events having been told."""
        if self.hangs:
            return []
        match None if self.healed else self.fault.kind:
            case FaultKind.DIE_AFTER:
                self.strike()
                return [CUT]
            case FaultKind.NO_DONE:
                self.strike()
                return [END]
            case FaultKind.AFTER_DONE:
                self.strike(lies=True)
                return [DONE, DONE if self.fault.variant % 2 else Step(data(b'{"text":"x"}')), END]
            case _:
                return [DONE, END]

    def whole(self, events: Sequence[Event], *, many: bool) -> list[Step]:
        """An answer that is given at once; an event for each sample."""
        if self.hangs:
            return []
        hook = WHOLES.get(self.fault.kind)
        steps = hook(self, events, many) if hook is not None and not self.healed else None
        if steps is None:
            steps = self._honest_whole(events, many)
        return self._timed(steps, events[-1])

    def progress(self, event: Event) -> None:
        """The worker has sampled on for an answer that will be given at once."""
        if self.fault.kind is FaultKind.ABORTED:
            aborted(self, event)

    # What the hooks share

    def due(self, event: Event) -> bool:
        """Whether a fault that strikes once strikes here."""
        # What cannot strike a last event must not wait for one.
        after = self.fault.after % 2 if self.fault.kind in _NEVER_LAST else self.fault.after
        is_off = self.struck or self.healed
        return not is_off and (event.number >= after or event.last)

    def strike(self, *, lies: bool = False) -> None:
        """Marks the fault; ``lies``: the answer is untrue or unreadable, which ends its reading for
        all its samples."""
        if not self.struck:
            self.struck = True
            self.around.story.marks[f"fault:{self.fault.kind.value}"] += 1
        if lies:
            for sampled in self.around.samples:
                sampled.lies = self.fault.kind.value

    def disbelieve(self, sampled: Sampled) -> None:
        """Nothing more of this sample counts as told."""
        self._unbelievable.append(sampled.rid)

    def step(self, event: Event, piece: Data | None = None) -> Step:
        """An event as it goes out, by default as it is, and what it tells."""
        return Step(data(event.json) if piece is None else piece, self.accounts(event))

    def accounts(self, event: Event) -> tuple[Account, ...]:
        """What an event tells that can be believed."""
        if event.sampled.rid in self._unbelievable:
            return ()
        return (Account(event.sampled, event.count, event.finish),)

    def hold(self, event: Event) -> None:
        """Keeps an event back until :meth:`release`."""
        self._held = event

    def release(self) -> Event | None:
        held, self._held = self._held, None
        return held

    def _disbelieve_all(self) -> None:
        for sampled in self.around.samples:
            self.disbelieve(sampled)

    def _timed(self, steps: list[Step], event: Event) -> list[Step]:
        if self.fault.kind is not FaultKind.SLOW or self.healed:
            return steps
        delay = 0.0
        if self.fault.variant % 3:
            delay = self.fault.delay_s / 20
        elif self.due(event):
            delay = self.fault.delay_s
        if delay:
            self.strike()
            steps[0] = msgspec.structs.replace(steps[0], delay_s=delay)
        return steps

    # Lies

    def _lie(self, event: Event) -> list[Step]:
        lie = LIES[self.fault.kind]
        kind, rid = self.fault.kind, event.sampled.rid
        if kind in _EARLY and self.struck and rid in self._unbelievable:
            return [] if kind is FaultKind.FINISH_EARLY else [self.step(event)]
        if not lie.always and not self.due(event):
            return [self.step(event)]
        json, accounts = self._told_lie(event, streams=True)
        return [Step(data(json), accounts)]

    def _told_lie(self, event: Event, *, streams: bool) -> tuple[bytes, tuple[Account, ...]]:
        """An item as the fault changes it, and what it tells."""
        kind, lie = self.fault.kind, LIES[self.fault.kind]
        item = lie.change(msgspec.json.decode(event.json), self._place(event, streams))
        if item is None:
            return event.json, self.accounts(event)
        self.strike(lies=kind is not FaultKind.HUGE)
        json = encode_item(item, self.fault)
        if lie.damages or any(not 0 <= v < 2**32 for v in event.sampled.claimed_ids.values()):
            self.disbelieve(event.sampled)
        accounts = self.accounts(event)
        if kind is FaultKind.NO_FINISH:
            accounts = (Account(event.sampled, event.count),)
        if kind in _EARLY:
            accounts = (Account(event.sampled, event.count, item["meta_info"]["finish_reason"]),)
            self.disbelieve(event.sampled)
        return json, accounts

    def _place(self, event: Event, streams: bool) -> Place:
        samples = self.around.samples
        return Place(
            fault=self.fault,
            sampled=event.sampled,
            count=event.count,
            streams=streams,
            samples=len(samples),
            chosen=samples[self.fault.after % len(samples)] is event.sampled,
            other_rid=self.around.other_rid,
            vocabulary=self.around.vocabulary,
        )

    def _honest_whole(self, events: Sequence[Event], many: bool) -> list[Step]:
        """Head and body, with a lie in one or all items if that is the fault."""
        lie = None if self.healed else LIES.get(self.fault.kind)
        chosen = self.fault.after % len(events)
        told = [
            self._told_lie(event, streams=False)
            if lie is not None and (lie.always or place == chosen)
            else (event.json, self.accounts(event))
            for place, event in enumerate(events)
        ]
        accounts = tuple(account for _, each in told for account in each)
        return whole_steps(whole([json for json, _ in told], many=many), accounts)
