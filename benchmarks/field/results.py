"""What a run leaves behind: ``results.json`` with every figure, ``results.md`` with the tables."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.field.native import FLAGS, compiler
from benchmarks.field.outcome import Outcome, goals_table, ratios_table
from benchmarks.field.peers import Peer, version_of
from benchmarks.report import Table, text_of

__all__ = ["describe", "figures_of", "markdown", "markdown_table", "write_results"]

_OWN: Final = ("slime-router", "trio", "httptools", "msgspec", "hypercorn", "quart-trio", "httpx")
_FOREIGN: Final = {
    "sglang-router": "sglang-router",
    "smg": "smg",
    "nginx": "nginx",
    "fastapi": "fastapi",
}


def describe(peers: Iterable[Peer], venv: Path | None, command: str, pinned: str) -> dict[str, Any]:
    """The machine, the versions and the command: what a reader needs to measure it again."""
    names = {name for peer in peers if (name := _FOREIGN.get(peer.name))}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": _compiler(),
        "pinning": pinned,
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: _installed(name) for name in _OWN}
        | {name: version_of(name, venv) for name in sorted(names)},
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _compiler() -> str:
    found = compiler()
    if found is None:
        return ""
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    return f"{said.splitlines()[0] if said else found} {' '.join(FLAGS)}"


def write_results(
    folder: Path, machine: Mapping[str, Any], outcomes: Mapping[str, Outcome]
) -> tuple[Path, Path]:
    """Write both files anew; their paths. Called after every cell, so that nothing is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_text = folder / "results.json", folder / "results.md"
    figures = figures_of(outcomes)
    goals = (goals_table(figures), ratios_table(figures))
    whole = {"machine": machine, "figures": figures, "goals": goals, "cells": outcomes}
    as_json.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1))
    as_text.write_text(markdown(machine, outcomes, goals), encoding="utf-8")
    return as_json, as_text


def figures_of(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """The figures of all cells."""
    return {name: value for one in outcomes.values() for name, value in one.figures.items()}


def markdown(
    machine: Mapping[str, Any], outcomes: Mapping[str, Outcome], goals: Iterable[Table]
) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    facts = {**machine, "versions": versions}
    parts = ["# Measured\n", "\n".join(f"* {name}: {value}" for name, value in facts.items()), ""]
    parts.extend(markdown_table(table) for table in goals)
    for name, outcome in outcomes.items():
        parts.append(f"## {name}\n")
        parts.extend(markdown_table(table) for table in outcome.tables)
        parts.extend(f"* absent: {peer} {words}" for peer, words in outcome.absent.items())
        parts.append("")
    return "\n".join(parts)


def markdown_table(table: Table) -> str:
    """A table with its title, as Markdown. A column without a title or a cell is left out."""
    used = [
        place
        for place, column in enumerate(table.columns)
        if column or any(row[place] for row in table.rows)
    ]
    lines = [f"**{table.title}**\n"]
    lines.append(_line(table.columns[place] for place in used))
    lines.append(_line("---" for _ in used))
    lines.extend(
        _line(text_of(row[place]).replace("|", "/") for place in used) for row in table.rows
    )
    lines.extend(["", *(f"*{note}*\n" for note in table.notes)])
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
