"""The whole answers of a pair made one."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.disaggregation import Endings, Wanted, endings, merge_answers
from slime_core.errors import WorkerError

LOGPROBS = Wanted(logprobs=True)
EXPERTS = Wanted(routed_experts=True)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def answer(**meta: Any) -> dict[str, Any]:
    return {"text": "x", "meta_info": {"id": "r", "finish_reason": {"type": "stop"}} | meta}


def merged(decode: Any, prefill: Any, wanted: Wanted) -> Any:
    whole = merge_answers(json.dumps(decode).encode(), json.dumps(prefill).encode(), wanted)
    return json.loads(whole)


def test_logprobs_of_the_prompt_stand_before_decode_s_and_all_bytes_stay() -> None:
    decode = (
        b'{"text":"a\\/b", "meta_info" : {"id":"r","input_token_logprobs": [ ] ,'
        b'"input_top_logprobs":[],"input_token_ids_logprobs":[[[-3e-7,5,null]]],'
        b'"output_token_logprobs":[[-1e-07,9,null]],"e2e_latency":0.10} ,"new":{"b":1,"a":2}}'
    )
    prefill = (
        b'{"text":"a","meta_info":{"input_token_logprobs":[[null,1,null],[-1.50E-7,2,null]],'
        b'"input_top_logprobs":[null,[[-0.10,2,null]]],"input_token_ids_logprobs":[null]}}'
    )
    assert merge_answers(decode, prefill, LOGPROBS) == (
        b'{"text":"a\\/b", "meta_info" : {"id":"r",'
        b'"input_token_logprobs": [[null,1,null],[-1.50E-7,2,null]] ,'
        b'"input_top_logprobs":[null,[[-0.10,2,null]]],'
        b'"input_token_ids_logprobs":[null,[[-3e-7,5,null]]],'
        b'"output_token_logprobs":[[-1e-07,9,null]],"e2e_latency":0.10} ,"new":{"b":1,"a":2}}'
    )


def test_what_was_not_asked_for_is_not_touched() -> None:
    decode = json.dumps(answer(input_token_logprobs=[], routed_experts="AAAA")).encode()
    prefill = json.dumps(answer(input_token_logprobs=[[None, 1, None]])).encode()
    assert merge_answers(decode, prefill, Wanted()) is decode
    assert json.loads(merge_answers(decode, prefill, LOGPROBS))["meta_info"]["routed_experts"]


@pytest.mark.parametrize("name", ["routed_experts", "indexer_topk"])
@pytest.mark.parametrize("place", ["meta_info", "sglext"])
def test_rows_of_the_prompt_are_prefill_s_and_the_others_decode_s(name: str, place: str) -> None:
    decode = {place: {name: b64(b"\0" * 8 + b"decode")}}
    prefill = {place: {name: b64(b"prefill!")}}
    wanted = Wanted(**{name: True})
    whole = merged(decode, prefill, wanted)
    assert base64.b64decode(whole[place][name]) == b"prefill!decode"


def test_experts_of_a_chat_s_samples_are_merged_one_by_one() -> None:
    decode = {"sglext": {"routed_experts": [b64(b"..1"), b64(b"..2"), None]}}
    prefill = {"sglext": {"routed_experts": [b64(b"aa"), b64(b"bb"), None]}}
    rows = merged(decode, prefill, EXPERTS)["sglext"]["routed_experts"]
    assert rows == [b64(b"aa1"), b64(b"bb2"), None]


def test_choices_with_meta_info_are_merged_one_by_one() -> None:
    decode = {"id": "c", "choices": [{"index": 0, "meta_info": {"routed_experts": b64(b"..1")}}]}
    prefill = {"id": "c", "choices": [{"index": 0, "meta_info": {"routed_experts": b64(b"aa")}}]}
    choice = merged(decode, prefill, EXPERTS)["choices"][0]
    assert choice == {"index": 0, "meta_info": {"routed_experts": b64(b"aa1")}}


def test_a_batch_is_merged_element_by_element_and_only_where_decode_has_the_list() -> None:
    decode = [answer(input_token_logprobs=[]), answer()]
    prefill = [answer(input_token_logprobs=[[None, 1, None]]), answer(input_token_logprobs=[2])]
    metas = [one["meta_info"] for one in merged(decode, prefill, LOGPROBS)]
    assert metas[0]["input_token_logprobs"] == [[None, 1, None]]
    assert "input_token_logprobs" not in metas[1]


def test_what_stands_between_elements_of_a_batch_stays() -> None:
    one = b'{"meta_info":{"input_token_logprobs":[]}}'
    two = b'{"meta_info":{"input_token_logprobs":[1]}}'
    assert merge_answers(b" [ %b ,\n%b ] " % (one, one), b"[%b,%b]" % (two, two), LOGPROBS) == (
        b" [ %b ,\n%b ] " % (two, two)
    )


def test_an_empty_batch_stays_empty() -> None:
    assert merge_answers(b"[ ]", b"[]", LOGPROBS) == b"[ ]"


@pytest.mark.parametrize(
    ("decode", "prefill", "wanted"),
    [
        ([answer()], [], LOGPROBS),
        ([answer()], answer(), LOGPROBS),
        (answer(input_token_logprobs=[]), answer(), LOGPROBS),
        (answer(input_token_logprobs=[]), answer(input_token_logprobs=None), LOGPROBS),
        (answer(input_token_logprobs=[]), answer(input_token_logprobs={}), LOGPROBS),
        (answer(routed_experts="AAAA"), answer(), EXPERTS),
        (answer(routed_experts="AAAA"), answer(routed_experts="?"), EXPERTS),
        (answer(routed_experts=["AAAA"]), answer(routed_experts="AAAA"), EXPERTS),
    ],
)
def test_answers_that_do_not_fit_together_are_a_worker_s_fault(
    decode: Any, prefill: Any, wanted: Wanted
) -> None:
    with pytest.raises(WorkerError):
        merged(decode, prefill, wanted)


def test_an_aborted_answer_may_lack_prefill_s_part() -> None:
    aborted = answer(input_token_logprobs=[], finish_reason={"type": "abort", "message": "m"})
    assert merged(aborted, answer(), LOGPROBS) == aborted
    own = answer(input_token_logprobs=[])
    assert merged(own, answer(finish_reason={"type": "abort"}), LOGPROBS) == own


def test_aborts_are_told_from_failures() -> None:
    mere = answer(finish_reason={"type": "abort", "message": "Aborted", "status_code": None})
    failed = answer(finish_reason={"type": "abort", "message": "KV", "status_code": 500})
    found = endings(json.dumps([mere, failed, answer()]).encode())
    assert found.samples == 3
    assert [(one.id, one.status, one.message) for one in found.aborts] == [
        ("r", None, "Aborted"),
        ("r", 500, "KV"),
    ]


def test_a_sample_that_goes_on_has_not_ended() -> None:
    assert endings(json.dumps(answer(finish_reason=None)).encode()) == Endings(samples=0, aborts=())


def test_an_aborted_chat_says_so_in_a_word() -> None:
    assert len(endings(b'{"choices":[{"finish_reason":"abort"}]}').aborts) == 1
    assert not endings(b'{"choices":[{"finish_reason":"stop"}]}').aborts


@pytest.mark.parametrize("body", [b"", b"no json", b"7", b'{"meta_info":7}', b"[]"])
def test_what_cannot_be_read_tells_of_no_abort(body: bytes) -> None:
    assert endings(body) == Endings(samples=0, aborts=())


_numbers = st.sampled_from(["-1e-07", "0.10", "-1.0E-3", "null", "123456789012345678"])
_lists = st.lists(_numbers, max_size=4)


@given(decode=_lists, prefill=_lists, blank=st.sampled_from(["", " ", "\n "]))
def test_numbers_of_both_lists_keep_their_text(
    decode: list[str], prefill: list[str], blank: str
) -> None:
    def body(numbers: list[str]) -> bytes:
        inner = f",{blank}".join(numbers)
        return f'{{"meta_info":{{"input_token_logprobs":[{blank}{inner}{blank}]}}}}'.encode()

    whole = merge_answers(body(decode), body(prefill), LOGPROBS)
    shown = whole.decode().partition("[")[2].partition("]")[0]
    assert [number.strip() for number in shown.split(",") if number.strip()] == prefill + decode
    json.loads(whole)


@given(prompt=st.binary(max_size=40), rest=st.binary(max_size=40), junk=st.integers(0, 255))
def test_merged_experts_are_exactly_the_rows_that_each_worker_computed(
    prompt: bytes, rest: bytes, junk: int
) -> None:
    decode = {"meta_info": {"routed_experts": b64(bytes([junk]) * len(prompt) + rest)}}
    prefill = {"meta_info": {"routed_experts": b64(prompt)}}
    rows = merged(decode, prefill, EXPERTS)["meta_info"]["routed_experts"]
    assert base64.b64decode(rows) == prompt + rest
