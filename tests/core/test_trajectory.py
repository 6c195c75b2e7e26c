"""What a trainer gets, and how many other trajectories it could have been."""

from __future__ import annotations

from slime_core.segments import Outcome
from slime_core.trajectory import count_other_answers, trajectory
from slime_core.types import CallId, Origin, pack_ids, unpack_ids
from slime_core.versions import VersionRun
from tests.core.capture import TOY, Driver


def _driver() -> Driver:
    driver = Driver(TOY)
    opened = driver.open_text("1", "xy")
    runs = (VersionRun("3", 0, 1), VersionRun("blue", 1, 3))
    driver.apply(driver.captured(opened, [97, 98, 99], logprobs=[-1.0, -2.0, -3.0], runs=runs))
    return driver


def test_columns_are_derived_from_the_path() -> None:
    driver = _driver()
    found = trajectory(driver.state.forest, driver.state.forest.calls[CallId("1")])
    assert unpack_ids(found.ids) == [120, 121, 97, 98, 99]
    assert list(found.mask) == [0, 0, 1, 1, 1]
    assert found.logprobs.tolist() == [0.0, 0.0, -1.0, -2.0, -3.0]
    assert found.versions.tolist() == [-1, -1, 3, -2, -2]
    assert found.version_runs == (VersionRun("3", 2, 3), VersionRun("blue", 3, 5))
    assert [(run.origin, run.start, run.end) for run in found.origins] == [
        (Origin.PROMPT, 0, 2),
        (Origin.SAMPLED, 2, 5),
    ]


def test_nothing_at_all_is_an_empty_trajectory() -> None:
    found = trajectory(_driver().state.forest, None)
    assert (len(found), found.mask, found.cut, found.origins) == (0, b"", False, ())


def test_a_tail_is_not_sampled() -> None:
    driver = _driver()
    segment = driver.state.forest.calls[CallId("1")]
    found = trajectory(driver.state.forest, segment, tail=pack_ids([7, 8]))
    assert list(found.mask) == [0, 0, 1, 1, 1, 0, 0]
    assert found.origins[-1].origin is Origin.PROMPT


def test_an_end_within_an_answer_is_a_cut() -> None:
    driver = _driver()
    segment = driver.state.forest.calls[CallId("1")]
    found = trajectory(driver.state.forest, segment, token_end=4)
    assert (unpack_ids(found.ids), found.cut) == ([120, 121, 97, 98], True)
    assert found.version_runs == (VersionRun("3", 2, 3), VersionRun("blue", 3, 4))


def _others(*answers: tuple[list[int], list[float], str]) -> int:
    driver = Driver(TOY)
    opened = [driver.open_text(str(number), "x") for number in range(len(answers))]
    for one, (ids, logprobs, version) in zip(opened, answers, strict=True):
        runs = (VersionRun(version, 0, len(ids)),)
        driver.apply(
            driver.captured(one, ids, "ab", logprobs=logprobs, runs=runs, outcome=Outcome.COMPLETE)
        )
    return count_other_answers(driver.state.forest.calls[CallId("0")])


def test_twins_that_are_equal_in_all_are_not_counted() -> None:
    assert _others(([97, 98], [-1.0, -2.0], "1"), ([97, 98], [-1.0, -2.0], "1")) == 0


def test_a_twin_of_other_ids_is_counted() -> None:
    assert _others(([97, 98], [-1.0, -2.0], "1"), ([256], [-1.0], "1")) == 1


def test_a_twin_of_other_logprobs_is_counted() -> None:
    assert _others(([97, 98], [-1.0, -2.0], "1"), ([97, 98], [-1.0, -2.5], "1")) == 1


def test_a_twin_of_another_version_is_counted() -> None:
    assert _others(([97, 98], [-1.0, -2.0], "1"), ([97, 98], [-1.0, -2.0], "2")) == 1


def test_a_trajectory_known_by_ids_alone_has_no_others() -> None:
    driver = Driver(TOY)
    driver.apply(driver.captured(driver.open_ids("1", [97]), [98]))
    assert count_other_answers(driver.state.forest.calls[CallId("1")]) == 0
