"""``python -m benchmarks``: the list of benchmarks, one line each; with a name, that benchmark."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

__all__ = ["NAMES", "main", "summaries"]

NAMES = (
    *("tokenisation", "retrieval", "matching", "memory", "loop_stall", "rollouts", "chat"),
    *("relay_cost", "large_cost", "sse_cost", "run", "soak"),
)


def summaries() -> list[tuple[str, str]]:
    """Each benchmark with the first line of its documentation; nothing is imported for it."""
    here = Path(__file__).parent
    sources = [(name, (here / f"{name}.py").read_text(encoding="utf-8")) for name in NAMES]
    texts = [(name, ast.get_docstring(ast.parse(source)) or "") for name, source in sources]
    return [(name, text.splitlines()[0]) for name, text in texts]


def main() -> None:
    """Print the list, or run the benchmark that is named first."""
    if sys.argv[1:2] and sys.argv[1] in NAMES:
        runpy.run_module(f"benchmarks.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
        return
    print("python -m benchmarks.NAME [--help] [--json]\n")
    for name, summary in summaries():
        print(f"  {name.ljust(14)}{summary}")


if __name__ == "__main__":
    main()
