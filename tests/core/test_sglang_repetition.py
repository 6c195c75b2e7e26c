"""What an event repeats is cut out before it is parsed, and nobody can tell but by the time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core import sse
from slime_core.errors import WorkerError
from slime_core.sglang import StreamAssembler, StreamStep, parse_generate
from slime_core.sglang.repetition import Repetition
from slime_core.sglang.stream_event import read_event

ASKED = parse_generate(b'{"text":"a","return_logprob":true,"stream":true}')
UNASKED = parse_generate(b'{"text":"a","stream":true}')
TWO = parse_generate(b'{"text":["a","b"],"stream":true,"return_logprob":[false,true]}')
COMPACT, SPACED = (",", ":"), (", ", ": ")
PIECES = ["a", "é", '"', "\\", "\n", "\U0001f642", '","output_ids":[', "]]", "_logprobs", ""]

pieces = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8)


def events(
    said: list[str],
    *,
    separators: tuple[str, str] = COMPACT,
    top: bool = False,
    ascii_only: bool = False,
    index: int | None = None,
    text_from: int = 0,
    top_from: int = 0,
) -> list[sse.Event]:
    """A cumulative stream with one token for each piece; texts and top logprobs may begin late."""
    told: list[sse.Event] = []
    for count in range(1, len(said) + 1):
        ids = list(range(10, 10 + count))
        meta: dict[str, Any] = {
            "id": "r",
            "finish_reason": {"type": "stop", "matched": 2} if count == len(said) else None,
            "prompt_tokens": 3,
            "weight_version": "1",
            "input_token_logprobs": [],
            "output_token_logprobs": [[-token / 7, token, "],[ "] for token in ids],
            "completion_tokens": count,
        }
        if top and count > top_from:
            meta["output_top_logprobs"] = [[[-token / 7, token, None]] for token in ids]
        text = "".join(said[:count]) if count > text_from else None
        value: dict[str, Any] = {"text": text, "output_ids": ids}
        value |= {"meta_info": meta} | ({} if index is None else {"index": index})
        words = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
        told += sse.Decoder().receive(sse.encode(words.encode()))
    return told


def steps(assembler: StreamAssembler, told: list[sse.Event]) -> list[StreamStep]:
    return [step for event in told for step in assembler.receive(event)]


def whole(request: Any, told: list[sse.Event]) -> tuple[StreamAssembler, list[StreamStep]]:
    """The same by an assembler that cuts nothing."""
    assembler = StreamAssembler(request)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repetition, "after", lambda *_, **__: None)
        return assembler, steps(assembler, told)


@given(pieces, st.integers(0, 4), st.integers(0, 4))
def test_what_begins_late_is_not_taken_for_new_at_every_event(
    said: list[str], text_from: int, top_from: int
) -> None:
    told = events(said, top=True, text_from=text_from, top_from=top_from)
    assembler = StreamAssembler(ASKED)
    plain, expected = whole(ASKED, told)
    assert steps(assembler, told) == expected
    assert assembler.partial(0) == plain.partial(0)


@pytest.mark.parametrize("more", [b"", b","])
def test_an_event_that_breaks_off_behind_what_it_repeats_is_the_workers_fault(more: bytes) -> None:
    told = events(["a", "b", "c", "d"])
    assembler = StreamAssembler(ASKED)
    steps(assembler, told[:3])
    data = told[2].data
    cut = data[: data.index(b"10,11,12") + len(b"10,11,12")] + more
    with pytest.raises(WorkerError):
        assembler.receive(sse.Event(data=cut, raw=sse.encode(cut)))


def test_of_equal_keys_the_last_counts_also_where_the_first_repeats() -> None:
    told = events(["a", "b", "c", "d"])
    twice = told[2].data.replace(
        b'"output_ids":[10,11,12]', b'"output_ids":[10,11,12],"output_ids":[7]'
    )
    told[2:] = sse.Decoder().receive(sse.encode(twice))
    assembler = StreamAssembler(ASKED)
    plain, _ = whole(ASKED, told)
    steps(assembler, told)
    answer, expected = assembler.partial(0), plain.partial(0)
    assert answer is not None
    assert expected is not None
    assert answer.problem == expected.problem is not None


@given(pieces, st.sampled_from([COMPACT, SPACED]), st.booleans(), st.booleans(), st.booleans())
def test_a_stream_that_is_cut_reads_like_one_that_is_not(
    said: list[str], separators: tuple[str, str], top: bool, ascii_only: bool, asked: bool
) -> None:
    told = events(said, separators=separators, top=top, ascii_only=ascii_only)
    request = ASKED if asked else UNASKED
    assembler = StreamAssembler(request)
    plain, expected = whole(request, told)
    assert steps(assembler, told) == expected
    assert assembler.partial(0) == plain.partial(0)
    answer = assembler.partial(0)
    assert answer is not None
    assert answer.problem is None


@given(pieces, pieces, st.randoms(use_true_random=False))
def test_samples_that_interleave_are_cut_each_by_itself(
    first: list[str], second: list[str], order: Any
) -> None:
    waiting = [events(first, index=0), events(second, index=1)]
    told = []
    while any(waiting):
        told.append(order.choice([one for one in waiting if one]).pop(0))
    assembler = StreamAssembler(TWO)
    plain, expected = whole(TWO, told)
    assert steps(assembler, told) == expected
    assert [assembler.partial(0), assembler.partial(1)] == [plain.partial(0), plain.partial(1)]


@pytest.mark.parametrize("request_", [ASKED, UNASKED], ids=["logprobs", "no logprobs"])
@pytest.mark.parametrize("separators", [COMPACT, SPACED], ids=["compact", "spaced"])
def test_what_is_parsed_of_a_long_stream_does_not_grow_with_what_came(
    request_: Any, separators: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []

    def counting(data: bytes) -> Any:
        parsed.append(len(data))
        return read_event(data)

    monkeypatch.setattr("slime_core.sglang.stream.read_event", counting)
    steps(StreamAssembler(request_), told := events(["word "] * 300, separators=separators))
    assert len(parsed) == len(told)
    assert max(parsed[3:]) < 400 < min(len(event.data) for event in told[100:]) / 10


def changed(event: sse.Event, old: bytes, new: bytes) -> sse.Event:
    assert event.data.count(old) == 1, event.data
    return sse.Event(data=event.data.replace(old, new), raw=event.raw.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"abcd"', b'"aXcd"'),
        (b'"output_ids":[10,11,', b'"output_ids":[10,99,'),
        (b"10,11,12,13]", b"10,11,123,13]"),
        (b"[10,11,12,13]", b"[10,11,12]"),
        (b'"completion_tokens":4', b'"completion_tokens":9'),
        (b'[[-1.4285714285714286,10,"],[ "]', b'[[-1.5,10,"],[ "]'),
        (b'"output_token_logprobs":[', b'"other":['),
    ],
    ids=["text", "id", "longer id", "fewer ids", "total", "logprob", "no logprobs"],
)
def test_an_event_that_changes_what_was_sent_is_read_whole(old: bytes, new: bytes) -> None:
    told = events(list("abcdef"))
    told[3] = changed(told[3], old, new)
    assembler = StreamAssembler(ASKED)
    plain, expected = whole(ASKED, told)
    assert steps(assembler, told) == expected
    assert assembler.partial(0) == plain.partial(0)
    answer = assembler.partial(0)
    assert answer is not None
    assert answer.problem is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[10,11,12,13]", b"[10,11,12,]"),
        (b'"meta_info":{', b'"meta_info":{,'),
        (b'"output_ids":[10,11,12,13]', b'"output_ids":[10,11,12,"x"]'),
        (b'"completion_tokens":4', b'"completion_tokens":"4"'),
    ],
    ids=["comma", "no JSON", "no id", "no total"],
)
def test_what_is_wrong_with_an_event_is_said_of_all_of_it(old: bytes, new: bytes) -> None:
    told = events(list("abcdef"))[:4]
    told[3] = changed(told[3], old, new)
    with pytest.raises(WorkerError) as expected:
        whole(ASKED, told)
    with pytest.raises(WorkerError) as raised:
        steps(StreamAssembler(ASKED), told)
    assert raised.value.message == expected.value.message


def test_nothing_may_follow_the_end_of_a_sample_that_was_cut() -> None:
    told = events(list("abcdef"))
    with pytest.raises(WorkerError, match="after its end"):
        steps(StreamAssembler(ASKED), [*told, told[-1]])


def test_an_error_event_may_end_a_stream_that_is_cut() -> None:
    told = events(list("abcdef"))[:5]
    told += sse.Decoder().receive(sse.encode(b'{"error":{"message":"boom","code":500}}'))
    *_, last = steps(StreamAssembler(ASKED), told)
    assert last.error is not None
