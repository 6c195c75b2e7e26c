"""The large run: this project beside other routers, cell by cell, with processor time as the cost.

``python -m benchmarks.run`` (``--quick``: less of everything) prints tables and
writes them to ``--out`` as ``results.json`` and ``results.md``. Other routers come from a virtual
environment of their own: ``python -m venv DIR; DIR/bin/pip install sglang-router smg httpx``, then
``--peer-venv DIR``; nginx from the system. What is not there is left out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.field.native import NoCompiler, build
from benchmarks.field.outcome import Outcome, goals_table, ratios_table
from benchmarks.field.peers import PEERS, Absent
from benchmarks.field.processor import allow_files, noise, pins, touch_memory
from benchmarks.field.profiling import PROFILED, NoProfiler, profile_cells
from benchmarks.field.results import describe, figures_of, write_results
from benchmarks.field.running import Fleet
from benchmarks.field.scale_cells import SCALES
from benchmarks.field.scene import FULL, QUICK, Scale, Scene
from benchmarks.field.served_cells import SERVED, measure_served
from benchmarks.report import Table, lines_of

__all__ = ["CELLS", "main", "measure_cell", "run_cells"]

CELLS: Final = (*SERVED, *SCALES)
"""All cells, in the order in which they are measured."""
_QUICK_PEERS: Final = ("fast", "fast-off", "hypercorn", "sglang-router", "nginx")
_PROFILE_PEERS: Final = ("fast", "fast-off")


def main() -> None:
    """The command line."""
    parsed = _arguments()
    allow_files()
    try:
        build("load"), build("worker")
    except NoCompiler as error:
        sys.exit(str(error))
    with TemporaryDirectory(prefix="slime-router-benchmarks-") as folder:
        scene = Scene(
            pins=pins(),
            folder=Path(folder),
            venv=parsed.peer_venv,
            peers=tuple(PEERS[name] for name in _peers(parsed)),
            scale=_scale(parsed),
        )
        if not parsed.quick:
            print(f"memory touched before: {touch_memory() / 2**30:.1f} GiB")
        if parsed.profile:
            _profile(scene, parsed.profile, parsed.out)
        else:
            run_cells(scene, parsed.cells, parsed.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(),
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL")
    parser.add_argument("--peers", nargs="+", choices=PEERS, metavar="PEER")
    parser.add_argument("--peer-venv", type=Path, metavar="DIR", help="where other routers are")
    parser.add_argument("--rounds", type=int, help="samples of each peer (default: 5; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="less of everything, and fewer peers")
    parser.add_argument(
        "--most-cached",
        type=int,
        default=0,
        metavar="TOKENS",
        help="of the cell cached, such as 100000000: some 2 GB of memory",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), metavar="DIR")
    parser.add_argument(
        "--profile",
        nargs="+",
        choices=(*PROFILED, "all"),
        metavar="CELL",
        help="run py-spy beside the load of these cells instead (all: of each that can be)",
    )
    return parser.parse_args()


def _epilog() -> str:
    peers = "\n".join(f"  {peer.name.ljust(20)}{peer.about}" for peer in PEERS.values())
    return f"cells: {', '.join(CELLS)}\n\npeers:\n{peers}"


def _peers(parsed: argparse.Namespace) -> Sequence[str]:
    if parsed.peers:
        named: Sequence[str] = parsed.peers
        return named
    if parsed.profile:
        return _PROFILE_PEERS
    return _QUICK_PEERS if parsed.quick else tuple(PEERS)


def _scale(parsed: argparse.Namespace) -> Scale:
    scale = QUICK if parsed.quick else FULL
    if parsed.rounds:
        scale = replace(scale, rounds=parsed.rounds)
    if parsed.most_cached:
        scale = replace(scale, cached=(*scale.cached, parsed.most_cached))
    return scale


def run_cells(scene: Scene, cells: Iterable[str], out: Path) -> dict[str, Outcome]:
    """Measure, print and write; what cannot be measured is told and left out."""
    command = f"python -m benchmarks.run {shlex.join(sys.argv[1:])}".strip()
    machine = describe(scene.peers, scene.venv, command, scene.pins.words)
    machine["warning"] = noise() or "none: the machine was quiet"
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    outcomes: dict[str, Outcome] = {}
    for name, fleet in _with_fleets(scene, list(cells)):
        started = time.monotonic()
        outcomes[name] = measure_cell(scene, name, fleet)
        print(f"\n== {name} ({time.monotonic() - started:.0f} s)")
        _print(outcomes[name].tables)
        for peer, words in outcomes[name].absent.items():
            print(f"  absent: {peer} {words}")
        written = write_results(out, machine, outcomes)
    figures = figures_of(outcomes)
    _print([goals_table(figures), ratios_table(figures)])
    print(f"\nwritten: {', '.join(map(str, written))}")
    return outcomes


def _with_fleets(scene: Scene, cells: list[str]) -> Iterator[tuple[str, Fleet | None]]:
    """The cells, those that share their peers first if these are started once for all of them."""
    shared = [name for name in cells if name in SERVED and scene.scale.is_one_fleet]
    if shared:
        with scene.fleet(scene.peers, direct=True) as fleet:
            yield from ((name, fleet) for name in shared)
    yield from ((name, None) for name in cells if name not in shared)


def measure_cell(scene: Scene, name: str, fleet: Fleet | None = None) -> Outcome:
    """One cell, with peers that run already or its own; a failure of it is its outcome."""
    try:
        if name in SCALES:
            return SCALES[name](scene)
        if fleet is not None:
            return measure_served(name, fleet, scene.sampler)
        cell = SERVED[name]
        peers = [peer for peer in scene.peers if cell.takes(peer.name)]
        with scene.fleet(peers, direct=cell.direct) as fleet:
            return measure_served(name, fleet, scene.sampler)
    except (RuntimeError, OSError, Absent) as error:
        return Outcome(tables=(), absent={name: str(error)})


def _print(tables: Sequence[Table]) -> None:
    for table in tables:
        print(f"\n{table.title}\n")
        print("\n".join(lines_of(table)))
        for note in table.notes:
            print(f"  {note}")
    sys.stdout.flush()


def _profile(scene: Scene, cells: Sequence[str], out: Path) -> None:
    chosen = PROFILED if "all" in cells else cells
    try:
        profile_cells(scene, chosen, out)
    except NoProfiler as error:
        sys.exit(str(error))
    print(f"written: {out / 'profiles.md'}")


if __name__ == "__main__":
    main()
