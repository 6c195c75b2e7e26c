"""The application under a plain Hypercorn, in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.harness import CHECKPOINT


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _process(*words: str, **environ: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process group, and the name of the file that holds what it wrote."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLIME_ROUTER_")}
    with tempfile.NamedTemporaryFile() as log:
        started = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=log, stderr=subprocess.STDOUT, env=clean | environ, start_new_session=True,
        )  # fmt: skip
        try:
            yield started, log.name
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait(10)


def _wait_for(url: str, log: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(Path(log).read_text())


def _hypercorn(port: int, *more: str) -> list[str]:
    return ["hypercorn", "-k", "trio", "-b", f"127.0.0.1:{port}", *more,
            "slime_trio.app:create_app()"]  # fmt: skip


def test_plain_hypercorn_serves_the_same_application() -> None:
    worker_port, port = _free_port(), _free_port()
    worker = f"http://127.0.0.1:{worker_port}"
    environ = {"SLIME_ROUTER_HF_CHECKPOINT": CHECKPOINT, "SLIME_ROUTER_WORKER_URLS": worker}
    with (
        _process("slime_trio", "worker", "--port", str(worker_port)) as (_, worker_log),
        _process(*_hypercorn(port), **environ) as (_, log),
    ):
        _wait_for(worker + "/health", worker_log)
        _wait_for(f"http://127.0.0.1:{port}/readiness", log)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            assert http.get("/list_workers").json() == {"urls": [worker]}
            params = {"max_new_tokens": 5, "ignore_eos": True}
            first = http.post("/generate", json={"text": "Hello", "sampling_params": params})
            text = "Hello" + first.json()["text"] + " and"
            body = {"text": text, "sampling_params": params, "stream": True}
            second = http.post("/generate", json=body)
            assert second.text.rstrip().endswith("[DONE]")
            name = second.headers["x-slime-call-id"]
            found = http.get(f"/trajectories/{name}").json()
            assert sum(found["loss_mask"]) == 10
            chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
            assert http.post("/v1/chat/completions", json=chat).json()["choices"]
            assert http.post("/generate", json={"text": ""}).status_code == 400


def test_a_second_process_of_one_launch_refuses_to_start() -> None:
    port = _free_port()
    environ = {"SLIME_ROUTER_HF_CHECKPOINT": CHECKPOINT}
    with _process(*_hypercorn(port, "-w", "2"), **environ) as (process, log):
        process.wait(30)
        words = Path(log).read_text()
    assert "captured tokens live in one process's memory" in words


def test_hypercorn_without_a_checkpoint_prints_the_sentence() -> None:
    with _process(*_hypercorn(_free_port())) as (process, log):
        process.wait(30)
        words = Path(log).read_text()
    assert "--hf-checkpoint is missing: name the directory" in words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_on_a_signal(number: signal.Signals) -> None:
    port = _free_port()
    words = ["slime_trio", "--capture", "off", "--host", "127.0.0.1", "--port", str(port)]
    with _process(*words) as (process, log):
        _wait_for(f"http://127.0.0.1:{port}/health", log)
        process.send_signal(number)
        assert process.wait(10) == 0, Path(log).read_text()
