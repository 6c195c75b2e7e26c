"""The flags of ``slime-router simulate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from slime_core.simulation import (
    Faults,
    Retries,
    Router,
    Updates,
    WorkerSpeed,
    Workload,
)
from slime_trio.simulate.fields import FIELDS, Field
from slime_trio.simulate.words import DISTRIBUTIONS, count, shown, switch, word_of

__all__ = ["add_arguments"]

_GROUPS: Final = (
    ("fleet", (None, WorkerSpeed)),
    ("router", (Router,)),
    ("workload", (Workload,)),
    ("weight updates, failures, retries", (Updates, Faults, Retries)),
)
_WORDS: Final = f"""\
DIST is {DISTRIBUTIONS}.
A TOML file has the same names with underscores, and [[fleet]] tables for workers that differ.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag. What is not given stays absent, so that the file can speak."""
    parser.usage = "slime-router simulate [SCENARIO.toml] [options]"
    parser.epilog = _WORDS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="SCENARIO.toml", help="a file that says the same"
    )
    _add_run(parser)
    _add_output(parser)
    for title, parts in _GROUPS:
        group = parser.add_argument_group(title)
        for row in FIELDS:
            if row.part in parts and row.name != "seed":
                _add(group, row)


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to run")
    group.add_argument(
        "--policy",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="balancing policy; repeatable, several with commas, or all (default: all)",
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=argparse.SUPPRESS,
        metavar="FIELD=V1,V2,…",
        help="run once for each of these values of any field below; repeatable",
    )
    group.add_argument(
        "--trace",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="replay what a router recorded with --record-trace, instead of a drawn workload",
    )
    _add(group, next(row for row in FIELDS if row.name == "seed"))
    group.add_argument(
        "--jobs", type=count, default=1, metavar="N", help="processes to use (default: 1)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to show")
    group.add_argument(
        "--json", metavar="FILE", help="write everything as JSON; - for stdout, without tables"
    )
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a picture")
    group.add_argument("--per-turn", action="store_true", help="also a table of the turns")
    group.add_argument("--per-worker", action="store_true", help="also a table of the workers")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def _add(group: Any, row: Field) -> None:
    default = None if row.default is None else word_of(shown(row.default))
    told: dict[str, Any] = {
        "dest": row.name,
        "default": argparse.SUPPRESS,
        "metavar": row.metavar + (",…" if row.many else ""),
        "help": (row.help + ("" if default is None else f" (default: {default})")).replace(
            "%", "%%"
        ),
    }
    if row.kind is switch:
        told |= {"nargs": "?", "const": "on"}
    group.add_argument(row.flag, **told)
