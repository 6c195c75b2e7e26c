"""The load generator and the canned worker, in C, built on demand with the system's compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["FLAGS", "NoCompiler", "build", "compiler"]

FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
_HERE: Final = Path(__file__).parent


class NoCompiler(RuntimeError):
    """There is no C compiler, or it cannot compile the programs; says so in a sentence."""


def compiler() -> str | None:
    """The compiler's path: what ``CC`` names, else ``cc``, else ``gcc`` or ``clang``."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def build(name: str, *, cache: Path | None = None) -> Path:
    """The program ``load`` or ``worker``, compiled unless the cache has it for these very sources.

    Raises :class:`NoCompiler`.
    """
    sources = [_HERE / f"{name}.c", _HERE / "message.h"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = cache or _cache()
    program = folder / f"{name}-{digest}"
    if program.exists():
        return program
    found = compiler()
    if found is None:
        raise NoCompiler(
            "No C compiler was found (CC, cc, gcc, clang): the load generator and the canned "
            "worker cannot be built. Debian and Ubuntu: apt-get install gcc libc6-dev."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / name
        command = [found, *FLAGS, "-o", str(made), str(sources[0])]
        outcome = subprocess.run(command, capture_output=True, text=True)
        if outcome.returncode != 0:
            raise NoCompiler(f"{' '.join(command)} failed:\n{outcome.stderr}")
        made.replace(program)  # whole or not at all, also where two runs build at once
    return program


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "slime-router-benchmarks"
