"""Which listener serves the tests: the router's own, or Hypercorn.

``pytest --listener hypercorn`` has the whole suite served by that one. Without the option the
default serves, and tests that are about bytes of HTTP/1.1 (``pytestmark = BOTH_LISTENERS``) run
with each of them: there the two have nothing in common but what these tests demand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

__all__ = ["BOTH_LISTENERS", "LISTENERS", "choose", "chosen", "serving"]

LISTENERS: Final = ("fast", "hypercorn")
"""The default first."""
BOTH_LISTENERS: Final = pytest.mark.both_listeners
_VARIABLE: Final = "SLIME_ROUTER_LISTENER"


def chosen() -> str:
    """The listener of the test that is running."""
    return os.environ.get(_VARIABLE, LISTENERS[0])


def choose(listener: str) -> None:
    """Have this one serve from now on, also in processes of their own."""
    os.environ[_VARIABLE] = listener


@contextmanager
def serving(listener: str | None) -> Iterator[None]:
    """Have this one serve; ``None``: whoever does."""
    before = os.environ.get(_VARIABLE)
    if listener is not None:
        choose(listener)
    yield
    if before is not None:
        choose(before)
    else:
        os.environ.pop(_VARIABLE, None)
