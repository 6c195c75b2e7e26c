"""One launch, one process: the captured state lives in memory and cannot be shared.

A server started with several worker processes would deal the turns of one rollout to different
states. The first process of a launch takes a lock that all children of one parent share; a second
one finds it taken and refuses to start.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import IO

from slime_trio.config import ConfigurationError

__all__ = ["claim_process"]

_held: list[IO[bytes]] = []


def claim_process() -> None:
    """Raise :class:`ConfigurationError` in the second process of one launch.

    A process that no other of this kind started is alone by nature. The lock lives as long as the
    process; calling again in the same process changes nothing.
    """
    if multiprocessing.parent_process() is None or _held:
        return
    path = Path(tempfile.gettempdir()) / f"slime-router-{os.getuid()}-{os.getppid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigurationError(
            "this launch already has a router process: captured tokens live in one process's "
            "memory, so start a single one (hypercorn: -w 1)"
        ) from None
    _held.append(file)
