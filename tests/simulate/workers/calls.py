"""One generation request at a simulated worker: its samples, what they have told, its fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from slime_core.engine import Abort, Emission, GenerateCall, Refusal, Wording
from tests.simulate.story import Sampled
from tests.simulate.workers.answers import DONE, END, STREAM, Event, data, whole, whole_steps
from tests.simulate.workers.faults import Misdeed
from tests.simulate.workers.information import refusal_body
from tests.simulate.workers.pieces import Account, Answering, Step
from tests.simulate.workers.tellers import Teller

__all__ = ["Call", "refused", "refused_stream"]

_OPENING: Final = (Step(STREAM),)
_CLOSING: Final = (DONE, END)


class Call:
    """Takes the emissions of its samples and gives an :class:`Answering` its pieces.

    ``stream`` says how it is answered, which a fault may have made different from what was asked.
    """

    def __init__(
        self,
        asked: GenerateCall,
        answering: Answering,
        samples: Sequence[Sampled],
        tellers: Sequence[Teller],
        *,
        misdeed: Misdeed | None,
        stream: bool,
        now: float,
    ) -> None:
        self.answering = answering
        self.samples = samples
        self.stream = stream
        self._many = asked.many
        self._misdeed = misdeed
        self._tellers = tellers
        self._places = {sampled.rid: place for place, sampled in enumerate(samples)}
        self._waiting = len(samples)
        self._events = 0
        self._done: dict[int, Event] = {}
        self._began = now

    def open(self, now: float) -> bool:
        """Sends the head of a stream; of a whole answer nothing yet."""
        if not self.stream:
            return self._give((), now)
        return self._give(_OPENING if self._misdeed is None else self._misdeed.open(), now)

    def heal(self) -> None:
        """Its fault, if it has one, does not strike any more."""
        if self._misdeed is not None:
            self._misdeed.heal()

    def take(self, emission: Emission, now: float) -> bool:
        """Tells what came; whether there is something new to carry."""
        place = self._places[emission.rid]
        teller, finish = self._tellers[place], emission.finish
        teller.add(emission)
        if finish is not None:
            self._waiting -= 1
        if not self.stream:
            return self._take_whole(place, emission, now)
        json = teller.chunk(emission, self._timing(emission, now))
        if self._many:
            json = b'%b,"index":%d}' % (json[:-1], place)
        return self._take_event(place, json, emission, now)

    def _take_event(self, place: int, json: bytes, emission: Emission, now: float) -> bool:
        sampled = self.samples[place]
        finish = sampled.finish
        if self._misdeed is None:
            account = Account(sampled, len(sampled.ids), finish)
            given = self.answering.give(Step(data(json), (account,)), now)
            return (self._give(_CLOSING, now) if not self._waiting else False) or given
        last = not self._waiting
        event = self._event(json, sampled, last)
        steps = self._misdeed.event(event)
        given = self._give(steps, now)
        return (self._give(self._misdeed.close(), now) if last else False) or given

    def _take_whole(self, place: int, emission: Emission, now: float) -> bool:
        sampled, finish = self.samples[place], emission.finish
        if finish is None:
            if self._misdeed is not None:
                self._misdeed.progress(self._event(b"", sampled, False))
            return False
        if isinstance(finish, Abort) and finish.status is not None:
            wording = Wording.MANAGER if finish.status == 400 else Wording.FRAMEWORK
            refusal = Refusal(finish.message, wording=wording, status=finish.status)
            return self._give(refused(refusal), now)
        json = self._tellers[place].chunk(emission, self._timing(emission, now))
        self._done[place] = self._event(json, sampled, not self._waiting)
        if self._waiting:
            return False
        events = [self._done[place] for place in range(len(self.samples))]
        if self._misdeed is not None:
            return self._give(self._misdeed.whole(events, many=self._many), now)
        body = whole([event.json for event in events], many=self._many)
        accounts = tuple(Account(e.sampled, e.count, e.finish) for e in events)
        return self._give(whole_steps(body, accounts), now)

    def _event(self, json: bytes, sampled: Sampled, last: bool) -> Event:
        self._events += 1
        return Event(
            json=json,
            sampled=sampled,
            count=len(sampled.ids),
            finish=sampled.finish,
            number=self._events - 1,
            last=last,
        )

    def _give(self, steps: Sequence[Step], now: float) -> bool:
        given = False
        for step in steps:
            given = self.answering.give(step, now) or given
        if self._misdeed is not None and self._misdeed.hangs:
            self.answering.hanging = True
        return given

    def _timing(self, emission: Emission, now: float) -> dict[str, float]:
        return {} if emission.finish is None else {"e2e_latency": now - self._began}


def refused(refusal: Refusal) -> list[Step]:
    """A refusal as SGLang answers it."""
    return whole_steps(refusal_body(refusal), status=refusal.status)


def refused_stream(refusal: Refusal) -> list[Step]:
    """… after the head of a stream has gone out."""
    error = {
        "message": refusal.message,
        "type": "invalid_request_error",
        "code": refusal.status,
        "retryable": False,
    }
    return [*_OPENING, Step(data(msgspec.json.encode({"error": error}))), DONE, END]
