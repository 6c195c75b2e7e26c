"""The real shell in virtual time: a listener (its own, or Hypercorn's), Quart-Trio, the relay, the
pool, httpx.

Only what lies beneath is simulated: connections (:mod:`network`), the clock and the scheduler
(:mod:`scheduling`), threads and the wall clock (:mod:`shell_seams`). What surrounds the router is
the same :class:`World` as under the core's harness. A run has its safety phase, heals, and must
then come to rest; it is looked at from outside, retrieved from, shut down, and searched for leaks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import h11
import trio
import trio.testing

from slime_core.errors import InvariantError
from slime_core.state import RouterState
from slime_core.transitions import Transition
from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.router import Router
from slime_trio.upstream import STREAM_FAILURES, Pool, parse_origin
from tests.simulate.agents import Agent, Send
from tests.simulate.chance import derive
from tests.simulate.control.director import Director
from tests.simulate.control.watching import ControlWatch
from tests.simulate.knobs import Knobs
from tests.simulate.operator import Action
from tests.simulate.run import Run, facts_of, trace_of
from tests.simulate.shell.ends import NetworkWatch
from tests.simulate.shell.http_ends import ClientEnd, WorkerEnd
from tests.simulate.shell.network import Network, SimStream
from tests.simulate.shell.probing import admin_client
from tests.simulate.shell.scheduling import seeded
from tests.simulate.shell.seams import Logs, chatting_of, owned, sweep
from tests.simulate.shell.servers import server_of
from tests.simulate.story import Ask, Committed, Delivered, Exchange, Story
from tests.simulate.watch import Watch
from tests.simulate.world import World

__all__ = ["ShellHarness", "run"]

_LOOK_S: Final = 0.05
_CONTACT_S: Final = 0.5
_REST_S: Final = 12.0
"""How long what is left may take to end: aborts, idle connections, httpx's patience."""
_QUEUE_S: Final = 20.0
"""How long requests wait for workers: not for all of a run, as agents have many of them."""
_RACES: Final = (0.0, 0.1, 0.4)


@dataclass(frozen=True, slots=True)
class _Observer:
    """Writes the journal."""

    story: Story

    def __call__(self, fact: Transition, state: RouterState, /) -> None:
        story = self.story
        story.journal.append(Committed(at=story.tick(), now=trio.current_time(), fact=fact))
        story.marks[f"transition:{type(fact).__name__}"] += 1


class ShellHarness:
    """See the module; :meth:`run` once, within the seams."""

    def __init__(
        self, knobs: Knobs, clock: trio.testing.MockClock, world: World | None = None
    ) -> None:
        self.knobs: Final = knobs
        self.world: Final = world or World(knobs)
        self.story: Final = self.world.story
        self._clock = clock
        self._watch = Watch(
            self.story,
            knobs.limits(),
            facts_of(self.world.tokens),
            tolerated=knobs.max_staleness,
            grace_s=knobs.grace_s,
        )
        self._control_watch = ControlWatch(
            self.world.workers, self.story, self._watch.fleet, self._watch.say
        )
        self._bound = trio.CancelScope()
        self._unfinished: dict[str, None] = {}

    # -- building ------------------------------------------------------------------------

    def _build(self, nursery: trio.Nursery) -> None:
        knobs = self.knobs
        self._nursery = nursery
        self.network = Network(
            knobs.seed, nursery, delay_s=knobs.delay_s, chunk_bytes=knobs.chunk_bytes
        )
        self.ends = {url: self._worker_end(url) for url in self.world.workers}
        self.router = self._router()
        app = create_app(self.router.args, router=self.router)
        self.server = server_of(knobs.listener, app, self.router, NetworkWatch(self.network))
        self.control = self._client("control")
        self.director = Director(self.world, self.router, self._control_watch, self._client)

    def _worker_end(self, url: str) -> WorkerEnd:
        knobs, chance = self.knobs, derive(self.knobs.seed, "end", url)
        races = chance.choice(_RACES) if knobs.faults or knobs.links else 0.0
        worker, conditions = self.world.workers[url], self.world.conditions[url]
        end = WorkerEnd(worker, conditions, story=self.story, chance=chance, races=races)
        origin = parse_origin(url)
        self.network.listen(origin.host, origin.port, end.serve, end)
        self._nursery.start_soon(end.drive, name=f"engine of {url}")
        return end

    def _router(self) -> Router:
        knobs, tokens, ids = self.knobs, self.world.tokens, _Counted()
        router = Router(
            self._settings(),
            checkpoint=tokens.checkpoint,
            pool=Pool(
                connect=self.network.connect,
                connect_timeout_s=knobs.connect_timeout_s,
                watch=NetworkWatch(self.network),
            ),
            new_id=ids,
            chance=derive(knobs.seed, "policy").random,
        )
        # Settings count memory in MiB, and as many as these runs need are less than one.
        router._limits = knobs.limits()
        router.shared.use_chatting(chatting_of(tokens))
        router.component_registry.register("admin_client", admin_client(self.network))
        router.observers.extend((_Observer(self.story), self._watch, self._control_watch))
        return router

    def _settings(self) -> Settings:
        knobs = self.knobs
        return Settings(
            allow_worker=("w*",),
            probe_logprobs=False,  # a simulated worker's model tells none of likely tokens
            worker_urls=tuple(self.world.workers),
            policy=knobs.policy,
            affinity=knobs.affinity,
            failure_threshold=knobs.failure_threshold,
            quarantine_s=knobs.quarantine_s,
            max_weight_staleness=knobs.max_staleness,
            version_grace_s=knobs.grace_s,
            queue_timeout_s=_QUEUE_S,
            poll_interval_s=knobs.poll_interval_s,
            connect_timeout_s=knobs.connect_timeout_s,
            client_stall_s=knobs.client_stall_s,
            served_model_name="simulated",
            history=knobs.history,
        )

    def _client(self, name: str) -> ClientEnd:
        return ClientEnd(
            name,
            self.network,
            self.story,
            self._accept,
            keeps=derive(self.knobs.seed, "client", name).random() < 0.7,
            stall_s=self.knobs.client_stall_s,
        )

    def _accept(self, stream: SimStream) -> None:
        self.server.accept(stream)

    # -- the whole run -------------------------------------------------------------------

    async def run(self) -> Run:
        """Safety, healing, liveness, the trainer's last round, and the search for leaks."""
        trio.socket.set_custom_hostname_resolver(_Names())
        async with trio.open_nursery() as nursery:
            self._build(nursery)
            await nursery.start(self.server.serve)
            await self._begin()
            self._bound.deadline = self.knobs.heal_s + self.knobs.liveness_s
            with self._bound:
                await self._live()
            if self._bound.cancelled_caught:
                unfinished = (*self._unfinished, *self.director.unfinished)
                self._complain(f"not done in time: {', '.join(unfinished) or 'calls'}")
            await self.director.come_to_rest()
            await self._recover()
            self._at_rest()
            await self._retrieve_everything()
            await self._end_sessions()
            await self._shut_down()
            await sweep()
            nursery.cancel_scope.cancel()
        return self._told()

    async def _begin(self) -> None:
        """Wait for the first contact with the workers, as whoever starts a rollout does."""
        with trio.move_on_after(_CONTACT_S):
            while not all(worker.is_fit for worker in self.router.state.fleet.listed()):  # noqa: ASYNC110
                await trio.sleep(_LOOK_S)

    async def _live(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._operate, nursery)
            nursery.start_soon(self.director.run)
            for agent in self.world.agents:
                self._unfinished[agent.name] = None
                nursery.start_soon(self._play, agent)
        state = self.router.state
        while state.open_calls or state.fleet.total_in_flight:  # noqa: ASYNC110 - as from outside
            await trio.sleep(_LOOK_S)

    async def _recover(self) -> None:
        """What is healed serves again, all of it, and before long."""
        fleet = self.router.state.fleet
        with trio.move_on_after(self.knobs.recovery_s) as bound:
            while not all(one.is_fit for one in fleet.listed()):  # noqa: ASYNC110 - from outside
                await trio.sleep(_LOOK_S)
        if bound.cancelled_caught:
            unfit = {one.url: one.unfit for one in fleet.listed()}
            self._complain(f"not all recovered in time: {unfit}")

    def _told(self) -> Run:
        state = self.router.state
        self.story.read_ahead = self.network.read_ahead
        return Run(
            knobs=self.knobs,
            world=self.world,
            state=state,
            watch=self._watch,
            events=len(self.story.journal) + self.network.reads,
            digest=f"{state.digest()} {trace_of(self.story)} {self.network.reads}",
        )

    def _complain(self, message: str) -> None:
        self.story.complaints.append(message)

    # -- agents --------------------------------------------------------------------------

    async def _play(self, agent: Agent) -> None:
        client = self._client(agent.name)
        try:
            while (step := agent.next()) is not None:
                await trio.sleep(step.think_s)
                if isinstance(step, Send):
                    async with trio.open_nursery() as nursery:
                        for exchange in [self._exchange(agent, ask) for ask in step.asks]:
                            nursery.start_soon(self._ask, client, agent, exchange)
                else:
                    agent.delivered(await self._retrieve(client, step.path, step.body))
            del self._unfinished[agent.name]
        finally:
            client.close()

    def _exchange(self, agent: Agent, ask: Ask) -> Exchange:
        story = self.story
        exchange = Exchange(
            number=len(story.exchanges),
            agent=agent.name,
            ask=ask,
            asked_at=story.tick(),
            started_s=trio.current_time(),
        )
        story.exchanges.append(exchange)
        return exchange

    async def _ask(self, client: ClientEnd, agent: Agent, exchange: Exchange) -> None:
        await client.send(exchange)
        agent.ended(exchange)

    async def _retrieve(self, client: ClientEnd, path: str, asked: dict[str, Any]) -> Delivered:
        story, begun_at = self.story, self.story.tick()
        if path.startswith("/trajectories/"):
            status, body = await client.call("GET", path)
        else:
            status, body = await client.call("POST", path, asked)
        told = Delivered(
            at=story.tick(),
            begun_at=begun_at,
            now=trio.current_time(),
            path=path,
            asked=asked,
            status=status,
            body=body,
        )
        story.delivered.append(told)
        story.marks[f"delivered:{status}"] += 1
        return told

    async def _retrieve_everything(self) -> None:
        """The trainer's last round: every captured call by its id, and by its text."""
        for call in list(self.router.state.forest.calls):
            told = await self._retrieve(self.control, f"/trajectories/{call}", {})
            text = told.body.get("response")
            if told.status == 200 and text:
                asked = {"text": text, "id": call}
                await self._retrieve(self.control, "/retrieve_from_text", asked)

    async def _end_sessions(self) -> None:
        """Collect every session's samples, seal it, try to write, and delete it."""
        for name in list(self.router.state.forest.sessions):
            path = f"/sessions/{name}"
            await self._retrieve(self.control, f"{path}/samples", {"policy": "keep_all"})
            await self._retrieve(self.control, f"{path}/seal", {})
            await self._retrieve(self.control, f"{path}/generate", {"text": "late"})
            await self._retrieve(self.control, f"{path}/samples", {"policy": "keep_all"})
            status, _ = await self.control.call("DELETE", path)
            if status != 204:
                self._complain(f"DELETE {path} was answered {status}")
            await self._retrieve(self.control, f"{path}/samples", {})

    # -- the fleet's life ------------------------------------------------------------------

    async def _operate(self, nursery: trio.Nursery) -> None:
        operator = self.world.operator
        operator.on_add = partial(self._later, nursery, "/add_worker")
        operator.on_remove = partial(self._later, nursery, "/remove_worker")
        operator.on_jump = self._jump
        for moment, action in operator.timeline:
            await trio.sleep_until(moment)
            self._perform(action)
        await trio.sleep_until(self.knobs.heal_s)
        operator.heal(trio.current_time())
        for end in self.ends.values():
            end.races = 0.0
            end.changed()
        self.network.changed()

    def _perform(self, action: Action) -> None:
        resets = {url: link.resets for url, link in self.world.conditions.items()}
        self.world.operator.perform(action, trio.current_time())
        for url, end in self.ends.items():
            end.changed(reset=self.world.conditions[url].resets != resets[url])
        self.network.changed()

    def _later(self, nursery: trio.Nursery, path: str, url: str) -> None:
        nursery.start_soon(self._administer, path, url)

    async def _administer(self, path: str, url: str) -> None:
        try:
            status, told = await self.control.call("POST", path, {"url": url})
        except (*STREAM_FAILURES, h11.RemoteProtocolError) as error:
            self._complain(f"{path} broke off: {error}")
        else:
            if status != 200:
                self._complain(f"{path} was answered {status}: {told}")

    def _jump(self, seconds: float) -> None:
        """The clock goes on; what was promised to happen within a time gets that much more."""
        self._clock.jump(seconds)
        self._control_watch.exclusive.clear()
        self._bound.deadline += seconds

    # -- the end -------------------------------------------------------------------------

    def _at_rest(self) -> None:
        """What must be true when nothing moves any more."""
        state = self.router.state
        if state.open_calls:
            self._complain(f"calls still open: {', '.join(state.open_calls)}")
        for worker in state.fleet.workers.values():
            if worker.in_flight:
                self._complain(f"{worker.url} is still occupied by {list(worker.in_flight)}")
        try:
            state.check()
        except InvariantError as error:
            self._complain(f"the state's books are off: {error.message}")

    async def _shut_down(self) -> None:
        """Stop the server; then nobody may be left, at either end of anything."""
        self.control.close()
        await trio.sleep(_REST_S)
        if self.server.connections:
            self._complain(f"connections outlive their clients: {self.server.connections}")
        in_use = self.router.pool.stats().in_use
        if in_use:
            self._complain(f"the pool has {in_use} connections in use")
        await self.server.stop()
        await trio.sleep(_REST_S)
        await self.router.component_registry.get("admin_client").aclose()
        await trio.sleep(_LOOK_S)
        for stream in self.network.open_streams:
            self._complain(f"a stream was left open: {stream.label}")
        if self.router.nursery is not None:
            self._complain("the router is still being tended")
        if len(self._nursery.child_tasks) > len(self.ends):
            names = sorted(task.name for task in self._nursery.child_tasks)
            self._complain(f"tasks were left: {names}")


class _Names(trio.abc.HostnameResolver):
    """Every worker's name stands for an address, without anybody being asked."""

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        raise OSError("nobody asks for names")


class _Counted:
    """Call ids of one length, in their order."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return f"{self._count:032x}"


def run(knobs: Knobs) -> Run:
    """One run of the shell."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    harness = ShellHarness(knobs, clock)
    chatting_of(harness.world.tokens)
    complain: Callable[[str], None] = harness.story.complaints.append
    with (
        seeded(derive(knobs.seed, "scheduler")),
        owned(Logs(complain), derive(knobs.seed, "seams")),
    ):
        # Ctrl-C must end the search: in a task of the router it would pass for a bug of that task.
        return trio.run(harness.run, clock=clock, restrict_keyboard_interrupt_to_checkpoints=True)
