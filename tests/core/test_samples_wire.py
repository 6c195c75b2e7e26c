"""Samples in words: what the JSON form tells, what the tensors hold, and that they agree."""

from __future__ import annotations

import base64
import json
from array import array
from typing import Any

import pytest
from safetensors import deserialize

from slime_core.chat.turn import Told, Turn
from slime_core.samples import Wanted, collect, grow, take
from slime_core.samples.safetensors import Tensor, encode
from slime_core.samples.wire import as_json, as_tensors, conversation, described
from slime_core.transitions import CallLost, SessionOpened
from slime_core.types import CallId, PackedIds, unpack_ids
from tests.core.capture import Driver
from tests.core.sessions_support import SESSION, say


def _text_of(ids: PackedIds) -> str:
    return f"{len(ids) // 4} tokens"


def _json(driver: Driver, **wanted: Any) -> Any:
    snapshot, asked = take(driver.state, SESSION), Wanted(**wanted)
    return json.loads(as_json(snapshot, asked, collect(snapshot, asked), _text_of))


def _tensors(driver: Driver, shape: tuple[int, int] | None = None) -> dict[str, Tensor]:
    snapshot, asked = take(driver.state, SESSION), Wanted()
    made = as_tensors(snapshot, asked, collect(snapshot, asked), _text_of, shape=shape)
    return {one.name: one for one in made}


def _turn(
    start: int,
    *messages: dict[str, str],
    tools: bytes = b"null",
    before: Turn | None = None,
) -> Turn:
    *asked, said = messages
    told = json.dumps(asked).encode()
    return Turn(
        chain=b"",
        start=start,
        end=start + len(asked),
        written=b"",
        reasoning=None,
        told=Told(key=told, first=start, messages=told, tools=tools, before=before),
        own=json.dumps(said).encode(),
    )


_USER = {"role": "user", "content": "x"}
_SAID = {"role": "assistant", "content": "ab"}
_AGAIN = {"role": "user", "content": "y"}
_SAID_MORE = {"role": "assistant", "content": "cd"}


def _chat() -> Driver:
    driver = Driver()
    driver.apply(SessionOpened(session=SESSION, now=0.0, metadata=b'{"task":7,"kind":"a"}'))
    first = _turn(0, _USER, _SAID, tools=b'[{"name":"t"}]')
    second = _turn(2, _AGAIN, _SAID_MORE, before=first)
    held = say(driver, "1", "x", "ab", turn=first)
    say(driver, "2", held + "y", "cd", turn=second, flags=("some_flag",))
    return driver


def test_columns_have_the_lengths_that_trainers_expect() -> None:
    (sample,) = _json(_chat())["samples"]
    assert len(sample["tokens"]) == sample["prompt_length"] + sample["response_length"]
    columns = (sample["loss_mask"], sample["rollout_log_probs"])
    assert {len(column) for column in columns} == {sample["response_length"]}
    assert sample["response"] == f"{sample['response_length']} tokens"


def test_the_conversation_of_a_branch_is_told_with_its_tools() -> None:
    (sample,) = _json(_chat())["samples"]
    assert sample["messages"] == [_USER, _SAID, _AGAIN, _SAID_MORE]
    assert sample["tools"] == [{"name": "t"}]


def test_calls_flags_and_finish_are_told() -> None:
    (sample,) = _json(_chat())["samples"]
    assert sample["call_ids"] == ["1", "2"]
    assert sample["flags"] == ["some_flag"]
    assert sample["finish_reason"] == {"type": "stop"}
    assert sample["session_id"] == SESSION


def test_no_reward_is_not_a_reward_of_zero() -> None:
    assert _json(_chat())["samples"][0]["reward"] is None
    assert _json(_chat(), reward=0.0)["samples"][0]["reward"] == 0.0


def test_a_reward_of_the_last_call_outweighs_that_of_the_request() -> None:
    rewards = {CallId("1"): 0.5, CallId("2"): 1.0}
    (sample,) = _json(_chat(), reward=0.0, rewards=rewards)["samples"]
    assert (sample["reward"], sample["rewards"]) == (1.0, {"1": 0.5, "2": 1.0})


def test_metadata_of_session_request_and_call_are_merged_the_later_winning() -> None:
    calls = {CallId("2"): {"kind": "c"}, CallId("1"): {"kind": "other"}}
    (sample,) = _json(_chat(), metadata={"kind": "b", "b": 1}, calls=calls)["samples"]
    assert sample["metadata"] == {"task": 7, "kind": "c", "b": 1}


def test_versions_come_as_a_list_and_as_runs_that_cover_what_is_trained() -> None:
    (sample,) = _json(_chat())["samples"]
    runs = sample["weight_version_runs"]
    assert sample["weight_versions"] == [run["version"] for run in runs]
    covered = [at for run in runs for at in range(run["start"], run["end"])]
    start = sample["prompt_length"]
    assert covered == [start + place for place, one in enumerate(sample["loss_mask"]) if one]


def test_the_account_is_told_with_calls_that_were_lost() -> None:
    driver = _chat()
    driver.open_text("3", "z", session=SESSION)
    driver.apply(CallLost(call=CallId("3"), reason="client_gone", sampled=True))
    account = _json(driver)["accounting"]
    assert account["captured"] == account["used"] > 0
    assert account["lost_calls"] == {"client_gone": 1}
    assert (account["context"], account["dropped"]) == (0, [])


def test_calls_that_have_not_ended_are_counted() -> None:
    driver = _chat()
    driver.open_text("3", "z", session=SESSION)
    driver.open_text("4", "z", session="T")
    assert _json(driver)["calls_in_flight"] == 1


def test_extras_that_are_not_understood_are_passed_on_by_call() -> None:
    driver = Driver()
    say(driver, "1", "x", "ab", extras=(("indexer_topk", b'"AAAA"'),))
    assert _json(driver)["samples"][0]["extras"] == {"1": {"indexer_topk": "AAAA"}}


def test_a_sample_that_was_shortened_has_no_finish_reason() -> None:
    (sample,) = _json(_chat(), max_seq_len=2)["samples"]
    assert (sample["finish_reason"], sample["status"]) == (None, "truncated")
    assert "max_seq_len" in sample["flags"]


_EXPERTS = base64.b64encode(array("i", range(8)).tobytes()).decode()


def _with_experts() -> Driver:
    driver = Driver()
    opened = driver.open_ids("1", [97, 98], session=SESSION)
    extras = (("routed_experts", json.dumps(_EXPERTS).encode()),)
    driver.apply(driver.captured(opened, [65], extras=extras))
    return driver


def test_experts_are_told_as_bytes_with_their_shape() -> None:
    (sample,) = _json(_with_experts())["samples"]
    assert sample["routed_experts"] == {"data": _EXPERTS, "rows": 2, "width": 4}


def test_tensors_hold_what_the_json_tells() -> None:
    driver = _chat()
    (told,) = _json(driver)["samples"]
    made = _tensors(driver)
    tokens, logprobs = array("q"), array("d")
    tokens.frombytes(made["tokens.0"].data)
    logprobs.frombytes(made["rollout_log_probs.0"].data)
    assert tokens.tolist() == told["tokens"]
    assert logprobs.tolist() == told["rollout_log_probs"]
    assert list(made["loss_mask.0"].data) == told["loss_mask"]
    (meta,) = json.loads(made["_samples_meta"].data)["samples"]
    assert meta["nulls"] == ["rollout_indexer_topk", "rollout_routed_experts"]
    same = set(told) - {"tokens", "loss_mask", "rollout_log_probs", "routed_experts"}
    assert {name: meta[name] for name in same} == {name: told[name] for name in same}


def test_every_tensor_has_the_size_of_its_shape() -> None:
    sizes = {"int64": 8, "uint8": 1, "float64": 8, "int32": 4}
    for driver in (_chat(), _with_experts()):
        for tensor in _tensors(driver).values():
            count = 1
            for length in tensor.shape:
                count *= length
            assert len(tensor.data) == count * sizes[tensor.dtype]


@pytest.mark.parametrize(
    ("shape", "made", "findings"),
    [(None, (2, 4), 0), ((2, 2), (2, 2, 2), 0), ((3, 2), (2, 4), 1)],
)
def test_rows_are_split_into_layers_where_that_is_possible(
    shape: tuple[int, int] | None, made: tuple[int, ...], findings: int
) -> None:
    tensors = _tensors(_with_experts(), shape)
    assert tensors["rollout_routed_experts.0"].shape == made
    assert len(json.loads(tensors["_samples_meta"].data)["findings"]) == findings


def test_rows_that_do_not_fit_are_a_finding() -> None:
    driver = Driver()
    opened = driver.open_ids("1", [97, 98], session=SESSION)
    driver.apply(driver.captured(opened, [65], extras=(("routed_experts", b'"AAAA"'),)))
    (finding,) = _json(driver)["findings"]
    assert (finding["sample"], finding["finding"]) == (0, "routed_experts")


def test_the_tree_names_nodes_and_leaves() -> None:
    driver = _chat()
    snapshot = take(driver.state, SESSION, with_ids=False)
    found = described(snapshot, grow(snapshot))
    assert [(node["id"], node["parent"]) for node in found["nodes"]] == [("1", None), ("2", "1")]
    assert found["leaves"] == [{"node_id": "2", "path_node_ids": ["1", "2"]}]


def test_ids_of_many_slices_come_whole() -> None:
    driver = Driver()
    prompt = [at % 250 for at in range(9000)]
    driver.apply(driver.captured(driver.open_ids("1", prompt, session=SESSION), [65]))
    tokens = array("q")
    tokens.frombytes(_tensors(driver)["tokens.0"].data)
    assert (
        tokens.tolist()
        == [*prompt, 65]
        == unpack_ids(collect(take(driver.state, SESSION), Wanted()).samples[0].ids)
    )


def test_a_branch_that_begins_anew_forgets_the_messages_before() -> None:
    messages, _ = conversation([_turn(0, _USER, _SAID), _turn(0, _AGAIN, _SAID_MORE)])
    assert [json.loads(bytes(one)) for one in messages or ()] == [_AGAIN, _SAID_MORE]


def test_messages_that_are_not_all_known_are_not_told() -> None:
    assert conversation([None, _turn(2, _AGAIN, _SAID_MORE)]) == (None, None)
    assert conversation([_turn(0, _USER, _SAID), None]) == (None, None)


def test_the_file_is_what_the_library_reads() -> None:
    tensors = _tensors(_with_experts(), (2, 2))
    read = dict(deserialize(encode(tensors.values())))  # type: ignore[no-untyped-call]
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name]["shape"] == list(tensor.shape)
        assert bytes(read[name]["data"]) == tensor.data
    names = {one["dtype"] for one in read.values()}
    assert names == {"I64", "U8", "F64", "I32"}


def test_every_tensor_of_the_file_is_aligned() -> None:
    data = encode(_tensors(_chat()).values())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    sizes = {"I64": 8, "U8": 1, "F64": 8, "I32": 4}
    for place in header.values():
        assert (8 + length + place["data_offsets"][0]) % sizes[place["dtype"]] == 0
