"""Random sessions for the tests of samples: several agents on one forest, who append, cut, branch,
repeat and are cut off."""

from __future__ import annotations

import random
from typing import Any, Final

from msgspec.structs import replace

from slime_core.segments import Outcome
from slime_core.types import Encoding
from slime_core.versions import VersionRun
from tests.core.capture import TOY, Driver, Opened, spread

__all__ = ["SESSION", "Agents", "say"]

SESSION: Final = "S"
_SESSIONS: Final = (SESSION, SESSION, SESSION, "T", None)
_WORDS: Final = ("ab", "abc", " a", "#!", "é", "好", "x", "<E>", "\n")
_FINISH: Final = (b'{"type":"stop"}', b'{"type":"length","length":3}', b'{"type":"abort"}', b"{}")


def say(
    driver: Driver,
    call: str,
    text: str,
    answer: str,
    *,
    session: str | None = SESSION,
    outcome: Outcome = Outcome.COMPLETE,
    finish: bytes = b'{"type":"stop"}',
    **more: Any,
) -> str:
    """A whole call of a session; the text that the client holds then."""
    opened = driver.open_text(call, text, session=session)
    _finish(driver, opened, answer, outcome, finish, **more)
    return text + answer


def _finish(
    driver: Driver, opened: Opened, answer: str, outcome: Outcome, finish: bytes, **more: Any
) -> None:
    ids = driver.pieces.encode(answer, encoding=Encoding.RENDERED, first=False)
    number, half = len(driver.journal), len(ids) // 2
    runs = [VersionRun(f"{number}", 0, half)] if half else []
    runs += [VersionRun(f"{number + 1}", half, len(ids))] if ids else []
    fact = driver.captured(
        opened, ids, answer, logprobs=spread(number, len(ids)), outcome=outcome, runs=runs
    )
    answer_facts = replace(fact.answer, finish_reason=finish, **more)
    driver.apply(replace(fact, answer=answer_facts))


class Agents:
    """Takes steps at random; ``driver`` has captured them."""

    def __init__(self, chance: random.Random) -> None:
        self.driver = Driver(TOY)
        self._chance = chance
        self._texts: list[str] = []

    def step(self) -> None:
        """One call."""
        pick = self._chance
        before = pick.choice(self._texts) if self._texts and pick.random() < 0.8 else ""
        if before and pick.random() < 0.3:
            before = before[: pick.randint(1, len(before))]
        text = before + "".join(pick.choices(_WORDS, k=pick.randint(0 if before else 1, 2)))
        answer = "".join(pick.choices(_WORDS, k=pick.randint(0, 4)))
        held = say(
            self.driver,
            f"c{len(self.driver.journal)}",
            text,
            answer,
            session=pick.choice(_SESSIONS),
            outcome=pick.choice((Outcome.COMPLETE, Outcome.COMPLETE, *Outcome)),
            finish=pick.choice(_FINISH),
        )
        self._texts.append(held)
