"""What a small request costs the router's process between its listener and its workers, and where.

One process: a router with everything on (capture, metrics, health notes, admission, retries where
there may be any) in the scene of ``relay_scene``. So the figures are processor time of the relay
and of all that it calls. ``--parts`` adds where that time goes, by samples of the running stack;
``--profile CASE`` prints what cProfile finds of one case.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import signal
import time
from collections import Counter
from dataclasses import dataclass
from types import FrameType

import trio

from benchmarks.relay_scene import CASES, Scene
from benchmarks.report import Cell, Table, run

__all__ = ["COLUMNS", "PARTS_COLUMNS", "Options", "measure"]

COLUMNS = ("case", "workers", "held tokens", "clients", "requests", "gc", "µs per request")
PARTS_COLUMNS = ("case", "part", "share %", "µs")
_WARM_UP = 200
_SAMPLE_S = 0.0005
_OTHER = "scheduler and the scene itself"
_PARTS = {
    "parse_generate": "parse the request",
    "parse_chat": "parse the request",
    "_chat_ask": "parse the request",
    "may_be_retried": "parse the request",
    "terms_of": "header fields to terms",
    "wish_of": "header fields to terms",
    "_wish": "header fields to terms",
    "prompt_of_ids": "look-up",
    "prompt_of_text": "look-up",
    "prompt_of_chat": "look-up",
    "plan_chat": "look-up",
    "render": "render",
    "encode_async": "tokenizer",
    "open_ids": "open the calls",
    "open_text": "open the calls",
    "open_chat": "open the calls",
    "encoded": "prompt into the books",
    "worker_body": "body for the worker",
    "find": "placing",
    "place": "placing",
    "enter": "admission",
    "wait": "admission",
    "let_in": "admission",
    "begin_reading": "gate",
    "end_reading": "gate",
    "leave": "admission",
    "give_back": "slots",
    "_note": "health notes",
    "_note_answer": "health notes",
    "_run": "dispatch: the rest",
    "_attempt": "dispatch: the rest",
    "_try": "dispatch: the rest",
    "note_sent": "dispatch: the rest",
    "answer": "dispatch: the rest",
    "ask": "dispatch: the rest",
    "_end": "dispatch: the rest",
    "worker_headers": "fields for the worker",
    "request": "upstream: write the head",
    "exchange_head": "upstream: send and receive",
    "receive_some": "upstream: send and receive",
    "Site.take": "upstream: the rest",
    "_Exchange._take": "relay: the rest",
    "release": "upstream: the rest",
    "__aenter__": "upstream: the rest",
    "parse_answer": "parse the answer",
    "read": "parse the answer",
    "conclude": "conclude",
    "apply": "apply",
    "committed": "observers and waiters",
    "let_go": "let go",
    "next_gone": "let go",
    "commit": "observers and waiters",
    "whole": "client's view",
    "_headers": "fields for the client",
    "for_client": "fields for the client",
    "_marks": "fields for the client",
    "serve": "retries",
    "read_into": "retries",
    "_relay_whole": "relay: the rest",
    "_ask": "relay: the rest",
    "run": "relay: the rest",
    "relay": "relay: the rest",
    "generate": "relay: the rest",
    "forward": "relay: the rest",
    "forward_renamed": "relay: the rest",
    "pass_answer": "relay: the rest",
    "chat_completions": "relay: the rest",
}
"""Functions of the router by what they are for; time below one is its own unless one is below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``requests`` in each of ``rounds``, of which the cheapest counts; ``clients`` at once.

    ``held`` tokens were captured before. ``gc`` 0 switches the cycle collector off, whose share
    depends on all that is held. ``parts`` 1 samples; ``profile`` names a case.
    """

    cases: tuple[str, ...] = CASES
    workers: tuple[int, ...] = (1,)
    held: tuple[int, ...] = (0,)
    requests: int = 480
    rounds: int = 30
    clients: int = 16
    gc: int = 1
    parts: int = 0
    profile: str = ""


def measure(options: Options) -> list[Table]:
    """A table of costs, and one of parts if that is asked for."""
    if options.profile:
        _profiled(options)
        return []
    rows: list[tuple[Cell, ...]] = []
    parts: list[tuple[Cell, ...]] = []
    for case in options.cases:
        for workers in options.workers:
            for held in options.held:
                cost = trio.run(_cost, case, workers, held, options, None)
                on = "on" if options.gc else "off"
                rows.append((case, workers, held, options.clients, options.requests, on, cost))
        if options.parts:
            parts += _parts_of(case, options)
    tables = [Table(title="A small request, processor time", columns=COLUMNS, rows=tuple(rows))]
    if parts:
        tables.append(Table(title="Where it goes", columns=PARTS_COLUMNS, rows=tuple(parts)))
    return tables


async def _cost(
    case: str, workers: int, held: int, options: Options, sampler: _Sampler | None
) -> float:
    """Microseconds per request in the cheapest round."""
    best = float("inf")
    async with trio.open_nursery() as nursery:
        scene = Scene(case, workers=workers)
        scene.router.nursery = nursery
        if held:
            await scene.fill(held)
        await _round(scene, _WARM_UP, options.clients)
        gc.collect()
        gc.freeze()
        if not options.gc:
            gc.disable()
        for _ in range(options.rounds):
            began = time.process_time()
            if sampler is None:
                await _round(scene, options.requests, options.clients)
            else:
                with sampler:
                    await _round(scene, options.requests, options.clients)
            best = min(best, time.process_time() - began)
        gc.enable()
        gc.unfreeze()
        assert set(scene.statuses) == {200}, scene.statuses
        nursery.cancel_scope.cancel()
    return best * 1e6 / (options.requests // options.clients * options.clients)


async def _round(scene: Scene, requests: int, clients: int) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(scene.client, requests // clients)


class _Sampler:
    """Looks at the stack every half millisecond, while entered."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, _SAMPLE_S, _SAMPLE_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _look(self, _signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            if "/slime_" in frame.f_code.co_filename:
                code = frame.f_code
                part = _PARTS.get(code.co_qualname) or _PARTS.get(code.co_name)
                if part is not None:
                    self.parts[part] += 1
                    return
            frame = frame.f_back
        self.parts[_OTHER] += 1


def _parts_of(case: str, options: Options) -> list[tuple[Cell, ...]]:
    sampler = _Sampler()
    cost = trio.run(_cost, case, options.workers[0], options.held[0], options, sampler)
    whole = sampler.parts.total()
    return [
        (case, part, 100 * count / whole, cost * count / whole)
        for part, count in sampler.parts.most_common()
    ]


def _profiled(options: Options) -> None:
    profile = cProfile.Profile()
    profile.enable()
    trio.run(_cost, options.profile, options.workers[0], options.held[0], options, None)
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(60)


if __name__ == "__main__":
    run(Options, measure)
