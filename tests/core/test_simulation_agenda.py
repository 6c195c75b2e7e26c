"""What comes next, and in which order."""

from __future__ import annotations

from functools import partial
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from slime_core.simulation.agenda import Agenda


def _done(agenda: Agenda, into: list[object]) -> list[object]:
    while agenda.step():
        pass
    return into


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5])))
def test_actions_come_by_time_and_those_of_one_time_as_they_were_put(times: list[float]) -> None:
    agenda, seen = Agenda(), list[object]()

    def note(time: float, place: int) -> None:
        seen.append((time, place, agenda.now))

    for place, time in enumerate(times):
        agenda.at(time, partial(note, time, place))
    expected = sorted((time, place) for place, time in enumerate(times))
    assert _done(agenda, seen) == [(time, place, time) for time, place in expected]


def test_an_action_may_put_others_for_the_same_moment_which_come_last() -> None:
    agenda, seen = Agenda(), list[object]()

    def first() -> None:
        seen.append("first")
        agenda.after(0.0, lambda: seen.append("third"))

    agenda.at(1.0, first)
    agenda.at(1.0, lambda: seen.append("second"))
    assert _done(agenda, seen) == ["first", "second", "third"]


def test_what_should_have_been_done_is_done_now() -> None:
    agenda, seen = Agenda(), list[object]()
    agenda.at(2.0, lambda: agenda.at(1.0, lambda: seen.append(agenda.now)))
    assert _done(agenda, seen) == [2.0]


def test_it_tells_when_the_next_action_is_due_and_how_many_there_are() -> None:
    agenda = Agenda()
    assert (agenda.next_time, len(agenda), agenda.step()) == (inf, 0, False)
    agenda.at(3.0, lambda: None)
    agenda.after(1.0, lambda: None)
    assert (agenda.next_time, len(agenda)) == (1.0, 2)
