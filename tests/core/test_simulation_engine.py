"""The worker of lengths against the engine of tokens: the same work, the same times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from slime_core.engine import EngineOptions, Generation, PauseMode, Reply
from slime_core.simulation import Fixed, Uniform, WorkerSpeed, Workload
from slime_core.simulation.agenda import Agenda
from slime_core.simulation.prefix_cache import Passage
from slime_core.simulation.worker import Attempt, Worker
from slime_core.simulation.workload import Call, generated
from tests.core.engine_support import asked, make_engine
from tests.core.simulation_support import chances

_PREFILL, _STEP = 256.0, 1 / 64
_CACHE = 100_000


def _ids(passage: Passage | None) -> tuple[int, ...]:
    """A text of that shape: passages that follow the same one differ from their first token on."""
    ids: list[int] = []
    while passage is not None:
        ids[:0] = [passage.number % 250, *([7] * (passage.tokens - 1))]
        passage = passage.parent
    return tuple(ids)


@dataclass(frozen=True)
class _Case:
    """``pause``: when the worker is paused with retraction, and for how long."""

    workload: Workload
    max_running: int
    starts: tuple[float, ...]
    seed: int
    pause: tuple[float, float] | None

    def sessions(self) -> list[Call]:
        return list(generated(self.workload, chances(self.seed), exact=True))


def _cases() -> st.SearchStrategy[_Case]:
    workload = st.builds(
        Workload,
        sessions=st.integers(1, 6),
        group_size=st.integers(1, 3),
        system_tokens=st.sampled_from([0, 16]),
        turns=st.just(Uniform(1, 3)),
        input_tokens=st.sampled_from([(Fixed(32),), (Uniform(1, 64), Uniform(1, 20))]),
        answer_tokens=st.sampled_from([Fixed(1), Fixed(16), Uniform(1, 40)]),
        think_s=st.sampled_from([Fixed(0), Fixed(0.25)]),
    )
    return st.builds(
        _Case,
        workload=workload,
        max_running=st.integers(1, 4),
        starts=st.tuples(*[st.sampled_from([0.0, 0.125, 0.3125, 1.0])] * 6),
        seed=st.integers(0, 10**6),
        # Off the grid of 1/256 s, so that no token comes in the very moment of the pause.
        pause=st.one_of(st.none(), st.tuples(st.sampled_from([0.101, 0.377, 0.777]), st.just(0.5))),
    )


def _names(first: Sequence[Call]) -> dict[Call, str]:
    """Both runs draw the same sessions; their calls are known by session and turn."""
    calls = list(first)
    for call in calls:
        calls += call.then
    return {call: f"{call.session.name}/{call.turn}" for call in calls}


def _by_lengths(case: _Case) -> tuple[dict[str, float], int]:
    agenda, ends = Agenda(), dict[str, float]()
    first = case.sessions()
    names = _names(first)

    def ended(attempt: Attempt) -> None:
        call = attempt.call
        ends[names[call]] = agenda.now
        for follower in call.then:
            agenda.after(follower.think_s, partial(take, follower))

    speed = WorkerSpeed(
        prefill_tokens_per_s=_PREFILL,
        s_per_token=_STEP,
        max_running=case.max_running,
        prefix_cache_tokens=_CACHE,
    )
    worker = Worker(agenda, speed, encodes=False, ended=ended)
    attempts = 0

    def take(call: Call) -> None:
        nonlocal attempts
        attempts += 1
        worker.take(Attempt(attempts, call))

    for at_s, call in zip(case.starts, first, strict=False):
        agenda.at(at_s, partial(take, call))
    if case.pause is not None:
        agenda.at(case.pause[0], lambda: worker.pause(PauseMode.RETRACT))
        agenda.at(sum(case.pause), worker.resume)
    while agenda.step():
        pass
    return ends, worker.books.cached_tokens


def _by_tokens(case: _Case) -> tuple[dict[str, float], int]:
    agenda, ends = Agenda(), dict[str, float]()
    first = case.sessions()
    names = _names(first)
    by_name = {name: call for call, name in names.items()}
    options = EngineOptions(
        prefill_tokens_per_s=_PREFILL,
        s_per_token=_STEP,
        max_running_requests=case.max_running,
        prefix_cache_tokens=_CACHE,
    )
    # Samples of one question have one prompt but not one answer: replies go by request.
    queue: dict[tuple[int, ...], list[Reply]] = {}
    engine = make_engine(options=options, script=lambda ids: queue[tuple(ids)].pop(0))

    def submit(call: Call) -> None:
        prompt = _ids(call.prompt)
        queue.setdefault(prompt, []).append(Reply(ids=_ids(call.answer)[call.prompt.end :]))
        params = asked(max_new_tokens=1000, ignore_eos=True).params
        rid = names[call]
        engine.submit(Generation(rid=rid, prompt_ids=prompt, params=params, seed=1))

    def pause() -> None:
        engine.pause(PauseMode.RETRACT)
        engine.cache.clear()

    for at_s, call in zip(case.starts, first, strict=False):
        agenda.at(at_s, partial(submit, call))
    if case.pause is not None:
        agenda.at(case.pause[0], pause)
        agenda.at(sum(case.pause), engine.resume)
    while True:
        due = engine.next_deadline
        if due is None or due > agenda.next_time:
            if not agenda.step():
                break
            continue
        agenda.now = now = max(agenda.now, due)
        for emission in engine.advance(now):
            if emission.finish is not None:
                ends[emission.rid] = now
                for follower in by_name[emission.rid].then:
                    agenda.after(follower.think_s, partial(submit, follower))
    return ends, sum(record.cached_tokens for record in engine.records)


@given(_cases())
def test_lengths_and_tokens_end_at_the_same_times_with_the_same_cache_hits(case: _Case) -> None:
    assert _by_lengths(case) == _by_tokens(case)


def test_the_comparison_sees_a_full_batch_hits_and_a_pause() -> None:
    case = _Case(
        workload=Workload(
            sessions=6, group_size=2, turns=Fixed(3), answer_tokens=Fixed(16), system_tokens=16
        ),
        max_running=2,
        starts=(0.0,) * 6,
        seed=1,
        pause=(0.777, 0.5),
    )
    ends, cached = _by_lengths(case)
    assert (ends, cached) == _by_tokens(case)
    assert len(ends) == 18
    assert cached > 0
    calm = _by_lengths(_Case(case.workload, 2, case.starts, 1, None))[0]
    assert all(calm[name] < ends[name] for name in ends if calm[name] > 1.3)
