"""How Hypothesis runs here: without deadlines, and in CI with the same examples every time.

A deadline is a timed test, which a busy machine fails. Fresh examples are found by running the
suite anywhere else; what they find becomes a test of its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import Scheduling as AnyScheduling

from tests import listeners
from tests.scheduling import Scheduling

settings.register_profile(
    "everywhere", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("everywhere"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")


def pytest_addoption(parser: pytest.Parser) -> None:
    """See :mod:`tests.listeners`."""
    words = "which listener serves all tests (by default: fast, and both where bytes matter)"
    parser.addoption("--listener", choices=listeners.LISTENERS, default=None, help=words)


def pytest_configure(config: pytest.Config) -> None:
    """See :mod:`tests.listeners`."""
    config.addinivalue_line("markers", "both_listeners: runs with each listener")
    only = config.getoption("--listener")
    if only is not None:
        listeners.choose(only)


def pytest_report_header(config: pytest.Config) -> str:
    """What a failure is to be repeated with."""
    return f"listener: {config.getoption('--listener') or 'default'}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have marked tests run with each listener."""
    if metafunc.definition.get_closest_marker("both_listeners") is not None:
        only = metafunc.config.getoption("--listener")
        served_by = listeners.LISTENERS if only is None else (only,)
        metafunc.parametrize("_listener", served_by, indirect=True)


@pytest.fixture(autouse=True)
def _listener(request: pytest.FixtureRequest) -> Iterator[None]:
    """Who serves the test, if it is served by each in turn."""
    with listeners.serving(getattr(request, "param", None)):
        yield


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
