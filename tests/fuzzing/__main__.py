"""``python -m tests.fuzzing``: a long search for what no decoder may do.

Without a limit every target runs ``--rounds`` times; with ``--seconds`` fresh seeds follow until
the time is over. A failure prints its traceback, its input and the one command that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.fuzzing import core_targets, shell_targets
from tests.fuzzing.targets import Target, run_round

_BATCH = 50


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 1 if anything was found."""
    targets = {**core_targets.TARGETS, **shell_targets.TARGETS}
    arguments = _arguments(targets, words)
    warnings.simplefilter("error")
    names = arguments.target or list(targets)
    if arguments.round is not None:
        return sum(_fails(name, targets[name], arguments.seed, arguments.round) for name in names)
    done: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    end = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    seed = arguments.seed
    while names and (end is None or time.monotonic() < end):
        for name in list(names):
            rounds = arguments.rounds if end is None else _BATCH
            for number in range(rounds):
                done[name] += 1
                failures[name] += _fails(name, targets[name], seed, number)
                if failures[name] >= arguments.most:
                    names.remove(name)
                    break
        seed += 1
        if end is None:
            break
    for name in done:
        print(f"{name:32} {done[name]:9} rounds {failures[name]:4} failed")
    return 1 if failures.total() else 0


def _fails(name: str, target: Target, seed: int, number: int) -> bool:
    try:
        run_round(name, target, seed, number)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a library's panic is no Exception
        traceback.print_exc(limit=-6)
        return True
    return False


def _arguments(targets: Mapping[str, Target], words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(targets), default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=200, help="rounds of each target")
    parser.add_argument("--seconds", type=float, help="go on with fresh seeds for so long")
    parser.add_argument("--round", type=int, help="this round only")
    parser.add_argument("--most", type=int, default=3, help="leave a target after so many finds")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
