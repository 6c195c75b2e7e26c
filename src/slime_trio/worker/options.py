"""What an embedded worker is like: its command-line options as one frozen value."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slime_core.engine import ExpertShape, Script
from slime_trio.worker.faults import Fault, parse_fault

__all__ = ["SHIPPED_CHECKPOINT", "WorkerOptions", "add_arguments", "options_from"]

SHIPPED_CHECKPOINT: Final = Path(__file__).resolve().parent.parent / "data" / "checkpoint"
"""The tokenizer that travels with the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """One worker. ``script`` (in process) wins over ``script_file``.

    ``script_file``: JSON, a list of answers that are given in turn, each a string, a list of ids,
    or an object with ``text`` or ``ids`` and optionally ``logprobs``. ``seed`` ``None`` means
    another one at each start, so that request ids and samples of two workers differ; with a number
    both repeat. ``experts`` switches ``routed_experts`` on. ``health_s`` is how long ``/health``
    takes, 1 s with SGLang.
    """

    hf_checkpoint: Path = SHIPPED_CHECKPOINT
    weight_version: str = "default"
    seed: int | None = None
    ms_per_token: float = 0.0
    prefill_tokens_per_s: float = 0.0
    prefix_cache_tokens: int = 200_000
    context_length: int = 32_768
    max_running_requests: int = 256
    queue_max: int = 0
    incremental_streaming_output: bool = False
    experts: ExpertShape | None = None
    script_file: Path | None = None
    script: Script | None = None
    faults: tuple[Fault, ...] = ()
    health_s: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``slime-router worker`` to a parser."""
    standard = WorkerOptions()
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=30000, help="port to listen on; 0 takes a free one")
    add(
        "--hf-checkpoint",
        type=Path,
        default=standard.hf_checkpoint,
        metavar="DIR",
        help="directory with a tokenizer.json; the language model is counted anew for it",
    )
    add(
        "--weight-version",
        default=standard.weight_version,
        metavar="NAME",
        help="weight version at start; another version is another distribution",
    )
    add(
        "--seed",
        type=int,
        default=None,
        help="makes request ids and samples repeat from start to start",
    )
    add("--ms-per-token", type=float, default=0.0, help="time that each token takes")
    add(
        "--prefill-tokens-per-s",
        type=float,
        default=0.0,
        metavar="RATE",
        help="prompt tokens computed per second (0: no time at all)",
    )
    add(
        "--prefix-cache-tokens",
        type=int,
        default=standard.prefix_cache_tokens,
        metavar="N",
        help="size of the simulated prefix cache",
    )
    add(
        "--context-length",
        type=int,
        default=standard.context_length,
        metavar="N",
        help="longest prompt and answer together",
    )
    add(
        "--max-running-requests",
        type=int,
        default=standard.max_running_requests,
        metavar="N",
        help="size of the running batch; the others wait",
    )
    add(
        "--max-queued-requests",
        type=int,
        default=0,
        metavar="N",
        dest="queue_max",
        help="refuse with 503 beyond this many waiting requests (0: no limit)",
    )
    add(
        "--incremental-streaming-output",
        action="store_true",
        help="stream deltas instead of everything so far",
    )
    add(
        "--routed-experts",
        type=expert_shape,
        default=None,
        metavar="LAYERSxTOPK",
        dest="experts",
        help="answer return_routed_experts with pretended experts of this shape",
    )
    add(
        "--script",
        type=Path,
        default=None,
        metavar="FILE",
        dest="script_file",
        help="JSON list of answers (texts or id lists) to give in turn",
    )
    add(
        "--health-s",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long /health takes (a real worker: 1)",
    )
    add("--fault", type=parse_fault, action="append", default=[], metavar="KIND[:N]",
        dest="faults",
        help="misbehave (repeatable): refuse, fail-first:N, hang, cut-stream:N, truncate-json, "
        "garbage, abort:N")  # fmt: skip


def options_from(args: argparse.Namespace) -> WorkerOptions:
    """The parsed arguments as a value."""
    fields = set(WorkerOptions.__dataclass_fields__) - {"script", "faults"}
    chosen = {name: getattr(args, name) for name in fields}
    return WorkerOptions(**chosen, faults=tuple(args.faults))


def expert_shape(text: str) -> ExpertShape:
    """``LAYERSxTOPK``. Raises ``argparse.ArgumentTypeError``."""
    match = re.fullmatch(r"([1-9][0-9]{0,2})x([1-9][0-9]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError("expected LAYERSxTOPK, such as 4x2")
    return ExpertShape(int(match[1]), int(match[2]))
