"""The longest stall of the router's event loop while very long prompts and answers go through.

The real router runs in a process of its own, between a client and a worker in two others. Each
phase is one request; a heartbeat inside the router tells how late a task came that wanted to run
every millisecond (what ``/health`` would have waited), and every stall over 5 ms is taken apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.grove import checkpoint
from benchmarks.processes import Client, router_process, server_process
from benchmarks.prose import prose
from benchmarks.report import Cell, Table, run
from slime_core.types import Encoding
from slime_trio.worker.options import SHIPPED_CHECKPOINT

__all__ = ["PHASE_COLUMNS", "STALL_COLUMNS", "Options", "measure"]

PHASE_COLUMNS = (
    "phase",
    "longest stall ms",
    "stalls over 5 ms",
    "longest step ms",
    "most CPU in a step ms",
    "goal",
    "met",
)
STALL_COLUMNS = (
    "phase",
    "stall ms",
    "step ms",
    "CPU ms",
    "in the step (ms)",
    "the step ended in",
    "in threads (ms)",
)

_GOAL_MS: Final = 5.0
_FILES: Final = ("chat_template.jinja", "tokenizer_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``repeats``: each phase is run so often with fresh texts, and the worst is told."""

    prompt_tokens: int = 200_000
    answer_tokens: int = 32_000
    cumulative_tokens: int = 4_000
    vocabulary: str = "shipped"
    repeats: int = 3
    idle_s: float = 1.0
    shown: int = 3


def measure(options: Options) -> list[Table]:
    """The phases, and their longest stalls."""
    with TemporaryDirectory() as scratch:
        directory = str(_checkpoint(options.vocabulary, Path(scratch)))
        with (
            server_process("benchmarks.canned_worker", directory) as worker,
            router_process(
                (worker,),
                *(
                    "--hf-checkpoint",
                    directory,
                    "--middleware",
                    "benchmarks.stall_probe.StallProbe",
                ),
                *("--radix-tree-max-size", str(10**9)),
            ) as url,
            closing(Client(url)) as client,
        ):
            return _Session(options, client).tables()


def _checkpoint(vocabulary: str, scratch: Path) -> Path:
    """The shipped checkpoint, or its template over another vocabulary."""
    if vocabulary == "shipped":
        return SHIPPED_CHECKPOINT
    from tests.tokenizers import ALL

    (scratch / "tokenizer.json").write_text(ALL[vocabulary]().to_str(), encoding="utf-8")
    for name in _FILES:
        (scratch / name).write_bytes((SHIPPED_CHECKPOINT / name).read_bytes())
    return scratch


class _Session:
    """Sends the phases' requests and collects what the probe saw."""

    def __init__(self, options: Options, client: Client) -> None:
        self._options = options
        self._client = client
        self._seen: dict[str, dict[str, Any]] = {}
        tokenizer = checkpoint(options.vocabulary).tokenizer
        sample = prose(1, 50_000)
        ids = tokenizer.encode(sample, encoding=Encoding.RENDERED, first=False)
        self._per_token = len(sample) / len(ids)
        self._ids = ids

    def tables(self) -> list[Table]:
        """Run everything, a small request first."""
        self._generate(text="Hello")
        self._client.get("/_stalls")
        for number in range(self._options.repeats):
            for name, send in self._phases(number):
                send()
                self._note(name, self._client.get("/_stalls"))
        return [self._phase_table(), self._stall_table()]

    def _note(self, name: str, seen: dict[str, Any]) -> None:
        """Keep the worse of two rounds."""
        before = self._seen.get(name)
        if before is None or seen["max_late_ms"] > before["max_late_ms"]:
            self._seen[name] = seen

    def _text(self, seed: int) -> str:
        return prose(seed, int(self._options.prompt_tokens * self._per_token))

    def _some_ids(self, seed: int) -> list[int]:
        turned = [seed, *self._ids[seed:], *self._ids[:seed]]
        return (turned * (self._options.prompt_tokens // len(turned) + 1))[
            : self._options.prompt_tokens
        ]

    def _phases(self, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
        """Name and request of every phase; later ones build on the answers of earlier ones."""
        options = self._options
        # What the machine itself does to a process that is idle: the floor of all other phases.
        yield "nothing", lambda: time.sleep(options.idle_s)
        text, ids = self._text(10 + number), self._some_ids(500 + number)
        held: dict[str, str] = {}

        def first() -> None:
            held["text"] = text + self._generate(text=text)["text"]

        yield "long text, new", first
        yield "long text, sent again", lambda: self._generate(text=text)
        yield "long text, next turn", lambda: self._generate(text=held["text"] + " And then?")
        yield "long text, left midway", lambda: self._generate(text=held["text"][:-20] + " No.")
        yield "long text, retrieved", lambda: self._retrieve(held["text"])
        yield "long ids, new", lambda: self._generate(input_ids=ids)
        yield "long ids, sent again", lambda: self._generate(input_ids=ids)
        yield "text after long ids", lambda: self._generate(text=f"{number} a short text")
        yield "long chat", lambda: self._chat(self._text(20 + number), stream=False)
        yield "long chat, streamed", lambda: self._chat(self._text(30 + number), stream=True)
        yield from self._answers(number, options)

    def _answers(self, number: int, options: Options) -> Iterator[tuple[str, Callable[[], object]]]:
        """Phases with long answers."""
        long: dict[str, Any] = {"max_new_tokens": options.answer_tokens}
        prompt = f"{number}: tell a long story"
        held: dict[str, str] = {}

        def whole() -> None:
            held["text"] = prompt + self._generate(text=prompt, sampling_params=long)["text"]

        yield "long answer", whole
        yield (
            "long answer, logprobs shown",
            lambda: self._generate(text=prompt, sampling_params=long, return_logprob=True),
        )
        yield "long answer, next turn", lambda: self._generate(text=held["text"] + " And then?")
        yield (
            "long answer, left midway",
            lambda: self._generate(text=held["text"][: len(held["text"]) // 2] + " No."),
        )
        yield "long answer, retrieved", lambda: self._retrieve(held["text"])
        yield (
            "long answer, chat",
            lambda: self._chat(
                prompt, stream=False, max_tokens=options.answer_tokens, logprobs=True
            ),
        )
        yield "long stream", lambda: self._stream(f"{number} stream", long, cumulative=False)
        some: dict[str, Any] = {"max_new_tokens": options.cumulative_tokens}
        yield "cumulative stream", lambda: self._stream(f"{number} sum", some, cumulative=True)

    def _generate(self, **body: Any) -> Any:
        return self._client.post("/generate", {"sampling_params": {"max_new_tokens": 16}} | body)

    def _retrieve(self, text: str) -> Any:
        return self._client.post("/retrieve_from_text", {"text": text})

    def _chat(self, text: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        body = {"model": "any", "messages": messages, "max_tokens": 16}
        return self._client.post("/v1/chat/completions", body | more)

    def _stream(self, text: str, sampling: dict[str, Any], *, cumulative: bool) -> Any:
        custom = {"per_event": 50, "cumulative": cumulative}
        params = sampling | {"custom_params": custom}
        return self._generate(text=text, sampling_params=params, stream=True)

    def _phase_table(self) -> Table:
        return Table(
            title=(
                f"Stalls of the event loop, prompts of {self._options.prompt_tokens:,} tokens, "
                f"answers of {self._options.answer_tokens:,}"
            ),
            columns=PHASE_COLUMNS,
            rows=tuple(_phase_row(name, seen) for name, seen in self._seen.items()),
        )

    def _stall_table(self) -> Table:
        rows = [
            _stall_row(name, stall)
            for name, seen in self._seen.items()
            for stall in seen["stalls"][: self._options.shown]
            if stall["ms"] > _GOAL_MS
        ]
        return Table(
            title="Stalls over 5 ms: the longest step at that time, and what ran in threads",
            columns=STALL_COLUMNS,
            rows=tuple(rows),
            notes=(
                "times of functions are their own, without those of others that are watched;",
                "a step far above its CPU time, or a stall without one, waited for the",
                "interpreter's lock or for a core",
            ),
        )


def _phase_row(name: str, seen: dict[str, Any]) -> tuple[Cell, ...]:
    longest = max((step["ms"] for step in seen["steps"]), default=0.0)
    busiest = max((step["cpu_ms"] for step in seen["steps"]), default=0.0)
    late = seen["max_late_ms"]
    met = "yes" if late <= _GOAL_MS else "no"
    return name, late, seen["late_over_5_ms"], longest, busiest, "≤ 5 ms", met


def _stall_row(name: str, stall: dict[str, Any]) -> tuple[Cell, ...]:
    threads = _told(stall["threads"])
    if not stall["steps"]:
        return name, stall["ms"], None, None, "-", "-", threads
    step = stall["steps"][0]
    parts = _told([*step["parts"], ("elsewhere", step["elsewhere_ms"])])
    return name, stall["ms"], step["ms"], step["cpu_ms"], parts, step["ended_in"], threads


def _told(parts: list[tuple[str, float]]) -> str:
    """The longest of ``parts``, in words."""
    longest = sorted(parts, key=lambda part: -part[1])[:5]
    return ", ".join(f"{name} {spent:.1f}" for name, spent in longest if spent >= 0.3) or "-"


if __name__ == "__main__":
    run(Options, measure)
