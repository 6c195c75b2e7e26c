"""What all cells of the large run share: where peers run, which, and how much is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from benchmarks.field.canned import script
from benchmarks.field.peers import PEERS, Peer, Place
from benchmarks.field.processor import Pins
from benchmarks.field.running import Fleet, Running, canned_workers, start_all
from benchmarks.field.sampling import Sampler
from benchmarks.field.served_cells import BASE, PAYLOADS

__all__ = ["ALL_KEPT", "DIRECT", "FULL", "QUICK", "Scale", "Scene"]

DIRECT: Final = Peer(name="direct", about="the canned worker itself", command=lambda _: [])
"""Stands for no router at all: what client and worker take by themselves."""

ALL_KEPT: Final = ("--radix-tree-max-size", str(10**12), "--capture-max-mb", str(10**6))
"""Flags with which a router drops nothing."""
_CAPTURE_MAX_MB: Final = "1024"
"""So much is kept; then the oldest goes, and that costs too, as it does in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    rounds: int
    sample_s: float
    cached: tuple[int, ...]
    """Tokens in the cache."""
    workers: tuple[int, ...]
    sessions: tuple[int, ...]
    many: int
    """Answers of a thousand tokens, for memory after many requests."""
    memory_tokens: int
    starts: int
    stall_repeats: int
    is_one_fleet: bool = False
    """Start peers once for all cells that they share: quicker, but each finds what others left."""


FULL: Final = Scale(
    rounds=5,
    sample_s=0.5,
    cached=(10_000, 100_000, 1_000_000, 10_000_000),
    workers=(1, 8, 64),
    sessions=(10, 1_000, 100_000),
    many=40_000,
    memory_tokens=800_000,
    starts=3,
    stall_repeats=2,
)
QUICK: Final = Scale(
    rounds=2,
    sample_s=0.2,
    cached=(10_000, 100_000),
    workers=(1, 8),
    sessions=(10, 1_000),
    many=2_000,
    memory_tokens=100_000,
    starts=1,
    stall_repeats=0,
    is_one_fleet=True,
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One run."""

    pins: Pins
    folder: Path
    venv: Path | None
    peers: tuple[Peer, ...]
    scale: Scale

    @cached_property
    def sampler(self) -> Sampler:
        """Takes the samples; one for the run, so that no conversation comes twice."""
        scale = self.scale
        return Sampler(self.pins, self.folder, rounds=scale.rounds, sample_s=scale.sample_s)

    @cached_property
    def _script(self) -> bytes:
        return script(PAYLOADS)

    @property
    def base(self) -> Peer:
        """The peer by which cost against size is measured: the fast listener, if it is chosen."""
        own = [peer for peer in self.peers if peer.captures]
        return next((peer for peer in own if peer.name == BASE), own[0] if own else PEERS[BASE])

    @contextmanager
    def fleet(
        self,
        peers: Iterable[Peer],
        *flags: str,
        workers: int = 1,
        direct: bool = False,
    ) -> Iterator[Fleet]:
        """The peers in front of so many canned workers; ``flags`` are for this project's own."""
        with canned_workers(self._script, workers, self.pins) as urls:
            place = Place(
                port=0,
                spare_port=0,
                workers=urls,
                folder=self.folder,
                venv=self.venv,
                flags=flags or ("--capture-max-mb", _CAPTURE_MAX_MB),
            )
            with start_all(peers, place, self.pins) as fleet:
                if not direct:
                    yield fleet
                    return
                port = int(urls[0].rpartition(":")[2])
                worker = Running(peer=DIRECT, port=port, pid=None, command=())
                yield Fleet(running=(*fleet.running, worker), absent=fleet.absent)
