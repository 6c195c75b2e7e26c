"""What can only be seen of the control plane while a run goes on.

Whether a worker is paused or takes new weights, the world knows: the router's books are not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from slime_core.state import RouterState
from slime_core.transitions import SlotsTaken, Transition
from tests.simulate.control.records import Served
from tests.simulate.story import Story
from tests.simulate.watch_fleet import FleetWatch
from tests.simulate.workers.worker import SimWorker

__all__ = ["ControlWatch"]


class ControlWatch:
    """Call it with every fact after it was applied; ``say`` takes a rule and what broke it.

    The director tells it which pauses were confirmed and which updates exclude dispatches.
    """

    def __init__(
        self,
        workers: Mapping[str, SimWorker],
        story: Story,
        books: FleetWatch,
        say: Callable[[str, str], None],
    ) -> None:
        self._workers: Final = workers
        self._story: Final = story
        self._say: Final = say
        self._paused: Final[dict[str, int]] = {}
        self.books: Final = books
        self.exclusive: Final[dict[int, str]] = {}
        """How updates, by errand, hold up generations; those that do not are left out."""
        for worker in workers.values():
            worker.desk.on_served = self.served

    def confirm(self, url: str, errand: int) -> None:
        """The router has said that this worker is paused: it gets no work until it goes on."""
        worker = self._workers[url]
        if worker.alive and worker.engine.paused is not None and worker.desk.paused_by == errand:
            self._paused[url] = worker.desk.resumes

    def is_confirmed(self, url: str) -> bool:
        """Whether it still stands where it was confirmed to stand."""
        worker = self._workers[url]
        standing = worker.alive and worker.engine.paused is not None
        return standing and self._paused.get(url) == worker.desk.resumes

    def served(self, served: Served) -> None:
        """A worker hears of something: of new weights, where its calls were waited for, only when
        it has none left, unless it is paused, when they do not end."""
        if served.errand is None or self.exclusive.get(served.errand) != "drain":
            return
        known = self.books.books.workers.get(served.worker)
        if known is None or known.paused or not served.path.startswith("/update_weight"):
            return
        self._story.marks["checked:drained"] += 1
        if known.calls:
            self._say("9 updates", f"{served.worker} was updated while {known.calls} were at it")

    def __call__(self, fact: Transition, _state: RouterState) -> None:
        if not isinstance(fact, SlotsTaken):
            return
        if self.is_confirmed(fact.worker):
            self._say(
                "9 pauses",
                f"calls {list(fact.calls)} went to {fact.worker}, which the router had paused",
            )
        elif any(self.is_confirmed(url) for url in self._paused):
            self._story.marks["checked:work beside a pause"] += 1
        for url, worker in self._workers.items():
            held = [one for one in worker.desk.updating if one in self.exclusive]
            if held and worker.alive:
                self._say(
                    "9 updates",
                    f"calls {list(fact.calls)} went to {fact.worker} while {url} was updated",
                )
