"""Chat answers with reasoning and tool calls, whole and streamed, as the SDK reads them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from slime_core import sse
from slime_core.openai import (
    AnswerReader,
    CallHead,
    CallPiece,
    ChatRequest,
    ChunkFramer,
    ContentPiece,
    Piece,
    ReasoningPiece,
    completion,
)
from slime_core.sglang import Answer, FinishReason, StreamStep
from slime_core.types import pack_ids, pack_logprobs
from slime_core.versions import VersionRun
from tests.core.openai_support import BOOK, END, ENDED, LENGTH, TOOLS, chat, encode, reader

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
NAMED: Any = {"id": "chatcmpl-1", "created": 5, "model": "m", "vocabulary": BOOK}


def answer(ids: list[int], reason: FinishReason = ENDED) -> Answer:
    return Answer(
        id="r",
        text=None,
        ids=pack_ids(ids),
        logprobs=pack_logprobs([-float(token) for token in ids]),
        finish_reason=reason,
        weight_version="7",
        versions=(VersionRun("7", 0, len(ids)),),
        prompt_tokens=3,
        completion_tokens=len(ids),
        cached_tokens=0,
        reasoning_tokens=0,
        top_logprobs=b"",
        extras={},
        problem=None,
    )


def whole(request: ChatRequest, ids: list[int], reason: FinishReason = ENDED) -> Any:
    made = reader(request)
    given = answer(ids, reason)
    made.whole(given)
    return json.loads(
        completion(
            request,
            answers=[given],
            readers=[made],
            prompt_ids=pack_ids([1, 2]),
            prompt_tokens=3,
            **NAMED,
        )
    )


def only(request: ChatRequest, text: str) -> Any:
    (choice,) = whole(request, [*encode(text), END])["choices"]
    return choice


def streamed(
    request: ChatRequest, ids: list[int], sizes: list[int], reason: FinishReason = ENDED
) -> list[dict[str, Any]]:
    made: list[AnswerReader] = [reader(request)]
    frame = ChunkFramer(request, readers=made, **NAMED)
    wire = frame.first(prompt_ids=pack_ids([1, 2]))
    at = 0
    for wanted in sizes:
        size = max(0, min(wanted, len(ids) - 1 - at))
        wire += frame.step(step(ids[at : at + size]))
        at += size
    wire += frame.step(step(ids[at:], reason), answer(ids, reason))
    wire += frame.usage(prompt_tokens=3, completion_tokens=len(ids))
    events = sse.Decoder().receive(wire + frame.done())
    assert events[-1].data == b"[DONE]"
    return [json.loads(event.data) for event in events[:-1]]


def step(ids: list[int], reason: FinishReason | None = None) -> StreamStep:
    return StreamStep(
        raw=b"",
        sample=0,
        ids=pack_ids(ids),
        logprobs=tuple(-float(token) for token in ids),
        finish_reason=reason,
    )


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


def test_a_message_with_calls_has_no_content_where_nothing_was_said() -> None:
    choice = only(chat(tools=TOOLS), CALL)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": "f", "arguments": '{"x": "é"}'},
            }
        ],
    }


def test_content_may_stand_beside_calls() -> None:
    assert only(chat(tools=TOOLS), f"So:\n{CALL}")["message"]["content"] == "So:"


def test_reasoning_has_a_key_of_its_own() -> None:
    message = only(chat(), "<think>hm</think>Yes")["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes")


@pytest.mark.parametrize(("text", "content"), [("", ""), ("<think>hm</think>", ""), ("a", "a")])
def test_a_message_without_calls_has_a_content_and_no_other_keys(text: str, content: str) -> None:
    message = only(chat(tools=TOOLS), text)["message"]
    assert message["content"] == content
    assert "tool_calls" not in message
    assert ("reasoning_content" in message) == text.startswith("<think>")


def test_the_deltas_of_a_tool_call() -> None:
    request = chat(stream=True, tools=TOOLS)
    ids = encode(f"<think>h</think>So:{CALL}")
    assert deltas(streamed(request, [*ids, END], [3, 4])) == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "h"},
        {"content": "So:"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_0",
                    "type": "function",
                    "function": {"name": "f", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x": "é"}'}}]},
        {},
    ]


def test_calls_are_counted_without_gaps_and_named_once() -> None:
    request = chat(stream=True, tools=TOOLS)
    ids = [*encode(CALL + CALL), END]
    calls = [
        call
        for delta in deltas(streamed(request, ids, [1] * len(ids)))
        for call in delta.get("tool_calls", [])
    ]
    assert [call["index"] for call in calls] == sorted(call["index"] for call in calls)
    assert [call["index"] for call in calls if "id" in call] == [0, 1]
    assert all(("id" in call) == ("name" in call["function"]) for call in calls)


def test_the_ids_of_a_step_ride_on_its_first_chunk() -> None:
    request = chat(stream=True, return_token_ids=True, return_prompt_token_ids=True)
    ids = [*encode("<think>a</think>bc"), END]
    choices = [chunk["choices"][0] for chunk in streamed(request, ids, [1, 3])]
    told = [choice.get("response_token_ids", []) for choice in choices]
    assert told == [[], ids[:1], ids[1:4], [], ids[4:], []]
    assert [choice.get("prompt_token_ids") for choice in choices] == [[1, 2]] + [None] * 5


def test_the_last_chunk_brings_the_meta_info() -> None:
    request = chat(stream=True, return_meta_info=True)
    choices = [chunk["choices"][0] for chunk in streamed(request, [72, END], [])]
    assert choices[-1]["meta_info"]["completion_tokens"] == 2
    assert not any("meta_info" in choice for choice in choices[:-1])


def test_neighbours_are_told_in_one_chunk() -> None:
    frame = ChunkFramer(chat(stream=True), readers=[reader(chat(stream=True))], **NAMED)
    frame.first()
    pieces: list[Piece] = [
        ReasoningPiece(text="a"),
        ReasoningPiece(text="b"),
        ContentPiece(text="c"),
        ContentPiece(text="d"),
        CallHead(index=0, id="i", name="f"),
        CallPiece(index=0, text="{"),
        CallPiece(index=0, text="}"),
        CallPiece(index=1, text="{}"),
    ]
    wire = frame.show(0, pieces)
    told = deltas([json.loads(event.data) for event in sse.Decoder().receive(wire)])
    assert told[:2] == [{"reasoning_content": "ab"}, {"content": "cd"}]
    assert [delta["tool_calls"][0]["function"]["arguments"] for delta in told[2:]] == [
        "",
        "{}",
        "{}",
    ]


def test_logprobs_come_with_content_only() -> None:
    request = chat(stream=True, logprobs=True, tools=TOOLS)
    ids = [*encode(f"<think>a</think>b{CALL}"), END]
    for chunk in streamed(request, ids, [2, 2]):
        choice = chunk["choices"][0]
        has_content = bool(choice["delta"].get("content"))
        assert (choice["logprobs"] is not None) == has_content


TEXTS = st.lists(
    st.sampled_from(["a", "é🙂", "\n", "<think>hm</think>", CALL, "<ctl>", ".\n\n"]), max_size=6
).map("".join)


@given(TEXTS, st.lists(st.integers(1, 9), max_size=20), st.sampled_from([ENDED, LENGTH]))
def test_the_sdk_adds_the_chunks_up_to_the_whole_answer(
    text: str, sizes: list[int], reason: FinishReason
) -> None:
    ids = [*encode(text), END]
    usage = {"stream_options": {"include_usage": True}}
    state = ChatCompletionStreamState()
    request = chat(stream=True, logprobs=True, tools=TOOLS, **usage)
    for chunk in streamed(request, ids, sizes, reason):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk, strict=True))
    made = state.current_completion_snapshot.model_dump()
    value = whole(chat(logprobs=True, tools=TOOLS), ids, reason)
    expected = ChatCompletion.model_validate(value, strict=False).model_dump()
    (one,), (other,) = made["choices"], expected["choices"]
    assert one["finish_reason"] == other["finish_reason"]
    assert (one["message"]["content"] or "") == (other["message"]["content"] or "")
    assert one["message"].get("reasoning_content") == other["message"].get("reasoning_content")
    assert _calls(one) == _calls(other)
    assert ((one["logprobs"] or {}).get("content") or []) == other["logprobs"]["content"]
    assert made["usage"] == expected["usage"]


def _calls(choice: Any) -> list[tuple[str, str, str]]:
    calls = choice["message"]["tool_calls"] or []
    return [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls]


def test_a_whole_answer_is_what_strict_clients_expect() -> None:
    request = chat(tools=TOOLS, logprobs=True)
    value = whole(request, [*encode(f"<think>hm</think>So:{CALL}"), END])
    made = ChatCompletion.model_validate_json(json.dumps(value), strict=True)
    (call,) = made.choices[0].message.tool_calls or []
    assert call.id == "call_0"
