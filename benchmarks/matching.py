"""What a look-up costs against how much is captured and how much of it matches.

Look-ups by text and by ids, and the capture of one more answer, beside: many different answers to
one prompt (GRPO siblings), many equal answers to one prompt (twins), many prompts under one root,
many calls of one session; and against the length that matches. Cost should grow with the last only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from benchmarks.grove import WORKER, Speech, answer, checkpoint, new_router, take_turn
from benchmarks.prose import prose
from benchmarks.report import Cell, Table, median, run
from slime_core.lookup import Wish, find_ids, find_text
from slime_core.types import Encoding, PackedIds, pack_ids
from slime_trio.capture import Capture
from slime_trio.router import Router

__all__ = ["COLUMNS", "Options", "measure"]

COLUMNS = (
    "beside",
    "how many",
    "matched chars",
    "prompt again µs",
    "continue first µs",
    "continue last µs",
    "by ids µs",
    "capture µs",
)
_SYSTEM = "<|im_start|>system\n" + prose(9, 3000) + "<|im_end|>\n"
_ASKS = "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
_TOKENS = 60
_SESSION_MAX = 1_000
"""More calls than one rollout ever has; each costs as much as there are before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``counts`` of siblings, twins, prompts and calls; ``lengths`` of history in characters."""

    counts: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    lengths: tuple[int, ...] = (1_000, 4_000, 16_000, 64_000, 256_000)
    repeats: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A call that was captured: its prompt, its ids, and the text with its answer."""

    prompt: str
    text: str
    ids: PackedIds


def measure(options: Options) -> list[Table]:
    """One table: a block of rows for each surrounding."""
    return [trio.run(_measure, options)]


async def _measure(options: Options) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kind in ("siblings", "twins", "prompts", "session calls"):
        scene = _Scene(kind)
        for number in sorted(options.counts):
            if kind == "session calls" and number > _SESSION_MAX:
                continue
            await scene.grow(number)
            rows.append(await scene.row(number, options.repeats))
    for kind, mark in (("turns", ""), ("turns, last with 🙂", "🙂")):
        for length in sorted(options.lengths):
            scene = _Scene(kind)
            await scene.converse(length, mark)
            rows.append(await scene.row(len(scene.places), options.repeats))
    return Table(
        title="Look-ups in a forest (medians)",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=(
            "capture: committing one more answer to the last prompt, "
            "its hidden endings read from its ids included",
        ),
    )


class _Scene:
    """A forest that grows by calls of one kind."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._router: Router = new_router(checkpoint())
        self._speech = Speech(self._router.tokenizer)
        self._twin = self._speech.say(_TOKENS)
        self._session = "one" if kind == "session calls" else None
        self.places: list[_Place] = []

    async def grow(self, number: int) -> None:
        """Up to ``number`` calls."""
        while len(self.places) < number:
            own = len(self.places) if self._kind in ("prompts", "session calls") else 0
            prompt = f"{_SYSTEM}<|im_start|>user\n{prose(own, 100)}{_ASKS}"
            await self._call(prompt, *self._answer(_TOKENS))

    async def converse(self, characters: int, mark: str) -> None:
        """One conversation of 16 turns of about ``characters``; the last begins with ``mark``.

        CPython stores a text as wide as its widest character, and compares two texts of different
        width character by character.
        """
        text = ""
        for turn in range(16):
            text += mark if turn == 15 else ""
            text += f"<|im_start|>user\n{prose(turn, characters // 32)}{_ASKS}"
            text = await self._call(text, *self._speech.say(max(4, characters // 100)))

    def _answer(self, tokens: int) -> tuple[list[int], str]:
        return self._twin if self._kind == "twins" else self._speech.say(tokens)

    async def _call(self, prompt: str, ids: list[int], said: str) -> str:
        held = await take_turn(self._router, prompt, ids, said, session=self._session)
        whole = PackedIds(held + pack_ids(ids))
        self.places.append(_Place(prompt=prompt, text=prompt + said, ids=whole))
        return prompt + said

    async def row(self, number: int, repeats: int) -> tuple[Cell, ...]:
        """The costs as things are."""
        first, last = self.places[0], self.places[-1]
        more = PackedIds(last.ids + pack_ids([1, 2, 3]))
        forest = self._router.state.forest
        wish = Wish(session=self._session)
        return (
            self._kind,
            number,
            len(last.text),
            _us(lambda: self._find(last.prompt), repeats),
            _us(lambda: self._find(first.text + _ASKS), repeats),
            _us(lambda: self._find(last.text + _ASKS), repeats),
            _us(lambda: find_ids(forest, more, wish=wish), repeats),
            await self._capture_us(last.prompt, min(20, repeats)),
        )

    def _find(self, text: str) -> object:
        router = self._router
        wish = Wish(session=self._session)
        return find_text(router.state.forest, text, Encoding.RENDERED, router.facts, wish=wish)

    async def _capture_us(self, prompt: str, repeats: int) -> float:
        times = []
        for _ in range(repeats):
            capture = Capture(self._router, Wish(session=self._session))
            capture.open_text(prompt, Encoding.RENDERED, 1)
            await capture.encode()
            given = answer(*self._answer(_TOKENS))
            started = time.perf_counter()
            capture.keep(0, given, WORKER)
            times.append((time.perf_counter() - started) * 1e6)
        return median(times)


def _us(call: Callable[[], object], repeats: int) -> float:
    """The median time of ``call`` in microseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e6)
    return median(times)


if __name__ == "__main__":
    run(Options, measure)
