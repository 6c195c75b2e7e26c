"""Registrations: what is read, what is refused by name, and what is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slime_core.enlistment import (
    Details,
    Enlistment,
    parse_change,
    parse_enlistment,
    read_details,
)
from slime_core.errors import ClientError
from slime_core.fleet import WorkerKind

URL = "http://10.0.0.5:30000"


def _read(**fields: Any) -> Enlistment:
    return parse_enlistment(json.dumps({"url": URL} | fields).encode())


def _changed(known: Enlistment, **fields: Any) -> Enlistment:
    return parse_change(json.dumps(fields).encode(), known)


def _fault(body: bytes) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parse_enlistment(body)
    assert caught.value.status == 400
    return caught.value


def test_a_url_alone_is_a_regular_worker() -> None:
    assert _read() == Enlistment(url=URL)


def test_what_trainers_send_is_read() -> None:
    read = _read(worker_type="prefill", bootstrap_port=8998)
    assert (read.kind, read.bootstrap_port) == (WorkerKind.PREFILL, 8998)
    assert _read(worker_type="decode", bootstrap_port=None).kind is WorkerKind.DECODE


def test_nulls_are_as_good_as_absent() -> None:
    nulls = dict.fromkeys(("worker_type", "api_key", "labels", "priority", "model_id"))
    assert _read(**nulls) == Enlistment(url=URL)


def test_the_rest_is_kept_as_details_and_unknown_fields_are_not() -> None:
    read = _read(
        model_id="m",
        priority=7,
        cost=2,
        labels={"pool": "a"},
        health_check_interval_secs=5,
        disable_health_check=True,
        grpc_secret="hidden",
    )
    assert read.details == Details(
        model_id="m",
        priority=7,
        cost=2.0,
        labels={"pool": "a"},
        health_check_interval_secs=5.0,
        disable_health_check=True,
    )
    assert b"hidden" not in read.details.encoded()


def test_details_survive_their_encoding_and_what_was_not_said_is_not_in_it() -> None:
    details = Details(priority=7, labels={"b": "1", "a": "2"})
    assert read_details(details.encoded()) == details
    assert Details().encoded() == b"{}"
    assert details.encoded() == Details(priority=7, labels={"a": "2", "b": "1"}).encoded()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", 7),
        ("url", ""),
        ("url", "http://" + "a" * 2048),
        ("worker_type", "encode"),
        ("worker_type", 1),
        ("bootstrap_port", "8998"),
        ("bootstrap_port", 0),
        ("bootstrap_port", 65_536),
        ("bootstrap_port", True),
        ("api_key", "two words"),
        ("api_key", "line\nbreak"),
        ("api_key", ""),
        ("model_id", 1),
        ("priority", "high"),
        ("cost", -1),
        ("labels", ["a"]),
        ("labels", {str(number): "" for number in range(65)}),
        ("health_check_timeout_secs", 0),
        ("health_check_interval_secs", "30"),
        ("health_success_threshold", 0),
        ("health_failure_threshold", 1.5),
        ("disable_health_check", "yes"),
        ("max_connection_attempts", -1),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_and_its_field_named(field: str, value: Any) -> None:
    error = _fault(json.dumps({"url": URL} | {field: value}).encode())
    assert error.param == field


def test_a_wrong_label_is_named_with_its_place() -> None:
    error = _fault(json.dumps({"url": URL, "labels": {"a": 1}}).encode())
    assert error.param is not None
    assert error.param.startswith("labels")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    _fault(body)


def test_a_registration_without_a_url_is_refused() -> None:
    assert _fault(b"{}").param == "url"
    assert _fault(b'{"url":null}').param == "url"


def test_a_refused_key_is_not_repeated() -> None:
    assert "two words" not in _fault(b'{"url":"http://a","api_key":"two words"}').message


def test_no_key_is_shown() -> None:
    assert "secret-key" not in repr(_read(api_key="secret-key"))


def test_a_change_keeps_what_it_does_not_name() -> None:
    known = _read(priority=7, labels={"a": "1"}, api_key="secret-key", worker_type="decode")
    changed = _changed(known, labels={"b": "2"})
    assert changed == _read(
        priority=7, labels={"b": "2"}, api_key="secret-key", worker_type="decode"
    )


def test_a_null_in_a_change_puts_the_default_back() -> None:
    known = _read(priority=7, labels={"a": "1"}, api_key="secret-key", cost=3)
    assert _changed(known, priority=None, labels=None, api_key=None) == _read(cost=3)


def test_what_a_worker_is_may_be_repeated_and_not_changed() -> None:
    known = _read(worker_type="prefill", bootstrap_port=8998)
    same = {"url": URL, "worker_type": "prefill", "bootstrap_port": 8998}
    assert _changed(known, **same) == known
    for field, value in (("url", "http://b"), ("worker_type", "decode"), ("bootstrap_port", 1)):
        with pytest.raises(ClientError) as caught:
            _changed(known, **{field: value})
        assert caught.value.param == field
