"""The routers that are measured side by side: how each is started, and what it is.

Only this project's own is required. The others are taken from where they are: ``nginx`` from the
path, sglang-router, smg and FastAPI from the virtual environment that ``--peer-venv`` names. One
that cannot be started is told with its reason, and the run goes on without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from slime_trio.worker.options import SHIPPED_CHECKPOINT

__all__ = ["PEERS", "Absent", "Peer", "Place", "own_command", "version_of"]

_NGINX: Final = """\
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_max_body_size 64m; client_body_buffer_size 1m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; scgi_temp_path {folder}/scgi; uwsgi_temp_path {folder}/uwsgi;
  upstream workers {{ {servers} keepalive 2048; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://workers; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300s;
      proxy_buffer_size 256k; proxy_buffers 4 256k; proxy_busy_buffers_size 512k;
    }}
  }}
}}
"""


class Absent(Exception):
    """A peer cannot be started; the reason in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a peer shall run: its port, the workers, a folder of its own, the peers' Python."""

    port: int
    spare_port: int
    workers: tuple[str, ...]
    folder: Path
    venv: Path | None
    flags: tuple[str, ...] = ()
    """More flags for this project's router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to run a router. ``command`` may raise :class:`Absent`."""

    name: str
    about: str
    command: Callable[[Place], list[str]]
    is_own: bool = False
    captures: bool = False
    ready: str = "/health"
    """Where it says that it serves: 200, and as many ``healthy_workers`` as there are if told."""


def own_command(place: Place, *, listener: str, capture: bool) -> list[str]:
    """``slime-router serve`` in this project's Python."""
    words = [sys.executable, "-m", "slime_trio", "serve", "--host", "127.0.0.1"]
    words += ["--port", str(place.port), "--shutdown-grace-s", "1", "--probe-logprobs", "off"]
    words += ["--worker-url", *place.workers]
    if capture:
        words += ["--hf-checkpoint", str(SHIPPED_CHECKPOINT), "--capture", "on"]
    else:
        words += ["--capture", "off"]
    return [*words, "--listener", listener, *place.flags]


def _own(name: str, listener: str, *, capture: bool) -> Peer:
    return Peer(
        name=name,
        about=f"slime-router serve --listener {listener} --capture {'on' if capture else 'off'}",
        command=lambda place: own_command(place, listener=listener, capture=capture),
        is_own=True,
        captures=capture,
        ready="/readiness",
    )


def _in_venv(place: Place, name: str) -> str:
    """A program of the peers' environment. Raises :class:`Absent`."""
    if place.venv is None:
        raise Absent("no --peer-venv given (python -m venv DIR; DIR/bin/pip install ...)")
    program = place.venv / "bin" / name
    if not program.exists():
        raise Absent(f"{program} does not exist")
    return str(program)


def _gateway(name: str, program: str, policy: str) -> Peer:
    def command(place: Place) -> list[str]:
        words = [_in_venv(place, program), "launch", "--host", "127.0.0.1"]
        words += ["--port", str(place.port), "--worker-urls", *place.workers]
        words += ["--policy", policy, "--log-level", "error", "--log-dir", str(place.folder)]
        return [*words, "--prometheus-port", str(place.spare_port)]

    about = f"{program} launch --policy {policy}"
    return Peer(name=name, about=about, command=command, ready="/readiness")


def _nginx(place: Place) -> list[str]:
    paths = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = next((p for d in paths.split(os.pathsep) if (p := Path(d) / "nginx").exists()), None)
    if found is None:
        raise Absent("nginx is not installed")
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in place.workers)
    text = _NGINX.format(folder=place.folder, port=place.port, servers=servers)
    (place.folder / "nginx.conf").write_text(text, encoding="utf-8")
    return [str(found), "-p", str(place.folder), "-c", str(place.folder / "nginx.conf")]


def _plain(place: Place) -> list[str]:
    return [sys.executable, "-m", "benchmarks.field.plain_proxy", str(place.port), place.workers[0]]


def _fastapi(place: Place) -> list[str]:
    python = _in_venv(place, "python")
    needs = "import fastapi, httpx, uvicorn"
    if subprocess.run([python, "-c", needs], capture_output=True).returncode != 0:
        raise Absent("fastapi, uvicorn or httpx is not installed in --peer-venv")
    script = str(Path(__file__).with_name("fastapi_proxy.py"))
    return [python, script, str(place.port), place.workers[0]]


_ALL: Final = (
    _own("fast", "fast", capture=True),
    _own("fast-off", "fast", capture=False),
    _own("hypercorn", "hypercorn", capture=True),
    _own("hypercorn-off", "hypercorn", capture=False),
    _gateway("sglang-router", "sglang-router", "round_robin"),
    _gateway("sglang-router-cache", "sglang-router", "cache_aware"),
    _gateway("smg", "smg", "round_robin"),
    _gateway("smg-cache", "smg", "cache_aware"),
    Peer(name="nginx", about="nginx, one process, no buffering", command=_nginx),
    Peer(
        name="plain",
        about="Quart-Trio under Hypercorn with httpx (benchmarks/field/plain_proxy.py)",
        command=_plain,
    ),
    Peer(
        name="fastapi",
        about="FastAPI under uvicorn with httpx, answers read and written whole "
        "(benchmarks/field/fastapi_proxy.py)",
        command=_fastapi,
    ),
)

PEERS: Final = {peer.name: peer for peer in _ALL}
"""Every router that can be measured, by its name in tables."""


def version_of(name: str, venv: Path | None) -> str:
    """The installed version of a peer's package, or of nginx; empty where it is not known."""
    if name == "nginx":
        said = subprocess.run(["/bin/sh", "-c", "nginx -v"], capture_output=True, text=True)
        return said.stderr.strip().removeprefix("nginx version: ")
    if venv is None:
        return ""
    command = f"from importlib.metadata import version; print(version({name!r}))"
    said = subprocess.run([venv / "bin" / "python", "-c", command], capture_output=True, text=True)
    return said.stdout.strip()
