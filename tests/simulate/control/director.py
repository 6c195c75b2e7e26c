"""Carries errands out, by HTTP requests to the router's own paths, and looks at what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import Any, Final

import h11
import trio

from slime_trio.dispatch.entry import Entry
from slime_trio.router import Router
from slime_trio.upstream import STREAM_FAILURES
from tests.simulate.control.errands import Errand
from tests.simulate.control.records import ERRAND, Asked
from tests.simulate.control.watching import ControlWatch
from tests.simulate.shell.http_ends import ClientEnd
from tests.simulate.world import World

__all__ = ["Director", "results_of"]

_AGAIN_S: Final = 1.0
_TRIES: Final = 3
_SETTLED_S: Final = 15.0
"""What the router may take to have workers go on whose caller has gone."""
_NOTICED_S: Final = 0.01
"""What the router needs to notice, beside the way that the news takes."""
_REST_S: Final = 60.0
_PAUSE: Final = "pause_generation"
_CONTINUE: Final = "continue_generation"
_UPDATE: Final = "update_weights_from_disk"


class Director:
    """``client`` makes connections under a name. Errands begin in their time; :meth:`run` ends with
    the last."""

    def __init__(
        self,
        world: World,
        router: Router,
        watch: ControlWatch,
        client: Callable[[str], ClientEnd],
    ) -> None:
        self._world: Final = world
        self._story: Final = world.story
        self._shared: Final = router.shared
        self._watch: Final = watch
        self._client: Final = client
        self.unfinished: Final[dict[str, None]] = {}

    async def run(self) -> None:
        """Every errand, to its end; then whom updates left out is given the newest weights."""
        async with trio.open_nursery() as nursery:
            for number, (at, errand) in enumerate(self._world.errands):
                await trio.sleep_until(at)
                nursery.start_soon(self._carry_out, errand, f"{errand.kind}{number}")
        if not self._world.errands:
            return
        await trio.sleep_until(self._world.knobs.heal_s)
        # Whose caller has left loads its weights all the same.
        while any(one.desk.is_busy for one in self._world.workers.values()):  # noqa: ASYNC110
            await trio.sleep(_AGAIN_S)
        self._world.operator.level()

    async def _carry_out(self, errand: Errand, name: str) -> None:
        self.unfinished[name] = None
        client = self._client(name)
        try:
            await _HOW[errand.kind](self, client, errand)
        finally:
            client.close()
        del self.unfinished[name]

    # -- asking --------------------------------------------------------------------------

    async def _ask(
        self,
        client: ClientEnd,
        errand: Errand,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        method: str = "POST",
        patience_s: float = inf,
        holds: str = "none",
        number: int | None = None,
    ) -> Asked:
        """One request and what came of it. ``holds``: how it holds generations up."""
        story = self._story
        asked = Asked(
            number=len(story.asked),
            kind=errand.kind,
            method=method,
            path=path,
            body=body,
            at=story.tick(),
            now=trio.current_time(),
        )
        story.asked.append(asked)
        if holds != "none":
            self._watch.exclusive[asked.number] = holds
        told = ((ERRAND, str(asked.number)), ("content-type", "application/json"))
        with trio.move_on_after(patience_s) as scope:
            try:
                asked.status, asked.answer = await client.call(method, path, body, headers=told)
            except (*STREAM_FAILURES, h11.RemoteProtocolError):
                pass
        asked.left = scope.cancelled_caught
        self._watch.exclusive.pop(asked.number, None)
        asked.ended_at = story.tick()
        story.marks[f"control:{errand.kind}"] += 1
        story.marks[f"control:{'left' if asked.left else asked.status}"] += 1
        return asked

    def _path(self, errand: Errand, path: str, **query: object) -> str:
        """The router's path for it, aimed at those that are meant."""
        if errand.aimed == "engine":
            worker = self._shared.worker_book.id_of(errand.url)  # type: ignore[arg-type]
            path = f"workers/{worker}/engine/{path}"
        elif errand.aimed == "query":
            query["worker"] = errand.url
        elif errand.aimed == "selector":
            query["selector"] = f"url={errand.url}"
        # Nothing in it needs to be quoted, and what connections are given is quoted there.
        words = "&".join(f"{name}={value}" for name, value in query.items() if value is not None)
        return f"/{path}?{words}" if words else f"/{path}"

    # -- pauses --------------------------------------------------------------------------

    async def _pause(self, client: ClientEnd, errand: Errand, **how: Any) -> Asked:
        body: dict[str, Any] = {} if errand.mode is None else {"mode": errand.mode}
        query = {"lease_s": errand.lease_s} if errand.word % 2 else {}
        if not query:
            body["lease_s"] = errand.lease_s
        asked = await self._ask(client, errand, self._path(errand, _PAUSE, **query), body, **how)
        for url, status in results_of(asked):
            if status == 200:
                self._watch.confirm(url, asked.number)
        return asked

    async def _go_on(self, client: ClientEnd, errand: Errand) -> None:
        """Until all that are meant go on, a few times; then their lease must see to it."""
        for _ in range(_TRIES):
            body: dict[str, Any] | None = {} if errand.word % 3 else None
            asked = await self._ask(client, errand, self._path(errand, _CONTINUE), body)
            if asked.status == 200:
                return
            await trio.sleep(_AGAIN_S)

    async def _pause_and_continue(self, client: ClientEnd, errand: Errand) -> None:
        await self._pause(client, errand)
        await trio.sleep(errand.lasts_s)
        await self._go_on(client, errand)

    async def _pause_only(self, client: ClientEnd, errand: Errand) -> None:
        await self._pause(client, errand)

    async def _pause_and_leave(self, client: ClientEnd, errand: Errand) -> None:
        """Where the router may have answered, it knows of nobody who left."""
        asked = await self._pause(client, errand, patience_s=errand.patience_s)
        if asked.left:
            known_s = trio.current_time() + 3 * self._world.knobs.delay_s + _NOTICED_S
            await trio.sleep(_SETTLED_S)
            begun = [one for one in self._story.served if one.errand == asked.number]
            if any(one.done_s is None or one.done_s > known_s for one in begun):
                self._story.marks["checked:caller left in a pause"] += 1
                return
        await self._go_on(client, errand)

    # -- weights -------------------------------------------------------------------------

    async def _update(self, client: ClientEnd, errand: Errand, *, patience_s: float = inf) -> Asked:
        body: dict[str, Any] = {
            "model_path": "/models/next",
            "weight_version": self._world.operator.next_version(),
        }
        if errand.word % 3 == 0:
            body["abort_all_requests"] = True
        if errand.word % 2:
            body["flush_cache"] = False
        hold = errand.hold
        path = self._path(
            errand, _UPDATE, mode=hold, drain_timeout_s=30.0 if hold == "drain" else None
        )
        return await self._ask(
            client, errand, path, body, patience_s=patience_s, holds=hold or "hold"
        )

    async def _update_once(self, client: ClientEnd, errand: Errand) -> None:
        await self._update(client, errand)

    async def _update_and_leave(self, client: ClientEnd, errand: Errand) -> None:
        await self._update(client, errand, patience_s=errand.patience_s)

    async def _update_in_pause(self, client: ClientEnd, errand: Errand) -> None:
        await self._pause(client, errand)
        await self._update(client, replace(errand, hold=errand.hold and "none"))
        await self._go_on(client, errand)

    async def _relabel(self, client: ClientEnd, errand: Errand) -> None:
        body: dict[str, Any] = {"new_version": self._world.operator.next_version()}
        if errand.word % 3:
            body["abort_all_requests"] = errand.word % 3 == 1
        path = self._path(errand, "update_weight_version", mode=errand.hold)
        await self._ask(client, errand, path, body, holds=errand.hold or "hold")

    async def _flush(self, client: ClientEnd, errand: Errand) -> None:
        method = "GET" if errand.word % 2 else "POST"
        await self._ask(client, errand, self._path(errand, "flush_cache"), method=method)

    # -- aborts --------------------------------------------------------------------------

    async def _abort_everything(self, client: ClientEnd, errand: Errand) -> None:
        await self._abort(client, errand, {"abort_all": True}, lambda _: True)

    async def _abort_session(self, client: ClientEnd, errand: Errand) -> None:
        named = [live.session for live in self._shared.dispatcher.live.values() if live.session]
        session = named[errand.word % len(named)] if named else "nobody's"
        await self._abort(
            client, errand, {"session": session}, lambda live: live.session == session
        )

    async def _abort_call(self, client: ClientEnd, errand: Errand) -> None:
        calls = list(self._shared.dispatcher.live)
        call = calls[errand.word % len(calls)] if calls else "nobody's"
        await self._abort(client, errand, {"rid": call}, lambda live: live.call == call)

    async def _abort(
        self,
        client: ClientEnd,
        errand: Errand,
        body: dict[str, Any],
        is_meant: Callable[[Any], bool],
    ) -> None:
        """Whatever waits in the router is gone from there before the answer comes."""
        room, fleet = self._shared.dispatcher.room, self._watch.books
        live = [one for one in self._shared.dispatcher.live.values() if is_meant(one)]
        waiting = [one for one in room.waiting if one.lives and all(map(is_meant, one.lives))]
        before: dict[str, int] = {one.call: len(fleet.taken.get(one.call, ())) for one in live}
        asked = await self._ask(client, errand, "/abort_request", body)
        asked.meant = tuple(one.call for one in live)
        if asked.status != 200:
            return
        still = set(map(id, room.waiting))
        untouched = [one for one in waiting if all(_slots(fleet.taken, before, one))]
        asked.waited = tuple(live.call for one in untouched for live in one.lives)
        if untouched:
            self._story.marks["checked:abort of what waits"] += 1
        asked.problems += [
            f"{[live.call for live in one.lives]} waits on, though it was to be aborted"
            for one in untouched
            if id(one) in still
        ]

    # -- who is there --------------------------------------------------------------------

    async def _enlist(self, client: ClientEnd, errand: Errand) -> None:
        """Remove a worker and register it again, or only the latter, in either dialect."""
        url, word = errand.url, errand.word
        worker = self._shared.worker_book.id_of(url)  # type: ignore[arg-type]
        if word % 4 == 0:
            await self._ask(client, errand, f"/remove_worker?url={url}")
        elif word % 4 == 1:
            path = f"/workers/{worker}" + ("?drain=false" if word % 8 == 1 else "")
            await self._ask(client, errand, path, method="DELETE")
        elif word % 4 == 2:
            await self._ask(client, errand, f"/workers/{url}", method="DELETE")
        await trio.sleep(errand.lasts_s)
        body = {"url": url}
        asked = await (
            self._ask(client, errand, "/workers", body)
            if word % 3
            else self._ask(client, errand, "/add_worker", body)
        )
        if asked.status not in (200, 202):
            asked.problems.append(f"registration was answered {asked.status}: {asked.answer}")

    # -- the end -------------------------------------------------------------------------

    async def come_to_rest(self) -> None:
        """Every pause that was begun ends; then nothing is held, and nobody waits."""
        with trio.move_on_after(_REST_S):
            while any(self._standing()):  # noqa: ASYNC110 - as from outside
                await trio.sleep(_AGAIN_S)
        self._story.complaints.extend(self._standing())
        self._story.complaints.extend(self._kept())

    def _standing(self) -> Iterator[str]:
        for url, worker in self._world.workers.items():
            if worker.engine.paused is not None:
                yield f"the pause of {url} never ended"
        for url, known in self._shared.fleet.workers.items():
            if known.paused:
                yield f"{url} still counts as paused"

    def _kept(self) -> Iterator[str]:
        gate, dispatcher, control = self._shared.gate, self._shared.dispatcher, self._shared.control
        kept: dict[str, object] = {
            "readers of the gate": gate.readers,
            "waiters for the gate": gate.waiting,
            "writers of the gate": gate.is_written,
            "calls": list(dispatcher.live),
            "requests that wait": len(dispatcher.room.waiting),
            "requests that run": dispatcher.room.running,
            "leases": control.pauses.paused,
        }
        yield from (
            f"when all was over there were {what}: {some}" for what, some in kept.items() if some
        )


def _slots(taken: Any, before: dict[str, int], entry: Entry) -> Iterator[bool]:
    """Of each call, whether it got no slot meanwhile."""
    return (len(taken.get(one.call, ())) == before[one.call] for one in entry.lives)


def results_of(asked: Asked) -> Iterator[tuple[str, int]]:
    """Who did what was asked, by the router's word: URL and status."""
    answer = asked.answer
    if not isinstance(answer, dict) or asked.status is None:
        return
    if "engine/" in asked.path and asked.status < 300:
        yield answer["url"], answer["status"]
    for one in answer.get("results", {}).values():
        yield one["url"], one["status"]


_HOW: Final[dict[str, Callable[[Director, ClientEnd, Errand], Any]]] = {
    "pause": Director._pause_and_continue,
    "pause_leased": Director._pause_only,
    "pause_left": Director._pause_and_leave,
    "update": Director._update_once,
    "update_left": Director._update_and_leave,
    "update_in_pause": Director._update_in_pause,
    "relabel": Director._relabel,
    "flush_cache": Director._flush,
    "abort_everything": Director._abort_everything,
    "abort_session": Director._abort_session,
    "abort_call": Director._abort_call,
    "enlist": Director._enlist,
}
