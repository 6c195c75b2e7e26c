"""The demonstration from beginning to end: serve, roll out, update weights, retrieve, compare."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final

import httpx
import trio
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer

from slime_trio.demo.check import Mismatch, Record, expect
from slime_trio.demo.options import DemoOptions
from slime_trio.demo.rollout import Clients, Rollout, open_clients, plan_rollouts, take_turn
from slime_trio.demo.servers import FIRST_VERSION, Servers, running_servers
from slime_trio.demo.show import (
    TurnCosts,
    show_plan,
    show_requests,
    show_trajectory,
    show_turns,
    show_verdict,
)
from slime_trio.demo.verify import Findings, fetch_json, fetch_records, verify
from slime_trio.worker import SHIPPED_CHECKPOINT, load_model

__all__ = ["demonstrate"]

_INTERRUPTED: Final = 130
_CALLS_AT_ONCE: Final = 64
_MOMENT_S: Final = 0.005
_MID_ANSWER_S: Final = 2.0
"""How long to wait for answers under way before the update that is to fall among them."""


async def demonstrate(options: DemoOptions, console: Console | None = None) -> int:
    """The exit status: 0 if everything matched, 1 if not, 130 if interrupted before.

    Raises :class:`~.failure.DemoFailure`, in a group, if a server does not do as asked.
    """
    status = _INTERRUPTED
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signal, nursery.cancel_scope)
        async with running_servers(options) as servers:
            show = _Demonstration(options, servers, console or Console())
            status = await show.run()
            if options.keep_running:
                await show.stay()
        nursery.cancel_scope.cancel()
    return status


async def _end_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    """Cancel everything at the first Ctrl-C: no traceback, and no server is left behind."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


class _Demonstration:
    """One run against servers that are up."""

    def __init__(self, options: DemoOptions, servers: Servers, console: Console) -> None:
        self._options = options
        self._servers = servers
        self._console = console
        self._version = int(FIRST_VERSION)
        self._at_once = trio.CapacityLimiter(_CALLS_AT_ONCE)
        self._rollouts = plan_rollouts(options)
        self._tokenizer = Tokenizer.from_file(str(SHIPPED_CHECKPOINT / "tokenizer.json"))
        self._counted: list[tuple[int, int]] = []
        """Prompt tokens and reused tokens, as the router counted them by the end of each turn."""

    async def run(self) -> int:
        """Everything up to the verdict; 0 or 1."""
        began = trio.current_time()
        show_plan(self._console, self._options, self._servers, self._rollouts)
        clients = await trio.to_thread.run_sync(open_clients, self._servers.router, self._tokenizer)
        with clients.sdk:
            async with clients.http:
                await self._roll_out(clients)
                records = await fetch_records(clients.http, self._servers.workers)
                findings = await self._verify(clients.http, records)
        turns = self._turns(records)
        findings.mismatches += self._counter_mismatches(turns)
        show_turns(self._console, turns)
        show_trajectory(self._console, expect(self._chain(records)), self._tokenizer)
        self._console.print()
        show_verdict(self._console, findings, trio.current_time() - began)
        return 0 if findings.is_clean else 1

    async def stay(self) -> None:
        """Print requests to try, and keep the servers up until cancelled."""
        call = self._rollouts[0].said[-1].call
        async with httpx.AsyncClient(trust_env=False) as client:
            for worker in self._servers.workers:
                if call in await fetch_records(client, [worker]):
                    show_requests(self._console, self._servers.router, worker, call)
        await trio.sleep_forever()

    # -- rolling out -------------------------------------------------------------------------

    async def _roll_out(self, clients: Clients) -> None:
        """Turn by turn, all rollouts at once, with new weights before each further turn.

        In the last turn the weights change once more, while answers are being sampled.
        """
        self._counted.append(await self._counters(clients.http))
        for turn in range(1, self._options.turns + 1):
            if turn > 1:
                await self._update_weights(clients.http)
            with self._progress(f"turn {turn}/{self._options.turns}") as advance:
                async with trio.open_nursery() as nursery:
                    for rollout in self._rollouts:
                        nursery.start_soon(self._take_turn, clients, rollout, advance)
                    if turn == self._options.turns:
                        nursery.start_soon(self._update_mid_answer, clients.http)
            self._counted.append(await self._counters(clients.http))

    async def _take_turn(
        self, clients: Clients, rollout: Rollout, advance: Callable[[], None]
    ) -> None:
        async with self._at_once:
            await take_turn(clients, rollout, self._options)
        advance()

    async def _update_weights(self, client: httpx.AsyncClient) -> None:
        """New weights on every worker; what is being sampled goes on with them."""
        self._version += 1
        body = {"new_version": str(self._version), "abort_all_requests": False}
        for worker in self._servers.workers:
            await fetch_json(client, "POST", f"{worker}/update_weight_version", body)
        self._console.print(f"weights updated to version {self._version}", highlight=False)

    async def _update_mid_answer(self, client: httpx.AsyncClient) -> None:
        """:meth:`_update_weights` as soon as calls are at a worker, and have been for a moment."""
        in_flight = 0
        with trio.move_on_after(_MID_ANSWER_S):
            while not in_flight:
                metrics = await fetch_json(client, "GET", "/metrics")
                in_flight = metrics["router"]["total_in_flight"]
                await trio.sleep(_MOMENT_S)
        await self._update_weights(client)

    async def _counters(self, client: httpx.AsyncClient) -> tuple[int, int]:
        """Prompt tokens and reused tokens so far, from the router's Prometheus metrics."""
        response = await client.get("/metrics", params={"format": "prometheus"})
        lines = (line.rpartition(" ") for line in response.text.splitlines())
        values = {name: value for name, _, value in lines}
        prompt = values["slime_prompt_tokens_total"]
        return int(float(prompt)), int(float(values["slime_reused_tokens_total"]))

    # -- checking ----------------------------------------------------------------------------

    async def _verify(self, client: httpx.AsyncClient, records: dict[str, Record]) -> Findings:
        model = await trio.to_thread.run_sync(load_model, SHIPPED_CHECKPOINT)
        with self._progress("retrieved and compared") as advance:
            return await verify(
                client,
                self._rollouts,
                records,
                tokenizer=self._tokenizer,
                model=model.language,
                advance=advance,
            )

    def _turns(self, records: Mapping[str, Record]) -> list[TurnCosts]:
        """What the workers received and sampled in each turn; what was reused, by the router."""
        turns = []
        for turn, (before, after) in enumerate(pairwise(self._counted)):
            calls = [records[rollout.said[turn].call] for rollout in self._rollouts]
            versions = {version for call in calls for version in call.versions}
            turns.append(
                TurnCosts(
                    versions=tuple(sorted(versions, key=int)),
                    calls=len(calls),
                    prompt=sum(len(call.prompt_ids) for call in calls),
                    reused=after[1] - before[1],
                    sampled=sum(len(call.output_ids) for call in calls),
                )
            )
        return turns

    def _counter_mismatches(self, turns: Sequence[TurnCosts]) -> list[Mismatch]:
        """Where the router counted other prompts than the workers received."""
        counted = [after[0] - before[0] for before, after in pairwise(self._counted)]
        return [
            Mismatch(
                call=f"turn {number}",
                what="prompt tokens in /metrics",
                place=None,
                expected=turn.prompt,
                found=count,
            )
            for number, (turn, count) in enumerate(zip(turns, counted, strict=True), 1)
            if turn.prompt != count
        ]

    def _chain(self, records: Mapping[str, Record]) -> list[Record]:
        """The calls of the rollout that shows most: weight versions, a tool, then tokens."""
        chains = [[records[said.call] for said in one.said] for one in self._rollouts]
        return max(chains, key=_interest)

    @contextmanager
    def _progress(self, title: str) -> Iterator[Callable[[], None]]:
        """A bar while the block runs, on a terminal, and a line when it is done."""
        began = trio.current_time()
        total = len(self._rollouts)
        on_terminal = self._console.is_terminal
        with Progress(console=self._console, transient=True, disable=not on_terminal) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)
        spent = trio.current_time() - began
        self._console.print(f"{title}: {total} rollouts in {spent:.2f} s", highlight=False)


def _interest(chain: Sequence[Record]) -> Any:
    versions = {version for record in chain for version in record.versions}
    uses_tool = any("<tool_call>" in record.text for record in chain[:-1])
    return (len(versions), uses_tool, sum(len(record.output_ids) for record in chain))
