"""What tests of the planning simulation share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from hypothesis import strategies as st

from slime_core.engine import PauseMode
from slime_core.simulation import (
    Chance,
    Choice,
    Distribution,
    Exponential,
    Faults,
    Fixed,
    Fleet,
    Lognormal,
    Retries,
    Router,
    Scenario,
    Uniform,
    Updates,
    WorkerSpeed,
    Workload,
)

__all__ = ["Numbers", "chances", "distributions", "scenarios"]


def chances(seed: int) -> Callable[[str], Chance]:
    """Generators by name, as the command line makes them."""
    return lambda name: random.Random(f"{seed}/{name}")


class Numbers:
    """A generator whose numbers are given."""

    def __init__(self, numbers: Iterable[float]) -> None:
        self._numbers: Iterator[float] = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)

    def gauss(self, mu: float, sigma: float) -> float:
        return mu + sigma * next(self._numbers)


def distributions(most: float) -> st.SearchStrategy[Distribution]:
    amount = st.floats(0, most)
    return st.one_of(
        amount.map(Fixed),
        st.tuples(amount, amount).map(lambda pair: Uniform(min(pair), max(pair))),
        st.floats(0.1, most).map(lambda median: Lognormal(median, 0.5)),
        amount.map(Exponential),
        st.lists(amount, min_size=1, max_size=3).map(lambda values: Choice(tuple(values))),
    )


def speeds() -> st.SearchStrategy[WorkerSpeed]:
    return st.builds(
        WorkerSpeed,
        prefill_tokens_per_s=st.sampled_from([0.0, 500.0, 5000.0]),
        s_per_token=st.sampled_from([0.001, 0.01]),
        s_per_token_per_other=st.sampled_from([0.0, 0.001]),
        prefill_stops_decode=st.booleans(),
        max_running=st.integers(1, 5),
        prefix_cache_tokens=st.sampled_from([0, 50, 500, 10_000]),
        encode_tokens_per_s=st.sampled_from([0.0, 1e4]),
    )


def workloads() -> st.SearchStrategy[Workload]:
    return st.builds(
        Workload,
        sessions=st.integers(1, 12),
        concurrency=st.integers(1, 6),
        sessions_per_s=st.sampled_from([None, 1.0, 20.0]),
        group_size=st.integers(1, 3),
        system_tokens=st.sampled_from([0, 30]),
        turns=distributions(4),
        input_tokens=st.lists(distributions(40), min_size=1, max_size=3).map(tuple),
        answer_tokens=distributions(60),
        answer_tokens_max=st.sampled_from([40, 1000]),
        think_s=distributions(0.5),
        drift=st.sampled_from([0.0, 0.5, 1.0]),
    )


@st.composite
def scenarios(draw: st.DrawFn, *, faults: bool) -> Scenario:
    """Anything small; ``faults``: with failures and updates that throw work away."""
    router = st.builds(
        Router,
        capture=st.booleans(),
        encode_tokens_per_s=st.sampled_from([0.0, 1e4]),
        reuse_tokens=st.sampled_from([0, 40, 10_000]),
        overhead_s=st.sampled_from([0.0, 0.001]),
        network_s=st.sampled_from([0.0, 0.002]),
    )
    quiet = Scenario(
        fleet=Fleet(workers=tuple(draw(st.lists(speeds(), min_size=1, max_size=3)))),
        workload=draw(workloads()),
        router=draw(router),
    )
    if not faults:
        return quiet
    # Retraction more often than so may leave no time for anything, which is refused.
    updates = st.one_of(
        st.just(Updates()),
        st.builds(
            Updates,
            every_s=st.just(0.3),
            takes_s=st.sampled_from([0.0, 0.1]),
            mode=st.sampled_from([PauseMode.ABORT, PauseMode.IN_PLACE]),
        ),
        st.just(Updates(every_s=3.0, takes_s=0.1, mode=PauseMode.RETRACT)),
    )
    return Scenario(
        fleet=quiet.fleet,
        workload=quiet.workload,
        router=quiet.router,
        updates=draw(updates),
        faults=Faults(
            mean_s_between_failures=draw(st.sampled_from([0.0, 0.2, 2.0])),
            repair_s=draw(distributions(0.5)),
        ),
        retries=Retries(most=draw(st.integers(0, 4)), after_s=draw(st.sampled_from([0.0, 0.05]))),
    )
