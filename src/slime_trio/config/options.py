"""Every setting as an option: its flags, its variable, and how its words are read."""

from __future__ import annotations

from typing import Final

from slime_core.parsing import REASONING_PARSERS, TOOL_CALL_PARSERS
from slime_trio.config.fleet_options import FLEET_OPTIONS
from slime_trio.config.kinds import Option, at_least, port, seconds, truth, worker
from slime_trio.config.network_options import NETWORK_OPTIONS

__all__ = ["AUTO", "NONE", "OPTIONS"]

AUTO: Final = "auto"
"""A parser that is found by the chat template."""
NONE: Final = "none"
"""No parser: such text stays in the content."""


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
        kind=port,
        help="port to listen on; 0 picks a free one",
    ),
    Option(
        name="listener",
        flags=("--listener",),
        kind=str,
        choices=("fast", "hypercorn"),
        help="who accepts connections: the router's own listener, or Hypercorn",
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
        kind=at_least(0),
        help="tokens kept only because they may be reused",
    ),
    Option(
        name="capture_max_mb",
        flags=("--capture-max-mb",),
        kind=at_least(1),
        help="MiB of captured data not yet retrieved; past it the oldest goes",
    ),
    Option(
        name="gc_threshold_k",
        flags=("--gc-threshold-k",),
        kind=at_least(1),
        help="collect what was not used for this many weight versions",
    ),
    Option(
        name="max_body_mb",
        flags=("--max-body-mb",),
        kind=at_least(1),
        help="MiB of a request's body",
    ),
    Option(
        name="max_answer_mb",
        flags=("--max-answer-mb",),
        kind=at_least(1),
        help="MiB of a worker's answer that is not a stream",
    ),
    Option(
        name="max_samples_per_request",
        flags=("--max-samples-per-request",),
        kind=at_least(1),
        help="prompts times n in one request",
    ),
    Option(
        name="connect_timeout_s",
        flags=("--connect-timeout-s",),
        kind=seconds,
        help="seconds for a worker to accept a connection",
    ),
    Option(
        name="client_stall_s",
        flags=("--client-stall-s",),
        kind=seconds,
        help="seconds a client may take nothing before its call is given up",
    ),
    Option(
        name="poll_interval_s",
        flags=("--poll-interval-s",),
        kind=seconds,
        help="seconds between two looks at each worker's weight version",
    ),
    Option(
        name="shutdown_grace_s",
        flags=("--shutdown-grace-s",),
        kind=seconds,
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
        kind=seconds,
        help="seconds after which a session that nobody used ends",
    ),
    Option(
        name="retry_memory_mb",
        flags=("--retry-memory-mb",),
        kind=at_least(0),
        help="MiB of answers kept to be given again to a client that lost one",
    ),
    Option(
        name="record_trace",
        flags=("--record-trace",),
        kind=str,
        help="append a line for every captured call to this file, for `simulate --trace`",
    ),
    *FLEET_OPTIONS,
    *NETWORK_OPTIONS,
)
"""Every setting, in the order of the help text."""
