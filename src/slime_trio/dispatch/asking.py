"""One request to the fleet: what is sent, what comes of it, and the answer that has begun."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import trio

from slime_core.types import WorkerUrl
from slime_trio.dispatch.entry import Entry, StoppedError
from slime_trio.exchange import Headers
from slime_trio.upstream import WorkerAnswer

__all__ = ["Answered", "Asking", "Request", "Take", "UnwantedError"]

_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_LONGEST_VERSION: Final = 256
_VERSIONS_KNOWN: Final = 16
"""So many need not be written again: few are in use at any time."""


class Answered:
    """An answer that has begun. ``worker``: who samples; ``version``: the weights it was last
    known to hold."""

    __slots__ = ("_name", "is_aborted", "response", "version", "worker")

    def __init__(
        self,
        response: WorkerAnswer,
        worker: WorkerUrl,
        *,
        name: str | None = None,
        version: str | None = None,
    ) -> None:
        self.response: Final = response
        self.worker: Final = worker
        self.version: Final = version
        self._name = name
        self.is_aborted = False
        """To be set by who reads the answer, where all of it ends with an abort."""

    def marks(self, version: str | None = None) -> Headers:
        """The fields that tell a client where its answer comes from; ``version`` is the answer's
        own, if it is known. A version is whatever a worker says; here it is what fits a field."""
        told = version if version is not None else self.version
        marks = [] if self._name is None else [(b"x-slime-worker", self._name.encode())]
        if told is not None:
            marks.append(_version_field(told[:_LONGEST_VERSION]))
        return marks


@lru_cache(maxsize=_VERSIONS_KNOWN)
def _version_field(version: str) -> tuple[bytes, bytes]:
    field = quote(version, safe=_VISIBLE, errors="replace")
    return b"x-slime-weight-version", field.encode("ascii")


class Request:
    """What is sent; ``headers_for`` gives the fields for one worker."""

    __slots__ = ("body", "headers_for", "method", "target")

    def __init__(
        self,
        method: str,
        target: bytes,
        headers_for: Callable[[WorkerUrl], Headers],
        body: bytes,
    ) -> None:
        self.method: Final = method
        self.target: Final = target
        self.headers_for: Final = headers_for
        self.body: Final = body


class UnwantedError(Exception):
    """A request that was aborted when it was not sent yet."""


Take = Callable[[Answered], Awaitable[None]]
"""Reads an answer that has begun, and is done with it when it returns."""


class Asking:
    """A request to the fleet. What became of it can be asked afterwards, however it ended."""

    __slots__ = (
        "_run",
        "answered",
        "entry",
        "is_complete",
        "may_have_sampled",
        "request",
        "scope",
        "stopped",
        "tries",
        "worker",
    )

    def __init__(
        self, entry: Entry, request: Request, run: Callable[[Asking, Take], Awaitable[None]]
    ) -> None:
        self.entry: Final = entry
        self.request: Final = request
        self.scope: Final = trio.CancelScope(deadline=entry.deadline)
        self.stopped: StoppedError | None = None
        """Why the router itself ended it."""
        self.tries = 0
        self.worker = WorkerUrl("")
        """Where it was sent last."""
        self.may_have_sampled = False
        """Whether some worker may have begun to generate."""
        self.answered: Answered | None = None
        self.is_complete = False
        """Whether the answer was read and used to its end."""
        self._run = run

    def run(self, take: Take) -> Awaitable[None]:
        """Have a worker answer, and ``take`` read the answer; once.

        Raises what ``take`` raises, and ``SlimeError``: of placing (503), of waiting (429, 503), of
        deadlines (504), of the last connection that failed. The answer of a worker that refuses is
        given like any other, once no other worker is left to try.
        """
        return self._run(self, take)

    def check_wanted(self) -> None:
        """Raise :class:`UnwantedError` if it was aborted before it was sent: the worker, which was
        told so, does not know it yet."""
        if self.entry.is_aborted:
            raise UnwantedError

    def stop(self, error: StoppedError) -> None:
        """End it with this error, wherever it is."""
        self.stopped = error
        self.scope.cancel()
