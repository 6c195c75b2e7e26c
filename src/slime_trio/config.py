"""Settings: what the command line and the environment say, and the only reader of both.

Every setting is a field of :class:`Settings` and one row of :data:`OPTIONS`; its flags, its
``SLIME_ROUTER_*`` variable and its help text follow from the row. A flag wins over the variable.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slime_core.parsing import REASONING_PARSERS, TOOL_CALL_PARSERS
from slime_core.policy import POLICIES
from slime_trio.upstream import parse_origin

__all__ = [
    "AUTO",
    "BUILT_IN_CAPTURE",
    "NONE",
    "OPTIONS",
    "ConfigurationError",
    "Option",
    "Settings",
    "add_arguments",
    "from_arguments",
    "from_environment",
]

BUILT_IN_CAPTURE: Final = "slime.router.middleware.radix_tree_middleware.RadixTreeMiddleware"
"""The path by which the documents name the capture that is built in here."""

AUTO: Final = "auto"
"""A parser that is found by the chat template."""
NONE: Final = "none"
"""No parser: such text stays in the content."""

_ENVIRONMENT_PREFIX: Final = "SLIME_ROUTER_"


class ConfigurationError(Exception):
    """The router cannot start as configured; the message is one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. Sizes and times carry their unit in the name."""

    host: str = "0.0.0.0"
    port: int = 30000
    worker_urls: tuple[str, ...] = ()
    hf_checkpoint: str | None = None
    served_model_name: str | None = None
    policy: str = "least-in-flight"
    capture: bool = True
    enable_openai_chat_completion: bool = True
    use_slime_router: bool = True
    slime_router_middleware_paths: tuple[str, ...] = ()
    radix_tree_max_size: int = 10_000
    capture_max_mb: int = 4096
    gc_threshold_k: int = 5
    max_body_mb: int = 512
    max_answer_mb: int = 2048
    max_samples_per_request: int = 2048
    connect_timeout_s: float = 10.0
    client_stall_s: float = 60.0
    poll_interval_s: float = 10.0
    shutdown_grace_s: float = 30.0
    history: str = "exact"
    special_tokens_in_content: str = "plain"
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    session_idle_s: float = 86_400.0
    retry_memory_mb: int = 64
    record_trace: str | None = None
    verbose: bool = False

    @property
    def sglang_router_ip(self) -> str:
        """The documents' name for ``host``."""
        return self.host

    @property
    def sglang_router_port(self) -> int:
        """The documents' name for ``port``."""
        return self.port


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
        return _ENVIRONMENT_PREFIX + self.name.upper()


def _truth(word: str) -> bool:
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


def _worker(word: str) -> str:
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
        kind=_worker,
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
        kind=_truth,
        help="on: capture every call; off: pass requests through, no checkpoint needed",
    ),
    Option(
        name="enable_openai_chat_completion",
        flags=("--enable-openai-chat-completion",),
        kind=_truth,
        help="serve the OpenAI API (on by default)",
    ),
    Option(
        name="use_slime_router",
        flags=("--use-slime-router",),
        kind=_truth,
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
        kind=_truth,
        help="log every call",
    ),
)
"""Every setting, in the order of the help text."""


class _Repeated(argparse.Action):
    """Collects values from repeated flags and from several words behind one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest, None) or []), *values])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag. What is not given stays absent, so that the environment can speak."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for option in OPTIONS:
        default = defaults[option.name]
        shown = "" if default in (None, ()) else f" (default: {_shown(default)})"
        common: dict[str, Any] = {
            "dest": option.name,
            "default": argparse.SUPPRESS,
            "help": option.help + shown,
            "metavar": option.name.rsplit("_", 1)[-1].upper(),
        }
        if option.repeatable:
            parser.add_argument(*option.flags, nargs="+", action=_Repeated, **common)
        elif option.kind is _truth:
            parser.add_argument(*option.flags, nargs="?", const="on", **common)
        else:
            parser.add_argument(*option.flags, **common)


def _shown(value: object) -> object:
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def from_environment(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The settings that the environment names. Raises :class:`ConfigurationError`.

    A variable with the prefix that names no setting is an error too: a typing mistake would
    otherwise go unnoticed.
    """
    environ = os.environ if environ is None else environ
    known = {option.variable: option for option in OPTIONS}
    found = {}
    for variable, word in environ.items():
        if variable.startswith(_ENVIRONMENT_PREFIX):
            if variable not in known:
                raise ConfigurationError(f"{variable} is not a setting of this router")
            found[known[variable].name] = _value(known[variable], [word], variable)
    return found


def from_arguments(
    namespace: argparse.Namespace | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings of a command line and an environment. Raises :class:`ConfigurationError`."""
    values = from_environment(environ)
    given = vars(namespace) if namespace is not None else {}
    for option in OPTIONS:
        if option.name in given:
            words = given[option.name]
            words = words if isinstance(words, list) else [words]
            values[option.name] = _value(option, words, option.flags[0])
    return Settings(**values)


def _value(option: Option, words: Sequence[str], source: str) -> Any:
    """The value that ``words`` spell. A list may be split by commas or blanks."""
    try:
        if option.repeatable:
            parts = [part for word in words for part in word.replace(",", " ").split()]
            return tuple(option.kind(part) for part in parts)
        value = option.kind(words[-1])
    except ValueError as error:
        # A worker's URL may hold a password by mistake; its own words name the URL where they may.
        said = "" if option.kind is _worker else f"{' '.join(words)!r} is not valid: "
        raise ConfigurationError(f"{source}: {said}{error}") from error
    if option.choices is not None and value not in option.choices:
        raise ConfigurationError(f"{source}: {value!r} is not one of {', '.join(option.choices)}")
    return value
