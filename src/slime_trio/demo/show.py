"""What the demonstration prints: progress, a table, a trajectory, a verdict, requests to try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from slime_trio.demo.check import Expected
from slime_trio.demo.options import DemoOptions
from slime_trio.demo.rollout import Rollout, Way
from slime_trio.demo.servers import Servers
from slime_trio.demo.verify import Findings

__all__ = [
    "TurnCosts",
    "show_plan",
    "show_requests",
    "show_trajectory",
    "show_turns",
    "show_verdict",
]

_MISMATCHES_SHOWN: Final = 10
_VISIBLE: Final = str.maketrans({" ": "·", "\n": "↵\n", "\t": "⇥", "\r": "␍"})
_SHADES: Final = ("bold green", "bold bright_green")


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCosts:
    """What one turn of all rollouts came to, in tokens. ``versions``: who sampled, in order."""

    versions: tuple[str, ...]
    calls: int
    prompt: int
    reused: int
    sampled: int

    @property
    def encoded(self) -> int:
        """Prompt tokens that had to be encoded."""
        return self.prompt - self.reused


def show_plan(
    console: Console, options: DemoOptions, servers: Servers, rollouts: Sequence[Rollout]
) -> None:
    """What is going to happen, where."""
    ways = [
        f"{sum(one.way is way for one in rollouts)} through {way.value}"
        for way in Way
        if any(one.way is way for one in rollouts)
    ]
    streaming = sum(one.streams for one in rollouts)
    console.print(f"router   {servers.router}", highlight=False)
    for worker in servers.workers:
        console.print(f"worker   {worker}", highlight=False)
    console.print(
        f"\n{options.groups} groups of {options.siblings} rollouts with {options.turns} turns: "
        f"{', '.join(ways)}; {streaming} of them streaming.\n",
        highlight=False,
        soft_wrap=True,
    )


def show_turns(console: Console, turns: Sequence[TurnCosts]) -> None:
    """The table of costs."""
    table = Table(title="Tokens of each turn", title_justify="left")
    table.add_column("turn", justify="right")
    table.add_column("weights")
    for name in ("calls", "prompt", "reused", "encoded", "% encoded", "sampled"):
        table.add_column(name, justify="right")
    for number, turn in enumerate(turns, 1):
        table.add_row(
            str(number),
            ", ".join(turn.versions),
            str(turn.calls),
            f"{turn.prompt:,}",
            f"{turn.reused:,}",
            f"{turn.encoded:,}",
            f"{100 * turn.encoded / max(1, turn.prompt):.0f}%",
            f"{turn.sampled:,}",
        )
    console.print()
    console.print(table)
    console.print(
        "prompt: sent to the workers; reused: known from earlier calls; encoded: all the rest\n",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def show_trajectory(console: Console, expected: Expected, tokenizer: Tokenizer) -> None:
    """One trajectory, token by token. Without colours sampled tokens stand in brackets."""
    colours = console.color_system is not None
    key = Text("A trajectory: ")
    key.append("sampled, mask 1" if colours else "[sampled, mask 1]", style=_SHADES[0])
    key.append(" and ")
    key.append("prompt or template, mask 0", style="dim")
    key.append("; · is a space, ↵ a line's end")
    console.print(key, soft_wrap=True)
    shown = Text()
    for number, (piece, mask) in enumerate(_pieces(expected, tokenizer)):
        if not mask:
            shown.append(piece, style="dim")
        else:
            shown.append(piece if colours else f"[{piece}]", style=_SHADES[number % 2])
    console.print(shown, soft_wrap=True)


def _pieces(expected: Expected, tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """The visible text of each token and its mask; tokens that share a character are one piece."""
    columns = list(zip(expected.tokens, expected.mask, strict=True))
    for mask, run in groupby(columns, key=itemgetter(1)):
        held: list[int] = []
        ids = [token for token, _ in run]
        for place, token in enumerate(ids, 1):
            held.append(token)
            text = tokenizer.decode(held, skip_special_tokens=False)
            if not text.endswith("\ufffd") or place == len(ids):
                yield text.translate(_VISIBLE), mask
                held = []


def show_verdict(console: Console, findings: Findings, seconds: float) -> None:
    """The counts and, first of all, whether everything matched."""
    for mismatch in findings.mismatches[:_MISMATCHES_SHOWN]:
        console.print(f"  {mismatch}", style="red", highlight=False, markup=False, soft_wrap=True)
    hidden = len(findings.mismatches) - _MISMATCHES_SHOWN
    if hidden > 0:
        console.print(f"  … and {hidden} more", style="red", highlight=False)
    console.print(
        f"{findings.trajectories} trajectories retrieved {findings.retrievals} times, "
        f"{findings.tokens:,} tokens, {findings.sampled:,} of them sampled by weights "
        f"{', '.join(sorted(findings.versions, key=int))} ({findings.spanning} answers by more "
        f"than one), {findings.recomputed:,} logprobs recomputed from the language model",
        highlight=False,
        soft_wrap=True,
    )
    words = "every id, mask, logprob and version matched"
    if not findings.is_clean:
        words = "NOT everything matched" if findings.sampled else "nothing was sampled"
    console.print(
        f"{'PASS' if findings.is_clean else 'FAIL'}: {len(findings.mismatches)} mismatches; "
        f"{words} ({seconds:.1f} s)",
        style="bold green" if findings.is_clean else "bold red",
        highlight=False,
        soft_wrap=True,
    )


def show_requests(console: Console, router: str, worker: str, call: str) -> None:
    """Requests to try while the servers stay up. ``worker`` served ``call``."""
    json = "-H 'content-type: application/json'"
    chat = '{"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}'
    generate = '{"text": "The old ferry", "sampling_params": {"max_new_tokens": 16}}'
    lines = (
        f"curl -s -i {router}/v1/chat/completions {json} -d '{chat}'",
        f"curl -s -i {router}/generate {json} -d '{generate}'",
        f"curl -s {router}/trajectories/{call}",
        f"curl -s {router}/metrics",
        f"curl -s '{worker}/slime_worker/records?rid={call}'",
    )
    console.print("\nThe servers stay up; Ctrl-C ends them. To try:", highlight=False)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
