"""The simulated worker: the truth it notes, what it says of it, and each of its faults."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from typing import Any

import msgspec
import pytest

from slime_core import sglang, sse
from slime_core.engine import (
    Engine,
    EngineOptions,
    Generation,
    PauseMode,
    Sampler,
    float32,
    parse_generate,
    parse_sampling_params,
)
from slime_core.engine.answers import AnswerBuilder
from slime_core.types import unpack_ids, unpack_logprobs
from tests.simulate import tokens
from tests.simulate.faults import STREAMS, WHOLES, Fault, FaultKind, FaultRates
from tests.simulate.story import Sampled
from tests.simulate.workers.support import (
    Asked,
    Shop,
    body_of,
    head_of,
    reads_as,
    told_problem,
)
from tests.simulate.workers.tellers import make_teller
from tests.simulate.workers.worker import Cut, Data, End, Raw

WAYS = pytest.mark.parametrize("incremental", [False, True], ids=["cumulative", "incremental"])
SHAPES: dict[str, dict[str, Any]] = {
    "one": {},
    "n": {"n": 3},
    "batch": {"text": ["The quick", "no"]},
    "batch of one": {"text": ["你好"]},
    "batch and n": {"text": ["The quick", "no"], "n": 2},
}


def only(kind: FaultKind, share: float = 1.0) -> FaultRates:
    return FaultRates({kind: share}, probes=1.0)


def assert_told_whole(asked: Asked, samples: list[Sampled]) -> None:
    """The router's reader has all of the truth."""
    answers = reads_as(asked)
    assert len(answers) == len(samples)
    for answer, sampled in zip(answers, samples, strict=True):
        assert answer is not None
        assert answer.problem is None
        assert unpack_ids(answer.ids) == sampled.ids
        assert unpack_logprobs(answer.logprobs, len(sampled.ids)) == sampled.logprobs
        assert answer.text == sampled.text
        assert answer.finish_reason is not None
        assert msgspec.json.decode(answer.finish_reason.raw) == sampled.finish
        runs = [run.version for run in answer.versions for _ in range(run.start, run.end)]
        assert runs == sampled.versions
        assert answer.id == sampled.rid


# The honest worker


@pytest.mark.parametrize("name", tokens.NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@WAYS
def test_a_stream_tells_the_truth(shape: str, name: str, incremental: bool) -> None:
    shop = Shop(name=name, incremental=incremental)
    asked = shop.ask(**SHAPES[shape])
    shop.run()
    assert_told_whole(asked, shop.sampled)
    assert body_of(asked.pieces).endswith(sse.DONE)
    assert isinstance(asked.pieces[-1], End)


@pytest.mark.parametrize("name", tokens.NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_whole_answer_tells_the_truth(shape: str, name: str) -> None:
    shop = Shop(name=name, incremental=True)
    asked = shop.ask(stream=False, **SHAPES[shape])
    shop.run()
    assert_told_whole(asked, shop.sampled)
    size = dict(head_of(asked.pieces).headers)["content-length"]
    assert int(size) == len(body_of(asked.pieces))


@WAYS
def test_the_story_counts_what_was_told(incremental: bool) -> None:
    shop = Shop(incremental=incremental)
    asked = shop.ask(n=2)
    for _ in range(3):
        shop.step()
    assert [one.told for one in shop.sampled] == [len(one.ids) for one in shop.sampled]
    assert all(one.told for one in shop.sampled)
    shop.run()
    assert [one.told_finish for one in shop.sampled] == [one.finish for one in shop.sampled]
    asked.take()
    assert shop.sampled[0].wire == body_of(asked.pieces)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7, "top_p": 0.8},
        {"top_k": 3, "frequency_penalty": 0.5},
        {"temperature": 0},
        {"stop": ["a"], "min_new_tokens": 2},
    ],
    ids=repr,
)
def test_logprobs_can_be_computed_again(params: dict[str, Any]) -> None:
    shop = Shop()
    shop.ask(n=3, params=params)
    for version in ("2", "3"):
        shop.step()
        shop.worker.update_version(version)
    shop.run()
    sampler = Sampler(shop.tokens.language, end_ids=shop.tokens.end_ids)
    for one in shop.sampled:
        asked = parse_sampling_params(one.params, vocabulary_size=len(shop.tokens.vocabulary))
        assert len(one.ids) == len(one.logprobs) == len(one.versions) > 0
        for place, token in enumerate(one.ids):
            context = [*one.prompt_ids, *one.ids[:place]]
            logprob = sampler.logprob(context, token, asked, one.ids[:place], one.versions[place])
            assert one.logprobs[place] == float32(logprob)


@WAYS
def test_versions_are_noted_token_by_token(incremental: bool) -> None:
    shop = Shop(incremental=incremental)
    asked = shop.ask(params={"ignore_eos": True})
    for version in "2345":
        shop.step()
        shop.worker.update_version(version)
    shop.run()
    assert shop.sampled[0].versions == ["1", "2", "3", "4", "5", "5"]
    assert_told_whole(asked, shop.sampled)


def test_versions_of_tokens_that_were_held_back_are_their_own() -> None:
    stop = "".join(chr(0x20 + at) for at in range(95))
    for seed in range(40):
        shop = Shop(seed=seed)
        shop.ask(params={"stop": [f"{letter}{stop}" for letter in "abTn \n"], "ignore_eos": True})
        for version in "23456":
            shop.step()
            shop.worker.update_version(version)
            count = len(shop.sampled[0].ids)
            assert shop.sampled[0].versions == list("123456")[:count]
        shop.run()
        assert shop.sampled[0].versions == list("123456")


@pytest.mark.parametrize(
    "params", [{}, {"stop": ["a", " "]}, {"skip_special_tokens": False, "ignore_eos": True}]
)
@WAYS
def test_the_fast_teller_says_what_the_builder_says(
    params: dict[str, Any], incremental: bool
) -> None:
    one = tokens.of("bytes")
    for seed in range(12):
        engine = Engine(model=one.language, vocabulary=one.vocabulary, end_ids=one.end_ids)
        body = {"input_ids": [5, 6], "sampling_params": params, "return_logprob": True}
        call = parse_generate(body, vocabulary_size=len(one.vocabulary))
        prompt = call.prompts[0]
        asked = Generation(rid='r"1', prompt_ids=(5, 6), params=prompt.params, seed=seed)
        teller = make_teller(
            call, prompt, asked, incremental=incremental, vocabulary=one.vocabulary
        )
        builder = AnswerBuilder(
            call, prompt, asked, incremental=incremental, experts=None, piece=str
        )
        engine.submit(asked)
        while not engine.idle:
            for emission in engine.advance(0.0):
                teller.add(emission)
                builder.add(emission)
                told = msgspec.json.decode(teller.chunk(emission, {"e2e_latency": 0.5}))
                expected = builder.chunk(emission, {"e2e_latency": 0.5})
                assert told == msgspec.json.decode(msgspec.json.encode(expected))
                assert list(told["meta_info"]) == list(expected["meta_info"])


def test_wishes_beyond_logprobs_are_served() -> None:
    shop = Shop()
    asked = shop.ask(stream=False, top_logprobs_num=2, logprob_start_len=0)
    shop.run()
    meta = msgspec.json.decode(body_of(asked.take()))["meta_info"]
    assert [len(row) for row in meta["output_top_logprobs"]] == [2] * len(shop.sampled[0].ids)
    assert len(meta["input_token_logprobs"]) == len(shop.sampled[0].prompt_ids)


# Other paths


def told_json(asked: Asked) -> Any:
    return msgspec.json.decode(body_of(asked.take()))


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
def test_it_tells_its_weights(path: str) -> None:
    shop = Shop()
    shop.worker.update_version("7")
    asked = shop.send(path, method="GET")
    assert sglang.parse_model_info(body_of(asked.take())).weight_version == "7"


@pytest.mark.parametrize("name", tokens.NAMES)
def test_it_tokenises_as_the_router_does(name: str) -> None:
    shop = Shop(name=name)
    asked = shop.send("/tokenize", sglang.encode_tokenize("a b", add_special_tokens=True))
    told = sglang.parse_tokenize(body_of(asked.take()))
    assert unpack_ids(told.ids) == shop.tokens.tokenizer._head.encode("a b").ids
    assert told.max_model_len == 32768


def test_unknown_paths_are_not_found() -> None:
    assert head_of(Shop().send("/v1/chat/completions", b"{}").take()).status == 404


def test_it_is_not_healthy_while_paused() -> None:
    shop = Shop()
    assert head_of(shop.send("/health", method="GET").take()).status == 200
    shop.worker.engine.pause(PauseMode.IN_PLACE)
    assert head_of(shop.send("/health", method="GET").take()).status == 503


def test_a_body_that_is_no_json_is_refused() -> None:
    asked = Shop().send("/generate", b"{")
    assert head_of(asked.take()).status == 400
    assert told_json(asked)["object"] == "error"


def test_a_prompt_that_does_not_fit_is_refused_within_a_stream() -> None:
    shop = Shop(options=EngineOptions(context_length=4))
    asked = shop.ask()
    assert head_of(asked.take()).status == 200
    (event, done) = sse.Decoder().receive(body_of(asked.pieces))
    assert "context length" in msgspec.json.decode(event.data)["error"]["message"]
    assert done.data == b"[DONE]"
    assert shop.sampled == []


def test_an_abort_by_name_ends_one_request() -> None:
    shop = Shop()
    one, other = shop.ask(), shop.ask()
    shop.step()
    shop.send("/abort_request", b'{"rid":"call-1"}')
    shop.run()
    finishes = [sampled.finish for sampled in shop.sampled]
    assert finishes[0] is not None
    assert finishes[0]["type"] == "abort"
    assert finishes[1] is not None
    assert finishes[1]["type"] != "abort"
    assert_told_whole(one, shop.sampled[:1])
    assert_told_whole(other, shop.sampled[1:])


def test_a_live_id_is_not_taken_twice() -> None:
    shop = Shop()
    shop.ask(rid="same")
    assert head_of(shop.ask(rid="same", stream=False).take()).status == 400
    shop.run()
    assert head_of(shop.ask(rid="same").take()).status == 200


# Life


def test_hanging_up_aborts_and_the_truth_goes_on_to_its_end() -> None:
    shop = Shop()
    asked = shop.ask(params={"ignore_eos": True})
    shop.step()
    shop.worker.hang_up(asked.answering, shop.now)
    shop.run()
    (sampled,) = shop.sampled
    assert sampled.finish is not None
    assert sampled.finish["type"] == "abort"
    assert (len(sampled.ids), sampled.told, sampled.told_finish) == (2, 1, None)


def test_hanging_up_while_held_forgets_the_request() -> None:
    shop = Shop()
    shop.worker.engine.pause(PauseMode.RETRACT)
    asked = shop.ask(rid="held")
    shop.worker.hang_up(asked.answering, shop.now)
    shop.worker.engine.resume()
    shop.run()
    assert shop.sampled[0].ids == []
    again = shop.ask(rid="held")
    shop.run()
    assert_told_whole(again, shop.sampled[1:])


def test_the_id_of_a_request_that_hung_can_be_used_again() -> None:
    shop = Shop(faults=only(FaultKind.HANG))
    for _ in range(6):
        asked = shop.ask(rid="again")
        shop.worker.hang_up(asked.answering, shop.now)
        shop.run()
    assert [one.rid for one in shop.sampled] == ["again"] * 6


def test_a_crash_cuts_every_connection_and_tells_nothing_more() -> None:
    shop = Shop()
    asked, probe = shop.ask(), shop.ask(stream=False)
    shop.step()
    shop.worker.crash(shop.now)
    shop.run()
    assert not shop.worker.alive
    assert isinstance(asked.take()[-1], Cut)
    assert probe.take() == [Cut()]
    assert [len(one.ids) for one in shop.sampled] == [1, 1]
    assert [one.finish for one in shop.sampled] == [None, None]
    assert shop.ask().take() == [Cut()]


def test_a_restart_has_the_given_weights_and_an_empty_cache() -> None:
    shop = Shop()
    shop.ask()
    shop.run()
    shop.worker.crash(shop.now)
    shop.worker.restart(shop.now, "9")
    asked = shop.ask(stream=False)
    shop.run()
    meta = told_json(asked)["meta_info"]
    assert (meta["weight_version"], meta["cached_tokens"]) == ("9", 0)
    assert set(shop.sampled[-1].versions) == {"9"}


def test_a_reset_cuts_connections_and_aborts() -> None:
    shop = Shop()
    asked = shop.ask(params={"ignore_eos": True})
    shop.step()
    assert shop.worker.reset(shop.now)
    shop.run()
    assert isinstance(asked.take()[-1], Cut)
    assert shop.sampled[0].finish is not None
    assert shop.sampled[0].finish["type"] == "abort"
    assert not shop.worker.reset(shop.now)


def test_changed_answers_are_named_once() -> None:
    shop = Shop()
    one, other = shop.ask(), shop.ask()
    assert shop.worker.advance(0.0) == [one.answering, other.answering]
    shop.run()
    assert shop.worker.advance(0.0) == []


# Faults


@cache
def run_faulty(kind: FaultKind, *, incremental: bool, stream: bool) -> tuple[Shop, list[Asked]]:
    shop = Shop(faults=only(kind), incremental=incremental, seed=seed_of(kind))
    asked = []
    for number in range(24):
        shape = list(SHAPES.values())[number % 4]
        params = {"max_new_tokens": 1 + number % 9, "ignore_eos": number % 3 > 0}
        asked.append(shop.ask(stream=stream, params=params, **shape))
        shop.step()
        if number % 4 == 3:
            shop.worker.update_version(str(number))
    shop.run()
    shop.worker.heal(shop.now)
    shop.run()
    return shop, asked


def seed_of(kind: FaultKind) -> int:
    return list(FaultKind).index(kind)


CASES = [
    pytest.param(kind, stream, incremental, id=f"{kind.value}-{name}")
    for kind in FaultKind
    for stream, incremental, name in (
        (True, False, "cumulative"),
        (True, True, "incremental"),
        (False, False, "whole"),
    )
    if kind in (STREAMS if stream else WHOLES)
]


@pytest.mark.parametrize(("kind", "stream", "incremental"), CASES)
def test_every_fault_strikes_and_is_marked(
    kind: FaultKind, stream: bool, incremental: bool
) -> None:
    shop, asked = run_faulty(kind, incremental=incremental, stream=stream)
    assert set(shop.story.marks) == {f"fault:{kind.value}"}
    assert 3 <= shop.story.marks[f"fault:{kind.value}"] <= len(asked)
    honest, others = Shop(incremental=incremental, seed=seed_of(kind)), []
    for one in asked:
        others.append(honest.send("/generate", one.body))
    honest.run()
    assert any(a.take() != b.take() for a, b in zip(asked, others, strict=True))


@pytest.mark.parametrize(("kind", "stream", "incremental"), CASES)
def test_whatever_is_kept_was_told(kind: FaultKind, stream: bool, incremental: bool) -> None:
    """The rule by which a capture is judged holds for the router's own reader."""
    shop, every = run_faulty(kind, incremental=incremental, stream=stream)
    by_rid = {sampled.rid: sampled for sampled in shop.sampled}
    for asked in every:
        answers = reads_as(asked)
        for rid, answer in zip(asked.answering.rids, answers, strict=False):
            sampled = by_rid[rid]
            if answer is not None and answer.problem is None:
                assert told_problem(answer, sampled) is None
            elif sampled.lies is None and sampled.told_finish is not None:
                pytest.fail(f"{rid} was told whole and without a lie, and could not be read")


@pytest.mark.parametrize(("kind", "stream", "incremental"), CASES)
def test_every_answer_ends_once_all_is_healed(
    kind: FaultKind, stream: bool, incremental: bool
) -> None:
    _, every = run_faulty(kind, incremental=incremental, stream=stream)
    for asked in every:
        ends = [piece for piece in asked.take() if isinstance(piece, End | Cut)]
        assert len(ends) == 1
        assert asked.pieces[-1] is ends[0]
        size = dict(getattr(asked.pieces[0], "headers", ())).get("content-length")
        if size is not None and isinstance(ends[0], End):
            assert int(size) == len(body_of(asked.pieces))


def struck(kind: FaultKind, *, incremental: bool = False, stream: bool = True) -> list[Asked]:
    return run_faulty(kind, incremental=incremental, stream=stream)[1]


def test_a_death_during_the_answer_leaves_whole_events() -> None:
    for asked in struck(FaultKind.DIE_DURING):
        assert isinstance(asked.take()[-1], Cut)
        assert body_of(asked.pieces)[-2:] in (b"", b"\n\n")


def test_a_death_in_an_event_leaves_a_part_of_it() -> None:
    for asked in struck(FaultKind.DIE_MID_EVENT):
        body = body_of(asked.take())
        assert body
        assert not body.endswith(b"\n\n")


def test_a_death_in_a_character_leaves_a_part_of_it() -> None:
    torn = [asked for asked in struck(FaultKind.DIE_MID_CHARACTER) if Cut() in asked.take()]
    assert torn
    for asked in torn:
        with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
            body_of(asked.pieces).decode()


def test_a_death_after_the_answer_leaves_out_only_its_end() -> None:
    for asked in struck(FaultKind.DIE_AFTER):
        assert isinstance(asked.take()[-1], Cut)
        assert sse.DONE not in body_of(asked.pieces)
        assert all(one is not None and one.finish_reason is not None for one in reads_as(asked))


def test_bad_framing_is_raw() -> None:
    for stream in (True, False):
        for asked in struck(FaultKind.BAD_FRAMING, stream=stream):
            assert isinstance(asked.take()[-2], Raw)


def test_a_truncated_body_has_the_length_it_says() -> None:
    for asked in struck(FaultKind.TRUNCATED, stream=False):
        body = body_of(asked.take())
        assert dict(head_of(asked.pieces).headers)["content-length"] == str(len(body))
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(body)


def test_a_slow_answer_is_late_and_whole() -> None:
    shop = Shop(faults=only(FaultKind.SLOW))
    asked = shop.ask()
    shop.run()
    assert shop.now > 0
    assert_told_whole(asked, shop.sampled)


def test_healing_hurries_what_is_late() -> None:
    shop = Shop(faults=only(FaultKind.SLOW))
    asked = shop.ask()
    while shop.sampled[0].finish is None:
        shop.step()
    assert End() not in asked.take()
    shop.worker.heal(shop.now)
    shop.step()
    assert_told_whole(asked, shop.sampled)


def test_what_hangs_is_cut_off_by_healing_and_not_before() -> None:
    shop = Shop(faults=only(FaultKind.HANG))
    asked = [shop.ask() for _ in range(8)]
    shop.run()
    assert all(one.take() == [] for one in asked)
    assert any(one.finish is not None for one in shop.sampled)
    assert any(one.finish is None for one in shop.sampled)
    shop.worker.heal(shop.now)
    assert all(one.take() == [Cut()] for one in asked)
    well = shop.ask()
    shop.run()
    assert_told_whole(well, shop.sampled[-1:])


@pytest.mark.parametrize("kind", FaultKind)
@pytest.mark.parametrize("stream", [True, False])
def test_what_was_under_way_when_healing_came_ends(kind: FaultKind, stream: bool) -> None:
    shop = Shop(faults=only(kind))
    asked = [shop.ask(stream=stream, params={"ignore_eos": True}) for _ in range(12)]
    shop.step()
    shop.worker.heal(shop.now)
    shop.run()
    for one in asked:
        assert isinstance(one.take()[-1], End | Cut)
        assert not isinstance(one.pieces[0], Data)


@pytest.mark.parametrize(
    "kind", [FaultKind.HANG_DURING, FaultKind.DIE_DURING, FaultKind.TRUNCATED, FaultKind.NO_DONE]
)
@pytest.mark.parametrize("stream", [True, False])
def test_healing_spares_what_was_not_struck(kind: FaultKind, stream: bool) -> None:
    shop = Shop(faults=only(kind), seed=5)
    asked = [shop.ask(stream=stream, params={"ignore_eos": True}) for _ in range(12)]
    shop.step()
    marks = shop.story.marks.total()
    shop.worker.heal(shop.now)
    shop.run()
    assert shop.story.marks.total() == marks < len(asked)
    well = [one for one in asked if sse.DONE in body_of(one.take()) or not stream]
    assert len(well) == len(asked) - marks


def test_a_consistent_lie_is_noted_as_a_claim() -> None:
    for kind in (FaultKind.OUTSIDE_VOCABULARY, FaultKind.WRONG_VERSION, FaultKind.NO_VERSION):
        shop, _ = run_faulty(kind, incremental=True, stream=True)
        lied = [one for one in shop.sampled if one.claimed_ids or one.claimed_versions]
        assert lied
        assert {one.lies for one in lied} == {kind.value}
        claims = [(one.told_ids, one.told_versions) for one in lied if one.told]
        truth = [(one.ids[: one.told], one.versions[: one.told]) for one in lied if one.told]
        assert any(claim != true for claim, true in zip(claims, truth, strict=True))


def test_a_finish_told_early_is_believed_and_the_rest_is_not() -> None:
    for kind in (FaultKind.FINISH_EARLY, FaultKind.AFTER_FINISH):
        shop, _ = run_faulty(kind, incremental=False, stream=True)
        lied = [one for one in shop.sampled if one.told_finish not in (None, one.finish)]
        assert lied
        assert {one.lies for one in lied} == {kind.value}
        assert all(one.told < len(one.ids) for one in lied)


def test_probes_can_fail_too() -> None:
    shop = Shop(faults=only(FaultKind.FAIL))
    assert head_of(shop.send("/model_info", method="GET").take()).status == 500
    shop.worker.heal(shop.now)
    assert head_of(shop.send("/model_info", method="GET").take()).status == 200


# Drawing


def test_a_request_has_one_fault_at_most() -> None:
    rates = FaultRates(dict.fromkeys(FaultKind, 0.2))
    shop = Shop(faults=rates)
    for _ in range(50):
        before = sum(shop.story.marks.values())
        shop.ask(n=2)
        shop.run()
        assert sum(shop.story.marks.values()) - before <= 1
    assert len(shop.story.marks) > 1


def test_leaving_a_kind_out_changes_only_what_it_struck() -> None:
    kinds = [FaultKind.REFUSE, FaultKind.DIE_DURING, FaultKind.HUGE, FaultKind.ABORTED]
    rates = dict.fromkeys(kinds, 0.2)

    def drawn(rates: dict[FaultKind, float]) -> list[Fault | None]:
        return [FaultRates(rates).draw(random.Random(n), STREAMS) for n in range(200)]

    left_out = FaultKind.REFUSE
    fewer = drawn({kind: rate for kind, rate in rates.items() if kind is not left_out})
    struck = [fault is not None and fault.kind is left_out for fault in drawn(rates)]
    assert any(struck)
    for was, fault, now in zip(struck, drawn(rates), fewer, strict=True):
        assert was or fault == now


def test_probabilities_are_met() -> None:
    rates = FaultRates({FaultKind.REFUSE: 0.3, FaultKind.HUGE: 0.1})
    drawn = Counter(
        fault.kind if fault is not None else None
        for fault in (rates.draw(random.Random(n), STREAMS) for n in range(4000))
    )
    assert drawn[FaultKind.REFUSE] / 4000 == pytest.approx(0.3, abs=0.03)
    assert drawn[FaultKind.HUGE] / 4000 == pytest.approx(0.07, abs=0.02)
    assert set(drawn) == {None, FaultKind.REFUSE, FaultKind.HUGE}


def everything(seed: int) -> list[Any]:
    shop = Shop(faults=FaultRates(dict.fromkeys(FaultKind, 0.02)), seed=seed)
    asked = [shop.ask(n=1 + number % 2, stream=number % 3 > 0) for number in range(40)]
    shop.run()
    return [one.take() for one in asked] + [sorted(shop.story.marks.items())]


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert everything(5) == everything(5)
    assert everything(5) != everything(6)


def test_data_is_never_empty() -> None:
    for kind in FaultKind:
        for asked in run_faulty(kind, incremental=False, stream=kind in STREAMS)[1]:
            assert all(piece.data for piece in asked.take() if isinstance(piece, Data))
