"""What is aborted in the router's queue is answered as in a worker's, and can be read as that."""

from __future__ import annotations

import json

import pytest

from slime_core import sglang, sse
from slime_core.sglang.queued import aborted_in_queue


def _asked(stream: bool, **more: object) -> sglang.GenerateRequest:
    return sglang.parse_generate(json.dumps({"text": "x", "stream": stream} | more).encode())


def test_one_is_an_object() -> None:
    (answer,) = sglang.parse_answer(
        aborted_in_queue(["r"], array=False, stream=False), _asked(False)
    )
    assert answer.id == "r"
    assert answer.finish_reason is not None
    assert (answer.finish_reason.type, answer.finish_reason.status_code) == ("abort", None)
    assert answer.finish_reason.message == "Abort in waiting queue"
    assert (answer.ids, answer.problem) == (b"", None)


def test_several_are_an_array() -> None:
    body = aborted_in_queue(["a", "b"], array=True, stream=False)
    answers = sglang.parse_answer(body, _asked(False, text=["x", "y"]))
    assert [answer.id for answer in answers] == ["a", "b"]


@pytest.mark.parametrize("texts", ["x", ["x", "y"]])
def test_a_stream_finishes_all_its_samples(texts: str | list[str]) -> None:
    asked = _asked(True, text=texts)
    ids = [f"r{sample}" for sample in range(asked.samples)]
    assembler, decoder = sglang.StreamAssembler(asked), sse.Decoder()
    events = decoder.receive(aborted_in_queue(ids, array=asked.array, stream=True))
    steps = [step for event in events for step in assembler.receive(event)]
    decoder.close()
    assert assembler.finished
    reasons = [step.finish_reason.type for step in steps if step.finish_reason is not None]
    assert reasons == ["abort"] * asked.samples
