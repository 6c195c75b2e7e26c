"""A middleware that watches the router's event loop from inside.

A heartbeat asks to be woken every millisecond; how late it comes is how long nothing else could
run either. An instrument times every step of every task between two of its pauses: long steps are
remembered, with the named functions that ran in them (each function's own time, without that of
the named ones it called) and the place where the step ended. A step that took much longer than
its processor time waited: for the interpreter's lock or for a core. Calls of named functions in
other threads are noted with their times, for a thread that holds that lock stalls the loop as well.

``GET /_stalls`` answers what was seen since it was last asked.
"""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import trio

__all__ = ["WATCHED", "StallProbe", "find_watched"]

_BEAT_S: Final = 0.001
_LONG_S: Final = 0.002
_KEPT: Final = 40
_PATH: Final = "/_stalls"

WATCHED: Final = (
    "h11._connection:Connection.next_event",
    "hypercorn.protocol.h11:H11Protocol.handle",
    "msgspec.json:decode",
    "msgspec.json:encode",
    "quart.wrappers.request:Body.append",
    "slime_core.alignment:hidden_endings",
    "slime_core.alignment:tokens_before",
    "slime_core.boundaries:HardTokens.last_cut",
    "slime_core.boundaries:token_index",
    "slime_core.forest:Forest.capture",
    "slime_core.forest:Forest.remove",
    "slime_core.forest:Forest.tell_prompt",
    "slime_core.gone:GoneWays.within",
    "slime_core.gone:GoneWays.note",
    "slime_core.lookup:find_ids",
    "slime_core.lookup:find_text",
    "slime_core.openai.chat:generate_body",
    "slime_core.openai.chat:parse_chat",
    "slime_core.openai.chunks:ChunkFramer.step",
    "slime_core.openai.response:completion",
    "slime_core.radix:RadixTree.key",
    "slime_core.radix:RadixTree.match",
    "slime_core.sglang.answer:build_answer",
    "slime_core.sglang.answer:parse_answer",
    "slime_core.sglang.answer:read_tokens",
    "slime_core.sglang.compose:compose_generate",
    "slime_core.sglang.request:encode_generate",
    "slime_core.sglang.request:parse_generate",
    "slime_core.sglang.stream:StreamAssembler.partial",
    "slime_core.sglang.stream:StreamAssembler.receive",
    "slime_core.sglang.strip:strip_item",
    "slime_core.sglang.strip:strip_logprobs",
    "slime_core.sse:Decoder.receive",
    "slime_core.trajectory:count_other_answers",
    "slime_core.trajectory:trajectory",
    "slime_core.types:pack_ids",
    "slime_core.types:pack_logprobs",
    "slime_core.types:unpack_ids",
    "slime_core.types:unpack_logprobs",
    "slime_core.vocabulary:Vocabulary.decode",
    "slime_trio.capture:Capture.keep",
    "slime_trio.capture:Capture.open_ids",
    "slime_trio.capture:Capture.open_text",
    "slime_trio.chat_template:ChatTemplate.render",
    "slime_trio.retrieval:_encode",
    "slime_trio.router:Router.commit",
    "slime_trio.router:Router.let_go",
    "slime_trio.tokenizer:Tokenizer._encode",
    "slime_trio.tokenizer:Tokenizer._encode_long",
    "slime_trio.tokenizer:Tokenizer.encode_packed",
    "slime_trio.tokenizer:_gather",
    "slime_trio.tokenizer:split_at_lines",
    "slime_core.boundaries:HardTokens.split",
)
"""The functions that are timed by name; one that is missing is left out."""


class StallProbe:
    """Watches from the first request on."""

    def __init__(self, app: Any, *, router: object) -> None:
        self._app = app
        self._watch: _Watch | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer ``/_stalls``; everything else is the application's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._watch is None:
            self._watch = _Watch()
            trio.lowlevel.add_instrument(self._watch)
            trio.lowlevel.spawn_system_task(self._watch.beat)
        if scope["path"] != _PATH:
            await self._app(scope, receive, send)
            return
        body = msgspec.json.encode(self._watch.report())
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Watch(trio.abc.Instrument):
    """Heartbeat, steps and the functions within them."""

    def __init__(self) -> None:
        self._timers = _Timers()
        self._gaps: list[tuple[float, float]] = []
        self._steps: list[dict[str, Any]] = []
        self._began = (0.0, 0.0)

    async def beat(self) -> None:
        """How late a task that asks for every millisecond is woken."""
        while True:
            due = time.perf_counter() + _BEAT_S
            await trio.sleep(_BEAT_S)
            now = time.perf_counter()
            if now - due > _BEAT_S:
                self._gaps.append((due, now))

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step begins."""
        self._timers.on_loop.clear()
        self._began = (time.perf_counter(), time.thread_time())

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step ends; a long one is remembered."""
        start, end = self._began[0], time.perf_counter()
        if end - start < _LONG_S:
            return
        own = sorted(self._timers.on_loop.items(), key=lambda item: -item[1])
        step = {
            "start": start,
            "end": end,
            "ms": (end - start) * 1e3,
            "cpu_ms": (time.thread_time() - self._began[1]) * 1e3,
            "parts": [(name, seconds * 1e3) for name, seconds in own if seconds > 1e-4],
            "elsewhere_ms": (end - start - sum(self._timers.on_loop.values())) * 1e3,
            "ended_in": _place(task),
        }
        self._steps.append(step)

    def report(self) -> dict[str, Any]:
        """What was seen; begins anew."""
        gaps = sorted(self._gaps, key=lambda gap: gap[0] - gap[1])
        seen = {
            "max_late_ms": max((end - due for due, end in gaps), default=0.0) * 1e3,
            "late_over_5_ms": sum(1 for due, end in gaps if end - due > 0.005),
            "stalls": [self._stall(due, end) for due, end in gaps[:_KEPT]],
            "steps": sorted(self._steps, key=lambda step: -step["ms"])[:_KEPT],
        }
        self._gaps, self._steps = [], []
        self._timers.in_threads.clear()
        return seen

    def _stall(self, due: float, end: float) -> dict[str, Any]:
        """A late heartbeat, with the long steps and the threads' functions at that time."""
        steps = [one for one in self._steps if one["start"] < end and one["end"] > due]
        threads = [one for one in self._timers.in_threads if one[1] < end and one[2] > due]
        return {
            "ms": (end - due) * 1e3,
            "steps": sorted(steps, key=lambda step: -step["ms"])[:3],
            "threads": [(name, (stop - start) * 1e3) for name, start, stop in threads],
        }


class _Timers:
    """When the watched functions ran.

    On the event loop: each function's own time within the present step. In other threads: name,
    start and end of every call of over a millisecond in which no watched function took that long.
    """

    def __init__(self) -> None:
        self.on_loop: dict[str, float] = {}
        self.in_threads: list[tuple[str, float, float]] = []
        self._inner: list[float] = []
        self._local = threading.local()
        self._gc_began = 0.0
        self._loop_thread = threading.get_ident()
        gc.callbacks.append(self._collected)
        for name in WATCHED:
            self._replace(name)

    def _replace(self, name: str) -> None:
        found = find_watched(name)
        if found is None:
            return
        holder, path = found
        last = path.rpartition(".")[2]
        original = getattr(holder, last)
        timed = self._timed(path, original)
        setattr(holder, last, timed)
        if path == last:
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("slime_"):
                    _swap(module, original, timed)

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            on_loop = threading.get_ident() == self._loop_thread
            began = self._enter(on_loop)
            try:
                return original(*args, **kwargs)
            finally:
                self._leave(name, began, on_loop)

        return timed

    def _collected(self, phase: str, told: dict[str, int]) -> None:
        """The cycle collector, which holds the lock throughout, counts as a function."""
        on_loop = threading.get_ident() == self._loop_thread
        if phase == "start":
            self._gc_began = self._enter(on_loop)
        else:
            self._leave(f"gc of generation {told['generation']}", self._gc_began, on_loop)

    def _stack(self, on_loop: bool) -> list[float]:
        """Time spent in watched functions within those that run now, outermost first."""
        if on_loop:
            return self._inner
        stack: list[float] | None = getattr(self._local, "stack", None)
        if stack is None:
            stack = self._local.stack = []
        return stack

    def _enter(self, on_loop: bool) -> float:
        self._stack(on_loop).append(0.0)
        return time.perf_counter()

    def _leave(self, name: str, began: float, on_loop: bool) -> None:
        end = time.perf_counter()
        stack = self._stack(on_loop)
        own = end - began - stack.pop()
        if stack:
            stack[-1] += end - began
        if on_loop:
            self.on_loop[name] = self.on_loop.get(name, 0.0) + own
        elif own > _BEAT_S:
            self.in_threads.append((name, began, end))


def find_watched(name: str) -> tuple[Any, str] | None:
    """What holds the function of that name, and its path within its module."""
    module_name, _, path = name.partition(":")
    try:
        holder: Any = importlib.import_module(module_name)
        for part in path.split(".")[:-1]:
            holder = getattr(holder, part)
        getattr(holder, path.rpartition(".")[2])
    except (ImportError, AttributeError):
        return None
    return holder, path


def _swap(module: Any, original: object, timed: object) -> None:
    """Every name in ``module`` that means ``original`` means ``timed``."""
    for key, value in list(vars(module).items()):
        if value is original:
            setattr(module, key, timed)


def _place(task: trio.lowlevel.Task) -> str:
    """Where a task stands: the innermost function outside Trio."""
    names = [
        f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"
        for frame, _ in task.iter_await_frames()
    ]
    outside = [name for name in names if not name.startswith("trio.")]
    return outside[-1] if outside else task.name
