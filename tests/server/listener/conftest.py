"""What every test of the listener needs."""

from __future__ import annotations

import pytest

from slime_trio.observability.logs import configure_logging


@pytest.fixture(autouse=True)
def _logs_of_its_own() -> None:
    """Log to the stderr of this very test, and not of the last one that made a router."""
    configure_logging(verbose=False)
