"""The same seed is the same run: in another process, under another hash seed, byte for byte."""

from __future__ import annotations

import subprocess
import sys

import pytest

SEEDS = 6
DIGESTS = """
import sys
from dataclasses import replace
from tests.simulate.checking import HARNESSES
from tests.simulate.world import knobs_of
harness, listener, seeds = sys.argv[1:]
for seed in range(int(seeds)):
    print(seed, HARNESSES[harness](replace(knobs_of(seed), listener=listener)).digest)
"""


def _digests(harness: str, listener: str, hash_seed: str, *, seeds: int) -> list[str]:
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS, harness, listener, str(seeds)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("harness", "listener", "seeds"),
    [("core", "fast", SEEDS), ("shell", "fast", SEEDS), ("shell", "hypercorn", SEEDS // 2)],
)
def test_a_seed_gives_the_same_digest_in_two_processes(
    harness: str, listener: str, seeds: int
) -> None:
    first = _digests(harness, listener, "1", seeds=seeds)
    second = _digests(harness, listener, "4242", seeds=seeds)
    assert len(set(first)) == seeds
    assert first == second
