"""A run in words: its story line by line, what it broke, and how to see it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from slime_core.transitions import CallCaptured, CallLost, Transition
from tests.simulate.knobs import Knobs
from tests.simulate.story import Delivered, Exchange, Sampled, Story

__all__ = ["command", "failure", "lines"]

_WIDE = 160


def command(knobs: Knobs, harness: str, *, quiet: bool, planted: str | None = None) -> str:
    """The one command that repeats a run."""
    words = ["python -m tests.simulate", f"--harness {harness}", f"--seed {knobs.seed}"]
    if planted is not None:
        words.append(f"--planted {planted}")
    if knobs.listener != Knobs(seed=0).listener:
        words.append(f"--listener {knobs.listener}")
    if quiet:
        words.append("--quiet-knobs")
        named = [one for one in knobs.settings() if not one.startswith("listener=")]
        words += [f"--set {setting}" for setting in named]
    return " ".join(words)


def failure(
    story: Story, violations: Iterable[object], knobs: Knobs, repeat: str, *, last: int = 60
) -> str:
    """Everything that one needs to know of a run that broke a rule."""
    told = lines(story)
    left_out = [f"… {len(told) - last} lines before"] if len(told) > last else []
    parts = [
        f"seed {knobs.seed} broke a rule",
        *(f"  ✗ {one}" for one in violations),
        "",
        knobs.table(),
        "",
        *left_out,
        *told[-last:],
        "",
        f"again: {repeat}",
    ]
    return "\n".join(parts)


def lines(story: Story) -> list[str]:
    """One line for everything that happened, in its order."""
    entries: list[tuple[int, str]] = []
    for exchange in story.exchanges:
        entries += _of_exchange(exchange)
    entries += [(one.arrived_at, _of_sampled(one)) for one in story.sampled]
    told = {id(one) for one in story.sampled}
    halves = [one for one in story.prefilled if id(one) not in told]
    entries += [(one.arrived_at, _of_sampled(one, who="prefill")) for one in halves]
    entries += [(one.at, f"{one.now:9.3f}s router   {_of_fact(one.fact)}") for one in story.journal]
    entries += [(one.at, _of_delivered(one)) for one in story.delivered]
    entries.sort(key=lambda entry: entry[0])
    return [_short(f"{at:>6} {words}") for at, words in entries]


def _of_exchange(one: Exchange) -> list[tuple[int, str]]:
    ask = one.ask
    after = "" if ask.after is None else f" after #{ask.after}.{ask.after_sample}"
    prompt = repr(ask.text) if ask.text is not None else f"ids {list(ask.ids or ())}"
    asked = f"{one.started_s:9.3f}s {one.agent:<8} asks #{one.number} {ask.kind.value}{after} "
    asked += f"{ask.path}{' stream' if ask.stream else ''} {prompt}"
    ended = one.last_byte_at
    if ended is None:
        return [(one.asked_at, f"{asked} → {one.ending.value} {one.status}")]
    shown = " | ".join(f"{got.text!r} {(got.finish or {}).get('type')}" for got in one.samples)
    got = f"{one.ended_s or 0:9.3f}s {one.agent:<8} #{one.number} ended {one.ending.value} "
    return [(one.asked_at, asked), (ended, f"{got}{one.status} {shown} {one.error or ''}")]


def _of_sampled(one: Sampled, *, who: str = "") -> str:
    lie = f" LIES:{one.lies}" if one.lies else ""
    return (
        f"{who:>10} {one.worker} got {one.rid[-4:]} {list(one.prompt_ids)} → {one.ids} "
        f"{sorted(set(one.versions))} told {one.told}{lie}"
    )


def _of_fact(fact: Transition) -> str:
    if isinstance(fact, CallCaptured):
        return (
            f"CallCaptured {fact.call[-4:]} parent #{fact.parent} at {fact.token_start} "
            f"{len(fact.prompt_ids) // 4}+{len(fact.answer_ids) // 4} tokens "
            f"{fact.answer_text!r} {fact.answer.outcome.value} {fact.answer.flags}"
        )
    if isinstance(fact, CallLost):
        return f"CallLost {fact.call[-4:]} {fact.reason} sampled={fact.sampled}"
    return f"{type(fact).__name__} {_fields(fact)}"


def _fields(fact: Any) -> str:
    names: Sequence[str] = type(fact).__struct_fields__
    return " ".join(f"{name}={_value(getattr(fact, name))}" for name in names)


def _value(value: object) -> str:
    if isinstance(value, str):
        return value.lstrip("0") if len(value) == 32 else value
    if isinstance(value, tuple):
        return f"({','.join(_value(one) for one in value)})"
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else repr(value)


def _of_delivered(one: Delivered) -> str:
    told = one.body.get("token_length", one.body)
    return f"{one.now:9.3f}s trainer  {one.path[-24:]} {one.asked} → {one.status} {told}"


def _short(line: str) -> str:
    return line if len(line) <= _WIDE else line[: _WIDE - 1] + "…"
