"""Whole answers and streams, as the official SDK reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from slime_core import sse
from slime_core.errors import ClientError, InvariantError, WorkerError
from slime_core.openai import (
    AnswerReader,
    ChatRequest,
    ChunkFramer,
    Echo,
    Reading,
    TextChunkFramer,
    completion,
    model_card,
    model_list,
    parse_chat,
    parse_completion,
    text_completion,
)
from slime_core.sglang import Answer, FinishReason, StreamStep, parse_answer, parse_generate
from slime_core.types import pack_ids
from slime_core.vocabulary import AddedToken, Vocabulary

DATA = Path(__file__).parent / "data" / "openai"
END = 256
BOOK = Vocabulary(
    [bytes([byte]) for byte in range(256)],
    {
        END: AddedToken(
            id=END,
            content="<end>",
            special=True,
            lstrip=False,
            rstrip=False,
            single_word=False,
            normalized=False,
        )
    },
)
STOP = {"type": "stop", "matched": END}
LENGTH = FinishReason(type="length")
ENDED = FinishReason(type="stop", matched=END)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "any/name", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body).encode())


def answer(text: str | None, ids: list[int], finish: Any = STOP, **meta: Any) -> Answer:
    value = {
        "text": text,
        "output_ids": ids,
        "meta_info": {
            "id": "r",
            "finish_reason": finish,
            "completion_tokens": len(ids),
            "weight_version": "7",
            "output_token_logprobs": [[-float(token), token, None] for token in ids],
            **meta,
        },
    }
    request = parse_generate(b'{"text":"a"}')
    (only,) = parse_answer(json.dumps(value).encode(), request)
    return only


def readers(request: ChatRequest) -> list[AnswerReader]:
    reading = Reading(chat=request, vocabulary=BOOK)
    return [AnswerReader(reading, call_id="call_{}".format) for _ in range(request.n)]


def whole(request: ChatRequest, *answers: Answer, **options: Any) -> bytes:
    made = readers(request)
    for reader, one in zip(made, answers, strict=False):
        reader.whole(one)
    return completion(
        request,
        readers=made,
        id="chatcmpl-1",
        created=1764000000,
        model=request.model,
        answers=answers,
        vocabulary=BOOK,
        prompt_tokens=9,
        cached_tokens=4,
        **options,
    )


def framer(request: ChatRequest) -> ChunkFramer:
    return ChunkFramer(
        request,
        readers=readers(request),
        id="chatcmpl-1",
        created=1764000000,
        model=request.model,
        vocabulary=BOOK,
    )


def step(ids: list[int], finish: FinishReason | None = None, sample: int = 0) -> StreamStep:
    return StreamStep(
        raw=b"",
        sample=sample,
        ids=pack_ids(ids),
        logprobs=tuple(-float(token) for token in ids),
        finish_reason=finish,
    )


def chunks(wire: bytes) -> list[dict[str, Any]]:
    events = sse.Decoder().receive(wire)
    return [json.loads(event.data) for event in events if event.data != b"[DONE]"]


def strict(request: ChatRequest, *answers: Answer, **options: Any) -> ChatCompletion:
    return ChatCompletion.model_validate_json(whole(request, *answers, **options), strict=True)


def contents(logprobs: Any) -> bytes:
    return b"".join(bytes(entry["bytes"]) for entry in logprobs["content"])


def test_the_golden_completion() -> None:
    top = [[[-0.5, 0xC3, None], [-2.0, 0x21, None]], None, [], None]
    triples = [[-0.5, 0xC3, None], [-0.25, 0xA9, None], [-0.125, 0x21, None], [-1.0, END, None]]
    given = answer(
        "é!", [0xC3, 0xA9, 0x21, END], output_token_logprobs=triples, output_top_logprobs=top
    )
    body = whole(chat(logprobs=True, top_logprobs=2), given)
    assert body == (DATA / "chat_completion.json").read_bytes().strip()


def test_the_golden_stream() -> None:
    frame = framer(chat(stream=True, stream_options={"include_usage": True}))
    wire = frame.first()
    wire += frame.step(step([72, 105]))
    wire += frame.step(step([END], ENDED))
    wire += frame.usage(prompt_tokens=9, completion_tokens=2, cached_tokens=4)
    assert wire + frame.done() == (DATA / "chat_stream.sse").read_bytes()


@pytest.mark.parametrize("logprobs", [False, True])
def test_the_sdk_accepts_a_completion_strictly(logprobs: bool) -> None:
    read = strict(
        chat(n=2, logprobs=logprobs, metadata={"k": "v"}),
        answer("Hi", [72, 105, END]),
        answer("Ho", [72, 111], {"type": "length", "length": 2}),
    )
    assert [choice.message.content for choice in read.choices] == ["Hi", "Ho"]
    assert [choice.finish_reason for choice in read.choices] == ["stop", "length"]
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens) == (9, 5)
    assert (read.choices[0].logprobs is not None) == logprobs


def test_required_keys_are_there_even_where_they_are_null() -> None:
    (choice,) = json.loads(whole(chat(), answer("", [END])))["choices"]
    assert choice["logprobs"] is None
    assert choice["message"] == {"role": "assistant", "content": "", "refusal": None}


def test_metadata_is_echoed() -> None:
    body = json.loads(whole(chat(metadata={"k": "v"}), answer("", [END])))
    assert body["metadata"] == {"k": "v"}


def test_ids_and_meta_info_are_shown_to_those_who_ask() -> None:
    request = chat(
        return_token_ids=True, return_prompt_token_ids=True, return_meta_info=True, logprobs=True
    )
    given = answer("H", [72, END], routed_experts="AAA=")
    (choice,) = json.loads(whole(request, given, prompt_ids=pack_ids([1, 2])))["choices"]
    assert (choice["prompt_token_ids"], choice["response_token_ids"]) == ([1, 2], [72, END])
    assert choice["meta_info"]["finish_reason"] == {"type": "stop", "matched": END}
    assert choice["meta_info"]["routed_experts"] == "AAA="
    assert choice["meta_info"]["output_token_logprobs"] == [[-72.0, 72, None], [-256.0, END, None]]
    assert choice["meta_info"]["weight_versions"] == [{"version": "7", "start": 0, "end": 2}]


def test_meta_info_holds_no_logprobs_unless_they_were_asked_for() -> None:
    request = chat(return_meta_info=True, return_prompt_token_ids=True)
    (choice,) = json.loads(whole(request, answer("H", [72], {"type": "length"})))["choices"]
    assert "output_token_logprobs" not in choice["meta_info"]
    assert choice["meta_info"]["finish_reason"] == {"type": "length"}
    assert "prompt_token_ids" not in choice


@pytest.mark.parametrize(
    ("finish", "kind", "status"),
    [
        ({"type": "abort", "message": "Aborted"}, WorkerError, 503),
        ({"type": "abort", "message": "bad", "status_code": 400}, ClientError, 400),
        ({"type": "abort", "message": "full", "status_code": 503}, WorkerError, 503),
        ({"type": "weird"}, WorkerError, 502),
        (None, WorkerError, 502),
    ],
)
def test_an_abort_is_an_error_and_never_a_finish_reason(
    finish: Any, kind: type[Exception], status: int
) -> None:
    with pytest.raises(kind) as caught:
        whole(chat(), answer("x", [120], finish))
    assert getattr(caught.value, "status", None) == status


def test_an_answer_is_read_from_its_ids_whatever_the_worker_calls_its_text() -> None:
    for text in (None, "something else"):
        (choice,) = json.loads(whole(chat(), answer(text, [72, END])))["choices"]
        assert choice["message"]["content"] == "H"


def test_text_without_any_tokens_is_the_workers_fault() -> None:
    with pytest.raises(WorkerError):
        whole(chat(), answer("H", []))


def test_logprobs_that_are_not_there_cannot_be_shown() -> None:
    with pytest.raises(WorkerError):
        whole(chat(logprobs=True), answer("H", [72], output_token_logprobs=None))


@pytest.mark.parametrize("top", [[[]], "x", [[[1]]]])
def test_top_logprobs_that_make_no_sense_are_the_workers_fault(top: Any) -> None:
    given = answer("Hi", [72, 105], output_top_logprobs=top)
    with pytest.raises(WorkerError):
        whole(chat(logprobs=True, top_logprobs=1), given)


def test_another_number_of_answers_is_our_bug() -> None:
    with pytest.raises(InvariantError):
        whole(chat(n=2), answer("x", [120]))


def test_the_tokens_of_a_stop_string_are_not_shown() -> None:
    given = answer("Hi", list(b"Hi##"), {"type": "stop", "matched": "##"})
    (choice,) = json.loads(whole(chat(logprobs=True, stop="##"), given))["choices"]
    assert contents(choice["logprobs"]) == b"Hi"


@pytest.mark.parametrize("skip", [True, False])
def test_a_special_token_takes_room_only_where_it_is_shown(skip: bool) -> None:
    given = answer(None, [72, END, 105], {"type": "length"})
    request = chat(logprobs=True, skip_special_tokens=skip)
    (choice,) = json.loads(whole(request, given))["choices"]
    assert choice["message"]["content"] == "Hi" if skip else "H<end>i"
    assert contents(choice["logprobs"]).decode() == choice["message"]["content"]


def test_an_id_outside_the_vocabulary_has_no_bytes() -> None:
    given = answer("Hi", [72, 9999, 105])
    (choice,) = json.loads(whole(chat(logprobs=True), given))["choices"]
    assert [entry["bytes"] for entry in choice["logprobs"]["content"]] == [[72], None, [105]]


def test_every_choice_appears_first_in_order() -> None:
    frame = framer(chat(n=3, stream=True))
    wire = frame.first() + frame.step(step([99], sample=2)) + frame.step(step([97]))
    assert [chunk["choices"][0]["index"] for chunk in chunks(wire)] == [0, 1, 2, 2, 0]


def test_usage_is_nowhere_unless_asked_for() -> None:
    frame = framer(chat(stream=True))
    wire = frame.first() + frame.step(step([72], LENGTH))
    assert frame.usage(prompt_tokens=1, completion_tokens=1) == b""
    assert all("usage" not in chunk for chunk in chunks(wire))


def test_a_step_of_the_worker_is_framed() -> None:
    frame = framer(chat(stream=True, logprobs=True, return_token_ids=True))
    frame.first()
    made = frame.step(step([72, END], ENDED))
    delta, last = (chunk["choices"][0] for chunk in chunks(made))
    assert delta["delta"] == {"content": "H"}
    assert delta["response_token_ids"] == [72, END]
    assert [entry["logprob"] for entry in delta["logprobs"]["content"]] == [-72.0]
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")


def test_a_step_that_does_not_finish_is_a_delta() -> None:
    frame = framer(chat(stream=True))
    frame.first()
    (only,) = chunks(frame.step(step([72])))
    assert only["choices"][0]["finish_reason"] is None


def test_the_first_chunk_shows_the_prompts_ids_to_those_who_ask() -> None:
    frame = framer(chat(stream=True, return_prompt_token_ids=True))
    (first,) = chunks(frame.first(prompt_ids=pack_ids([1, 2])))
    assert first["choices"][0]["prompt_token_ids"] == [1, 2]


def test_an_error_of_the_worker_is_raised_and_can_be_framed() -> None:
    frame = framer(chat(stream=True))
    frame.first()
    fault = WorkerError("gone", status=503, code="worker_unavailable")
    with pytest.raises(WorkerError):
        frame.step(StreamStep(raw=b"", error=fault))
    assert chunks(frame.error(fault)) == [
        {
            "error": {
                "message": "gone",
                "type": "server_error",
                "param": None,
                "code": "worker_unavailable",
            }
        }
    ]


def test_an_abort_on_a_stream_is_raised() -> None:
    frame = framer(chat(stream=True))
    frame.first()
    with pytest.raises(WorkerError):
        frame.step(step([72], FinishReason(type="abort")))


def test_the_wrong_order_is_our_bug() -> None:
    frame = framer(chat(stream=True))
    with pytest.raises(InvariantError):
        frame.show(0, [])
    with pytest.raises(InvariantError):
        frame.done()
    with pytest.raises(InvariantError):
        frame.step(StreamStep(raw=b"", done=True))
    frame.first()
    with pytest.raises(InvariantError):
        frame.first()
    with pytest.raises(InvariantError):
        frame.done()
    frame.step(step([END], ENDED))
    with pytest.raises(InvariantError):
        frame.show(0, [])


TEXTS = st.text("aé🙂漢\n", max_size=12)


@given(TEXTS, st.lists(st.integers(1, 3), max_size=3), st.booleans())
def test_chunks_add_up_to_the_whole_answer_in_the_sdk(
    text: str, sizes: list[int], include_usage: bool
) -> None:
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 0}
    if include_usage:
        fields["stream_options"] = {"include_usage": True}
    request = chat(stream=True, **fields)
    frame, wire = framer(request), b""
    wire += frame.first()
    left = list(text.encode())
    for size in sizes:
        wire += frame.step(step(left[:size]))
        left = left[size:]
    wire += frame.step(step([*left, END], ENDED))
    wire += frame.usage(prompt_tokens=9, completion_tokens=len(text.encode()) + 1, cached_tokens=4)
    state = ChatCompletionStreamState()
    for value in chunks(wire):
        state.handle_chunk(ChatCompletionChunk.model_validate(value, strict=True))
    streamed = state.get_final_completion().model_dump()
    given = answer(text, [*text.encode(), END])
    expected = strict(chat(**{**fields, "stream_options": None}), given).model_dump()
    message = streamed["choices"][0]["message"]
    assert (message["role"], message["content"] or "") == ("assistant", text)
    assert (streamed["usage"] == expected["usage"]) == include_usage
    told = streamed["choices"][0]["logprobs"]
    assert (told or {"content": []})["content"] == expected["choices"][0]["logprobs"]["content"]
    if told:
        assert contents(told) == text.encode()


def test_the_models_are_listed_as_the_sdk_expects() -> None:
    body = json.loads(model_list([model_card("a/b", created=5, max_model_len=9)]))
    assert body["object"] == "list"
    assert Model.model_validate(body["data"][0], strict=True).id == "a/b"
    assert body["data"][0]["max_model_len"] == 9
    assert "max_model_len" not in model_card("a", created=5)


def test_the_sdk_accepts_a_text_completion_strictly() -> None:
    request = parse_completion(
        b'{"model":"m","prompt":["p","q"],"logprobs":2,"return_token_ids":true,'
        b'"return_prompt_token_ids":true}'
    )
    top = [[[-72.0, 72, None], [-80.0, 73, None]], [[-105.0, 105, None]], []]
    body = text_completion(
        request,
        id="cmpl-1",
        created=5,
        model="m",
        answers=[answer("Hi", [72, 105, END], output_top_logprobs=top), answer("", [END])],
        vocabulary=BOOK,
        prompt_ids=[pack_ids([1]), pack_ids([2])],
        prompt_tokens=2,
    )
    read = Completion.model_validate_json(body, strict=True)
    logprobs = read.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["H", "i"]
    assert logprobs.text_offset == [0, 1]
    assert logprobs.token_logprobs == [-72.0, -105.0]
    assert logprobs.top_logprobs == [{"H": -72.0, "I": -80.0}, {"i": -105.0}]
    assert [choice.index for choice in read.choices] == [0, 1]
    extra = json.loads(body)["choices"][0]
    assert (extra["token_ids"], extra["prompt_token_ids"]) == ([72, 105, END], [1])


def test_an_echo_is_the_prompts_text_before_the_answers() -> None:
    request = parse_completion(b'{"model":"m","prompt":"Say: ","echo":true,"n":2}')
    answers = [answer("Hi", [72, 105]), answer("Ho", [72, 111])]
    body = text_completion(
        request,
        id="c",
        created=5,
        model="m",
        answers=answers,
        vocabulary=BOOK,
        echoes=[Echo(text="Say: ")],
        prompt_tokens=1,
    )
    assert [choice["text"] for choice in json.loads(body)["choices"]] == ["Say: Hi", "Say: Ho"]


def text_framer(body: bytes) -> TextChunkFramer:
    return TextChunkFramer(parse_completion(body), id="c", created=5, model="m", vocabulary=BOOK)


def test_a_text_completion_streams() -> None:
    frame = text_framer(
        b'{"model":"m","prompt":"p","stream":true,"echo":true,"return_token_ids":true,'
        b'"return_prompt_token_ids":true,"stream_options":{"include_usage":true}}'
    )
    wire = frame.first(echoes=["p"], prompt_ids=[pack_ids([1])])
    wire += frame.step(StreamStep(raw=b"", sample=0, text="H", ids=pack_ids([72]), logprobs=(0.0,)))
    wire += frame.step(StreamStep(raw=b"", sample=0, finish_reason=LENGTH))
    wire += frame.usage(prompt_tokens=1, completion_tokens=1)
    assert frame.done() == sse.DONE
    values = chunks(wire)
    assert [c["text"] for value in values for c in value["choices"]] == ["p", "H", ""]
    assert [c["finish_reason"] for v in values for c in v["choices"]] == [None, None, "length"]
    assert values[0]["choices"][0]["prompt_token_ids"] == [1]
    assert values[1]["choices"][0]["token_ids"] == [72]
    assert [value["usage"] is None for value in values] == [True, True, True, False]
    assert {value["object"] for value in values} == {"text_completion"}


def test_the_logprobs_of_text_chunks_continue_each_other() -> None:
    frame = text_framer(b'{"model":"m","prompt":"p","stream":true,"logprobs":0}')
    wire = frame.first()
    wire += frame.delta(0, text="H", ids=[72, 0xC3], logprobs=[-1.0, -2.0])
    wire += frame.delta(0, text="é", ids=[0xA9, END], logprobs=[-3.0, -4.0])
    assert frame.delta(0, text="", ids=[END], logprobs=[-4.0]) == b""
    told = [value["choices"][0]["logprobs"] for value in chunks(wire)]
    assert [each["text_offset"] for each in told] == [[0], [1, 1]]
    assert [each["token_logprobs"] for each in told] == [[-1.0], [-2.0, -3.0]]
    assert told[0]["top_logprobs"] is None
    assert frame.usage(prompt_tokens=1, completion_tokens=1) == b""


def test_a_text_stream_out_of_order_is_our_bug() -> None:
    frame = text_framer(b'{"model":"m","prompt":"p","stream":true}')
    with pytest.raises(InvariantError):
        frame.delta(0, text="x")
    frame.first()
    with pytest.raises(InvariantError):
        frame.first()
    with pytest.raises(InvariantError):
        frame.done()
    with pytest.raises(InvariantError):
        frame.step(StreamStep(raw=b"", done=True))


def test_an_error_on_a_text_stream() -> None:
    frame = text_framer(b'{"model":"m","prompt":"p","stream":true}')
    frame.first()
    with pytest.raises(WorkerError):
        frame.step(StreamStep(raw=b"", error=WorkerError("gone")))
    assert chunks(frame.error(WorkerError("gone")))[0]["error"]["message"] == "gone"


def test_a_text_completion_without_text_is_the_workers_fault() -> None:
    with pytest.raises(WorkerError):
        text_completion(
            parse_completion(b'{"model":"m","prompt":"p"}'),
            id="c",
            created=5,
            model="m",
            answers=[answer(None, [72])],
            vocabulary=BOOK,
            prompt_tokens=1,
        )


def test_another_number_of_text_answers_is_our_bug() -> None:
    with pytest.raises(InvariantError):
        text_completion(
            parse_completion(b'{"model":"m","prompt":["p","q"]}'),
            id="c",
            created=5,
            model="m",
            answers=[],
            vocabulary=BOOK,
            prompt_tokens=1,
        )
