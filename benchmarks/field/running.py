"""Peers and workers in processes of their own, started side by side and stopped in the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from benchmarks.field.native import build
from benchmarks.field.peers import Absent, Peer, Place
from benchmarks.field.processor import Pins, cpu_seconds

__all__ = ["Fleet", "Running", "canned_workers", "start_all"]

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_START_S: Final = 30.0
_STOP_S: Final = 5.0
_LOOK_S: Final = 0.02
_SETTLE_S: Final = 30.0
_WINDOW_S: Final = 0.5
_IDLE: Final = 0.1
"""Share of a CPU below which a process counts as idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers. ``pid`` is ``None`` where nothing lies between client and worker."""

    peer: Peer
    port: int
    pid: int | None
    command: tuple[str, ...]
    health_s: float = 0.0
    """How long after its start it answered ``/health``."""
    ready_s: float = 0.0
    """How long after its start it could serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is running, and what could not be started and why."""

    running: tuple[Running, ...]
    absent: dict[str, str]


@contextmanager
def canned_workers(script: bytes, count: int, pins: Pins) -> Iterator[tuple[str, ...]]:
    """``count`` workers in one process, which say what is in ``script``; their URLs."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "script"
        path.write_bytes(script)
        process = subprocess.Popen(
            [str(build("worker")), str(path), str(count)],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=pins.others_only(),
        )
        try:
            assert process.stdout is not None
            yield tuple(process.stdout.readline().split()[-1] for _ in range(count))
        finally:
            process.terminate()
            process.communicate()


@contextmanager
def start_all(peers: Iterable[Peer], place: Place, pins: Pins) -> Iterator[Fleet]:
    """Start them side by side, wait until each serves and has settled, and stop them in the end.

    ``place`` names workers, environment and folder; ports are chosen here.
    """
    with ExitStack() as stack:
        started, absent = [], {}
        for peer in peers:
            try:
                started.append(stack.enter_context(_process(peer, place, pins)))
            except Absent as error:
                absent[peer.name] = str(error)
        running = []
        for one in started:
            try:
                running.append(one.wait(len(place.workers)))
            except Absent as error:
                absent[one.peer.name] = str(error)
        _settle([one.pid for one in running if one.pid is not None])
        yield Fleet(running=tuple(running), absent=absent)


@contextmanager
def _process(peer: Peer, place: Place, pins: Pins) -> Iterator[_Process]:
    with TemporaryDirectory(dir=place.folder) as folder:
        process = _Process(peer, place, Path(folder), pins)
        try:
            yield process
        finally:
            process.stop()


def _settle(pids: Sequence[int]) -> None:
    """Until they have nothing to do: some load the rest of themselves after they serve."""
    deadline = time.monotonic() + _SETTLE_S
    before = [cpu_seconds(pid) for pid in pids]
    while time.monotonic() < deadline:
        time.sleep(_WINDOW_S)
        now = [cpu_seconds(pid) for pid in pids]
        if all(new - old < _IDLE * _WINDOW_S for new, old in zip(now, before, strict=True)):
            return
        before = now


class _Process:
    """A peer that is starting."""

    def __init__(self, peer: Peer, place: Place, folder: Path, pins: Pins) -> None:
        self.peer = peer
        self._port = _free_port()
        self._log = folder / "log"
        own = replace(place, port=self._port, spare_port=_free_port(), folder=folder)
        self._command = peer.command(own)
        self._started = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=_ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=pins.router_only(),
            )

    def wait(self, workers: int) -> Running:
        """Until it serves. Raises :class:`Absent` with the end of its log."""
        healthy = self._until("/health", None)
        return Running(
            peer=self.peer,
            port=self._port,
            pid=self._process.pid,
            command=tuple(self._command),
            health_s=healthy,
            ready_s=self._until(self.peer.ready, workers),
        )

    def _until(self, path: str, workers: int | None) -> float:
        while time.monotonic() < self._started + _START_S:
            if self._process.poll() is not None:
                raise Absent(f"ended at once: {self._last_words()}")
            if _answers(self._port, path, workers):
                return time.monotonic() - self._started
            time.sleep(_LOOK_S)
        raise Absent(f"did not serve within {_START_S:.0f} s: {self._last_words()}")

    def _last_words(self) -> str:
        return " ".join(self._log.read_text(errors="replace").split())[-300:]

    def stop(self) -> None:
        """End it and what it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)


def _answers(port: int, path: str, workers: int | None) -> bool:
    """Whether it says 200 and, if it tells a number of healthy workers, this one."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5.0)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, HTTPException):
            return False
    if response.status != 200 or workers is None:
        return response.status == 200
    try:
        told = msgspec.json.decode(body, type=_Readiness)
    except msgspec.MsgspecError:
        return True
    return told.healthy_workers in (None, workers)


class _Readiness(msgspec.Struct):
    healthy_workers: int | None = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
