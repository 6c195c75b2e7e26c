"""The idle stack against the plainest model of it: a list that is scanned."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_trio.upstream.idle import IdleStack

LIMIT = 3
TIMEOUT_S = 4.0


class IdleStackAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack: IdleStack[int] = IdleStack(limit=LIMIT, timeout_s=TIMEOUT_S)
        self.model: list[tuple[float, int]] = []  # oldest first
        self.now = 0.0
        self.made = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def push(self) -> None:
        self.made += 1
        dropped = self.stack.push(self.made, self.now)
        self.model.append((self.now, self.made))
        surplus = [item for _, item in self.model[:-LIMIT]]
        self.model = self.model[-LIMIT:]
        assert ([] if dropped is None else [dropped]) == surplus

    @rule()
    def pop(self) -> None:
        expected = self.model.pop()[1] if self.model else None
        assert self.stack.pop() == expected

    @precondition(lambda self: self.made > 0)
    @rule(back=st.integers(0, LIMIT))
    def remove(self, back: int) -> None:
        item = self.made - back
        was_there = any(number == item for _, number in self.model)
        self.model = [(since, number) for since, number in self.model if number != item]
        assert self.stack.remove(item) == was_there

    @rule()
    def expire(self) -> None:
        old = [item for since, item in self.model if self.now - since >= TIMEOUT_S]
        self.model = [(since, item) for since, item in self.model if item not in old]
        assert self.stack.expire(self.now) == old

    @precondition(lambda self: len(self.model) > 1)
    @rule()
    def clear(self) -> None:
        assert self.stack.clear() == [item for _, item in self.model]
        self.model = []

    @invariant()
    def lengths_agree(self) -> None:
        assert len(self.stack) == len(self.model)


TestIdleStack = IdleStackAgainstList.TestCase
