"""Settings: flags, variables, and what each refuses."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from slime_trio.config import (
    OPTIONS,
    ConfigurationError,
    Settings,
    add_arguments,
    from_arguments,
    from_environment,
)

SAMPLE = {"history": "template", "special_tokens_in_content": "control",
    "tool_call_parser": "hermes",
    "reasoning_parser": "none",
          "hf_checkpoint": "/x", "served_model_name": "m", "policy": "round-robin",
          "host": "::1", "worker_urls": "http://a:1,http://b:2",
          "prefill": "http://a:1,8998,http://b:2", "decode": "http://c:3",
          "prefill_policy": "round_robin",
          "decode_policy": "my.policies:Own", "admin_key": "sk-admin-1",
          "api_key": "sk-one-11,sk-two-22",
          "worker_api_key": "sk-worker", "allow_worker": "*.lan", "trusted_proxy": "10.0.0.0/8",
          "max_json_depth": "64",
          "log_format": "json", "listener": "hypercorn"}  # fmt: skip

_OTHER_HALF = {"prefill": ("--decode", "http://d:4"), "decode": ("--prefill", "http://p:5")}
"""A side of pairs is refused without the other."""


def _parse(*words: str, **environ: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(words), environ)


def test_every_setting_has_one_row() -> None:
    names = [option.name for option in OPTIONS]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(Settings))


def test_nothing_given_is_the_standard() -> None:
    assert _parse() == Settings()


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_flag_and_its_variable_say_the_same(option: object) -> None:
    from slime_trio.config import Option

    assert isinstance(option, Option)
    standard = getattr(Settings(), option.name)
    word = SAMPLE.get(option.name, "off" if standard is True else "1")
    beside = _OTHER_HALF.get(option.name, ())
    by_flag = _parse(option.flags[0], word, *beside)
    by_variable = _parse(*beside, **{option.variable: word})
    assert by_flag == by_variable
    assert getattr(by_flag, option.name) != standard
    assert all(_parse(flag, word, *beside) == by_flag for flag in option.flags)


def test_a_flag_wins_over_the_variable() -> None:
    assert _parse("--port", "1", SLIME_ROUTER_PORT="2").port == 1


def test_the_documents_names_are_accepted() -> None:
    settings = _parse(
        "--hf-checkpoint", "/x", "--sglang-router-ip", "127.0.0.1", "--sglang-router-port", "3",
        "--use-slime-router", "--enable-openai-chat-completion", "--radix-tree-max-size", "5",
        "--slime-router-middleware-paths", "a.B,c.D", "--verbose",
    )  # fmt: skip
    assert (settings.host, settings.port, settings.radix_tree_max_size) == ("127.0.0.1", 3, 5)
    assert settings.slime_router_middleware_paths == ("a.B", "c.D")
    assert settings.use_slime_router
    assert settings.enable_openai_chat_completion
    assert (settings.sglang_router_ip, settings.sglang_router_port) == ("127.0.0.1", 3)


def test_workers_add_up() -> None:
    settings = _parse("--worker-url", "http://a:1", "--worker-url", "http://b:2", "http://c:3")
    assert settings.worker_urls == ("http://a:1", "http://b:2", "http://c:3")


@pytest.mark.parametrize(
    ("variable", "word"),
    [("PORT", "-1"), ("PORT", "x"), ("CAPTURE", "maybe"), ("WORKER_URLS", "a:1"),
     ("CLIENT_STALL_S", "0"), ("CLIENT_STALL_S", "nan"), ("CLIENT_STALL_S", "inf"),
     ("GC_THRESHOLD_K", "0"), ("MAX_BODY_MB", "0"), ("POLICY", "fair"), ("NONSENSE", "1")],
)  # fmt: skip
def test_a_variable_that_makes_no_sense_is_named(variable: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=f"SLIME_ROUTER_{variable}"):
        from_environment({f"SLIME_ROUTER_{variable}": word})


def test_other_variables_are_no_business_of_ours() -> None:
    assert from_environment({"PORT": "x", "SLIME_OTHER": "y"}) == {}


def test_a_password_in_a_workers_url_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_arguments(environ={"SLIME_ROUTER_WORKER_URLS": "http://a:secret@h:1"})
    assert "secret" not in str(caught.value)
