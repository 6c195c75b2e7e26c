"""What every benchmark shares: options as a dataclass, tables as text or JSON, a few statistics."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

__all__ = ["Cell", "Table", "lines_of", "median", "percentile", "run", "show", "text_of"]

Cell = str | int | float | None
Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures under named columns (units in the names), and sentences that go with them.

    Raises ``ValueError`` for a row that does not fill the columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row of {self.title!r} does not fill its columns")


def median(values: Sequence[float]) -> float:
    """The median; 0 for nothing."""
    return statistics.median(values) if values else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that ``percent`` of all values do not exceed; 0 for nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def run(settings: type[Settings], measure: Callable[[Settings], Sequence[Table]]) -> None:
    """The command line of one benchmark: a flag for each field of ``settings``, and ``--json``."""
    module = sys.modules[measure.__module__]
    parser = argparse.ArgumentParser(
        description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    fields = dataclasses.fields(settings)  # type: ignore[arg-type]
    for field in fields:
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=_reader(field.default),
            default=field.default,
            help=f"default: {_shown(field.default)}",
        )
    parsed = parser.parse_args()
    chosen = settings(**{field.name: getattr(parsed, field.name) for field in fields})
    show(measure(chosen), as_json=parsed.json)


def _reader(default: Any) -> Callable[[str], Any]:
    """How a flag is read: as its default is written; a tuple is separated by commas."""
    if isinstance(default, tuple):
        kind = type(default[0])
        return lambda words: tuple(kind(word) for word in words.split(",") if word)
    return type(default)


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def show(tables: Sequence[Table], *, as_json: bool = False) -> None:
    """Print ``tables``, with a line that says where they were measured."""
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }
    if as_json:
        print(msgspec.json.encode({"machine": machine, "tables": tables}).decode())
        return
    for table in tables:
        print(f"\n{table.title}\n")
        print("\n".join(lines_of(table)))
        for note in table.notes:
            print(f"  {note}")
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))


def lines_of(table: Table) -> list[str]:
    """Its columns as lines of text."""
    cells = [list(table.columns), *([text_of(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [all(isinstance(row[i], str) for row in table.rows) for i in range(len(widths))]
    lines = [
        "  "
        + "  ".join(
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  " + "  ".join("-" * width for width in widths))
    return lines


def text_of(cell: Cell) -> str:
    """A cell as it is shown."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
