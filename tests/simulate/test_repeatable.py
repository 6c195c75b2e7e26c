"""The same seed is the same run: in another process, under another hash seed, byte for byte."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulate.checking import HARNESSES

SEEDS = 6
DIGESTS = """
import sys
from tests.simulate.checking import HARNESSES
from tests.simulate.world import knobs_of
for seed in range(int(sys.argv[2])):
    print(seed, HARNESSES[sys.argv[1]](knobs_of(seed)).digest)
"""


def _digests(harness: str, hash_seed: str) -> list[str]:
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS, harness, str(SEEDS)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("harness", HARNESSES)
def test_a_seed_gives_the_same_digest_in_two_processes(harness: str) -> None:
    first, second = _digests(harness, "1"), _digests(harness, "4242")
    assert len(set(first)) == SEEDS
    assert first == second
