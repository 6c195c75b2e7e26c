"""A middleware that watches the router's event loop from inside.

A heartbeat asks to be woken every millisecond; how late it comes is how long nothing else could
run either. An instrument times every step of every task between two of its pauses: long steps are
remembered, with the named functions that ran in them (each function's own time, without that of
the named ones it called) and the place where the step ended. A step that took much longer than
its processor time waited: for the interpreter's lock or for a core.

``GET /_stalls`` answers what was seen since it was last asked.
"""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import trio

__all__ = ["WATCHED", "StallProbe"]

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
    "slime_core.gone:GoneMemory.beyond",
    "slime_core.gone:GoneMemory.note_text",
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
    "slime_trio.retrieval:_columns",
    "slime_trio.router:Router.commit",
    "slime_trio.router:Router.let_go",
    "slime_trio.tokenizer:Tokenizer.encode_packed",
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
        self._gaps: list[float] = []
        self._steps: list[dict[str, Any]] = []
        self._began = (0.0, 0.0)

    async def beat(self) -> None:
        """How late a task that asks for every millisecond is woken."""
        while True:
            asked = time.perf_counter()
            await trio.sleep(_BEAT_S)
            late = time.perf_counter() - asked - _BEAT_S
            if late > _BEAT_S:
                self._gaps.append(late)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step begins."""
        self._timers.own.clear()
        self._began = (time.perf_counter(), time.thread_time())

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """A step ends; a long one is remembered."""
        wall = time.perf_counter() - self._began[0]
        if wall < _LONG_S:
            return
        own = sorted(self._timers.own.items(), key=lambda item: -item[1])
        step = {
            "ms": wall * 1e3,
            "cpu_ms": (time.thread_time() - self._began[1]) * 1e3,
            "parts": [(name, seconds * 1e3) for name, seconds in own if seconds > 1e-4],
            "elsewhere_ms": (wall - sum(self._timers.own.values())) * 1e3,
            "ended_in": _place(task),
        }
        self._steps.append(step)

    def report(self) -> dict[str, Any]:
        """What was seen; begins anew."""
        seen = {
            "max_late_ms": max(self._gaps, default=0.0) * 1e3,
            "late_over_5_ms": sum(1 for gap in self._gaps if gap > 0.005),
            "steps": sorted(self._steps, key=lambda step: -step["ms"])[:_KEPT],
        }
        self._gaps, self._steps = [], []
        return seen


class _Timers:
    """Own time of the watched functions, by name, on the thread of the event loop."""

    def __init__(self) -> None:
        self.own: dict[str, float] = {}
        self._inner: list[float] = []
        for name in WATCHED:
            self._replace(name)

    def _replace(self, name: str) -> None:
        module_name, _, path = name.partition(":")
        *owner, last = path.split(".")
        try:
            holder: Any = importlib.import_module(module_name)
            for part in owner:
                holder = getattr(holder, part)
            original = getattr(holder, last)
        except (ImportError, AttributeError):
            return
        timed = self._timed(path, original)
        setattr(holder, last, timed)
        if not owner:
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("slime_"):
                    _swap(module, original, timed)

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not trio.lowlevel.in_trio_task():
                return original(*args, **kwargs)
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - started
                self.own[name] = self.own.get(name, 0.0) + spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        return timed


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
