"""What a captured token costs in memory, text included, and what a segment costs beside its tokens.

Two shapes: answers to one prompt (``siblings``), and conversations of four turns whose questions
and answers have the same length (``rollouts``). Each case is weighed in processes of its own:
once by what Python allocated (tracemalloc), once by the growth of resident memory. What the
tokens, logprobs and text themselves take is known; the rest is divided among the segments.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.prose import prose
from benchmarks.report import Cell, Table, run
from slime_core.forest import SEGMENT_BYTES
from slime_core.segments import Answer, Outcome
from slime_core.state import RouterState
from slime_core.transitions import CallCaptured, CallOpened
from slime_core.types import CallId, Encoding, pack_ids, pack_logprobs
from slime_core.versions import VersionRun

__all__ = ["COLUMNS", "Case", "Options", "Weight", "cases", "measure", "weigh"]

COLUMNS = (
    "shape",
    "text",
    "logprobs",
    "tokens a segment",
    "segments",
    "payload B/token",
    "bytes per token",
    "resident B/token",
    "bytes beside, per segment",
    "full gc ms",
    "claim",
    "holds",
)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TURNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``tokens`` a segment; each case holds about ``total`` tokens. The second width and later are
    weighed at a thousand tokens only.

    Characters per token are those of large published vocabularies.
    """

    tokens: tuple[int, ...] = (100, 1_000, 8_000)
    texts: tuple[str, ...] = ("ascii", "chinese")
    widths: tuple[str, ...] = ("float32", "float64")
    shapes: tuple[str, ...] = ("siblings", "rollouts")
    total: int = 800_000
    ascii_characters_per_token: float = 4.2
    chinese_characters_per_token: float = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One forest to weigh."""

    shape: str
    text: str
    width: str
    tokens: int
    segments: int
    characters: int
    traced: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """What a forest took: ``payload`` by its own books without segments, ``taken`` as measured."""

    tokens: int
    segments: int
    payload: int
    taken: int
    collect_ms: float
    """How much longer a full run of the cycle collector takes than without the forest."""


def measure(options: Options) -> list[Table]:
    """One table, a row per case."""
    rows = [_row(case) for case in cases(options)]
    return [
        Table(
            title="Memory of what is captured",
            columns=COLUMNS,
            rows=tuple(rows),
            notes=(
                f"the forest reckons SEGMENT_BYTES = {SEGMENT_BYTES} beside a segment's tokens",
                "payload: ids, logprobs and text by the forest's own books; "
                "extras are never part of this",
                "full gc: what the forest adds to a run of the cycle collector, "
                "which stops everything",
            ),
        )
    ]


def cases(options: Options) -> Iterator[Case]:
    """Every forest to weigh."""
    ratios = {
        "ascii": options.ascii_characters_per_token,
        "chinese": options.chinese_characters_per_token,
    }
    for shape in options.shapes:
        for text in options.texts:
            for tokens in options.tokens:
                for width in options.widths if tokens == 1_000 else options.widths[:1]:
                    segments = max(2 * _TURNS, options.total // tokens)
                    yield Case(
                        shape=shape,
                        text=text,
                        width=width,
                        tokens=tokens,
                        segments=min(segments, 8_000),
                        characters=int(tokens * ratios[text]),
                    )


def _row(case: Case) -> tuple[Cell, ...]:
    traced = _in_own_process(case)
    resident = _in_own_process(replace(case, traced=False))
    per_token = traced.taken / traced.tokens
    claimed = case.tokens == 1_000 and case.width == "float32"
    return (
        case.shape,
        case.text,
        case.width,
        case.tokens,
        traced.segments,
        traced.payload / traced.tokens,
        per_token,
        resident.taken / resident.tokens,
        (traced.taken - traced.payload) / traced.segments,
        resident.collect_ms,
        "≤ 16" if claimed else None,
        None if not claimed else ("yes" if per_token <= 16 else "no"),
    )


def _in_own_process(case: Case) -> Weight:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(weigh, case).result()


def weigh(case: Case) -> Weight:
    """Build the forest of ``case`` in this process and weigh it."""
    source = prose(1, 40_000, chinese=case.text == "chinese")
    state = RouterState()
    build = {"siblings": _siblings, "rollouts": _rollouts}[case.shape]
    build(state, replace(case, segments=8), source, 50_021)  # what is allocated only once
    gc.collect()
    before, collected = _weight(state), _collect_ms()
    if case.traced:
        tracemalloc.start()
    resident = _resident()
    build(state, case, source, 0)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] if case.traced else _resident() - resident
    tracemalloc.stop()
    after = _weight(state)
    return Weight(
        tokens=after.tokens - before.tokens,
        segments=after.segments - before.segments,
        payload=after.payload - before.payload,
        taken=taken,
        collect_ms=_collect_ms() - collected,
    )


def _collect_ms() -> float:
    """The shortest of a few full collections."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        gc.collect()
        times.append((time.perf_counter() - started) * 1e3)
    return min(times)


def _weight(state: RouterState) -> Weight:
    """By the forest's own books; nothing is measured."""
    forest = state.forest
    segments = len(forest.segments)
    payload = forest.total_bytes - SEGMENT_BYTES * segments
    return Weight(
        tokens=forest.total_tokens, segments=segments, payload=payload, taken=0, collect_ms=0.0
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _siblings(state: RouterState, case: Case, source: str, seed: int) -> None:
    """Answers to one prompt."""
    prompt = _Piece(case, source, seed)
    for number in range(case.segments):
        parent = _prompt_of(state, seed)
        own = prompt if parent is None else None
        said = _Piece(case, source, seed + number + 1)
        _capture(state, case, said, own, parent, seed + number)


def _prompt_of(state: RouterState, seed: int) -> int | None:
    first = state.forest.calls.get(_name(seed))
    return None if first is None or first.parent is None else first.parent.number


def _rollouts(state: RouterState, case: Case, source: str, seed: int) -> None:
    """Conversations, questions and answers of one length."""
    for rollout in range(case.segments // (2 * _TURNS)):
        parent = None
        for turn in range(_TURNS):
            number = seed + rollout * _TURNS + turn
            question = _Piece(case, source, seed + 2 * number)
            said = _Piece(case, source, seed + 2 * number + 1)
            _capture(state, case, said, question, parent, number)
            parent = state.forest.calls[_name(number)].number


class _Piece:
    """Ids and text of one segment; different for each seed, but parting late enough to be real."""

    def __init__(self, case: Case, source: str, seed: int) -> None:
        first = (seed * 7919) % 100_000
        self.ids = pack_ids((first + place * 31) % 120_000 for place in range(case.tokens))
        at = (seed * 7919) % len(source)
        turned = (source[at:] + source[:at]) * (case.characters // len(source) + 1)
        mark = "".join(chr((0x30 if case.text == "ascii" else 0x4E00) + int(d)) for d in str(seed))
        self.text = (mark + turned)[: case.characters]


def _name(number: int) -> CallId:
    return CallId(f"{number:032x}")


def _capture(
    state: RouterState,
    case: Case,
    said: _Piece,
    question: _Piece | None,
    parent: int | None,
    number: int,
) -> None:
    """One call, as the router commits it."""
    call = _name(number)
    forest = state.forest
    before = forest.find(parent)
    tokens = len(said.ids) // 4
    state.apply(CallOpened(call=call, parent=parent))
    state.apply(
        CallCaptured(
            call=call,
            parent=parent,
            encoding=Encoding.RENDERED,
            token_start=0 if before is None else before.token_end,
            text_start=0 if before is None else before.text_end,
            joint=0,
            prompt_ids=question.ids if question is not None else pack_ids(()),
            prompt_text=question.text if question is not None else "",
            answer_ids=said.ids,
            answer_text=said.text,
            answer=Answer(
                call=call,
                session=None,
                outcome=Outcome.COMPLETE,
                logprobs=_logprobs(case),
                runs=(VersionRun("1", 0, tokens),),
                finish_reason=b'{"type":"stop","matched":%d}' % (tokens % 7),
                endings=("<|im_end|>",),
            ),
        )
    )


def _logprobs(case: Case) -> bytes:
    """Logprobs that fit in ``float32``, or do not."""
    step = 1 / 256 if case.width == "float32" else 0.1
    return pack_logprobs([-step * (place % 999) for place in range(case.tokens)])


if __name__ == "__main__":
    run(Options, measure)
