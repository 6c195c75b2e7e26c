"""What a simulated worker does when it is told to: SGLang's control paths, and when they answer.

Pausing in the mode ``abort`` answers once nothing is left; new weights wait for what runs, unless
the worker is paused, and keep out what comes meanwhile; they take their time to load. A caller that
hangs up changes nothing of what was begun. Whatever the wire says, what was done is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from slime_core.engine import PauseMode, framework_error
from tests.simulate.chance import derive
from tests.simulate.control.records import ERRAND, Served
from tests.simulate.faults import Fault, FaultKind
from tests.simulate.workers.answers import whole_steps
from tests.simulate.workers.information import body_of
from tests.simulate.workers.pieces import Answering, Request, Step
from tests.simulate.workers.strikes import probe_steps

if TYPE_CHECKING:
    from tests.simulate.workers.worker import SimWorker

__all__ = ["Desk", "epoch_of"]

_LOADING_S: Final = (0.0, 0.02, 0.2, 1.0)
"""How long weights take to load."""
_PAUSING_S: Final = (0.0, 0.0, 0.05, 0.3)
"""How long the answer to a pause takes, beside what it waits for."""
_OK: Final = b'{"message":"Generation %b successfully.","status":"ok"}'
_UNTRUE: Final = frozenset({FaultKind.REFUSE, FaultKind.FAIL, FaultKind.HANG, FaultKind.NO_HTTP,
                            FaultKind.DIE_BEFORE})  # fmt: skip
"""Faults by which nobody can know whether what was asked for was done."""

Told = tuple[int, bytes]


def epoch_of(version: str) -> int:
    """The number in a version's name."""
    return int(version.rpartition("-")[2])


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A request that is not answered yet: once ``is_ready``, and not before ``until``."""

    served: Served
    answering: Answering
    fault: Fault | None
    is_ready: Callable[[], bool]
    finish: Callable[[], Told]
    until: float
    updates: bool = False
    holds: bool = False
    is_due: bool = False


class Desk:
    """One worker's. Called by its worker alone."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._pending: list[_Pending] = []
        self.paused_by: int | None = None
        """The errand by which it was paused last, if it has not gone on since."""
        self.resumes = 0
        """How often it has gone on, or become another process."""
        self.on_version: Callable[[str], None] | None = None
        """Told of weights that came by this way."""
        self.on_served: Callable[[Served], None] | None = None
        """Told of every request as it arrives."""

    @property
    def next_deadline(self) -> float | None:
        """When something may be done that only took its time."""
        return min((one.until for one in self._pending if not one.is_due), default=None)

    @property
    def is_busy(self) -> bool:
        """Whether anything that was begun is not done yet."""
        return bool(self._pending)

    @property
    def updating(self) -> list[int]:
        """The errands whose new weights are being waited for or loaded, and whose callers are still
        there to hear of it."""
        return [
            one.served.errand
            for one in self._pending
            if one.updates and one.served.errand is not None and not one.answering.ended
        ]

    def resumed(self) -> None:
        """The worker goes on, whoever had it do so."""
        self.paused_by = None
        self.resumes += 1

    def crashed(self) -> None:
        """Nothing of what was begun will be done."""
        self._pending.clear()
        self.resumed()

    # -- requests ------------------------------------------------------------------------

    def serve(
        self, request: Request, answering: Answering, fault: Fault | None, now: float
    ) -> None:
        """Take a request to one of :data:`PATHS`. Raises ``Refusal``."""
        path = request.target.partition("?")[0]
        number = dict(request.headers).get(ERRAND)
        worker = self._worker
        served = Served(
            at=worker.story.tick(),
            worker=worker.url,
            path=path,
            errand=None if number is None else int(number),
            body=_fields(request),
        )
        worker.story.served.append(served)
        if self.on_served is not None:
            self.on_served(served)
        if fault is not None and fault.kind in _UNTRUE and fault.variant % 2:
            self._tell(served, answering, fault, (200, b""), now)  # nothing was done
            return
        pending = _PATHS[path](self, served, answering, fault, now)
        self._pending.append(pending)
        self.advance(now)

    def advance(self, now: float) -> None:
        """Do what can be done by now, and answer."""
        for one in list(self._pending):
            one.is_due = one.is_due or one.until <= now
            if one.is_due and one.is_ready() and self._is_its_turn(one):
                self._pending.remove(one)
                told = one.finish()
                one.served.done_at, one.served.done_s = self._worker.story.tick(), now
                self._let_in()
                self._tell(one.served, one.answering, one.fault, told, now)

    def _is_its_turn(self, one: _Pending) -> bool:
        """One set of weights is loaded after the other."""
        return not one.updates or next(each for each in self._pending if each.updates) is one

    def _let_in(self) -> None:
        if not any(one.holds for one in self._pending):
            self._worker.engine.release()

    def _tell(
        self, served: Served, answering: Answering, fault: Fault | None, told: Told, now: float
    ) -> None:
        status, body = told
        kind = "application/json" if body.startswith(b"{") else "text/plain"
        steps: Sequence[Step] = whole_steps(body, status=status, kind=kind)
        served.status = status
        if fault is not None and (status == 200 or fault.kind in _UNTRUE):
            self._worker.mark(fault)
            answering.hanging = fault.kind is FaultKind.HANG
            steps, served.status = probe_steps(fault, body), None
        self._worker.give(answering, steps, now)

    # -- what each path does -------------------------------------------------------------

    def _at_once(
        self, served: Served, answering: Answering, fault: Fault | None, now: float
    ) -> _Pending:
        does = _AT_ONCE[served.path]
        return _Pending(
            served=served,
            answering=answering,
            fault=fault,
            is_ready=lambda: True,
            finish=lambda: does(self, served),
            until=now,
        )

    def _pause(
        self, served: Served, answering: Answering, fault: Fault | None, now: float
    ) -> _Pending:
        engine = self._worker.engine
        mode = served.body.get("mode", "abort")
        if mode not in {known.value for known in PauseMode}:
            raise framework_error(f"there is no pause mode {mode!r}")
        engine.pause(PauseMode(mode))
        self.paused_by = -1 if served.errand is None else served.errand

        def is_ready() -> bool:
            return mode != "abort" or engine.idle or engine.paused is None

        return _Pending(
            served=served,
            answering=answering,
            fault=fault,
            is_ready=is_ready,
            finish=lambda: (200, _OK % b"paused"),
            until=now + derive(served.at, "pausing", self._worker.url).choice(_PAUSING_S),
        )

    def _update(
        self, served: Served, answering: Answering, fault: Fault | None, now: float
    ) -> _Pending:
        engine, body = self._worker.engine, served.body
        if not isinstance(body.get("model_path"), str):
            raise framework_error("model_path is required and must be a string")
        if body.get("abort_all_requests") is True:
            engine.abort(everything=True)
        holds = engine.paused is None
        if holds:
            engine.hold()
        taken_s = derive(served.at, "loading", self._worker.url).choice(_LOADING_S)
        return _Pending(
            served=served,
            answering=answering,
            fault=fault,
            is_ready=lambda: not holds or engine.idle or engine.paused is not None,
            finish=lambda: self._updated(body),
            until=now + taken_s,
            updates=True,
            holds=holds,
        )

    def _updated(self, body: Mapping[str, Any]) -> Told:
        version = body.get("weight_version")
        if isinstance(version, str) and not self._take_version(version):
            return 400, b'{"success":false,"message":"these weights are older than its own"}'
        if body.get("flush_cache", True) and not self._worker.engine.flush():
            return 400, b'{"success":false,"message":"Cache flush failed after updating weights."}'
        return 200, b'{"success":true,"message":"Succeeded to update model weights."}'

    def _take_version(self, version: str) -> bool:
        """Trainers do not go back, and a request that comes late does not either."""
        worker = self._worker
        if epoch_of(version) < epoch_of(worker.version):
            return False
        worker.update_version(version)
        if self.on_version is not None:
            self.on_version(version)
        return True

    def _continue(self, _served: Served) -> Told:
        self._worker.resume()
        return 200, _OK % b"continued"

    def _flush(self, _served: Served) -> Told:
        flushed = self._worker.engine.flush()
        return (200, b"Cache flushed.\n") if flushed else (400, b"Flush cache failed.\n")

    def _abort(self, served: Served) -> Told:
        rid = served.body.get("rid", "")
        if not isinstance(rid, str):
            raise framework_error("rid must be of type str")
        self._worker.engine.abort(rid, everything=served.body.get("abort_all") is True)
        return 200, b""

    def _relabel(self, served: Served) -> Told:
        version = served.body.get("new_version")
        if not isinstance(version, str):
            raise framework_error("new_version is required and must be a string")
        if served.body.get("abort_all_requests", True):
            self._worker.engine.abort(everything=True)
        if not self._take_version(version):
            return 400, b'{"success":false,"message":"these weights are older than its own"}'
        told = {"success": True, "message": "Weight version updated", "new_version": version}
        return 200, msgspec.json.encode(told)


def _fields(request: Request) -> dict[str, Any]:
    """The request's JSON object; flushing needs none. Raises ``Refusal``."""
    if not request.body and request.target.startswith("/flush_cache"):
        return {}
    body = body_of(request)
    if not isinstance(body, dict):
        raise framework_error("the body must be a JSON object")
    return body


_AT_ONCE: Final[Mapping[str, Callable[[Desk, Served], Told]]] = {
    "/continue_generation": Desk._continue,
    "/flush_cache": Desk._flush,
    "/abort_request": Desk._abort,
    "/update_weight_version": Desk._relabel,
}
_PATHS: Final[Mapping[str, Callable[[Desk, Served, Answering, Fault | None, float], _Pending]]] = {
    **dict.fromkeys(_AT_ONCE, Desk._at_once),
    "/pause_generation": Desk._pause,
    "/update_weights_from_disk": Desk._update,
}
PATHS: Final = frozenset(_PATHS)
"""The paths that a desk serves."""
