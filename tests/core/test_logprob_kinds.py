"""Which logprobs a worker tells is found out by experiment, and never guessed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slime_core.errors import WorkerError
from slime_core.logprob_kinds import (
    EXPERIMENTS,
    LogprobKind,
    Seen,
    experiment,
    judge,
    parse_probe,
    together,
)

_LOGITS = st.lists(st.floats(-8, 8), min_size=2, max_size=40)


def answered(logits: list[float], kind: LogprobKind, body: bytes, noise: float = 0.0) -> Seen:
    """What an engine of that kind answers ``body`` with: its likeliest token, for one."""
    params: dict[str, Any] = json.loads(body)["sampling_params"]
    heat = 1.0 if kind is LogprobKind.RAW else params["temperature"]
    weights = sorted((math.exp(one / heat) for one in logits), reverse=True)
    if kind is LogprobKind.SAMPLING and params["top_p"] < 1:
        weights = weights[:1]
    told = [math.log(one / sum(weights)) + noise for one in weights[:2]]
    return Seen(told[0], told[0], told[1] if len(told) > 1 else -math.inf)


def found(logits: list[float], kind: LogprobKind, noise: float = 0.0) -> LogprobKind:
    plain, warm, cut = (answered(logits, kind, body, noise) for body in experiment(0))
    return judge(plain, warm, cut)


@pytest.mark.parametrize("kind", [LogprobKind.SAMPLING, LogprobKind.TEMPERED, LogprobKind.RAW])
@given(logits=_LOGITS, noise=st.floats(-0.01, 0.01))
def test_an_engine_is_never_taken_for_another(
    kind: LogprobKind, logits: list[float], noise: float
) -> None:
    assert found(logits, kind, noise) in (kind, LogprobKind.UNKNOWN)


@pytest.mark.parametrize("kind", [LogprobKind.SAMPLING, LogprobKind.TEMPERED, LogprobKind.RAW])
@given(logits=_LOGITS)
def test_where_there_is_doubt_and_a_gap_it_is_found_out(
    kind: LogprobKind, logits: list[float]
) -> None:
    first, second = sorted(logits, reverse=True)[:2]
    total = sum(math.exp(one - first) for one in logits)
    assume(first - second > 0.31 and math.log(total) > 0.11)
    assert found(logits, kind) is kind


def test_a_certain_token_tells_nothing() -> None:
    for kind in (LogprobKind.SAMPLING, LogprobKind.RAW):
        assert found([20.0, 0.0], kind) is LogprobKind.UNKNOWN


def test_what_fits_no_kind_is_unknown() -> None:
    plain, warm, cut = Seen(-0.5, -0.5, -1.5), Seen(-0.5, -0.5, -1.5), Seen(0.0, 0.0, -math.inf)
    assert judge(plain, warm, cut) is LogprobKind.UNKNOWN


def test_every_experiment_asks_for_one_token_three_times() -> None:
    for number in range(EXPERIMENTS):
        bodies = [json.loads(body) for body in experiment(number)]
        assert {body["sampling_params"]["max_new_tokens"] for body in bodies} == {1}
        assert len({json.dumps(body["sampling_params"]) for body in bodies}) == 3
        assert len({body["text"] for body in bodies}) == 1


def test_an_answer_is_read() -> None:
    meta = {
        "output_token_logprobs": [[-0.5, 7, None]],
        "output_top_logprobs": [[[-0.25, 3, None], [-0.5, 7, None]]],
    }
    assert parse_probe(json.dumps({"meta_info": meta}).encode()) == Seen(-0.5, -0.25, -0.5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"meta_info": {}}',
        b'{"meta_info": {"output_token_logprobs": [], "output_top_logprobs": []}}',
        b'{"meta_info": {"output_token_logprobs": [[null, 1, null]], "output_top_logprobs": [[]]}}',
        b'{"meta_info": {"output_token_logprobs": [[-1, 1, null]], "output_top_logprobs": [null]}}',
    ],
)
def test_an_answer_that_does_not_tell_is_the_workers_fault(body: bytes) -> None:
    with pytest.raises(WorkerError):
        parse_probe(body)


def test_answers_of_one_kind_have_its_name_and_others_are_mixed() -> None:
    raw, sampling = LogprobKind.RAW, LogprobKind.SAMPLING
    assert together([]) is None
    assert together([raw, raw]) == "raw"
    assert together([raw, sampling]) == "mixed"
