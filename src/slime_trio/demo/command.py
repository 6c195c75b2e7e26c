"""``slime-router demo`` as a command: its exit status, its end on Ctrl-C, its one-line errors."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Final

from slime_trio.demo.failure import DemoFailure
from slime_trio.demo.options import options_from

__all__ = ["run"]

_EXTRA: Final = "openai"


def run(args: argparse.Namespace) -> int:
    """0: everything matched. 1: something did not, or a server failed. 2: it cannot start.

    130: interrupted before the verdict.
    """
    if importlib.util.find_spec(_EXTRA) is None:
        print(
            f"slime-router demo needs {_EXTRA}: pip install 'slime-router[demo]'",
            file=sys.stderr,
        )
        return 2
    import trio

    from slime_trio.demo.demonstration import demonstrate

    status = 1
    try:
        status = trio.run(demonstrate, options_from(args))
    except* DemoFailure as errors:
        print(f"slime-router demo: {_innermost(errors)}", file=sys.stderr)
    except* KeyboardInterrupt:
        status = 130
    if status == 130:
        print("slime-router demo: interrupted", file=sys.stderr)
    return status


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
