"""Echoed prompts with the logprobs of their tokens."""

import json
from typing import Any

import pytest

from slime_core import sse
from slime_core.errors import WorkerError
from slime_core.openai import (
    CompletionRequest,
    Echo,
    TextChunkFramer,
    completions_body,
    echo_of,
    parse_completion,
    prompt_scores,
    text_completion,
)
from slime_core.openai.echo import PromptScores
from slime_core.sglang import StreamAssembler, parse_answer
from slime_core.types import pack_ids
from tests.core.openai_support import BOOK, CONTROL, END

NAMED: Any = {"id": "c", "created": 5, "model": "m", "vocabulary": BOOK}


def request(prompt: Any = "Hi", **fields: Any) -> CompletionRequest:
    body = {"model": "m", "prompt": prompt, "echo": True, "logprobs": 1, **fields}
    return parse_completion(json.dumps(body).encode())


def meta(prompt: list[int], answer: list[int], finish: Any = None) -> dict[str, Any]:
    scored = [[None if place == 0 else -float(t), t, None] for place, t in enumerate(prompt)]
    return {
        "id": "r",
        "finish_reason": finish,
        "prompt_tokens": len(prompt),
        "completion_tokens": len(answer),
        "input_token_logprobs": scored,
        "input_top_logprobs": [None if each[0] is None else [each] for each in scored],
        "output_token_logprobs": [[-float(token), token, None] for token in answer],
        "output_top_logprobs": [[[-float(token), token, None]] for token in answer],
    }


def item(prompt: list[int], answer: list[int], finish: Any = None) -> dict[str, Any]:
    text = bytes(token for token in answer if token < 256).decode()
    return {"text": text, "output_ids": answer, "meta_info": meta(prompt, answer, finish)}


DONE = {"type": "stop", "matched": END}


def whole(asked: CompletionRequest, prompts: dict[str, list[int]], value: Any) -> Any:
    body = json.dumps(value).encode()
    scores = prompt_scores(body, asked)
    echoes = [
        echo_of(text, pack_ids(ids), told, BOOK, top=1)
        for (text, ids), told in zip(prompts.items(), scores, strict=True)
    ]
    answers = parse_answer(body, asked)
    return json.loads(
        text_completion(asked, answers=answers, echoes=echoes, prompt_tokens=2, **NAMED)
    )


def echoed(text: str, ids: list[int]) -> Echo:
    told = prompt_scores(json.dumps({"meta_info": meta(ids, [])}).encode(), request())
    return echo_of(text, pack_ids(ids), told[0], BOOK, top=1)


def test_the_worker_is_asked_to_score_the_prompt() -> None:
    def body(asked: CompletionRequest) -> Any:
        return json.loads(
            completions_body(asked, input_ids=[pack_ids([1])], rids="r", context_length=None)
        )

    assert body(request())["logprob_start_len"] == 0
    assert "logprob_start_len" not in body(request(echo=False))
    assert "logprob_start_len" not in body(request(logprobs=None))


def test_the_prompts_tokens_stand_before_the_answers() -> None:
    value = whole(request(), {"Hi": [72, 105]}, item([72, 105], [33, END], DONE))
    (choice,) = value["choices"]
    assert choice["text"] == "Hi!"
    assert choice["logprobs"] == {
        "tokens": ["H", "i", "!"],
        "token_logprobs": [None, -105.0, -33.0],
        "top_logprobs": [None, {"i": -105.0}, {"!": -33.0}],
        "text_offset": [0, 1, 2],
    }


def test_every_choice_has_the_echo_of_its_own_prompt() -> None:
    asked = request(["a", "b"], n=2)
    items = [item([ord(p)], [33, END], DONE) for p in "aabb"]
    choices = whole(asked, {"a": [97], "b": [98]}, items)["choices"]
    assert [choice["text"] for choice in choices] == ["a!", "a!", "b!", "b!"]
    assert [choice["logprobs"]["tokens"][0] for choice in choices] == ["a", "a", "b", "b"]


def test_a_token_that_begins_every_text_is_not_of_the_text() -> None:
    echo = echoed("Hi", [CONTROL, 72, 105])
    assert [(token.data, token.start, token.logprob) for token in echo.tokens] == [
        (b"H", 0, -72.0),
        (b"i", 1, -105.0),
    ]


def test_a_special_token_that_the_text_spells_is() -> None:
    echo = echoed("a<ctl>b", [97, CONTROL, 98])
    assert [(token.data, token.start) for token in echo.tokens] == [
        (b"a", 0),
        (b"<ctl>", 1),
        (b"b", 6),
    ]


def test_a_text_that_the_tokens_do_not_spell_is_echoed_as_it_came() -> None:
    echo = echoed("ﬁ", [102, 105])
    assert (echo.text, [token.data for token in echo.tokens]) == ("ﬁ", [b"f", b"i"])


@pytest.mark.parametrize("told", [None, [], [[None, 73, None]], [[None, 72, None], [0, 1, None]]])
def test_a_prompt_that_the_worker_did_not_score_is_its_fault(told: Any) -> None:
    body = json.dumps({"meta_info": {"input_token_logprobs": told}}).encode()
    (scores,) = prompt_scores(body, request())
    with pytest.raises(WorkerError):
        echo_of("H", pack_ids([72]), scores, BOOK, top=0)


def test_scores_that_cannot_be_read_are_its_fault_too() -> None:
    with pytest.raises(WorkerError):
        prompt_scores(b'{"meta_info":{"input_token_logprobs":5}}', request())
    with pytest.raises(WorkerError):
        echo_of("H", pack_ids([72]), PromptScores(), BOOK, top=0)


def test_a_stream_adds_up_to_the_whole_answer() -> None:
    asked = request(stream=True, n=2, return_prompt_token_ids=True)
    frame = TextChunkFramer(asked, **NAMED)
    wire = frame.first(echoes=["Hi"], prompt_ids=[pack_ids([72, 105])])
    assembler, decoder = StreamAssembler(asked), sse.Decoder()
    for index, answer, finish in [
        (1, [33], None),
        (0, [33], None),
        (0, [33, 34, END], DONE),
        (1, [33, END], DONE),
    ]:
        value = {**item([72, 105], answer, finish), "index": index}
        for event in decoder.receive(sse.encode(json.dumps(value).encode())):
            for step in assembler.receive(event):
                wire += frame.step(step)
    made: dict[int, Any] = {}
    for event in sse.Decoder().receive(wire):
        (choice,) = json.loads(event.data)["choices"]
        sums = made.setdefault(choice["index"], {"text": "", "logprobs": {}})
        sums["text"] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            sums["logprobs"].setdefault(name, []).extend(values)
    items = [item([72, 105], [33, 34, END], DONE), item([72, 105], [33, END], DONE)]
    expected = whole(request(n=2), {"Hi": [72, 105]}, items)["choices"]
    assert [made[index] for index in (0, 1)] == [
        {"text": choice["text"], "logprobs": choice["logprobs"]} for choice in expected
    ]
