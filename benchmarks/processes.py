"""Servers in processes of their own, told apart by the line in which each says where it listens."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

__all__ = ["Client", "router_process", "server_process"]

_ROOT: Final = Path(__file__).resolve().parent.parent
_START_S: Final = 30.0
_URL: Final = re.compile(r"(?:listens on|ready at) (http://[0-9.]+:[0-9]+)")


@contextmanager
def server_process(module: str, *arguments: str) -> Iterator[str]:
    """``python -m module arguments`` until the block ends; the URL where it says it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            found = _URL.search(line)
            if found is not None:
                yield found[1]
                return
        raise RuntimeError(f"{module} did not start: {said}")
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def router_process(worker_urls: tuple[str, ...], *flags: str) -> Iterator[str]:
    """``slime-router serve`` in front of these workers, ready to serve; its URL."""
    named = [word for url in worker_urls for word in ("--worker-url", url)]
    words = ["serve", "--host", "127.0.0.1", "--port", "0", "--shutdown-grace-s", "1"]
    # A probe would take answers that a script means for the benchmark.
    words += ["--probe-logprobs", "off"]
    with (
        server_process("slime_trio", *words, *named, *flags) as url,
        closing(Client(url)) as client,
    ):
        deadline = time.monotonic() + _START_S
        while client.get("/readiness", ok=False).get("healthy_workers") != len(worker_urls):
            if time.monotonic() > deadline:
                raise RuntimeError("the router did not become ready")
            time.sleep(0.05)
        yield url


class Client:
    """A blocking client for one server, one connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = HTTPConnection(parts.hostname, parts.port, timeout=120)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str, *, ok: bool = True) -> Any:
        """The JSON at ``path``. Raises ``RuntimeError`` for another status than 200."""
        return self._json("GET", path, None, ok)

    def post(self, path: str, body: Any) -> Any:
        """The JSON answered to a JSON body, or the bytes of a stream. Raises likewise."""
        return self._json("POST", path, msgspec.json.encode(body), True)

    def _json(self, method: str, path: str, body: bytes | None, ok: bool) -> Any:
        headers = {"content-type": "application/json"}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        data = response.read()
        if ok and response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {data[:200]!r}")
        if (response.getheader("content-type") or "").startswith("application/json"):
            return msgspec.json.decode(data)
        return data
