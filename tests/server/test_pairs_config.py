"""Pairs on the command line."""

from __future__ import annotations

import argparse

import pytest

from slime_trio.config import ConfigurationError, Settings, add_arguments, from_arguments
from slime_trio.config.kinds import Prefill

P, D = "http://10.0.0.1:1", "http://10.0.0.2:1"


def settings(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(words), {})


def test_ports_belong_to_the_prefill_worker_before_them() -> None:
    chosen = settings(
        *("--pd-disaggregation", "--prefill", P, "9000", "--prefill", D, "none"),
        *("--prefill", "http://[::1]:1", "--decode", D, "--decode", P),
    )
    assert chosen.pd_disaggregation
    assert chosen.prefill == (Prefill(P, 9000), Prefill(D), Prefill("http://[::1]:1"))
    assert chosen.decode == (D, P)


def test_decode_alone_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="at least one prefill server is required"):
        settings("--pd-disaggregation", "--decode", D)


def test_prefill_alone_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="at least one decode server is required"):
        settings("--pd-disaggregation", "--prefill", P, "9000")


def test_neither_is_none_since_workers_may_register() -> None:
    assert settings("--pd-disaggregation").pd_disaggregation
