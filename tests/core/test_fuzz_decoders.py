"""No decoder of the core lets anything out but the errors that it names, whatever it is given."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core import openai, sglang, sse
from slime_core.engine import parse_sampling_params
from slime_core.errors import ClientError, WorkerError
from slime_core.strict_json import FieldTypeError
from tests.fuzzing.core_targets import TARGETS
from tests.fuzzing.goldens import ANSWERS, CHATS, COMPLETIONS, GENERATES, STREAMS, altered_json
from tests.fuzzing.mutate import pieces
from tests.fuzzing.targets import run_rounds
from tests.simulate.chance import derive

ROUNDS = {"nesting_at_the_limit": 15, "long_list": 300}


@pytest.mark.parametrize("name", TARGETS)
def test_altered_input_ends_in_a_value_or_a_named_error(name: str) -> None:
    run_rounds(name, TARGETS[name], seed=0, rounds=ROUNDS.get(name, 700))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=15)
@given(chance=st.randoms(use_true_random=False))
def test_altered_input_that_hypothesis_chooses_does_too(name: str, chance: random.Random) -> None:
    TARGETS[name](chance)


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_no_bytes_at_all_make_a_decoder_raise_anything_else(data: bytes, seed: int) -> None:
    chance = derive(seed)
    for parse, family in _PARSERS:
        with suppress(family):
            parse(data)
    decoder, assembler = sse.Decoder(), sglang.StreamAssembler(_ASKED)
    with suppress(WorkerError):
        for piece in pieces(data, chance):
            for event in decoder.receive(piece):
                assembler.receive(event)
        decoder.close()


_ASKED = sglang.parse_generate(b'{"text":"a"}')
_PARSERS: Sequence[tuple[Callable[[bytes], Any], type[Exception]]] = (
    (sglang.parse_generate, ClientError),
    (openai.parse_chat, ClientError),
    (openai.parse_completion, ClientError),
    (sglang.parse_model_info, WorkerError),
    (sglang.parse_tokenize, WorkerError),
    (lambda data: sglang.parse_answer(data, _ASKED), WorkerError),
)


# -- the fuzzing itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goldens", "parse", "refused"),
    [
        (GENERATES, sglang.parse_generate, ClientError),
        (CHATS, openai.parse_chat, ClientError),
        (COMPLETIONS, openai.parse_completion, ClientError),
        (ANSWERS[:1], lambda data: sglang.parse_answer(data, _ASKED), WorkerError),
    ],
)
def test_altered_bodies_are_neither_all_refused_nor_all_accepted(
    goldens: Sequence[bytes], parse: Callable[[bytes], Any], refused: type[Exception]
) -> None:
    accepted = 0
    for number in range(300):
        try:
            parse(altered_json(goldens, derive(number, "altered")))
            accepted += 1
        except refused:
            pass
    assert 45 < accepted < 255


def test_what_is_altered_is_decided_by_the_seed_alone() -> None:
    first, again, other = (
        [altered_json(GENERATES, derive(seed, number)) for number in range(50)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def _loses_a_line_end(decoder: sse.Decoder, data: bytes) -> list[sse.Event]:
    return RECEIVE(decoder, data[1:] if data.startswith(b"\n") else data)


def _raises_its_own(*_: object) -> None:
    raise FieldTypeError("x", "")


def _is_unbounded(decoder: sse.Decoder, length: int) -> None:
    pass


RECEIVE = sse.Decoder.receive


@pytest.mark.parametrize(
    ("target", "at", "planted"),
    [
        ("sse_decoder", "slime_core.sse.Decoder.receive", _loses_a_line_end),
        ("sse_decoder", "slime_core.sse.Decoder._check_size", _is_unbounded),
        ("worker_answer", "slime_core.sglang.answer.read_json", _raises_its_own),
        ("worker_stream", "slime_core.sglang.stream.read_tokens", _raises_its_own),
        ("chat_request", "slime_core.openai.chat.parse_tools", _raises_its_own),
        ("worker_answer", "slime_core.sglang.answer.runs_problem", lambda *_: None),
    ],
)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, target: str, at: str, planted: Callable[..., Any]
) -> None:
    monkeypatch.setattr(at, planted)
    with pytest.raises((AssertionError, FieldTypeError)) as found:
        run_rounds(target, TARGETS[target], seed=0, rounds=700)
    assert any("python -m tests.fuzzing --target" in note for note in found.value.__notes__)


def test_every_stream_golden_is_read_to_its_end() -> None:
    for stream in STREAMS:
        decoder = sse.Decoder()
        assert decoder.receive(stream)
        decoder.close()


# -- what it found -----------------------------------------------------------------------------


def test_an_abort_that_names_an_endless_context_length_is_the_clients_error() -> None:
    error = sglang.abort_error("context length " + "9" * 5000, 400)
    assert isinstance(error, ClientError)
    assert error.code == "invalid_value"


@pytest.mark.parametrize(
    "params", [{"stop_regex": "a{99999999999}"}, {"temperature": 10**400}, {"top_p": -(10**400)}]
)
def test_a_number_beyond_python_is_refused_by_the_embedded_worker(params: dict[str, Any]) -> None:
    with pytest.raises(ClientError):
        parse_sampling_params(params, vocabulary_size=10)
