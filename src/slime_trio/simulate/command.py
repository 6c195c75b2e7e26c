"""``slime-router simulate`` as a command: read what is asked for, run it, show what came of it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from slime_core.errors import ClientError
from slime_trio.config import ConfigurationError
from slime_trio.simulate.choices import Choices, from_file, with_flags
from slime_trio.simulate.plot import check_plot, plot
from slime_trio.simulate.replay import Replay, load_replay
from slime_trio.simulate.report import Run, as_json
from slime_trio.simulate.running import run_all
from slime_trio.simulate.scenarios import points, refusal
from slime_trio.simulate.show import table_of_runs, table_of_turns, table_of_workers

__all__ = ["run"]

_STDOUT: Final = "-"


def run(args: argparse.Namespace) -> int:
    """0. Raises :class:`ConfigurationError` for what cannot be simulated or written."""
    choices = with_flags(Choices() if args.file is None else from_file(args.file), vars(args))
    _check_outputs(args)
    replay = _replay(choices)
    asked = list(points(choices, None if replay is None else replay.trace))
    shows_progress = not args.quiet and sys.stderr.isatty()
    try:
        runs = run_all(asked, jobs=args.jobs, shows_progress=shows_progress)
    except ClientError as error:
        raise refusal(choices, error) from error
    # The tables first: a file that cannot be written must not cost them.
    if args.json != _STDOUT:
        _print("\n".join(_tables(args, runs)))
    if args.json is not None:
        _write(args.json, as_json(choices, runs, orphans=0 if replay is None else replay.orphans))
    if args.plot is not None:
        plot(args.plot, runs)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Find out now what would otherwise fail after a long run."""
    if args.jobs < 1:
        raise ConfigurationError("--jobs: expected at least 1")
    if args.plot is not None:
        check_plot(args.plot)
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
        _print(told)
        return
    try:
        Path(name).write_text(told, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--json: {name}: {error.strerror}") from error


def _print(text: str) -> None:
    """Write ``text`` to stdout, as far as whoever reads it (``| head``) wants it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would write what is left, and fail again, when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise ConfigurationError(f"stdout: {error.strerror}") from error


def _tables(args: argparse.Namespace, runs: Sequence[Run]) -> Iterator[str]:
    yield table_of_runs(runs)
    if args.per_turn:
        yield table_of_turns(runs)
    if args.per_worker:
        yield table_of_workers(runs)
