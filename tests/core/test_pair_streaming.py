"""The streams of a pair made one: by events, however the bytes come."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core import sse
from slime_core.disaggregation import StreamMerger, Wanted
from slime_core.errors import WorkerError

LOGPROBS = Wanted(logprobs=True)
EVERYTHING = Wanted(logprobs=True, routed_experts=True)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PREFILL = (
    b'data: {"text":"a","meta_info":{"id":"r","finish_reason":{"type":"length","length":0},'
    b'"input_token_logprobs":[[null,1,null],[-1.50e-07,2,null]],"routed_experts":"'
    + b64(b"prefill!").encode()
    + b'"}}\n\ndata: [DONE]\n\n'
)
DECODE = (
    b": ping\n\n"
    b'data: {"text":"a","meta_info":{"id":"r","finish_reason":null,"input_token_logprobs":[]}}\r\n'
    b"\r\n"
    b'data: {"text":"ab", "meta_info": {"finish_reason":{"type":"stop"}, '
    b'"input_token_logprobs":[ ], "routed_experts":"'
    + b64(b"........de").encode()
    + b'" }}\n\ndata: [DONE]\n\n'
)
MERGED = (
    b'data: {"text":"a","meta_info":{"id":"r","finish_reason":null,'
    b'"input_token_logprobs":[[null,1,null],[-1.50e-07,2,null]]}}\r\n\r\n'
    b'data: {"text":"ab", "meta_info": {"finish_reason":{"type":"stop"}, '
    b'"input_token_logprobs":[[null,1,null],[-1.50e-07,2,null]], "routed_experts":"'
    + b64(b"prefill!de").encode()
    + b'" }}\n\ndata: [DONE]\n\n'
)


def merge(decode: Iterable[bytes], prefill: Iterable[bytes], wanted: Wanted) -> bytes:
    """All of prefill first, then decode piece by piece."""
    merger = StreamMerger(wanted)
    decoder = sse.Decoder()
    for piece in prefill:
        for event in decoder.receive(piece):
            merger.prefill(event)
    merger.prefill_ended()
    decoder = sse.Decoder()
    shown = []
    for piece in decode:
        for event in decoder.receive(piece):
            merged = merger.merged(event)
            assert merged is not None
            shown.append(merged)
    decoder.close()
    return b"".join(shown)


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[place : place + 1] for place in range(len(data)))


def test_a_golden_stream_read_whole() -> None:
    assert merge([DECODE], [PREFILL], EVERYTHING) == MERGED


def test_a_golden_stream_read_byte_by_byte() -> None:
    assert merge(bytewise(DECODE), bytewise(PREFILL), EVERYTHING) == MERGED


@given(chance=st.randoms(use_true_random=False))
def test_a_golden_stream_split_anywhere(chance: random.Random) -> None:
    def pieces(data: bytes) -> Iterator[bytes]:
        while data:
            size = chance.randint(1, 200)
            yield data[:size]
            data = data[size:]

    assert merge(pieces(DECODE), pieces(PREFILL), EVERYTHING) == MERGED


def event(**fields: Any) -> sse.Event:
    (one,) = sse.Decoder().receive(sse.encode(json.dumps(fields).encode()))
    return one


def meta(index: int, finish: str | None = None, **more: Any) -> sse.Event:
    told = {"id": f"r_{index}", "finish_reason": finish and {"type": finish}} | more
    return event(index=index, meta_info=told)


def shown_meta(merger: StreamMerger, shown: sse.Event) -> dict[str, Any]:
    merged = merger.merged(shown)
    assert merged is not None
    value: dict[str, Any] = json.loads(merged.removeprefix(b"data: "))["meta_info"]
    return value


def test_samples_of_a_batch_get_their_own_prompt_s_logprobs_as_soon_as_it_is_computed() -> None:
    merger = StreamMerger(LOGPROBS)
    merger.prefill(meta(1, "length", input_token_logprobs=["one"]))
    assert merger.merged(meta(0, input_token_logprobs=[])) is None
    assert shown_meta(merger, meta(1, input_token_logprobs=[]))["input_token_logprobs"] == ["one"]
    merger.prefill(meta(0, "length", input_token_logprobs=["zero"]))
    assert shown_meta(merger, meta(0, input_token_logprobs=[]))["input_token_logprobs"] == ["zero"]


def test_an_event_without_anything_to_merge_does_not_wait_and_keeps_its_bytes() -> None:
    merger = StreamMerger(Wanted(routed_experts=True))
    plain = meta(0, input_token_logprobs=[])
    assert merger.merged(plain) == plain.raw
    assert merger.merged(meta(0, "stop", routed_experts="AAAA")) is None


def test_nothing_waits_where_nothing_is_merged() -> None:
    merger = StreamMerger(Wanted())
    plain = meta(0, "stop", input_token_logprobs=[], routed_experts="AAAA")
    assert merger.merged(plain) == plain.raw


@pytest.mark.parametrize("data", [b"[DONE]", b'{"error":{"message":"m"}}', b"no json", b"7"])
def test_what_is_no_answer_passes(data: bytes) -> None:
    (told,) = sse.Decoder().receive(sse.encode(data))
    assert StreamMerger(EVERYTHING).merged(told) == told.raw


def test_experts_beside_a_chat_s_choices_wait_for_the_end_of_prefill() -> None:
    merger = StreamMerger(EVERYTHING)
    merger.prefill(event(choices=[], sglext={"routed_experts": b64(b"aa")}))
    last = event(choices=[], sglext={"routed_experts": b64(b"..b")})
    assert merger.merged(last) is None
    merger.prefill_ended()
    shown = merger.merged(last)
    assert shown is not None
    assert json.loads(shown.removeprefix(b"data: "))["sglext"]["routed_experts"] == b64(b"aab")


def test_what_prefill_never_told_is_its_fault() -> None:
    merger = StreamMerger(LOGPROBS)
    merger.prefill_ended()
    with pytest.raises(WorkerError) as caught:
        merger.merged(meta(0, input_token_logprobs=[]))
    assert caught.value.code == "prefill_error"


@pytest.mark.parametrize("who", ["prefill", "decode"])
def test_an_aborted_sample_may_lack_prefill_s_part(who: str) -> None:
    merger = StreamMerger(LOGPROBS)
    merger.prefill(meta(0, "abort" if who == "prefill" else "length"))
    merger.prefill_ended()
    last = meta(0, "abort" if who == "decode" else "stop", input_token_logprobs=[])
    assert merger.merged(last) == last.raw


def test_an_aborted_sample_does_not_wait_for_prefill() -> None:
    last = meta(0, "abort", input_token_logprobs=[])
    assert StreamMerger(LOGPROBS).merged(last) == last.raw


def test_a_name_and_comments_of_an_event_are_kept() -> None:
    merger = StreamMerger(LOGPROBS)
    merger.prefill(meta(0, "length", input_token_logprobs=[1]))
    raw = b'event: e\n: c\ndata: {"meta_info":{"input_token_logprobs":[]}}\n\n'
    (told,) = sse.Decoder().receive(raw)
    assert merger.merged(told) == raw.replace(b"[]", b"[1]")


def test_an_event_of_several_lines_is_written_anew() -> None:
    merger = StreamMerger(LOGPROBS)
    merger.prefill(meta(0, "length", input_token_logprobs=[1]))
    (told,) = sse.Decoder().receive(b'data: {"meta_info":\ndata: {"input_token_logprobs":[]}}\n\n')
    assert merger.merged(told) == (b'data: {"meta_info":\ndata: {"input_token_logprobs":[1]}}\n\n')
