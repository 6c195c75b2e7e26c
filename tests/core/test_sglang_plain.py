"""Plain events are read in one go: steps, answers and errors are those of reading them whole."""

import json
from typing import Any

import msgspec
import pytest

from slime_core import sse
from slime_core.errors import WorkerError
from slime_core.sglang import StreamAssembler, parse_generate

ONE = parse_generate(b'{"text":"a","return_logprob":true,"stream":true}')
HIDDEN = parse_generate(b'{"text":"a","stream":true}')
TWO = parse_generate(b'{"text":"a","return_logprob":true,"stream":true,"sampling_params":{"n":2}}')


class Slow(StreamAssembler):
    """Reads every event whole."""

    def _plain(self, event: sse.Event) -> None:
        return None


def chunk(ids: list[int], total: int, **meta: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": "r",
        "finish_reason": None,
        "completion_tokens": total,
        "weight_version": "1",
        "output_token_logprobs": [[-0.5 * token, token, None] for token in ids],
    }
    told = {name: value for name, value in (told | meta).items() if value != "left out"}
    return {"text": f"<{total}>", "output_ids": ids, "meta_info": told}


START = (chunk([1], 1), chunk([2, 3], 3))
END = {"finish_reason": {"type": "length", "length": 9}}
ODD: dict[str, Any] = {
    "plain": chunk([4, 5], 5),
    "without tokens": chunk([], 3),
    "as integers": chunk([4], 4, output_token_logprobs=[[-1, 4]]),
    "a logprob that is null": chunk([4], 4, output_token_logprobs=[[None, 4, None]]),
    "other tokens": chunk([4, 5], 5, output_token_logprobs=[[-1.0, 4, None], [-2.0, 6, None]]),
    "a logprob too few": chunk([4, 5], 5, output_token_logprobs=[[-1.0, 4, None]]),
    "no logprobs": chunk([4, 5], 5, output_token_logprobs=None),
    "logprobs left out": chunk([4, 5], 5, output_token_logprobs="left out"),
    "logprobs that are none": chunk([4, 5], 5, output_token_logprobs={"a": 1}),
    "another total": chunk([4, 5], 6),
    "no total": chunk([4, 5], 5, completion_tokens=None),
    "all tokens again": chunk([1, 2, 3, 4], 4),
    "an id too large": chunk([2**32], 4),
    "an id below zero": chunk([-1], 4),
    "an id that is no integer": {**chunk([4], 4), "output_ids": [4.5]},
    "no ids": {**chunk([4], 4), "output_ids": None},
    "no text": {**chunk([4], 4), "text": None},
    "text left out": {"output_ids": [4], "meta_info": chunk([4], 4)["meta_info"]},
    "text that is none": {**chunk([4], 4), "text": 5},
    "the end": chunk([4, 5], 5, **END),
    "counts": chunk([4], 4, cached_tokens=7, reasoning_tokens=2),
    "counts that are null": chunk([4], 4, cached_tokens=None, reasoning_tokens=None),
    "a count that is none": chunk([4], 4, cached_tokens="7"),
    "another version": chunk([4], 4, weight_version="2"),
    "a version that is a number": chunk([4], 4, weight_version=2),
    "a version left out": chunk([4], 4, weight_version="left out"),
    "another version without tokens": chunk([], 3, weight_version="2"),
    "top logprobs": chunk([4], 4, output_top_logprobs=[[[-0.5, 4, None]]]),
    "top logprobs that are null": chunk([4], 4, output_top_logprobs=None),
    "an error": {"error": {"message": "no", "code": 400}},
    "an error beside": {**chunk([4], 4), "error": {"message": "no"}},
    "an error that is null": {**chunk([4], 4), "error": None},
    "its index": {**chunk([4], 4), "index": 0},
    "another index": {**chunk([4], 4), "index": 1},
    "an index below zero": {**chunk([4], 4), "index": -1},
    "no meta_info": {"text": "a", "output_ids": [4]},
    "no JSON": b"{",
    "not UTF-8": b'{"text":"\xff"}',
    "no object": [1],
    "done": b"[DONE]",
}


def events(values: tuple[Any, ...]) -> list[sse.Event]:
    wire = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return sse.Decoder().receive(b"".join(map(sse.encode, wire)))


def told(assembler: StreamAssembler, values: tuple[Any, ...]) -> list[Any]:
    """All that can be seen: each step or the words of an error, then what there is of samples."""
    seen: list[Any] = []
    for event in events(values):
        try:
            for step in assembler.receive(event):
                told = msgspec.structs.asdict(step)
                told["error"] = step.error and (type(step.error), step.error.message)
                seen.append(told)
        except WorkerError as error:
            seen.append(error.message)
    samples = range(len(assembler._samples))
    return [*seen, *map(assembler.partial, samples), assembler.finished, assembler.mode]


@pytest.mark.parametrize("odd", ODD)
def test_an_event_read_in_one_go_is_what_it_is_read_whole(odd: str) -> None:
    values = (*START, ODD[odd], chunk([8], 5 if odd == "plain" else 4), chunk([9], 6, **END))
    for asked in (ONE, HIDDEN):
        quick, slow = told(StreamAssembler(asked), values), told(Slow(asked), values)
        if asked is HIDDEN:  # what is left out is cut out, or the rest is joined anew
            quick, slow = map(_without_raw, (quick, slow))
        assert quick == slow


def _without_raw(seen: list[Any]) -> list[Any]:
    return [{**one, "raw": b""} if isinstance(one, dict) else one for one in seen]


@pytest.mark.parametrize("index", [None, 0, 1, 2])
def test_samples_in_turns_are_told_apart_in_one_go(index: int | None) -> None:
    def of(index: int | None, value: dict[str, Any]) -> dict[str, Any]:
        return value if index is None else {**value, "index": index}

    starts = tuple(of(sample, value) for value in START for sample in (0, 1))
    values = (*starts, of(index, chunk([4], 4)), of(1, chunk([5], 5)), of(0, chunk([5], 4, **END)))
    assert told(StreamAssembler(TWO), values) == told(Slow(TWO), values)


@pytest.mark.parametrize(
    "first",
    [{}, {"input_token_logprobs": []}, {"input_token_logprobs": [[None, 7, "]]"]]}],
)
@pytest.mark.parametrize(
    "last", [{}, {"output_token_logprobs_length": 1}, {"cached_tokens": 1}, {"x": "_logprobs"}]
)
@pytest.mark.parametrize("entry", [[-1.0, 4, None], [-1.0, 4, '"],['], [-1.0, 4, [[1]]]])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "spaced"])
def test_logprobs_that_were_not_asked_for_are_left_out_as_of_any_event(
    first: dict[str, Any], last: dict[str, Any], entry: list[Any], separators: tuple[str, str]
) -> None:
    odd = chunk([4], 4)
    odd["meta_info"] = {**first, **odd["meta_info"], "output_token_logprobs": [entry], **last}
    wire = [json.dumps(value, separators=separators).encode() for value in (*START, odd)]
    quick, slow = StreamAssembler(HIDDEN), Slow(HIDDEN)
    views = [
        [step.raw for data in wire for step in one.receive(*events((data,)))]
        for one in (quick, slow)
    ]
    plain = json.loads(views[0][2][6:])
    assert not [name for name in plain["meta_info"] if name.endswith("token_logprobs")]
    assert list(map(json.loads, (view[6:] for view in views[0]))) == list(
        map(json.loads, (view[6:] for view in views[1]))
    )


def test_plain_events_are_taken_once_it_is_known_that_they_repeat_nothing() -> None:
    assembler = StreamAssembler(ONE)
    (plain,) = events((ODD["plain"],))
    assert assembler.take_plain(plain) is None
    for event in events(START):
        assembler.receive(event)
    assert assembler.take_plain(plain) == plain.raw
