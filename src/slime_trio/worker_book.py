"""What the shell knows of workers beside their state: their ids, their keys, when they answered.

None of it belongs into the state: ids outlive a worker's registration, keys are secret, and when a
worker answered last decides about nothing but the next probe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from slime_core.types import WorkerUrl
from slime_trio.exchange import Headers

__all__ = ["WorkerBook"]

_REMEMBERED: Final = 4096
"""How many workers have their ids remembered; beyond it those registered longest ago go first."""


class WorkerBook:
    """Ids, keys and last answers of workers by their URLs.

    A worker keeps its id as long as the process lives, whether it leaves and comes back or not
    (but for those beyond a bound): who holds the id of a worker that has left can still name it.
    ``default_key`` is what a worker without a key of its own is sent; ``None``: nothing.
    """

    def __init__(self, new_id: Callable[[], str], *, default_key: str | None = None) -> None:
        self._new_id = new_id
        self._default_key = default_key
        self._ids: dict[WorkerUrl, str] = {}
        self._urls: dict[str, WorkerUrl] = {}
        self._keys: dict[WorkerUrl, str] = {}
        self._answered: dict[WorkerUrl, float] = {}

    def __repr__(self) -> str:
        return f"<WorkerBook of {len(self._ids)}>"

    def id_of(self, worker: WorkerUrl) -> str:
        """The worker's id, made when it is first asked for."""
        known = self._ids.pop(worker, None)
        name = known if known is not None else self._new_id()
        self._ids[worker] = name  # at the end: the most recently registered
        self._urls[name] = worker
        while len(self._ids) > _REMEMBERED:
            oldest = next(iter(self._ids))
            del self._urls[self._ids.pop(oldest)]
        return name

    def known_id_of(self, worker: WorkerUrl) -> str | None:
        """The worker's id, if it has one."""
        return self._ids.get(worker)

    def url_of(self, name: str) -> WorkerUrl | None:
        """The worker that has, or had, this id."""
        return self._urls.get(name)

    def key_of(self, worker: WorkerUrl) -> str | None:
        """The key that was registered for this worker alone."""
        return self._keys.get(worker)

    def set_key(self, worker: WorkerUrl, key: str | None) -> None:
        """What this worker asks for; ``None``: what all do."""
        self._keys.pop(worker, None)
        if key is not None:
            self._keys[worker] = key

    def authorization(self, worker: WorkerUrl) -> Headers:
        """The header fields by which the worker knows the router; none where it needs none."""
        key = self._keys.get(worker, self._default_key)
        return [] if key is None else [(b"authorization", b"Bearer " + key.encode("ascii"))]

    def note_answer(self, worker: WorkerUrl, now: float) -> None:
        """A call of a client got an answer from this worker at ``now`` seconds."""
        self._answered[worker] = now

    def answered_at(self, worker: WorkerUrl) -> float:
        """When it last gave one, in seconds; minus infinity if it never did."""
        return self._answered.get(worker, float("-inf"))

    def forget(self, worker: WorkerUrl) -> None:
        """The worker has left: all but its id goes."""
        self._keys.pop(worker, None)
        self._answered.pop(worker, None)
