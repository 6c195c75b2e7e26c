"""The allocator's settings: they take effect where there is glibc, and harm nobody elsewhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from slime_trio import memory

FAULTS = """
import resource
from slime_trio.memory import keep_freed_memory
if {keeps}:
    keep_freed_memory()
pieces = [bytes(300_000) for _ in range(3)]
del pieces
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    pieces = [bytes(300_000) for _ in range(3)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(*, keeps: bool) -> int:
    code = FAULTS.format(keeps=keeps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_large_bodies_are_given_memory_that_the_process_already_has() -> None:
    assert _page_faults(keeps=True) < 1000 < _page_faults(keeps=False)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()
