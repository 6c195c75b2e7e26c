"""``pd_role_switch``: a worker changes between prefill and decode without losing a call.

    taken out of service → its calls in flight end → it is told → put back, in its new role

The request is that of SGLang's own small load balancer (``worker_url``, ``new_role``,
``bootstrap_port``, ``drain``, ``drain_timeout_secs``). A worker that is not idle yet says so and is
told again. If it fails it goes on in its old role only if it says that this is safe; otherwise it
stays out of service until it is registered again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import urlencode

import msgspec
import trio

from slime_core.errors import ClientError
from slime_core.fleet import WorkerKind
from slime_core.strict_json import BAD_JSON, decode_field, is_null
from slime_core.transitions import WorkerAdded
from slime_core.types import WorkerUrl
from slime_trio.control.asking import Order
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.outliving import outliving
from slime_trio.control.paths import How
from slime_trio.control.pauses import Pauses
from slime_trio.control.requests import (
    ControlCall,
    bool_in,
    object_of,
    seconds_in,
    text_in,
    with_fields,
)
from slime_trio.control.teller import Teller

__all__ = ["RoleSwitch", "with_worker_of_body"]

_ROLES: Final = {kind.value: kind for kind in (WorkerKind.PREFILL, WorkerKind.DECODE)}
_DRAIN_S: Final = 300.0
_LOOK_S: Final = 0.05
_AGAIN_S: Final = 1.0
_BUSY: Final = "not idle"
_OWN: Final = ("worker_url", "drain", "drain_timeout_secs")
_PORT: Final = msgspec.json.Decoder(int)


class _Told(msgspec.Struct):
    safe_to_restore: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    role: WorkerKind
    port: int | None
    drains: bool
    drain_s: float
    body: bytes
    """What the worker is told."""


@dataclass(slots=True)
class _Attempt:
    """What the worker said last, and whether it may get work again whatever happens now."""

    outcome: Outcome | None = None
    is_safe: bool = True


def with_worker_of_body(call: ControlCall) -> ControlCall:
    """The call with the worker that its body names among those that its query names."""
    named = text_in(object_of(call.body), "worker_url")
    if named is None:
        return call
    parts = [part for part in (call.query, urlencode({"worker": named}).encode()) if part]
    return replace(call, query=b"&".join(parts))


class RoleSwitch:
    """One switch at a time and worker; see the module."""

    def __init__(self, teller: Teller, pauses: Pauses) -> None:
        self._teller = teller
        self._pauses = pauses
        self._busy: set[WorkerUrl] = set()

    async def switch(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """Raises :class:`ClientError` for more than one worker, or one that is being switched."""
        wish = _wish_of(call)
        if len(targets) != 1:
            raise ClientError(
                "a role is switched one worker at a time: name it with worker_url or ?worker=",
                param="worker_url",
            )
        (target,) = targets
        if target.url in self._busy:
            raise ClientError("this worker is changing its role", status=409, code="role_switching")
        self._busy.add(target.url)
        work = partial(self._switch, call, how, target, wish)
        return [await outliving(self._teller.nursery, work)]

    async def _switch(self, call: ControlCall, how: How, target: Target, wish: _Wish) -> Outcome:
        self._pauses.take_out(target.url)
        attempt = _Attempt()
        try:
            with trio.move_on_after(wish.drain_s):
                if wish.drains:
                    await self._drain(target.url)
                await self._tell(attempt, target, self._teller.order(call, how, wish.body))
            outcome = attempt.outcome
            if outcome is None or _is_busy(outcome):
                raise ClientError(
                    f"the worker was not idle after {wish.drain_s:g} s",
                    status=503,
                    code="drain_timeout",
                    retry_after_s=1.0,
                )
            if outcome.succeeded:
                self._note_role(target.url, wish)
            return outcome
        finally:
            self._busy.discard(target.url)
            if attempt.is_safe:
                self._pauses.put_back(target.url)

    async def _drain(self, url: WorkerUrl) -> None:
        fleet = self._teller.shared.fleet
        while url in fleet.workers and fleet.workers[url].in_flight:  # noqa: ASYNC110
            await trio.sleep(_LOOK_S)

    async def _tell(self, attempt: _Attempt, target: Target, order: Order) -> None:
        while True:
            attempt.is_safe = False
            outcome = attempt.outcome = await self._teller.ask(target, order)
            attempt.is_safe = outcome.succeeded or _is_busy(outcome) or _is_safe(outcome)
            if not _is_busy(outcome):
                return
            await trio.sleep(_AGAIN_S)

    def _note_role(self, url: WorkerUrl, wish: _Wish) -> None:
        worker = self._teller.shared.fleet.workers.get(url)
        if worker is not None:
            port = wish.port if wish.role is WorkerKind.PREFILL else None
            self._teller.commit(
                [
                    WorkerAdded(
                        worker=url,
                        id=worker.id,
                        kind=wish.role,
                        bootstrap_port=port,
                        extras=worker.extras,
                    )
                ]
            )


def _wish_of(call: ControlCall) -> _Wish:
    fields = object_of(call.body)
    role = _ROLES.get(text_in(fields, "new_role") or "")
    if role is None:
        raise ClientError("new_role must be prefill or decode", param="new_role")
    port = None
    if "bootstrap_port" in fields and not is_null(fields["bootstrap_port"]):
        port = decode_field(_PORT, fields["bootstrap_port"], "bootstrap_port")
    return _Wish(
        role=role,
        port=port,
        drains=bool_in(fields, "drain", True),
        drain_s=seconds_in(fields, "drain_timeout_secs", _DRAIN_S),
        body=with_fields({key: value for key, value in fields.items() if key not in _OWN}),
    )


def _is_busy(outcome: Outcome) -> bool:
    return not outcome.succeeded and _BUSY in outcome.message.lower()


def _is_safe(outcome: Outcome) -> bool:
    """Whether the worker may go on in its old role: it says so, or has not understood a word."""
    if outcome.status in (404, 405, 501):
        return True
    try:
        return msgspec.json.decode(outcome.body, type=_Told).safe_to_restore
    except BAD_JSON:
        return False
