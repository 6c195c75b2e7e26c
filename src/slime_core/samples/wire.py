"""Samples in words: JSON, and the tensors of the binary form.

The binary form is the one of miles' session server: for sample ``i`` ``tokens.i`` (int64),
``loss_mask.i`` (uint8), ``rollout_log_probs.i`` (float64), ``rollout_routed_experts.i`` (int32),
and ``_samples_meta``, JSON as uint8. Everything the JSON form tells is in there too.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from slime_core.chat.turn import Turn
from slime_core.logprob_kinds import together
from slime_core.long_lists import encode_flags, encode_ids, encode_numbers
from slime_core.samples.accounting import Accounting, Unused
from slime_core.samples.assembly import Collected, Sample, Wanted
from slime_core.samples.experts import Rows
from slime_core.samples.safetensors import Tensor
from slime_core.samples.snapshot import Snapshot
from slime_core.samples.tree import CallTree, status_of
from slime_core.segments import Answer
from slime_core.types import ID_BYTES, PackedIds
from slime_core.versions import VersionRun

__all__ = ["TextOf", "as_json", "as_tensors", "conversation", "described", "tree_facts"]

TextOf = Callable[[PackedIds], str | None]
"""The text that ids spell, special tokens shown; ``None`` where they spell none."""

_SLICE: Final = 4096
_NO_STATISTICS: Final = {"cached_tokens": 0, "total_prompt_tokens": 0}


def as_json(
    snapshot: Snapshot,
    wanted: Wanted,
    found: Collected,
    text_of: TextOf,
    findings: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """The JSON form. ``findings`` are told along with those made here."""
    samples = []
    for sample in found.samples:
        facts = _facts(snapshot, wanted, sample, text_of)
        facts |= {
            "tokens": msgspec.Raw(encode_ids(sample.ids)),
            "loss_mask": msgspec.Raw(encode_flags(sample.mask)),
            "rollout_log_probs": msgspec.Raw(encode_numbers(sample.logprobs)),
            "routed_experts": None if sample.rows is None else _rows_facts(sample.rows),
        }
        samples.append(facts)
    return msgspec.json.encode({"samples": samples} | _whole_facts(snapshot, found, findings))


def as_tensors(
    snapshot: Snapshot,
    wanted: Wanted,
    found: Collected,
    text_of: TextOf,
    findings: Sequence[Mapping[str, Any]] = (),
    *,
    shape: tuple[int, int] | None = None,
) -> list[Tensor]:
    """The binary form. ``shape`` is layers and top-k, into which rows of experts are split; without
    it they stay one dimension."""
    tensors, metas = [], []
    findings = list(findings)
    for place, sample in enumerate(found.samples):
        meta = _facts(snapshot, wanted, sample, text_of)
        meta |= {"prefix_cache_info": _NO_STATISTICS, "nulls": ["rollout_indexer_topk"]}
        tensors += _columns(place, sample)
        if sample.rows is None:
            meta["nulls"].append("rollout_routed_experts")
        else:
            tensors.append(_rows_tensor(place, sample.rows, shape, findings))
        metas.append(meta)
    whole = {"samples": metas} | _whole_facts(snapshot, found, findings)
    data = msgspec.json.encode(whole)
    return [*tensors, Tensor("_samples_meta", "uint8", (len(data),), data)]


def _columns(place: int, sample: Sample) -> list[Tensor]:
    count, length = len(sample.ids) // ID_BYTES, sample.response_length
    return [
        Tensor(f"tokens.{place}", "int64", (count,), _wide(sample.ids)),
        Tensor(f"loss_mask.{place}", "uint8", (length,), sample.mask),
        Tensor(f"rollout_log_probs.{place}", "float64", (length,), sample.logprobs.tobytes()),
    ]


def _wide(ids: PackedIds) -> bytes:
    """Packed ids as int64, a slice at a time so that no other thread waits for long."""
    narrow, wide = array("I"), array("q")
    narrow.frombytes(ids)
    for at in range(0, len(narrow), _SLICE):
        wide.extend(narrow[at : at + _SLICE].tolist())
    return wide.tobytes()


def _rows_tensor(
    place: int, rows: Rows, shape: tuple[int, int] | None, findings: list[Mapping[str, Any]]
) -> Tensor:
    split: tuple[int, ...] = (rows.width,)
    if shape is not None and shape[0] * shape[1] == rows.width:
        split = shape
    elif shape is not None:
        words = f"rows of {rows.width} numbers are not {shape[0]} layers of {shape[1]}"
        findings.append({"sample": place, "finding": "routed_experts_shape", "detail": words})
    return Tensor(f"rollout_routed_experts.{place}", "int32", (rows.count, *split), rows.data)


def _rows_facts(rows: Rows) -> dict[str, Any]:
    return {
        "data": base64.b64encode(rows.data).decode(),
        "rows": rows.count,
        "width": rows.width,
    }


def _facts(snapshot: Snapshot, wanted: Wanted, sample: Sample, text_of: TextOf) -> dict[str, Any]:
    """What both forms tell of a sample, columns apart."""
    last = sample.last
    messages, tools = conversation(sample.turns)
    extras = {
        one.call: {name: msgspec.Raw(raw) for name, raw in one.extras if not _is_merged(name)}
        for one in sample.calls
    }
    return {
        "response": text_of(PackedIds(sample.ids[sample.prompt_length * ID_BYTES :])),
        "response_length": sample.response_length,
        "prompt_length": sample.prompt_length,
        "status": sample.status,
        "finish_reason": None if sample.shortened else msgspec.Raw(last.finish_reason),
        "weight_versions": [run.version for run in sample.runs if run.version is not None],
        "weight_version_runs": _runs(sample.runs),
        "logprob_kind": together([one.logprob_kind for one in sample.calls]),
        "session_id": snapshot.session,
        "call_ids": [one.call for one in sample.calls],
        "reward": wanted.rewards.get(last.call, wanted.reward),
        "rewards": {
            one.call: wanted.rewards[one.call] for one in sample.calls if one.call in wanted.rewards
        },
        "metadata": _metadata(snapshot, wanted, last),
        "flags": _flags(sample),
        "messages": messages,
        "tools": tools,
        "extras": {call: own for call, own in extras.items() if own},
        "routed_experts_problem": sample.rows_problem,
    }


def _is_merged(name: str) -> bool:
    return name.startswith("routed_experts")


def _runs(runs: Sequence[VersionRun]) -> list[dict[str, Any]]:
    return [{"version": run.version, "start": run.start, "end": run.end} for run in runs]


def _metadata(snapshot: Snapshot, wanted: Wanted, last: Answer) -> dict[str, Any]:
    """The session's, the request's and the last call's: the later wins."""
    own: dict[str, Any] = msgspec.json.decode(snapshot.metadata)
    return own | dict(wanted.metadata) | dict(wanted.calls.get(last.call, {}))


def _flags(sample: Sample) -> list[str]:
    flags = [flag for one in sample.calls for flag in one.flags]
    flags += ["cut"] if sample.cut else []
    flags += ["max_seq_len"] if sample.shortened else []
    return list(dict.fromkeys(flags))


def conversation(turns: Sequence[Turn | None]) -> tuple[list[msgspec.Raw] | None, Any]:
    """Messages and tools of a way through turns; ``None`` where it is not all chat."""
    messages: list[msgspec.Raw] | None = None
    tools: msgspec.Raw | None = None
    for turn in turns:
        if turn is None:
            messages = None
            continue
        whole = turn.whole()
        if not turn.start or (messages is not None and len(messages) >= turn.start):
            messages, tools = whole, msgspec.Raw(turn.tools)
        else:
            messages = None
    return messages, None if messages is None else tools


def _whole_facts(
    snapshot: Snapshot, found: Collected, findings: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is told of the session as a whole."""
    problems = [
        {"sample": place, "finding": "routed_experts", "detail": sample.rows_problem}
        for place, sample in enumerate(found.samples)
        if sample.rows_problem is not None
    ]
    return {
        "session_id": snapshot.session,
        "accounting": _account(found.accounting),
        "calls_in_flight": snapshot.in_flight,
        "findings": [*findings, *problems],
        "session_metadata": {
            "metadata": msgspec.Raw(snapshot.metadata),
            "max_trim_tokens": 0,
            "tito_session_mismatch": [],
            "tree": tree_facts(snapshot, found.tree),
        },
        "empty_reason": found.empty_reason,
    }


def _account(account: Accounting) -> dict[str, Any]:
    return {
        "captured": account.captured,
        "used": account.used,
        "context": sum(one.tokens for one in account.context),
        "context_calls": [_unused(one) for one in account.context],
        "dropped": [_unused(one) for one in account.dropped],
        "lost_calls": dict(account.lost),
    }


def _unused(one: Unused) -> dict[str, Any]:
    facts: dict[str, Any] = {"call": one.call, "tokens": one.tokens, "reason": one.reason}
    return facts if one.call is not None else facts | {"calls": one.calls}


# -- the tree ----------------------------------------------------------------------------------


def tree_facts(snapshot: Snapshot, tree: CallTree) -> dict[str, Any]:
    """The tree by ids alone, as miles' server words it. Times are not kept."""
    nodes = []
    for seq, (number, node) in enumerate(tree.nodes.items()):
        piece = snapshot.pieces[number]
        nodes.append(
            {
                "id": node.answer.call,
                "parent": None if node.parent is None else tree.nodes[node.parent].answer.call,
                "seq": seq,
                "truncated": status_of(node.answer) == "truncated",
                "committed_at": None,
                "completion_span": [piece.token_start, piece.token_end],
                "num_tokens": piece.token_end,
                "response_id": next(iter(node.answer.aliases), node.answer.call),
            }
        )
    return {"nodes": nodes, "leaves": [_leaf(tree, leaf) for leaf in _ends(tree)]}


def _ends(tree: CallTree) -> list[int]:
    return [number for number in tree.nodes if not tree.children.get(number)]


def _leaf(tree: CallTree, leaf: int) -> dict[str, Any]:
    way = []
    here: int | None = leaf
    while here is not None:
        way.append(tree.nodes[here].answer.call)
        here = tree.nodes[here].parent
    way.reverse()
    return {"node_id": way[-1], "path_node_ids": way}


def described(snapshot: Snapshot, tree: CallTree) -> dict[str, Any]:
    """Nodes and leaves with everything but tokens: for people, and for harnesses that look."""
    facts = tree_facts(snapshot, tree)
    for (number, node), shown in zip(tree.nodes.items(), facts["nodes"], strict=True):
        piece, answer = snapshot.pieces[number], node.answer
        turn = answer.turn
        shown |= {
            "status": status_of(answer),
            "outcome": answer.outcome.value,
            "finish_reason": msgspec.Raw(answer.finish_reason),
            "tokens": piece.tokens,
            "prompt_tokens": piece.token_start,
            "weight_versions": _runs(answer.runs),
            "logprob_kind": answer.logprob_kind.value,
            "appended": [] if turn is None else turn.appended(),
            "message": None if turn is None else msgspec.Raw(turn.own),
            "flags": list(answer.flags),
            "aliases": list(answer.aliases),
            "retrieved": piece.retrieved,
        }
    return facts
