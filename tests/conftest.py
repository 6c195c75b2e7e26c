"""How Hypothesis runs here: without deadlines, and in CI with the same examples every time.

A deadline is a timed test, which a busy machine fails. Fresh examples are found by running the
suite anywhere else; what they find becomes a test of its own.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import Scheduling as AnyScheduling

from tests.scheduling import Scheduling

settings.register_profile(
    "everywhere", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("everywhere"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> AnyScheduling | None:
    """Deal by :mod:`tests.scheduling`, unless the command line names another way."""
    if config.getoption("dist") != "loadfile":
        return None
    return Scheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def settled_garbage() -> None:
    """Real vocabularies are loaded once and stay: millions of objects, which the collector would
    look through again and again."""
    gc.collect()
    gc.freeze()
