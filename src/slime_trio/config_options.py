"""Every setting as an option: its flags, its variable, and how its words are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from slime_core.parsing import REASONING_PARSERS, TOOL_CALL_PARSERS
from slime_core.policy import POLICIES
from slime_trio.upstream import parse_origin

__all__ = ["AUTO", "ENVIRONMENT_PREFIX", "NONE", "OPTIONS", "Option", "truth", "worker"]

AUTO: Final = "auto"
"""A parser that is found by the chat template."""
NONE: Final = "none"
"""No parser: such text stays in the content."""
ENVIRONMENT_PREFIX: Final = "SLIME_ROUTER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How one setting is spelled. ``kind`` turns a word into a value; ``bool`` is a switch."""

    name: str
    flags: tuple[str, ...]
    kind: Callable[[str], Any]
    help: str
    repeatable: bool = False
    choices: tuple[str, ...] | None = None

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()


def truth(word: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True}
    values |= {"0": False, "false": False, "no": False, "off": False}
    if word.strip().lower() not in values:
        raise ValueError("expected on or off")
    return values[word.strip().lower()]


def _at_least(least: int) -> Callable[[str], int]:
    def number(word: str) -> int:
        value = int(word)
        if value < least:
            raise ValueError(f"expected at least {least}")
        return value

    return number


def _seconds(word: str) -> float:
    value = float(word)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive number of seconds")
    return value


def _port(word: str) -> int:
    value = int(word)
    if not 0 <= value <= 65535:
        raise ValueError("expected 0 to 65535")
    return value


def worker(word: str) -> str:
    parse_origin(word)
    return word


OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        name="host",
        flags=("--host", "--sglang-router-ip"),
        kind=str,
        help="address to listen on",
    ),
    Option(
        name="port",
        flags=("--port", "--sglang-router-port"),
        kind=_port,
        help="port to listen on; 0 picks a free one",
    ),
    Option(
        name="worker_urls",
        flags=("--worker-url", "--worker-urls"),
        kind=worker,
        repeatable=True,
        help="a worker's base URL; repeatable, or several in one go",
    ),
    Option(
        name="hf_checkpoint",
        flags=("--hf-checkpoint",),
        kind=str,
        help="directory with tokenizer.json and chat template, as the workers use",
    ),
    Option(
        name="served_model_name",
        flags=("--served-model-name",),
        kind=str,
        help="the model's name in /v1/models (default: the checkpoint's directory)",
    ),
    Option(
        name="policy",
        flags=("--policy",),
        kind=str,
        choices=tuple(POLICIES),
        help="how calls are dealt to workers",
    ),
    Option(
        name="capture",
        flags=("--capture",),
        kind=truth,
        help="on: capture every call; off: pass requests through, no checkpoint needed",
    ),
    Option(
        name="enable_openai_chat_completion",
        flags=("--enable-openai-chat-completion",),
        kind=truth,
        help="serve the OpenAI API (on by default)",
    ),
    Option(
        name="use_slime_router",
        flags=("--use-slime-router",),
        kind=truth,
        help="accepted for compatibility; always on",
    ),
    Option(
        name="slime_router_middleware_paths",
        flags=("--slime-router-middleware-paths", "--middleware"),
        kind=str,
        repeatable=True,
        help="dotted paths of middleware classes, comma separated, outermost first",
    ),
    Option(
        name="radix_tree_max_size",
        flags=("--radix-tree-max-size",),
        kind=_at_least(0),
        help="tokens kept only because they may be reused",
    ),
    Option(
        name="capture_max_mb",
        flags=("--capture-max-mb",),
        kind=_at_least(1),
        help="MiB of captured data not yet retrieved; past it the oldest goes",
    ),
    Option(
        name="gc_threshold_k",
        flags=("--gc-threshold-k",),
        kind=_at_least(1),
        help="collect what was not used for this many weight versions",
    ),
    Option(
        name="max_body_mb",
        flags=("--max-body-mb",),
        kind=_at_least(1),
        help="MiB of a request's body",
    ),
    Option(
        name="max_answer_mb",
        flags=("--max-answer-mb",),
        kind=_at_least(1),
        help="MiB of a worker's answer that is not a stream",
    ),
    Option(
        name="max_samples_per_request",
        flags=("--max-samples-per-request",),
        kind=_at_least(1),
        help="prompts times n in one request",
    ),
    Option(
        name="connect_timeout_s",
        flags=("--connect-timeout-s",),
        kind=_seconds,
        help="seconds for a worker to accept a connection",
    ),
    Option(
        name="client_stall_s",
        flags=("--client-stall-s",),
        kind=_seconds,
        help="seconds a client may take nothing before its call is given up",
    ),
    Option(
        name="poll_interval_s",
        flags=("--poll-interval-s",),
        kind=_seconds,
        help="seconds between two looks at each worker's weight version",
    ),
    Option(
        name="shutdown_grace_s",
        flags=("--shutdown-grace-s",),
        kind=_seconds,
        help="seconds that calls in flight get to finish when the router stops",
    ),
    Option(
        name="history",
        flags=("--history",),
        kind=str,
        choices=("exact", "template"),
        help="chat context: exact keeps all sampled tokens, template renders the past anew",
    ),
    Option(
        name="special_tokens_in_content",
        flags=("--special-tokens-in-content",),
        kind=str,
        choices=("plain", "control"),
        help="what special tokens that stand in a message's content are",
    ),
    Option(
        name="tool_call_parser",
        flags=("--tool-call-parser",),
        kind=str,
        choices=(AUTO, NONE, *TOOL_CALL_PARSERS),
        help="how answers spell tool calls: auto (by the chat template), none, or SGLang's name",
    ),
    Option(
        name="reasoning_parser",
        flags=("--reasoning-parser",),
        kind=str,
        choices=(AUTO, NONE, *REASONING_PARSERS),
        help="how answers spell reasoning: auto (by the chat template), none, or SGLang's name",
    ),
    Option(
        name="session_idle_s",
        flags=("--session-idle-s",),
        kind=_seconds,
        help="seconds after which a session that nobody used ends",
    ),
    Option(
        name="retry_memory_mb",
        flags=("--retry-memory-mb",),
        kind=_at_least(0),
        help="MiB of answers kept to be given again to a client that lost one",
    ),
    Option(
        name="record_trace",
        flags=("--record-trace",),
        kind=str,
        help="append a line for every captured call to this file, for `simulate --trace`",
    ),
    Option(
        name="verbose",
        flags=("--verbose",),
        kind=truth,
        help="log every call",
    ),
)
"""Every setting, in the order of the help text."""
