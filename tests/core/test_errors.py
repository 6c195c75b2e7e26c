"""Errors name the party at fault, a status, and words for a client."""

from __future__ import annotations

import pytest

from slime_core.errors import (
    ClientError,
    InvariantError,
    SlimeError,
    WorkerError,
    as_openai,
    as_sglang,
)


def test_the_base_names_nobody_and_cannot_be_raised() -> None:
    with pytest.raises(TypeError, match="party at fault"):
        SlimeError("x")


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (ClientError("x"), 400, "invalid_request_error", "invalid_value"),
        (ClientError("x", status=429, code="busy"), 429, "rate_limit_error", "busy"),
        (WorkerError("x"), 502, "server_error", "bad_worker_answer"),
        (WorkerError("x", status=503), 503, "server_error", "bad_worker_answer"),
        (InvariantError("x"), 500, "server_error", "internal_error"),
    ],
)
def test_each_family_has_its_status(error: SlimeError, status: int, kind: str, code: str) -> None:
    assert (error.status, error.kind, error.code) == (status, kind, code)


def test_the_body_has_openais_four_keys() -> None:
    body = as_openai(ClientError("bad role", param="messages[0].role"))
    assert body == {
        "error": {
            "message": "bad role",
            "type": "invalid_request_error",
            "param": "messages[0].role",
            "code": "invalid_value",
        }
    }


def test_our_own_bug_is_not_told_in_words() -> None:
    assert as_openai(InvariantError("secret"))["error"]["message"] == "internal error"


def test_sglangs_body_has_the_message_too() -> None:
    assert as_sglang(WorkerError("gone"))["error"]["message"] == "gone"


def test_one_status_does_not_change_the_others() -> None:
    ClientError("x", status=404, code="y")
    assert (ClientError("x").status, ClientError("x").code) == (400, "invalid_value")


def test_a_worker_error_tells_whether_an_answer_had_begun() -> None:
    assert [WorkerError("x", first_byte_sent=sent).first_byte_sent for sent in (True, False)] == [
        True,
        False,
    ]


def test_an_error_may_say_when_to_come_back() -> None:
    assert ClientError("x", retry_after_s=1.5).retry_after_s == 1.5
