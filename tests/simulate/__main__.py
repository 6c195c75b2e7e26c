"""``python -m tests.simulate``: search for seeds that break a rule, or run one again.

Exit status 1 if a rule was broken, 2 if the command makes no sense, 130 after Ctrl-C. Of the first
failure the smallest form that was found is printed, with the one command that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from tests.listeners import LISTENERS
from tests.simulate import marks, telling
from tests.simulate.checking import HARNESSES, PAIRS, Checked, check, fitted, smallest
from tests.simulate.knobs import Knobs
from tests.simulate.planted import PLANTED
from tests.simulate.world import knobs_of


class Told(NamedTuple):
    """What is left of a run once it was judged."""

    seed: int
    rules: frozenset[str]
    marks: Counter[str]
    requests: int
    events: int


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.seeds < 1 or args.jobs < 1:
        parser.error("--seeds and --jobs are at least 1")
    try:
        Knobs(seed=0).with_settings(args.set)
    except ValueError as error:
        parser.error(f"--set {error}")
    harnesses = list(HARNESSES) if args.harness == "both" else [args.harness]
    run = _many if args.seed is None else _one
    status = 0
    try:
        status = max(run(args, harness) for harness in harnesses)
    except* KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    return status


def make_parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    add = parser.add_argument
    add("--seeds", type=int, default=100, metavar="N", help="how many seeds to run (100)")
    add("--first", type=int, default=0, metavar="SEED", help="the first of them (0)")
    add("--seed", type=int, metavar="SEED", help="run this one seed and tell its story")
    add(
        "--harness",
        choices=[*HARNESSES, "both", PAIRS],
        default="both",
        help=f"core, shell or both (both), or {PAIRS}: the shell with prefill and decode workers",
    )
    add("--listener", choices=LISTENERS, help="of the shell: who accepts connections (fast)")
    add("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    add("--set", action="append", default=[], metavar="KNOB=VALUE", help="set a knob by hand")
    add("--quiet-knobs", action="store_true", help="begin with quiet knobs, not the seed's own")
    add("--long", action="store_true", help="runs of hundreds of requests")
    add("--planted", choices=list(PLANTED), help="with this bug, which must be found")
    add("--no-shrink", action="store_true", help="tell the failure as it came")
    add("--marks", action="store_true", help="tell how often each situation occurred")
    return parser


def _knobs(args: argparse.Namespace, harness: str, seed: int) -> Knobs:
    base = Knobs(seed=seed) if args.quiet_knobs else knobs_of(seed, quick=not args.long)
    listener = [f"listener={args.listener}"] if args.listener else []
    return fitted(base, harness).with_settings([*args.set, *listener])


def _one(args: argparse.Namespace, harness: str) -> int:
    checked = check(_knobs(args, harness, args.seed), harness, bug=args.planted)
    if checked.violations:
        _tell(args, harness, checked)
        return 1
    assert checked.run is not None
    print(checked.knobs.table())
    print("\n".join(telling.lines(checked.run.story)))
    print(f"{harness}: seed {args.seed} broke no rule; digest {checked.run.digest}")
    return 0


def _many(args: argparse.Namespace, harness: str) -> int:
    seeds = range(args.first, args.first + args.seeds)
    begun = time.perf_counter()
    total: Counter[str] = Counter()
    requests = events = 0
    failed = []
    for told in _run_all(args, harness, seeds):
        total += told.marks
        requests += told.requests
        events += told.events
        if told.rules:
            failed.append(told.seed)
            print(f"{harness}: seed {told.seed} broke {', '.join(sorted(told.rules))}", flush=True)
    took = time.perf_counter() - begun
    if args.marks:
        print(marks.table(total))
    faults = sum(count for mark, count in total.items() if mark.startswith(("fault:", "operator:")))
    print(
        f"{harness}: {len(seeds)} seeds, {requests} requests, {faults} faults and actions, "
        f"{events} events in {took:.1f} s ({events / took:.0f} a second); "
        f"{len(failed)} seeds broke a rule"
    )
    never = marks.missing(total, harness)
    if never:
        print(f"{harness}: never occurred: {', '.join(never)}")
    if failed:
        _tell(args, harness, check(_knobs(args, harness, failed[0]), harness, bug=args.planted))
    return 1 if failed else 0


def _run_all(args: argparse.Namespace, harness: str, seeds: range) -> Iterator[Told]:
    work = partial(_judged, args, harness)
    if args.jobs <= 1:
        yield from map(work, seeds)
        return
    with ProcessPoolExecutor(args.jobs) as pool:
        yield from pool.map(work, seeds)


def _judged(args: argparse.Namespace, harness: str, seed: int) -> Told:
    checked = check(_knobs(args, harness, seed), harness, bug=args.planted)
    run = checked.run
    if run is None:
        return Told(seed, checked.rules, Counter(), 0, 0)
    story = run.story
    return Told(seed, checked.rules, story.marks, len(story.exchanges), run.events)


def _tell(args: argparse.Namespace, harness: str, checked: Checked) -> None:
    small = checked if args.no_shrink else smallest(checked, harness, bug=args.planted)
    quiet = args.quiet_knobs or small is not checked or bool(args.set)
    repeat = telling.command(small.knobs, harness, quiet=quiet, planted=args.planted)
    if small.run is None:
        print("\n".join(map(str, small.violations)), f"\nagain: {repeat}")
        return
    print(telling.failure(small.run.story, small.violations, small.knobs, repeat))


if __name__ == "__main__":
    sys.exit(main())
