"""Answers of ``/generate``: exact tokens out of them, and the client's view."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import WorkerError
from slime_core.sglang import (
    Answer,
    FinishReason,
    parse_answer,
    parse_generate,
    strip_logprobs,
)
from slime_core.types import pack_ids, unpack_ids, unpack_logprobs
from slime_core.versions import VersionRun

DATA = Path(__file__).parent / "data" / "sglang"
ASKED = parse_generate(b'{"text":"a","return_logprob":true}')
UNASKED = parse_generate(b'{"text":"a"}')


def golden(name: str) -> bytes:
    return (DATA / name).read_bytes().strip()


def body(text: str | None = "x", ids: Any = (5, 6), **meta: Any) -> dict[str, Any]:
    listed = list(ids)
    return {
        "text": text,
        "output_ids": listed,
        "meta_info": {
            "id": "r",
            "finish_reason": {"type": "length", "length": 2},
            "prompt_tokens": 3,
            "completion_tokens": len(listed),
            "weight_version": "7",
            "output_token_logprobs": [[-0.5, token, None] for token in listed],
            **meta,
        },
    }


def answer(value: dict[str, Any]) -> Answer:
    (only,) = parse_answer(json.dumps(value).encode(), ASKED)
    return only


def test_the_golden_answer_is_read_in_full() -> None:
    (read,) = parse_answer(golden("answer.json"), ASKED)
    assert read.text == " Paris. 🙂"
    assert unpack_ids(read.ids) == [12366, 13, 2]
    assert unpack_logprobs(read.logprobs, 3) == [-0.12, -1e-07, -0.30000001192092896]
    assert read.finish_reason == FinishReason(type="stop", matched=2)
    assert read.versions == (
        VersionRun(version="11", start=0, end=1),
        VersionRun(version="12", start=1, end=3),
    )
    assert (read.id, read.weight_version) == ("r-7", "12")
    assert (read.prompt_tokens, read.completion_tokens, read.cached_tokens) == (6, 3, 4)
    assert read.extras == {"routed_experts": b'"AAECAw=="'}
    assert read.problem is None


def test_a_client_that_did_not_ask_sees_all_but_the_logprobs() -> None:
    assert strip_logprobs(golden("answer.json"), UNASKED) == golden("answer_stripped.json")


def test_a_client_that_asked_sees_the_very_bytes() -> None:
    spaced = b' {"meta_info" : { "x":1.0 } }\n'
    assert strip_logprobs(spaced, ASKED) is spaced


def test_only_the_samples_not_asked_for_are_stripped() -> None:
    request = parse_generate(b'{"text":["a","b"],"return_logprob":[false,true]}')
    values = [body(input_token_logprobs=[], output_top_logprobs=None), body()]
    first, second = json.loads(strip_logprobs(json.dumps(values).encode(), request))
    assert second == values[1]
    for name in ("output_token_logprobs", "input_token_logprobs", "output_top_logprobs"):
        del values[0]["meta_info"][name]
    assert first == values[0]


def test_a_sampling_mask_is_not_a_logprob() -> None:
    value = body(output_token_sampling_mask=[[1]])
    stripped = json.loads(strip_logprobs(json.dumps(value).encode(), UNASKED))
    assert stripped["meta_info"]["output_token_sampling_mask"] == [[1]]
    assert answer(value).extras == {"output_token_sampling_mask": b"[[1]]"}


@pytest.mark.parametrize(
    "wire",
    [
        '{"meta_info":{"output_token_logprobs":[],"id":"r"}}',
        '{"meta_info":{"id":"r","output_token_logprobs":[]}}',
        '{"meta_info":{"output_token_logprobs":[]}}',
        '{"meta_info":{"output_token_logprobs" : [], "id":"r"}}',
        '{"meta_info":{"output_token_logprobs":[],"x":{"output_token_logprobs":[]}}}',
        '{"x":{"output_token_logprobs":[]},"meta_info":{"output_token_logprobs":[]}}',
        '{"output_token_logprobs":[1],"meta_info":{"output_token_logprobs":[]}}',
        '{"meta_info":{"a":1, "input_token_logprobs":[] , "output_token_logprobs":[], "b":2 }}',
        r'{"text":"\"output_token_logprobs\":[],","meta_info":{"output_token_logprobs":[]}}',
        r'{"meta_info":{"output_token_logp\u0072obs":[],"id":"r"}}',
    ],
)
def test_logprobs_go_wherever_they_stand_and_nothing_else(wire: str) -> None:
    expected = json.loads(wire)
    for name in ("output_token_logprobs", "input_token_logprobs"):
        expected["meta_info"].pop(name, None)
    assert json.loads(strip_logprobs(wire.encode(), UNASKED)) == expected


@pytest.mark.parametrize("garbage", [b"", b"[]", b'{"text":"x"}', b'{"meta_info":[]}'])
def test_what_is_no_answer_cannot_be_stripped(garbage: bytes) -> None:
    with pytest.raises(WorkerError):
        strip_logprobs(garbage, UNASKED)
    with pytest.raises(WorkerError):
        strip_logprobs(b"[" + garbage + b"]", parse_generate(b'{"text":["a"]}'))


def test_an_array_is_read_in_order() -> None:
    request = parse_generate(b'{"text":"a","sampling_params":{"n":2}}')
    read = parse_answer(json.dumps([body("x"), body("y")]).encode(), request)
    assert [each.text for each in read] == ["x", "y"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b'{"text":"x"}',
        b'{"text":1,"meta_info":{}}',
        b'{"text":"x","meta_info":[]}',
        b'{"text":"x","output_ids":["a"],"meta_info":{}}',
        b'{"text":"x","output_ids":[-1],"meta_info":{}}',
        b'{"text":"x","output_ids":[4294967296],"meta_info":{}}',
        b'{"text":"x","meta_info":{"output_token_logprobs":[[1]]}}',
        b'{"text":"x","meta_info":{"finish_reason":"stop"}}',
        b'{"text":"x","meta_info":{"completion_tokens":"2"}}',
        b'{"text":"x","meta_info":{"weight_version":{}}}',
        b'{"error":{"message":"late"}}',
        b'{"text":"x","meta_info":{"id":"r"}',
    ],
)
def test_garbage_is_the_workers_fault(garbage: bytes) -> None:
    with pytest.raises(WorkerError) as caught:
        parse_answer(garbage, ASKED)
    assert (caught.value.code, caught.value.status) == ("bad_worker_answer", 502)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_answers_is_the_workers_fault(count: int) -> None:
    request = parse_generate(b'{"text":["a","b"]}')
    with pytest.raises(WorkerError):
        parse_answer(json.dumps([body()] * count).encode(), request)


def test_ids_come_from_the_logprobs_where_there_are_no_output_ids() -> None:
    value = body()
    del value["output_ids"]
    assert answer(value).ids == pack_ids([5, 6])
    assert answer(value).problem is None


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"output_token_logprobs": [[-0.5, 5, None]]}, "same tokens"),
        ({"output_token_logprobs": [[-0.5, 5, None], [-0.5, 9, None]]}, "same tokens"),
        ({"output_token_logprobs": None}, "no logprobs"),
        ({"output_token_logprobs": [[-0.5, 5, None], [None, 6, None]]}, "no logprob"),
        ({"completion_tokens": 5}, "counts 5"),
        ({"finish_reason": None}, "finish reason"),
    ],
)
def test_what_cannot_be_captured_exactly_is_delivered_and_says_why(
    meta: dict[str, Any], words: str
) -> None:
    read = answer(body(**meta))
    assert read.text == "x"
    assert read.ids == pack_ids([5, 6])
    assert read.problem is not None
    assert words in read.problem


def test_unknown_logprobs_are_not_packed() -> None:
    assert answer(body(output_token_logprobs=[[None, 5, None], [-0.5, 6, None]])).logprobs == b""


def test_an_abort_in_the_queue_has_no_tokens_and_no_problem() -> None:
    value = {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "id": "r",
            "finish_reason": {"type": "abort", "message": "Abort in waiting queue"},
            "completion_tokens": 0,
            "weight_version": "7",
        },
    }
    read = answer(value)
    assert read.problem is None
    assert read.finish_reason == FinishReason(type="abort", message="Abort in waiting queue")
    assert (read.ids, read.versions, read.prompt_tokens) == (b"", (), None)


def test_an_integer_version_becomes_its_decimal_string() -> None:
    read = answer(body(weight_version=12))
    assert read.weight_version == "12"
    assert read.versions == (VersionRun(version="12", start=0, end=2),)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1)],
        [(0, 1), (1, 3)],
        [(1, 2)],
        [(0, 1), (0, 2)],
        [(0, 3), (3, 2)],
    ],
)
def test_spans_that_contradict_the_tokens_are_a_problem(spans: Any) -> None:
    told = [{"version": "6", "start": start, "end": end} for start, end in spans]
    problem = answer(body(weight_versions=told)).problem
    assert problem is not None
    assert "version runs" in problem


def test_a_span_of_no_token_contradicts_nothing() -> None:
    told = [{"version": "6", "start": 0, "end": 0}, {"version": "7", "start": 0, "end": 2}]
    read = answer(body(weight_versions=told))
    assert (read.problem, read.versions) == (None, (VersionRun("7", 0, 2),))


@pytest.mark.parametrize("spans", [[], "12", [{"version": 1}]])
def test_without_readable_spans_the_one_version_holds_for_all(spans: Any) -> None:
    read = answer(body(weight_versions=spans))
    assert read.problem is None
    assert read.versions == (VersionRun(version="7", start=0, end=2),)


def test_without_any_version_there_are_no_spans() -> None:
    read = answer(body(weight_version=None))
    assert (read.weight_version, read.versions) == (None, ())


@pytest.mark.parametrize("matched", [3, [3, 4], "\n\n", None])
def test_what_stopped_a_generation_is_kept(matched: Any) -> None:
    reason = answer(body(finish_reason={"type": "stop", "matched": matched})).finish_reason
    assert reason is not None
    assert reason.matched == (tuple(matched) if isinstance(matched, list) else matched)


def test_a_worker_that_does_not_detokenise_gives_no_text() -> None:
    value = body()
    del value["text"]
    assert answer(value).text is None


@given(
    st.lists(
        st.tuples(
            st.floats(max_value=0, allow_nan=False, allow_infinity=False),
            st.integers(0, 2**31 - 1),
        ),
        max_size=20,
    )
)
def test_ids_and_logprobs_come_out_as_they_went_in(tokens: list[tuple[float, int]]) -> None:
    triples = [[logprob, token, None] for logprob, token in tokens]
    read = answer(body(ids=[token for _, token in tokens], output_token_logprobs=triples))
    assert unpack_ids(read.ids) == [token for _, token in tokens]
    assert unpack_logprobs(read.logprobs, len(tokens)) == [logprob for logprob, _ in tokens]


@given(st.binary(max_size=60), st.integers(0, 700), st.integers(0, 60))
def test_a_damaged_answer_is_read_or_the_workers_fault(
    noise: bytes, start: int, length: int
) -> None:
    whole = golden("answer.json")
    damaged = whole[:start] + noise + whole[start + length :]
    try:
        parse_answer(damaged, UNASKED)
        strip_logprobs(damaged, UNASKED)
    except WorkerError:
        pass
