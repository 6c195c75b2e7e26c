"""The soak: a tiny one comes out even, and its books see what would be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.soak import FATES, Options, Soaked, measure, soak
from benchmarks.soak_ledger import Ledger
from benchmarks.soak_rollouts import Rollouts
from slime_core.engine import Abort, Record, SamplingParams
from slime_core.engine.generation import Span

TINY = Options(
    minutes=0.06,
    rollouts=12,
    workers=2,
    turns=3,
    answer_tokens=6,
    ms_per_token=10.0,
    think_s=0.1,
    leaving=0.2,
    kill_every_s=1.2,
    update_every_s=0.8,
    abort_every_s=1.0,
)


def test_a_tiny_soak_accounts_for_every_token() -> None:
    soaked = soak(TINY)
    assert soaked.faults == []
    ledger, rollouts = soaked.ledger, soaked.rollouts
    assert ledger.open == {}
    assert sum(ledger.fates.values()) == ledger.sampled > 0
    assert ledger.fates["retrieved"] > 0
    assert rollouts.rollouts > 0
    assert rollouts.most_concurrent == TINY.rollouts
    assert soaked.events


def test_a_fault_is_told_by_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    soaked = Soaked(books(record()), Rollouts(**_NOBODY))
    monkeypatch.setattr("benchmarks.soak.soak", lambda _options: soaked)
    fates, events = measure(TINY)
    assert fates.columns == FATES
    assert ("faults", 0) in events.rows
    soaked.faults.append("something is wrong")
    with pytest.raises(SystemExit, match="1 faults"):
        measure(TINY)
    assert "FAULT something is wrong" in capsys.readouterr().err


_NOBODY: dict[str, Any] = {
    **dict.fromkeys(("pool", "router", "ledger", "collect")),
    **dict.fromkeys(("turns", "answer_tokens", "think_s", "leaving"), 0),
}


# -- the books ---------------------------------------------------------------------------------


def record(call: str = "c", ids: tuple[int, ...] = (7, 8, 9)) -> Record:
    return Record(
        rid=call,
        prompt_ids=(1, 2),
        output_ids=ids,
        logprobs=tuple(-one / 8 for one in ids),
        spans=(
            Span(version="1", start=0, end=2),
            Span(version="2", start=2, end=len(ids)),
        ),
        text="",
        finish=Abort(),
        seed=0,
        params=SamplingParams(),
        cached_tokens=0,
        scripted=False,
    )


def told(**changed: Any) -> dict[str, Any]:
    found = {
        "tokens": [1, 2, 7, 8, 9],
        "rollout_logp": [0.0, 0.0, -7 / 8, -1.0, -9 / 8],
        "generation_versions": [-1, -1, 1, 1, 2],
        "loss_mask": [0, 0, 1, 1, 1],
        "id": "c",
        "outcome": "partial",
    }
    return found | changed


def books(*records: Record) -> Ledger:
    ledger = Ledger()
    ledger.take(records)
    return ledger


def test_what_is_given_exactly_is_settled() -> None:
    ledger = books(record())
    ledger.delivered("c", "retrieved", told(), 2, 5)
    ledger.silent()
    assert ledger.faults == []
    assert ledger.fates == {"retrieved": 3}


def test_the_beginning_of_a_broken_answer_is_exact_and_its_rest_is_named() -> None:
    ledger = books(record())
    ledger.delivered("c", "retrieved", told(), 2, 4)
    assert ledger.faults == []
    assert sorted(ledger.fates.values()) == [1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": [1, 2, 7, 8, 10]},
        {"rollout_logp": [0.0, 0.0, -0.5, -1.0, -9 / 8]},
        {"generation_versions": [-1, -1, 1, 2, 2]},
        {"loss_mask": [0, 0, 1, 0, 1]},
    ],
)
def test_what_is_given_otherwise_is_a_fault(changed: dict[str, Any]) -> None:
    ledger = books(record())
    ledger.delivered("c", "retrieved", told(**changed), 2, 5)
    assert len(ledger.faults) == 1


def test_an_answer_called_complete_has_all_its_tokens() -> None:
    ledger = books(record(), record("empty"))
    ledger.delivered("c", "retrieved", told(outcome="complete"), 2, 4)
    ledger.lost("empty", "complete")
    assert len(ledger.faults) == 2


def test_what_nobody_sampled_is_a_fault() -> None:
    ledger = books()
    ledger.delivered("c", "retrieved", told(), 2, 5)
    assert len(ledger.faults) == 1


def test_an_answer_that_another_worker_gave_names_the_first_one_s_tokens() -> None:
    ledger = books(record(ids=(5, 6)), record())
    ledger.delivered("c", "retrieved", told(), 2, 5)
    assert ledger.faults == []
    assert sum(ledger.fates.values()) == ledger.sampled == 5


def test_a_loss_has_its_word_and_silence_is_a_fault() -> None:
    ledger = books(record("a"), record("b"))
    ledger.lost("a", "client_gone")
    assert (ledger.fates, ledger.faults) == ({"lost: client_gone": 3}, [])
    ledger.silent()
    assert len(ledger.faults) == 1


def test_a_record_that_comes_when_its_call_is_settled_was_sampled_again() -> None:
    ledger = books(record())
    ledger.delivered("c", "retrieved", told(), 2, 5)
    ledger.take([record(ids=(5, 6))])
    ledger.silent()
    assert ledger.faults == []
    assert sum(ledger.fates.values()) == ledger.sampled == 5
