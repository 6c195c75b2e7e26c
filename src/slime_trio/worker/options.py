"""What an embedded worker is like: its command-line options as one frozen value."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from slime_core.engine import ExpertShape, Role, Script
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
    takes, 1 s with SGLang. ``role``: one half of a pair; a prefill worker gives prompts away at
    ``bootstrap_port`` (0: a free one), for whose taker either half waits ``transfer_timeout_s``.
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
    role: Role = Role.REGULAR
    bootstrap_port: int = 8998
    transfer_timeout_s: float = 300.0


def _expert_shape(text: str) -> ExpertShape:
    """``LAYERSxTOPK``. Raises ``argparse.ArgumentTypeError``."""
    match = re.fullmatch(r"([1-9][0-9]{0,2})x([1-9][0-9]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError("expected LAYERSxTOPK, such as 4x2")
    return ExpertShape(int(match[1]), int(match[2]))


def _role(text: str) -> Role:
    """Raises ``ValueError``."""
    return Role(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """How one field of :class:`WorkerOptions` is spelled; ``bool`` is a switch, a tuple repeats."""

    field: str
    help: str
    kind: Callable[[str], Any] = str
    metavar: str | None = None
    flag: str = ""
    """The flag, where it is not the field's name."""


_OPTIONS: Final = (
    _Option(
        field="hf_checkpoint",
        kind=Path,
        metavar="DIR",
        help="directory with a tokenizer.json; the language model is counted anew for it",
    ),
    _Option(
        field="weight_version",
        metavar="NAME",
        help="weight version at start; another version is another distribution",
    ),
    _Option(
        field="seed", kind=int, help="makes request ids and samples repeat from start to start"
    ),
    _Option(field="ms_per_token", kind=float, help="time that each token takes"),
    _Option(
        field="prefill_tokens_per_s",
        kind=float,
        metavar="RATE",
        help="prompt tokens computed per second (0: no time at all)",
    ),
    _Option(
        field="prefix_cache_tokens",
        kind=int,
        metavar="N",
        help="size of the simulated prefix cache",
    ),
    _Option(
        field="context_length", kind=int, metavar="N", help="longest prompt and answer together"
    ),
    _Option(
        field="max_running_requests",
        kind=int,
        metavar="N",
        help="size of the running batch; the others wait",
    ),
    _Option(
        field="queue_max",
        flag="--max-queued-requests",
        kind=int,
        metavar="N",
        help="refuse with 503 beyond this many waiting requests (0: no limit)",
    ),
    _Option(
        field="incremental_streaming_output",
        kind=bool,
        help="stream deltas instead of everything so far",
    ),
    _Option(
        field="experts",
        flag="--routed-experts",
        kind=_expert_shape,
        metavar="LAYERSxTOPK",
        help="answer return_routed_experts with pretended experts of this shape",
    ),
    _Option(
        field="script_file",
        flag="--script",
        kind=Path,
        metavar="FILE",
        help="JSON list of answers (texts or id lists) to give in turn",
    ),
    _Option(
        field="health_s",
        kind=float,
        metavar="SECONDS",
        help="how long /health takes (a real worker: 1)",
    ),
    _Option(
        field="role",
        flag="--disaggregation-mode",
        kind=_role,
        metavar="{null,prefill,decode}",
        help="be one half of a pair of workers",
    ),
    _Option(
        field="bootstrap_port",
        flag="--disaggregation-bootstrap-port",
        kind=int,
        metavar="PORT",
        help="where a prefill worker gives prompts away; a decode worker's guess of it",
    ),
    _Option(
        field="transfer_timeout_s",
        kind=float,
        metavar="SECONDS",
        help="how long one half waits for the other",
    ),
    _Option(
        field="faults",
        flag="--fault",
        kind=parse_fault,
        metavar="KIND[:N]",
        help="misbehave (repeatable): refuse, fail-first:N, hang, cut-stream:N, truncate-json, "
        "garbage, abort:N",
    ),
)
"""Every option of ``slime-router worker`` but the address."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``slime-router worker`` to a parser."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", type=int, default=30000, help="port to listen on; 0 takes a free one"
    )
    standard = WorkerOptions()
    for option in _OPTIONS:
        default = getattr(standard, option.field)
        flag = option.flag or "--" + option.field.replace("_", "-")
        told: dict[str, Any] = {"dest": option.field, "help": option.help}
        if option.kind is bool:
            parser.add_argument(flag, action="store_true", **told)
        elif isinstance(default, tuple):
            told |= {"type": option.kind, "metavar": option.metavar}
            parser.add_argument(flag, action="append", default=[], **told)
        else:
            told |= {"type": option.kind, "metavar": option.metavar}
            parser.add_argument(flag, default=default, **told)


def options_from(args: argparse.Namespace) -> WorkerOptions:
    """The parsed arguments as a value."""
    chosen = {option.field: getattr(args, option.field) for option in _OPTIONS}
    return WorkerOptions(**chosen | {"faults": tuple(args.faults)})
