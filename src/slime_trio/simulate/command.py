"""``slime-router simulate`` as a command: read what is asked for, run it, show what came of it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from slime_trio.config import ConfigurationError
from slime_trio.simulate.choices import Choices, from_file, with_flags
from slime_trio.simulate.plot import plot, require_matplotlib
from slime_trio.simulate.replay import Replay, load_replay
from slime_trio.simulate.report import Run, as_json
from slime_trio.simulate.running import run_all
from slime_trio.simulate.scenarios import points
from slime_trio.simulate.show import table_of_runs, table_of_turns, table_of_workers

__all__ = ["run"]

_STDOUT: Final = "-"


def run(args: argparse.Namespace) -> int:
    """0. Raises :class:`ConfigurationError` for what cannot be simulated or written."""
    choices = with_flags(Choices() if args.file is None else from_file(args.file), vars(args))
    _check_outputs(args)
    replay = _replay(choices)
    asked = list(points(choices, None if replay is None else replay.trace))
    runs = run_all(asked, jobs=args.jobs, shows_progress=not args.quiet and sys.stderr.isatty())
    if args.plot is not None:
        plot(args.plot, runs)
    if args.json is not None:
        told = as_json(choices, runs, orphans=0 if replay is None else replay.orphans)
        _write(args.json, told)
    if args.json != _STDOUT:
        _show(args, runs)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Find out now what would otherwise fail after a long run."""
    if args.jobs < 1:
        raise ConfigurationError("--jobs: expected at least 1")
    if args.plot is not None:
        require_matplotlib()
    for flag, name in (("--json", args.json), ("--plot", args.plot)):
        if name in (None, _STDOUT):
            continue
        path = Path(name)
        if path.is_dir():
            raise ConfigurationError(f"{flag}: {path}: Is a directory")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigurationError(f"{flag}: {path}: cannot be written")


def _replay(choices: Choices) -> Replay | None:
    if choices.trace is None:
        return None
    replay = load_replay(choices.trace, choices.source("trace"))
    if replay.orphans:
        print(
            f"slime-router: {replay.orphans} of {len(replay.trace.entries)} calls go on with calls "
            "that the trace does not hold; they are taken for new",
            file=sys.stderr,
        )
    return replay


def _write(name: str, told: str) -> None:
    if name == _STDOUT:
        sys.stdout.write(told)
        return
    try:
        Path(name).write_text(told, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--json: {name}: {error.strerror}") from error


def _show(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    tables = [table_of_runs(runs)]
    if args.per_turn:
        tables.append(table_of_turns(runs))
    if args.per_worker:
        tables.append(table_of_workers(runs))
    sys.stdout.write("\n".join(tables))
