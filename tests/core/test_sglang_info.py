"""What workers tell about their loads and their role."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slime_core.errors import WorkerError
from slime_core.sglang import WorkerLoads, parse_loads, parse_model_info


def _told(*ranks: dict[str, Any]) -> bytes:
    return json.dumps({"timestamp": "t", "version": "0.5.23", "loads": ranks}).encode()


def test_loads_are_summed_over_ranks_and_the_fullest_cache_counts() -> None:
    one = {"num_running_reqs": 3, "num_waiting_reqs": 1, "token_usage": 0.25, "dp_rank": 0}
    two = {"num_running_reqs": 2, "num_waiting_reqs": 4, "token_usage": 0.75, "dp_rank": 1}
    assert parse_loads(_told(one, two)) == WorkerLoads(running=5, waiting=5, token_usage=0.75)


def test_a_cache_that_is_not_told_counts_as_empty() -> None:
    rank = {"num_running_reqs": 3, "num_waiting_reqs": 1}
    assert parse_loads(_told(rank)).token_usage == 0.0
    assert parse_loads(_told(rank | {"token_usage": None})).token_usage == 0.0


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"loads":[]}', b'{"loads":[{}]}', _told({"num_running_reqs": -1}), b"x"],
)
def test_what_tells_no_load_is_a_worker_s_fault(body: bytes) -> None:
    with pytest.raises(WorkerError):
        parse_loads(body)


@pytest.mark.parametrize(
    ("said", "mode"),
    [('"prefill"', "prefill"), ('"null"', "null"), ("null", None), ("7", None)],
)
def test_the_role_of_a_worker_is_a_word_or_not_told(said: str, mode: str | None) -> None:
    info = parse_model_info(b'{"model_path":"m","disaggregation_mode":%b}' % said.encode())
    assert info.disaggregation_mode == mode
    assert parse_model_info(b'{"model_path":"m"}').disaggregation_mode is None
