"""Answers that are made of all workers' answers: loads, and metrics in Prometheus' text format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from slime_core.strict_json import BAD_JSON
from slime_core.types import WorkerUrl
from slime_trio.control.outcomes import Outcome, answer_of

__all__ = ["merged_loads", "merged_metrics"]

_SAMPLE: Final = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?P<rest>\{.*|[ \t].*)", re.DOTALL)
_META: Final = re.compile(r"# (?:HELP|TYPE) (?P<name>\S+)")
_SUFFIX: Final = re.compile(r"_(?:bucket|sum|count|total|created|info)$")


class _Told(msgspec.Struct):
    """``/v1/loads`` of one worker, as far as it is read."""

    loads: list[dict[str, msgspec.Raw]] = []


_TOLD: Final = msgspec.json.Decoder(_Told)
_INTEGER: Final = msgspec.json.Decoder(int)


def merged_loads(
    outcomes: Sequence[Outcome],
    kinds: Mapping[WorkerUrl, str],
    *,
    waiting: int,
    timestamp: str,
) -> dict[str, Any]:
    """Every rank of every worker in one list, each entry as its worker wrote it and with whose it
    is; and the older gateway's shape beside it.

    ``kinds`` are the workers' kinds; ``waiting`` requests wait in the router itself, where no
    worker sees them. In the older shape ``load`` is in tokens, -1 for a worker that does not tell.
    """
    entries: list[dict[str, Any]] = []
    workers = []
    ranks = set()
    for outcome in outcomes:
        told = _loads_in(outcome)
        worker = outcome.target
        tokens = [_integer(one, "num_total_tokens") for one in told]
        known = [count for count in tokens if count is not None]
        workers.append({"worker": worker.url, "load": sum(known) if known else -1})
        whose = {"worker": worker.url, "worker_id": worker.id, "worker_type": kinds[worker.url]}
        entries += [whose | one for one in told]
        ranks |= {_integer(one, "dp_rank") for one in told}
    answer = answer_of(outcomes)
    del answer["results"]
    return answer | {
        "timestamp": timestamp,
        "dp_rank_count": len(ranks),
        "loads": entries,
        "workers": workers,
        "router": {"num_waiting_reqs": waiting},
    }


def _loads_in(outcome: Outcome) -> list[dict[str, msgspec.Raw]]:
    if not outcome.succeeded:
        return []
    try:
        return _TOLD.decode(outcome.body).loads
    except BAD_JSON:
        return []


def _integer(entry: Mapping[str, msgspec.Raw], name: str) -> int | None:
    try:
        return _INTEGER.decode(entry[name]) if name in entry else None
    except BAD_JSON:
        return None


def merged_metrics(outcomes: Sequence[Outcome]) -> bytes:
    """All workers' metrics, each sample with a ``worker`` label more, its value as it was written.

    ``slime_engine_metrics_up`` says of each worker whether it told them. Samples of one family
    stand together, as the format demands.
    """
    families: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for outcome in outcomes:
        label = f'worker="{_escaped(outcome.target.url)}"'
        up = f"slime_engine_metrics_up{{{label}}} {int(outcome.succeeded)}"
        samples.setdefault("slime_engine_metrics_up", []).append(up)
        if outcome.succeeded:
            _sort(outcome.body.decode("utf-8", "replace"), label, families, samples)
    families["slime_engine_metrics_up"] = [
        "# HELP slime_engine_metrics_up Whether the worker told its metrics.",
        "# TYPE slime_engine_metrics_up gauge",
    ]
    lines = []
    for family, rows in samples.items():
        lines += families.get(family, [])
        lines += rows
    return "\n".join([*lines, ""]).encode()


def _sort(
    text: str, label: str, families: dict[str, list[str]], samples: dict[str, list[str]]
) -> None:
    """Add one worker's lines to their families; the first to describe a family is believed."""
    described: set[str] = set()
    for line in text.splitlines():
        meta = _META.match(line)
        if meta is not None:
            name = meta["name"]
            if name not in families or name in described:
                described.add(name)
                families.setdefault(name, []).append(line)
            continue
        found = _SAMPLE.fullmatch(line)
        if found is not None:
            family = _family(found["name"], families)
            samples.setdefault(family, []).append(_labelled(found["name"], found["rest"], label))


def _family(name: str, families: Mapping[str, object]) -> str:
    if name in families:
        return name
    stem = _SUFFIX.sub("", name)
    return stem if stem in families else name


def _labelled(name: str, rest: str, label: str) -> str:
    if not rest.startswith("{"):
        return f"{name}{{{label}}}{rest}"
    inner = rest[1:].lstrip()
    return f"{name}{{{label}{inner}" if inner.startswith("}") else f"{name}{{{label},{inner}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
