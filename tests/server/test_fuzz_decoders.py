"""No decoder of the shell lets anything out but the errors that it names, whatever it is given."""

from __future__ import annotations

import inspect
import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_trio import retrieval
from slime_trio.chat_messages import TemplateTraits, normalise_messages
from slime_trio.limits.head import end_of_head
from slime_trio.tokenizer import CheckpointError, Tokenizer, load_checkpoint
from slime_trio.upstream.parser import ResponseParser
from tests.fuzzing.edge_targets import TOKENIZERS
from tests.fuzzing.shell_targets import TARGETS
from tests.fuzzing.targets import run_rounds
from tests.server.relay_support import kinds_of

IN_MEMORY = {"client_body": 400, "worker_bytes": 400, "retrieval_body": 150, "first_contact": 150}


@pytest.mark.parametrize("name", TARGETS)
def test_altered_input_ends_in_a_value_or_a_named_error(name: str) -> None:
    run_rounds(name, TARGETS[name], seed=0, rounds=IN_MEMORY.get(name, 1000))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=10)
@given(chance=st.randoms(use_true_random=False))
def test_altered_input_that_hypothesis_chooses_does_too(name: str, chance: random.Random) -> None:
    TARGETS[name](chance)


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
def test_no_bytes_at_all_make_the_response_parser_raise(reads: list[bytes]) -> None:
    parser = ResponseParser(max_head_bytes=100)
    for data in reads:
        parser.feed(data)
        parser.take()
    parser.feed_eof()
    assert parser.fault is not None or parser.is_complete


class _Planted(Exception):
    """A bug."""


def _raises(*_: object, **__: object) -> None:
    raise _Planted


def _does_nothing(*_: object, **__: object) -> None:
    pass


def _forgetful(data: bytes, start: int = 0) -> int:
    """Finds no end of a head that comes in two reads."""
    return end_of_head(data, start and start + 2)


@pytest.mark.parametrize(
    ("target", "at", "planted"),
    [
        ("http_response", "slime_trio.upstream.parser.ResponseParser.feed_eof", _raises),
        ("http_response_bounds", "slime_trio.upstream.parser.ResponseParser._spend", _does_nothing),
        ("listener_request", "slime_trio.listener.request_parser.judge_plain", _does_nothing),
        ("listener_request", "slime_trio.listener.chunked_body.is_trailer", lambda _: True),
        ("listener_splits", "slime_trio.listener.request_parser.end_of_head", _forgetful),
        ("listener_answer", "slime_trio.listener.answer_writer.AnswerWriter._frame", _does_nothing),
        ("worker_bytes", "slime_core.sglang.stream.read_tokens", _raises),
        ("worker_bytes", "slime_trio.capture.Capture.end", _does_nothing),
        ("client_body", "slime_trio.capture.Capture.end", _does_nothing),
        ("retrieval_body", "slime_trio.retrieval.plan_retrieval", _raises),
        ("worker_url", "slime_trio.upstream.origin._has_good_labels", _raises),
        ("first_contact", "slime_core.sglang.info.version_text", _raises),
    ],
)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, target: str, at: str, planted: Any
) -> None:
    monkeypatch.setattr(at, planted)
    with pytest.raises((AssertionError, ExceptionGroup, _Planted)) as found:
        run_rounds(target, TARGETS[target], seed=0, rounds=IN_MEMORY.get(target, 1000))
    assert kinds_of(found.value) <= {AssertionError, _Planted}
    assert any("python -m tests.fuzzing --target" in note for note in found.value.__notes__)


# -- what it found ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"unk_token":"<u>"', b'"unk_token":"<v>"'),
        (b'"unk_id":0,', b""),
        (b'"normalizer":null', b'"normalizer":["x"]'),
        (b'"<s>":{"id"', b'"<v>":{"id"'),
    ],
    ids=["no unknown token", "no id of it", "normaliser in a list", "panic"],
)
def test_a_tokenizer_that_cannot_encode_is_refused_in_one_line(old: bytes, new: bytes) -> None:
    (data,) = (each for each in TOKENIZERS if old in each)
    with pytest.raises(CheckpointError):
        Tokenizer(data.replace(old, new))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_a_checkpoint_that_is_nested_too_deeply_is_refused_in_one_line(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        (directory / "tokenizer.json").write_bytes(TOKENIZERS[0])
        (directory / "tokenizer_config.json").write_bytes(b'{"eos_token":"<e>"}')
        (directory / name).write_bytes(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}")
        with pytest.raises(CheckpointError):
            load_checkpoint(directory)


def test_arguments_that_could_just_be_read_are_not_too_deep_to_be_written() -> None:
    """Where the template wants the arguments of former calls as text; depths around the limit."""
    usual = sys.getrecursionlimit()
    for depth in range(20, 90):
        arguments = b"[" * depth + b"]" * depth
        body = b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":%b}}]}]}'
        sys.setrecursionlimit(len(inspect.stack(0)) + 90)
        try:
            with suppress(ClientError):
                _normalised(body % arguments)
        finally:
            sys.setrecursionlimit(usual)


def _normalised(body: bytes) -> None:
    asked = retrieval._read(body, retrieval._ByMessages)
    normalise_messages(asked.messages, TemplateTraits(arguments_as_text=True))
