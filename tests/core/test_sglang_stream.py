"""Streams of both kinds, event by event."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core import sse
from slime_core.errors import ClientError, WorkerError
from slime_core.sglang import (
    Answer,
    FinishReason,
    GenerateRequest,
    Mode,
    StreamAssembler,
    StreamStep,
    parse_generate,
)
from slime_core.types import pack_ids, unpack_ids, unpack_logprobs
from slime_core.versions import VersionRun

DATA = Path(__file__).parent / "data" / "sglang"
ASKED = parse_generate(b'{"text":"a","return_logprob":true,"stream":true}')
UNASKED = parse_generate(b'{"text":"a","stream":true}')
STOP = {"type": "stop", "matched": 2}
ABORT = {"type": "abort", "message": "Abort in waiting queue"}


def event(value: Any) -> sse.Event:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    (only,) = sse.Decoder().receive(sse.encode(data))
    return only


def chunk(
    text: str | None,
    ids: list[int],
    total: int | None,
    *,
    finish: Any = None,
    index: int | None = None,
    **meta: Any,
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "text": text,
        "output_ids": ids,
        "meta_info": {
            "id": "r",
            "finish_reason": finish,
            "completion_tokens": total,
            "weight_version": "1",
            "output_token_logprobs": [[-float(token), token, None] for token in ids],
            **meta,
        },
    }
    return value if index is None else {**value, "index": index}


def feed(
    *values: Any, request: GenerateRequest = ASKED
) -> tuple[StreamAssembler, list[StreamStep]]:
    assembler = StreamAssembler(request)
    return assembler, [step for value in values for step in assembler.receive(event(value))]


def partial(assembler: StreamAssembler, index: int = 0) -> Answer:
    answer = assembler.partial(index)
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("name", "mode"),
    [("cumulative.sse", Mode.CUMULATIVE), ("incremental.sse", Mode.INCREMENTAL)],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_both_kinds_of_stream_give_the_same_steps(name: str, mode: Mode, size: int) -> None:
    wire = (DATA / name).read_bytes()
    decoder, assembler = sse.Decoder(), StreamAssembler(ASKED)
    pieces = [wire[start : start + size] for start in range(0, len(wire), size)]
    events = [event for piece in pieces for event in decoder.receive(piece)]
    steps = [step for event in events for step in assembler.receive(event)]
    assert b"".join(step.raw for step in steps) == wire
    assert [step.text for step in steps] == ["Pa", "ris, the", "", ""]
    assert [unpack_ids(step.ids) for step in steps] == [[71], [339, 11, 278], [2], []]
    assert [step.logprobs for step in steps] == [(-0.5,), (-0.25, -0.125, -1.5), (-0.0625,), ()]
    assert [step.tokens for step in steps] == [1, 4, 5, 0]
    assert [step.done for step in steps] == [False, False, False, True]
    assert steps[2].finish_reason == FinishReason(type="stop", matched=2)
    assert (assembler.mode, assembler.finished, assembler.done) == (mode, True, True)
    answer = partial(assembler)
    assert (answer.text, answer.problem) == ("Paris, the", None)
    assert unpack_ids(answer.ids) == [71, 339, 11, 278, 2]
    assert unpack_logprobs(answer.logprobs, 5) == [-0.5, -0.25, -0.125, -1.5, -0.0625]
    assert answer.versions == (
        VersionRun(version="12", start=0, end=4),
        VersionRun(version="13", start=4, end=5),
    )


def test_new_weights_in_mid_stream_are_those_of_the_tokens_that_came_with_them() -> None:
    assembler, _ = feed(
        chunk("a", [5], 1),
        chunk("ab", [5, 6], 2, weight_version="2"),
        chunk("abc", [5, 6, 7], 3, weight_version="2"),
    )
    expected = (VersionRun("1", 0, 1), VersionRun("2", 1, 3))
    assert partial(assembler).versions == expected


def test_an_answer_that_ends_without_spans_has_the_versions_that_its_events_told() -> None:
    assembler, _ = feed(
        chunk("a", [5], 1),
        chunk("ab", [6], 2, weight_version=None),
        chunk("abc", [7], 3, weight_version="2", finish=STOP),
    )
    expected = (VersionRun("1", 0, 1), VersionRun(None, 1, 2), VersionRun("2", 2, 3))
    assert partial(assembler).versions == expected


def test_a_stream_that_tells_no_version_has_no_runs() -> None:
    assembler, _ = feed(chunk("a", [5], 1, weight_version=None))
    assert partial(assembler).versions == ()


def test_the_spans_of_the_last_event_outrank_what_the_events_told() -> None:
    spans = [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 1, "end": 2}]
    assembler, _ = feed(
        chunk("a", [5], 1), chunk("ab", [5, 6], 2, finish=STOP, weight_versions=spans)
    )
    assert partial(assembler).versions == (VersionRun("1", 0, 1), VersionRun("2", 1, 2))


def test_spans_told_before_a_token_came_do_not_speak_of_it() -> None:
    spans = [{"version": "1", "start": 0, "end": 1}]
    assembler, _ = feed(
        chunk("a", [5], 1, prompt_tokens=3, weight_versions=spans),
        chunk("ab", [6], 2, finish=ABORT, weight_version="2"),
    )
    answer = partial(assembler)
    expected = (VersionRun("1", 0, 1), VersionRun("2", 1, 2))
    assert (answer.problem, answer.versions) == (None, expected)


def test_spans_told_before_an_abort_without_new_tokens_still_hold() -> None:
    spans = [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 1, "end": 2}]
    assembler, _ = feed(
        chunk("ab", [5, 6], 2, prompt_tokens=3, weight_version="2", weight_versions=spans),
        chunk("ab", [6], 2, finish=ABORT, weight_version="3"),
    )
    expected = (VersionRun("1", 0, 1), VersionRun("2", 1, 2))
    assert partial(assembler).versions == expected


def test_a_count_that_makes_a_repetition_look_new_is_betrayed_by_the_spans() -> None:
    spans = [{"version": "1", "start": 0, "end": 2}]
    assembler, _ = feed(
        chunk("a", [5], 1), chunk("ab", [5, 6], 3, finish=STOP, weight_versions=spans)
    )
    assert partial(assembler).problem == "version runs cover 2 of 3 tokens"


def test_a_cut_leaves_what_came_unfinished() -> None:
    assembler, _ = feed(chunk("a", [5], 1), chunk("ab", [5, 6], 2))
    answer = partial(assembler)
    assert (answer.text, answer.ids, answer.finish_reason) == ("ab", pack_ids([5, 6]), None)
    assert answer.problem is None
    assert not assembler.finished


def test_before_the_first_event_there_is_nothing() -> None:
    assert StreamAssembler(ASKED).partial(0) is None


def test_logprobs_are_stripped_from_events_nobody_asked_them_of() -> None:
    value = chunk("a", [5], 1, e2e_latency=1e-07)
    assembler, (step,) = feed(value, request=UNASKED)
    assert step.raw.startswith(b"data: {")
    assert step.raw.endswith(b"}\n\n")
    del value["meta_info"]["output_token_logprobs"]
    assert json.loads(step.raw[6:]) == value
    assert b"1e-07" in step.raw
    assert partial(assembler).problem is None


def test_samples_interleave_by_index() -> None:
    request = parse_generate(b'{"text":["a","b"],"stream":true,"return_logprob":[false,true]}')
    assembler, steps = feed(
        chunk("x", [5], 1, index=1),
        chunk("p", [7], 1, index=0),
        chunk("xy", [5, 6], 2, index=1, finish=STOP),
        chunk("pq", [7, 8], 2, index=0, finish=STOP),
        request=request,
    )
    assert [step.sample for step in steps] == [1, 0, 1, 0]
    assert [step.text for step in steps] == ["x", "p", "y", "q"]
    assert [b"logprobs" in step.raw for step in steps] == [True, False, True, False]
    assert [partial(assembler, index).text for index in (0, 1)] == ["pq", "xy"]
    assert assembler.finished
    assert not assembler.done


def test_the_mode_one_sample_shows_holds_for_the_others() -> None:
    request = parse_generate(b'{"text":"a","sampling_params":{"n":2},"stream":true}')
    assembler, steps = feed(
        chunk("x", [5], 1, index=0),
        chunk("y", [6], 2, index=0),
        chunk("p", [7], 1, index=1),
        chunk("q", [8], 2, index=1),
        request=request,
    )
    assert assembler.mode is Mode.INCREMENTAL
    assert [step.text for step in steps] == ["x", "y", "p", "q"]


@pytest.mark.parametrize("incremental", [False, True])
def test_a_finish_event_may_bring_no_new_token(incremental: bool) -> None:
    last = chunk("", [], 2, finish=STOP) if incremental else chunk("ab", [5, 6], 2, finish=STOP)
    assembler, steps = feed(chunk("ab", [5, 6], 2), last)
    assert (steps[1].text, steps[1].ids) == ("", b"")
    assert (partial(assembler).text, partial(assembler).problem) == ("ab", None)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("logprobs", [None, []])
def test_an_abort_in_the_queue_repeats_the_text_and_one_id_only(
    incremental: bool, logprobs: Any
) -> None:
    second = chunk("bc", [6, 7], 3) if incremental else chunk("abc", [5, 6, 7], 3)
    last = chunk("abc", [7], 3, finish=ABORT, output_token_logprobs=logprobs)
    assembler, steps = feed(chunk("a", [5], 1), second, last)
    assert (steps[2].text, steps[2].ids, steps[2].tokens) == ("", b"", 3)
    answer = partial(assembler)
    assert (answer.text, unpack_ids(answer.ids)) == ("abc", [5, 6, 7])
    assert answer.problem is None
    assert answer.finish_reason == FinishReason(type="abort", message="Abort in waiting queue")


def test_an_abort_in_the_queue_after_one_token_is_understood_in_either_mode() -> None:
    assembler, steps = feed(chunk("a", [5], 1), chunk("a", [5], 1, finish=ABORT))
    assert (steps[1].text, partial(assembler).text) == ("", "a")
    assert (partial(assembler).problem, assembler.mode) == (None, Mode.UNKNOWN)


def test_text_that_an_abort_brings_on_top_is_new() -> None:
    _, steps = feed(chunk("a", [5, 6], 2), chunk("ab", [6], 2, finish=ABORT))
    assert [step.text for step in steps] == ["a", "b"]


@pytest.mark.parametrize("mode", list(Mode))
def test_an_abort_in_the_queue_may_bring_the_last_token(mode: Mode) -> None:
    second = {
        Mode.UNKNOWN: [],
        Mode.CUMULATIVE: [chunk("ab", [5, 6], 2)],
        Mode.INCREMENTAL: [chunk("b", [6], 2)],
    }[mode]
    text, total = ("abc", 3) if second else ("ac", 2)
    assembler, steps = feed(chunk("a", [5], 1), *second, chunk(text, [7], total, finish=ABORT))
    assert (steps[-1].text, unpack_ids(steps[-1].ids)) == ("c", [7])
    assert (partial(assembler).text, partial(assembler).problem) == (text, None)
    assert assembler.mode is mode


def test_an_abort_in_the_queue_keeps_what_was_told_of_the_prompt() -> None:
    assembler, _ = feed(
        chunk("a", [5], 1, prompt_tokens=9, cached_tokens=4),
        chunk("a", [5], 1, finish=ABORT),
    )
    assert (partial(assembler).prompt_tokens, partial(assembler).cached_tokens) == (9, 4)


def test_every_step_tells_what_was_cached_and_what_was_reasoning() -> None:
    _, steps = feed(
        chunk("a", [1], 1, cached_tokens=4, reasoning_tokens=1),
        chunk("ab", [1, 2], 2, cached_tokens=4, reasoning_tokens=2),
        chunk("ab", [2], 2, finish=ABORT),
    )
    told = [(step.tokens, step.cached_tokens, step.reasoning_tokens) for step in steps]
    assert told == [(1, 4, 1), (2, 4, 2), (2, 4, 2)]


def test_a_worker_that_does_not_tell_what_was_cached_had_nothing() -> None:
    _, (step,) = feed(chunk("a", [1], 1))
    assert (step.cached_tokens, step.reasoning_tokens) == (0, 0)


def test_a_running_abort_ends_an_incremental_stream_like_any_event() -> None:
    finish = {"type": "abort", "message": "Aborted"}
    assembler, steps = feed(chunk("a", [5], 1), chunk("a", [6], 2, finish=finish, prompt_tokens=3))
    assert [step.text for step in steps] == ["a", "a"]
    assert partial(assembler).text == "aa"


def test_an_abort_that_speaks_of_tokens_never_seen_is_a_problem() -> None:
    assembler, _ = feed(chunk("abc", [7], 3, finish=ABORT))
    assert partial(assembler).problem is not None


@pytest.mark.parametrize(
    "second",
    [
        chunk("ab", [9, 6], 2),
        chunk("x", [5, 6], 2),
        chunk("ab", [5, 6], 9),
        chunk("ab", [5, 6], 2, output_token_logprobs=None),
        chunk("ab", [5, 6], 2, output_token_logprobs=[[-5.0, 5, None]]),
        chunk("ab", [5, 6], 2, output_token_logprobs=[[-5.0, 5, None], [None, 6, None]]),
        chunk("ab", [5, 6], 2, output_token_logprobs=[[-4.0, 5, None], [-6.0, 6, None]]),
    ],
    ids=["ids", "text", "total", "logprobs", "count", "null", "logprob"],
)
def test_what_cannot_be_captured_is_passed_on_and_noted(second: dict[str, Any]) -> None:
    assembler, steps = feed(chunk("a", [5], 1), second)
    assert json.loads(steps[1].raw[6:]) == second
    assert partial(assembler).problem is not None


@pytest.mark.parametrize(
    ("second", "third"),
    [
        (chunk("ab", [5, 6], 2), chunk("abc", [5, 6, 7], 9)),
        (chunk("b", [6], 2), chunk("c", [7], 9)),
    ],
    ids=["cumulative", "incremental"],
)
def test_tokens_that_do_not_add_up_are_not_believed(
    second: dict[str, Any], third: dict[str, Any]
) -> None:
    assembler, steps = feed(chunk("a", [5], 1), second, third)
    assert (steps[2].text, steps[2].ids, steps[2].tokens) == ("c", b"", 2)
    assert partial(assembler).problem is not None


def test_without_output_ids_the_logprobs_name_the_tokens() -> None:
    values = [chunk("a", [5], 1), chunk("ab", [5, 6], 2)]
    for value in values:
        del value["output_ids"]
    assembler, _ = feed(*values)
    assert partial(assembler).ids == pack_ids([5, 6])
    assert partial(assembler).problem is None


def test_without_a_total_the_listed_ids_are_counted() -> None:
    assembler, _ = feed(chunk("a", [5], None), chunk("ab", [5, 6], None))
    assert (partial(assembler).text, partial(assembler).problem) == ("ab", None)


def test_top_logprobs_come_in_pieces_and_as_a_whole() -> None:
    first, second = [[-0.5, 5, "a, ]"]], [[-0.25, 6, None], [-2.0, 7, None]]
    assembler, steps = feed(
        chunk("a", [5], 1, output_top_logprobs=[first]),
        chunk("ab", [5, 6], 2, output_top_logprobs=[first, second]),
    )
    assert [json.loads(step.top_logprobs) for step in steps] == [[first], [second]]
    assert json.loads(partial(assembler).top_logprobs) == [first, second]


def test_a_worker_without_text_leaves_it_out() -> None:
    assembler, steps = feed(chunk(None, [5], 1), chunk(None, [5, 6], 2))
    assert partial(assembler).text is None
    assert steps[1].text == ""


@pytest.mark.parametrize(
    "value",
    [
        b"garbage",
        b"[]",
        b"{}",
        {"text": "a", "meta_info": None},
        {"text": 5, "meta_info": {}},
        {"text": "a", "output_ids": ["x"], "meta_info": {"completion_tokens": 1}},
        {"text": "a", "meta_info": {"output_token_logprobs": 7}},
        chunk("a", [5], 1, index=1),
        chunk("a", [5], 1, index=-1),
    ],
)
def test_what_breaks_the_frame_is_the_workers_fault(value: Any) -> None:
    with pytest.raises(WorkerError):
        feed(value)


def test_an_event_of_a_batch_needs_an_index() -> None:
    with pytest.raises(WorkerError):
        feed(chunk("a", [5], 1), request=parse_generate(b'{"text":["a","b"]}'))


@pytest.mark.parametrize("last", [chunk("ab", [5, 6], 2), chunk("a", [5], 1, finish=STOP)])
def test_nothing_may_follow_the_end_of_a_sample(last: dict[str, Any]) -> None:
    with pytest.raises(WorkerError):
        feed(chunk("a", [5], 1, finish=STOP), last)


def test_nothing_may_follow_the_end_of_a_stream() -> None:
    with pytest.raises(WorkerError):
        feed(b"[DONE]", b"[DONE]")


def test_an_error_event_is_an_error_and_passes_untouched() -> None:
    data = {"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}
    assembler, (step, done) = feed(data, b"[DONE]", request=UNASKED)
    assert isinstance(step.error, ClientError)
    assert step.error.message == "too long"
    assert step.raw == sse.encode(json.dumps(data).encode())
    assert done.done
    assert assembler.partial(0) is None


def test_an_error_event_without_a_number_is_the_workers_fault() -> None:
    _, (step,) = feed({"error": "boom"})
    assert isinstance(step.error, WorkerError)
    assert (step.error.message, step.error.status) == ("boom", 500)


CUTS = st.lists(st.integers(1, 4), min_size=1, max_size=8)


@given(CUTS, st.booleans(), st.booleans())
def test_any_coalescing_of_either_mode_gives_the_same_answer(
    cuts: list[int], incremental: bool, asked: bool
) -> None:
    ids = list(range(10, 10 + sum(cuts)))
    assembler = StreamAssembler(ASKED if asked else UNASKED)
    texts, end = [], 0
    for cut in cuts:
        start, end = end, end + cut
        shown = ids[start:end] if incremental else ids[:end]
        finish = STOP if end == len(ids) else None
        value = chunk("".join(map(chr, shown)), shown, end, finish=finish)
        texts += [step.text for step in assembler.receive(event(value))]
    answer = partial(assembler)
    assert unpack_ids(answer.ids) == ids
    assert unpack_logprobs(answer.logprobs, len(ids)) == [-float(token) for token in ids]
    assert "".join(texts) == answer.text == "".join(map(chr, ids))
    assert answer.problem is None
    assert assembler.finished


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b'{"meta_info":{}}', b"[DONE]"])))
def test_any_events_are_steps_or_the_workers_fault(datas: list[bytes]) -> None:
    assembler = StreamAssembler(UNASKED)
    for data in datas:
        try:
            assembler.receive(sse.Event(data=data, raw=data))
        except WorkerError:
            return
