"""Settings: what the command line and the environment say, and the only reader of both.

Every setting is a field of :class:`Settings` and one row of :data:`OPTIONS`; its flags, its
``SLIME_ROUTER_*`` variable and its help text follow from the row. A flag wins over the variable.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from slime_trio.config.kinds import ENVIRONMENT_PREFIX, Option, Prefill, truth, worker
from slime_trio.config.options import AUTO, NONE, OPTIONS

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


class ConfigurationError(Exception):
    """The router cannot start as configured; the message is one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. Sizes and times carry their unit in the name."""

    host: str = "0.0.0.0"
    port: int = 30000
    listener: str = "fast"
    worker_urls: tuple[str, ...] = ()
    hf_checkpoint: str | None = None
    served_model_name: str | None = None
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
    policy: str = "least-in-flight"
    affinity: bool = True
    max_concurrent_requests: int = 16_384
    queue_size: int = 16_384
    queue_timeout_s: float = 600.0
    request_timeout_s: float = 0.0
    max_attempts: int = 3
    retry_backoff_s: float = 0.1
    health_check: bool = True
    health_check_interval_s: float = 30.0
    health_check_timeout_s: float = 25.0
    probe_logprobs: bool = True
    failure_threshold: int = 3
    quarantine_s: float = 30.0
    max_weight_staleness: int = 0
    version_grace_s: float = 60.0
    pd_disaggregation: bool = False
    prefill: tuple[Prefill, ...] = ()
    decode: tuple[str, ...] = ()
    prefill_policy: str = "random"
    decode_policy: str = "random"
    pd_timeout_s: float = 1800.0
    admin_key: str | None = field(default=None, repr=False)
    api_key: tuple[str, ...] = field(default=(), repr=False)
    worker_api_key: str | None = field(default=None, repr=False)
    allow_worker: tuple[str, ...] = ()
    trusted_proxy: tuple[str, ...] = ()
    max_header_kb: int = 64
    header_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    max_connections: int = 65_536
    max_connections_per_peer: int = 32_768
    max_json_depth: int = 256
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    worker_ca: str | None = None
    worker_cert: str | None = None
    worker_key: str | None = None
    log_format: str = "console"
    otlp_endpoint: str | None = None
    verbose: bool = False

    @property
    def sglang_router_ip(self) -> str:
        """The documents' name for ``host``."""
        return self.host

    @property
    def sglang_router_port(self) -> int:
        """The documents' name for ``port``."""
        return self.port


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
        elif option.kind is truth:
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
        if variable.startswith(ENVIRONMENT_PREFIX):
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
    settings = Settings(**values)
    _check_pairs(settings)
    return settings


def _check_pairs(settings: Settings) -> None:
    """Half of a pair serves nobody. None at all is no mistake: workers may register later."""
    if settings.decode and not settings.prefill:
        raise ConfigurationError("--decode: at least one prefill server is required (--prefill)")
    if settings.prefill and not settings.decode:
        raise ConfigurationError("--prefill: at least one decode server is required (--decode)")


def _value(option: Option, words: Sequence[str], source: str) -> Any:
    """The value that ``words`` spell. A list may be split by commas or blanks."""
    try:
        if option.repeatable:
            parts = [part for word in words for part in word.replace(",", " ").split()]
            if option.gather is not None:
                return option.gather(parts)
            return tuple(option.kind(part) for part in parts)
        value = option.kind(words[-1])
    except ValueError as error:
        # A worker's URL may hold a password by mistake; its own words name the URL where they may.
        hidden = option.secret or option.kind is worker
        said = "" if hidden else f"{' '.join(words)!r} is not valid: "
        raise ConfigurationError(f"{source}: {said}{error}") from error
    if option.choices is not None and value not in option.choices:
        raise ConfigurationError(f"{source}: {value!r} is not one of {', '.join(option.choices)}")
    return value
