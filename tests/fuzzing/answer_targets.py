"""What workers send, as the core reads it: each target says which errors may leave a decoder."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import pytest

from slime_core import openai, sglang, sse
from slime_core.errors import SlimeError, WorkerError
from slime_core.openai.logprobs import answer_logprobs
from slime_core.parsing import REASONING_PARSERS, TOOL_CALL_PARSERS, ParserChoice
from slime_core.types import pack_ids, token_count
from slime_core.versions import runs_problem
from tests.fuzzing.goldens import (
    ANSWERS,
    ASKED,
    INFOS,
    PARSED_CHATS,
    PARSED_COMPLETIONS,
    REFUSALS,
    STREAMS,
    VOCABULARY,
    altered_json,
    assert_as_good_as,
    attempt,
    check_words,
)
from tests.fuzzing.mutate import alter_bytes, alter_json, pieces, random_bytes
from tests.fuzzing.targets import Register, given

__all__ = ["TARGETS"]

T = TypeVar("T")

_register = Register()
TARGETS: Final = _register.targets


# -- event streams -----------------------------------------------------------------------------


@_register
def sse_decoder(chance: random.Random) -> None:
    """Split differently: the same events, the same end. It never holds more than its limit."""
    data = chance.choice(STREAMS)
    for _ in range(chance.randrange(3)):
        data = alter_bytes(data, STREAMS, chance)
    limit = chance.choice((8, 40, 300, 2**20))
    ways = [[data] if data else [], pieces(data, chance), pieces(data, chance)]
    with given(data=data, limit=limit, ways=[[len(piece) for piece in way] for way in ways]):
        first, *others = [_events(way, limit) for way in ways]
        for other in others:
            assert other == first


def _events(way: Iterable[bytes], limit: int) -> tuple[list[sse.Event], str | None]:
    decoder = sse.Decoder(max_event_bytes=limit)
    events: list[sse.Event] = []
    try:
        for piece in way:
            events += decoder.receive(piece)
            assert len(decoder._buffer) <= limit + len(piece)
        decoder.close()
    except WorkerError as error:
        _assert_failed_for_good(decoder, error)
        return events, error.message
    return events, None


def _assert_failed_for_good(decoder: sse.Decoder, error: WorkerError) -> None:
    if "more than" not in error.message:
        return  # it only said that the stream must not end here
    for call in (lambda: decoder.receive(b"data: a\n\n"), decoder.close):
        with pytest.raises(WorkerError) as again:
            call()
        assert again.value.message == error.message


@_register
def worker_stream(chance: random.Random) -> None:
    """A worker's stream to steps: the same however it is split; then whatever is asked of it."""
    data = _altered_stream(chance)
    asked = chance.choice(ASKED)
    ways = [[data] if data else [], pieces(data, chance)]
    with given(data=data, asked=asked.samples):
        first, other = (_steps(way, asked) for way in ways)
        assert other == first


def _altered_stream(chance: random.Random) -> bytes:
    """A stream with altered events, altered bytes, or its events in disorder."""
    stream = chance.choice(STREAMS)
    if chance.random() < 0.3:
        return alter_bytes(stream, STREAMS, chance)
    blocks = [block for block in stream.split(b"\n\n") if block]
    goldens = [block[6:] for block in blocks if block.startswith(b"data: {")]
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(blocks))
        if blocks[at].startswith(b"data: {") and chance.random() < 0.8:
            altered = alter_json(chance.choice(goldens), goldens, chance)
            blocks[at] = b"data: " + altered.replace(b"\n", b"\ndata: ")
        else:
            blocks.insert(chance.randrange(len(blocks) + 1), blocks.pop(at))
    return b"".join(block + b"\n\n" for block in blocks)


def _steps(way: Iterable[bytes], asked: sglang.Asked) -> tuple[Any, ...]:
    decoder, assembler = sse.Decoder(), sglang.StreamAssembler(asked)
    steps: list[Any] = []
    failure: str | None = None
    try:
        for piece in way:
            for event in decoder.receive(piece):
                steps += map(_told, assembler.receive(event))
        decoder.close()
    except WorkerError as error:
        failure = error.message
    partial = [attempt(assembler.partial, index, may=WorkerError) for index in range(asked.samples)]
    for answer in partial:
        if answer is not None:
            _check_answer(answer)
    return steps, failure, partial, assembler.mode, assembler.finished


def _told(step: sglang.StreamStep) -> tuple[Any, ...]:
    """A step without its error, which has no equality, but with the error's words."""
    error = step.error
    if error is not None:
        check_words(error)
    words = None if error is None else (type(error), error.status, error.message)
    return (
        step.raw,
        step.sample,
        step.text,
        step.ids,
        step.logprobs,
        step.tokens,
        step.done,
        words,
    )


@_register
def framed_stream(chance: random.Random) -> None:
    """A worker's stream in OpenAI's words, as the relay frames it."""
    data = _altered_stream(chance)
    request: Any = chance.choice(PARSED_CHATS + PARSED_COMPLETIONS)
    named: openai.Named = {"id": "i", "created": 1, "model": "m", "vocabulary": VOCABULARY}
    framer: Any
    if isinstance(request, openai.ChatRequest):
        framer = openai.ChunkFramer(request, readers=_readers(request, chance), **named)
    else:
        framer = openai.TextChunkFramer(request, **named)
    with given(data=data, request=request):
        framer.first()
        attempt(_framed, data, framer, request, may=SlimeError)


def _readers(request: openai.ChatRequest, chance: random.Random) -> list[openai.AnswerReader]:
    """One reader for each choice, with any parsers."""
    parsers = ParserChoice(
        reasoning=chance.choice((None, *REASONING_PARSERS)),
        tool_calls=chance.choice((None, *TOOL_CALL_PARSERS)),
    )
    reading = openai.Reading(chat=request, vocabulary=VOCABULARY, parsers=parsers)
    return [openai.AnswerReader(reading, call_id=str) for _ in range(request.n)]


def _framed(data: bytes, framer: openai.Framer, request: openai.Request) -> None:
    assembler = sglang.StreamAssembler(request)
    decoder = sse.Decoder()
    for event in decoder.receive(data):
        for step in assembler.receive(event):
            if not step.done:
                shown = framer.step(step)
                assert not shown or shown.endswith(b"\n\n")
    decoder.close()
    if assembler.finished:
        framer.done()


# -- a worker's whole answers ------------------------------------------------------------------


@_register
def worker_answer(chance: random.Random) -> None:
    """A whole answer: what is accepted has columns of one length, and can be shown."""
    body = altered_json(ANSWERS, chance)
    asked = chance.choice(ASKED)
    with given(body=body, samples=asked.samples, array=asked.array):
        answers = attempt(sglang.parse_answer, body, asked, may=WorkerError)
        if answers is None:
            return
        assert len(answers) == asked.samples
        for answer in answers:
            _check_answer(answer)
        shown = attempt(sglang.strip_logprobs, body, asked, may=WorkerError)
        if shown is not None:
            assert_as_good_as(body, shown)


def _check_answer(answer: sglang.Answer) -> None:
    count = token_count(answer.ids)
    if answer.problem is None:
        assert len(answer.logprobs) in (4 * count, 8 * count)
        assert answer.completion_tokens == count
    assert not answer.versions or runs_problem(answer.versions, count) is None


@_register
def shown_answer(chance: random.Random) -> None:
    """A whole answer in OpenAI's words."""
    body = altered_json(ANSWERS, chance)
    request: Any = chance.choice(PARSED_CHATS + PARSED_COMPLETIONS)
    with given(body=body, request=request):
        answers = attempt(sglang.parse_answer, body, request, may=WorkerError)
        if answers is None:
            return
        common: dict[str, Any] = {"id": "i", "created": 1, "model": "m", "vocabulary": VOCABULARY}
        whole: Any = openai.text_completion
        if isinstance(request, openai.ChatRequest):
            readers = _readers(request, chance)
            for reader, answer in zip(readers, answers, strict=True):
                attempt(reader.whole, answer, may=WorkerError)
            common |= {"readers": readers, "prompt_ids": pack_ids([1])}
            whole = openai.completion
        made = attempt(whole, request, answers=answers, prompt_tokens=1, may=SlimeError, **common)
        if made is not None:
            assert_as_good_as(body, made)
        for answer in answers:
            attempt(answer_logprobs, answer, VOCABULARY, top=2, skip_special=True, may=WorkerError)


@_register
def worker_refusal(chance: random.Random) -> None:
    """Any status and any body is somebody's error, never ours."""
    body = chance.choice(REFUSALS)
    body = random_bytes(chance) if chance.random() < 0.1 else body
    if chance.random() < 0.7:
        jsons = REFUSALS[:4]
        body = altered_json(jsons, chance)
    status = chance.choice((0, 1, 200, 302, 400, 404, 413, 422, 429, 500, 503, 599, 600, 2**70, -1))
    with given(body=body, status=status):
        check_words(sglang.worker_error(status, body))
        check_words(sglang.abort_error(body.decode("utf-8", "replace"), status))


@_register
def worker_information(chance: random.Random) -> None:
    """What a worker tells of itself."""
    body = altered_json(INFOS, chance)
    with given(body=body):
        attempt(sglang.parse_model_info, body, may=WorkerError)
        attempt(sglang.parse_tokenize, body, may=WorkerError)
