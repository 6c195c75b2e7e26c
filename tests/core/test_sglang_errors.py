"""Worker errors in their three forms, and what workers tell about themselves."""

import pytest

from slime_core.errors import ClientError, WorkerError
from slime_core.sglang import (
    abort_error,
    encode_tokenize,
    parse_model_info,
    parse_tokenize,
    worker_error,
)
from slime_core.types import pack_ids


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":"bad thing"}',
        b'{"error":{"message":"bad thing"}}',
        b'{"object":"error","message":"bad thing","type":"Bad Request","param":null,"code":400}',
        b'{"detail":"bad thing"}',
        b'"bad thing"',
        b"bad thing\n",
    ],
)
def test_every_form_gives_the_same_error(body: bytes) -> None:
    error = worker_error(400, body, param="messages")
    assert isinstance(error, ClientError)
    assert (error.message, error.status, error.param) == ("bad thing", 400, "messages")


@pytest.mark.parametrize("body", [b"", b"null", b"[1]", b"{}", b'{"error":{"message":7}}'])
def test_a_body_without_words_still_gives_a_sentence(body: bytes) -> None:
    assert worker_error(500, body).message == "The worker answered with status 500."


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (429, 429, "rate_limit_exceeded"),
        (503, 503, "worker_unavailable"),
        (500, 500, "worker_error"),
        (504, 504, "worker_error"),
        (401, 502, "bad_worker_answer"),
        (404, 502, "bad_worker_answer"),
        (302, 502, "bad_worker_answer"),
    ],
)
def test_only_a_bad_request_is_the_clients_fault(status: int, expected: int, code: str) -> None:
    error = worker_error(status, b'{"error":"no"}')
    assert isinstance(error, WorkerError)
    assert (error.status, error.code) == (expected, code)


@pytest.mark.parametrize(
    "words",
    [
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        "The input (9000 tokens) is longer than the model's context length (4096 tokens).",
    ],
)
def test_a_full_context_is_worded_as_clients_look_for_it(words: str) -> None:
    error = worker_error(400, b'{"error":{"message":"%s"}}' % words.encode(), param="messages")
    assert error.code == "context_length_exceeded"
    assert error.message.startswith("This model's maximum context length is 4096 tokens.")


def test_an_abort_with_a_status_is_that_error() -> None:
    assert abort_error("queue full", 503).status == 503
    assert isinstance(abort_error("too long", 400), ClientError)


def test_an_abort_without_a_status_may_be_tried_again() -> None:
    error = abort_error("Aborted", None)
    assert (error.status, error.code) == (503, "generation_aborted")
    assert error.retry_after_s


def test_model_info_is_read() -> None:
    info = parse_model_info(b'{"model_path":"m","weight_version":3,"is_generation":true,"x":1}')
    assert info.weight_version == "3"


def test_a_model_info_without_a_version_says_so() -> None:
    assert parse_model_info(b'{"model_path":"m"}').weight_version is None


def test_tokenize_goes_out_and_comes_back() -> None:
    assert encode_tokenize("é", add_special_tokens=False) == (
        '{"prompt":"é","add_special_tokens":false}'.encode()
    )
    found = parse_tokenize(b'{"tokens":[1,2],"count":2,"max_model_len":4096}')
    assert (found.ids, found.max_model_len) == (pack_ids([1, 2]), 4096)


@pytest.mark.parametrize("parse", [parse_model_info, parse_tokenize])
@pytest.mark.parametrize("body", [b"", b"[]", b'{"tokens":[-1],"data":7}', b"<html>"])
def test_anything_else_is_the_workers_fault(parse: object, body: bytes) -> None:
    assert callable(parse)
    with pytest.raises(WorkerError):
        parse(body)
