"""Two engines that share a generation: one computes the prompt, the other goes on from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slime_core.engine import (
    Abort,
    Engine,
    EngineOptions,
    Generation,
    Handover,
    Length,
    Refusal,
    Role,
    Room,
    Score,
    parse_generate,
    plan,
)
from slime_core.engine.answers import ExpertShape, routed_experts
from tests.core.engine_support import Collected, asked, drain, make_engine, step_once

ROOM = Room(number=7)


def make_pair(**options: Any) -> tuple[Engine, Engine]:
    prefill = make_engine(options=EngineOptions(role=Role.PREFILL, **options))
    return prefill, make_engine(options=EngineOptions(role=Role.DECODE, **options))


def in_room(generation: Generation, room: Room | None = ROOM) -> Generation:
    return replace(generation, room=room)


def run_pair(
    prefill: Engine, decode: Engine, generation: Generation
) -> tuple[Collected, Collected]:
    """Both sides of one generation, the transfer taking no time."""
    assert generation.room is not None
    drained = {}, {}  # type: tuple[dict[str, Collected], dict[str, Collected]]
    prefill.submit(generation)
    decode.submit(generation)
    now = 0.0
    for _ in range(1000):
        for engine, into in zip((prefill, decode), drained, strict=True):
            step_once(engine, into, now)
        for wanted in decode.wanted():
            assert wanted.room is not None
            offer = prefill.offered(wanted.room.key)
            if offer is not None:
                decode.received(wanted.room.key, offer)
                prefill.given(wanted.room.key)
        deadlines = [engine.next_deadline for engine in (prefill, decode)]
        dues = [due for due in deadlines if due is not None]
        if not dues:
            rid = generation.rid
            return drained[0][rid], drained[1][rid]
        now = max(now, min(dues))
    raise AssertionError("the pair never came to rest")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_pair_samples_what_a_lone_engine_samples(seed: int) -> None:
    generation = in_room(asked(seed=seed, max_new_tokens=12))
    lone = drain(make_engine(), generation)["r"]
    first, whole = run_pair(*make_pair(s_per_token=0.1), generation)
    assert whole.tokens == lone.tokens
    assert (whole.text, whole.finish, whole.spans) == (lone.text, lone.finish, lone.spans)
    assert first.tokens == lone.tokens[:1]


def test_prefill_ends_after_one_token_with_a_length_of_zero_and_the_prompt_s_logprobs() -> None:
    generation = in_room(replace(asked(max_new_tokens=5), prompt_scores_from=0, top=2))
    lone = drain(make_engine(), generation)["r"]
    first, whole = run_pair(*make_pair(), generation)
    assert first.finish == Length(0)
    assert first.emissions[0].prompt_scores == lone.emissions[0].prompt_scores
    assert all(emission.prompt_scores == () for emission in whole.emissions)


def test_prefill_answers_only_when_the_prompt_was_fetched() -> None:
    into: dict[str, Collected] = {}
    prefill, _ = make_pair()
    prefill.submit(in_room(asked()))
    step_once(prefill, into)
    step_once(prefill, into)
    assert into == {}
    assert prefill.offered(ROOM.key) is not None
    prefill.given(ROOM.key)
    step_once(prefill, into)
    assert into["r"].finish == Length(0)
    assert prefill.idle


def test_decode_samples_nothing_before_its_prompt_has_come() -> None:
    _, decode = make_pair()
    into: dict[str, Collected] = {}
    decode.submit(in_room(asked(max_new_tokens=1)))
    step_once(decode, into)
    assert into == {}
    assert [one.rid for one in decode.wanted()] == ["r"]
    decode.received(ROOM.key, Handover(first=Score(token=65, logprob=-0.5), version="v9"))
    step_once(decode, into)
    step_once(decode, into)
    assert into["r"].ids == [65]
    assert into["r"].spans[0].version == "v9"


def test_what_waits_for_a_transfer_does_not_occupy_the_running_batch() -> None:
    prefill, _ = make_pair(max_running_requests=1)
    for number in range(3):
        prefill.submit(in_room(asked(f"r{number}"), Room(number=number)))
    for _ in range(6):
        prefill.advance(0.0)
    assert all(prefill.offered((number, 0)) for number in range(3))
    assert prefill.load.waiting == 3


def test_a_transfer_that_nobody_concludes_fails_on_either_side_after_a_while() -> None:
    for engine in make_pair(transfer_timeout_s=5.0):
        into: dict[str, Collected] = {}
        engine.submit(in_room(asked()))
        for now in (0.0, 0.0, 4.9):
            step_once(engine, into, now)
        assert into == {}
        assert engine.next_deadline == 5.0
        step_once(engine, into, 5.0)
        finish = into["r"].finish
        assert isinstance(finish, Abort)
        assert finish.status == 500
        assert engine.is_over(ROOM.key)


@pytest.mark.parametrize("side", [0, 1])
def test_a_failed_transfer_is_a_500(side: int) -> None:
    engine = make_pair()[side]
    into: dict[str, Collected] = {}
    engine.submit(in_room(asked()))
    step_once(engine, into)
    step_once(engine, into)
    engine.transfer_failed(ROOM.key, "gone")
    step_once(engine, into)
    assert into["r"].finish == Abort(message="gone", status=500, kind="500")
    assert engine.idle


def test_a_prompt_whose_taker_has_gone_already_fails_when_it_is_computed() -> None:
    prefill, _ = make_pair()
    into: dict[str, Collected] = {}
    prefill.submit(in_room(asked()))
    prefill.transfer_failed(ROOM.key, "gone")
    for _ in range(3):
        step_once(prefill, into)
    finish = into["r"].finish
    assert isinstance(finish, Abort)
    assert finish.status == 500
    assert prefill.idle


def test_an_abort_reaches_a_prompt_that_waits_to_be_fetched() -> None:
    prefill, _ = make_pair()
    into: dict[str, Collected] = {}
    prefill.submit(in_room(asked()))
    prefill.advance(0.0)
    prefill.advance(0.0)
    assert prefill.is_live("r")
    prefill.abort("r")
    step_once(prefill, into)
    assert into["r"].finish == Abort()
    assert len(into["r"].tokens) == 1
    assert prefill.is_over(ROOM.key)
    assert not prefill.is_live("r")


def test_an_abort_reaches_a_request_that_waits_for_its_prompt() -> None:
    _, decode = make_pair()
    into: dict[str, Collected] = {}
    decode.submit(in_room(asked()))
    decode.abort("r")
    step_once(decode, into)
    assert into["r"].finish == Abort(message="Abort in waiting queue", queued=True)
    assert decode.wanted() == ()
    decode.received(ROOM.key, Handover(first=Score(token=65, logprob=0.0), version="v"))
    assert decode.idle


def test_an_aborted_prompt_is_never_offered() -> None:
    prefill, _ = make_pair()
    prefill.submit(in_room(asked()))
    prefill.abort("r")
    prefill.advance(0.0)
    assert prefill.is_over(ROOM.key)
    assert prefill.offered(ROOM.key) is None


def test_a_room_in_use_is_refused_and_the_first_request_keeps_it() -> None:
    _, decode = make_pair()
    into: dict[str, Collected] = {}
    decode.submit(in_room(asked("a")))
    decode.submit(in_room(asked("b")))
    step_once(decode, into)
    finish = into["b"].finish
    assert isinstance(finish, Abort)
    assert finish.status == 500
    assert [one.rid for one in decode.wanted()] == ["a"]


def test_a_request_without_a_room_is_served_by_one_half_alone() -> None:
    prefill, decode = make_pair()
    generation = asked(max_new_tokens=3)
    assert drain(prefill, generation)["r"].finish == Length(0)
    lone = drain(make_engine(), generation)["r"]
    assert drain(decode, generation)["r"].tokens == lone.tokens


def test_a_prompt_that_asks_for_no_token_is_still_handed_over() -> None:
    generation = in_room(asked(max_new_tokens=0))
    first, whole = run_pair(*make_pair(), generation)
    assert len(first.tokens) == 1
    assert (whole.tokens, whole.finish) == ([], Length(0))


def test_rows_of_experts_before_what_was_computed_mean_nothing() -> None:
    shape = ExpertShape(1, 1)
    assert routed_experts([5, 6, 7], 0, shape) != routed_experts(
        [5, 6, 7], 0, shape, computed_from=1
    )


def planned(body: dict[str, Any], role: Role) -> list[Room | None]:
    call = parse_generate(body, vocabulary_size=300)
    ids = [prompt.content for prompt in call.prompts]
    generations = plan(
        call,
        ids,  # type: ignore[arg-type]
        context_length=1000,
        vocabulary_size=300,
        fresh=lambda: "fresh",
        seed=1,
        role=role,
    )
    return [generation.room for generation in generations]


def test_lists_and_scalars_name_the_rooms_of_a_batch() -> None:
    ids = {"input_ids": [[1], [2]]}
    lists = {
        "bootstrap_host": ["h", "[::1]"],
        "bootstrap_port": [9, None],
        "bootstrap_room": [4, 8],
    }
    assert planned(ids | lists, Role.PREFILL) == [
        Room(number=4, host="h", port=9),
        Room(number=8, host="[::1]", port=None),
    ]
    scalars = {"bootstrap_host": "h", "bootstrap_port": 9, "bootstrap_room": 4}
    assert planned(ids | scalars, Role.DECODE) == [
        Room(number=4, host="h", port=9),
        Room(number=5, host="h", port=9),
    ]


def test_samples_of_one_prompt_are_told_apart_in_their_room() -> None:
    body = {"input_ids": [1], "sampling_params": {"n": 2}, "bootstrap_room": 4}
    assert planned(body, Role.DECODE) == [Room(number=4, sample=0), Room(number=4, sample=1)]


def test_a_lone_worker_looks_at_no_room() -> None:
    assert planned({"input_ids": [1], "bootstrap_room": 4}, Role.REGULAR) == [None]


def test_a_health_probe_s_stand_in_host_needs_no_other_side() -> None:
    body = {"input_ids": [1], "bootstrap_room": 0, "bootstrap_host": "2.2.2.2"}
    assert planned(body, Role.PREFILL) == [None]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"bootstrap_room": None},
        {"bootstrap_room": "7"},
        {"bootstrap_room": -1},
        {"bootstrap_room": 2**63},
        {"bootstrap_room": [1]},
        {"bootstrap_room": 1, "bootstrap_host": 7},
        {"bootstrap_room": 1, "bootstrap_port": "x"},
    ],
)
def test_half_of_a_pair_refuses_what_names_no_room(body: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        planned({"input_ids": [1]} | body, Role.PREFILL)
    assert caught.value.status == 400
