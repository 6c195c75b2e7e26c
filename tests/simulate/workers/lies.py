"""Faults within the JSON of an answer: one item, decoded, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tests.simulate.faults import Fault, FaultKind
from tests.simulate.story import Sampled

__all__ = ["LIES", "Lie", "Place", "encode_item", "spans_of"]

_NOT_A_NUMBER: Final = "<not a number>"
_NO_NUMBERS: Final = (b"NaN", b"Infinity", b"-Infinity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an item is told: of ``sampled``, the first ``count`` tokens; in an event if it
    ``streams``.

    ``samples`` is how many samples were asked for, one of which is ``chosen``; ``other_rid`` names
    another request that the worker knows; ``vocabulary`` is one more than the largest id.
    """

    fault: Fault
    sampled: Sampled
    count: int
    streams: bool
    samples: int
    chosen: bool
    other_rid: str
    vocabulary: int


Item = dict[str, Any]
Change = Callable[[Item, Place], Any]
"""The new item, or ``None`` if this item is not one that the fault can strike."""


@dataclass(frozen=True, slots=True)
class Lie:
    """``always``: every event from the first on, else one. ``damages``: from there on, no token of
    the sample is to be believed."""

    change: Change
    always: bool = False
    damages: bool = True


def encode_item(item: Any, fault: Fault) -> bytes:
    """The item's JSON, or nearly JSON."""
    word = _NO_NUMBERS[fault.variant % len(_NO_NUMBERS)]
    return msgspec.json.encode(item).replace(b'"%b"' % _NOT_A_NUMBER.encode(), word)


def spans_of(versions: list[str]) -> list[dict[str, Any]]:
    """Versions token by token as SGLang's ``weight_versions``."""
    spans: list[dict[str, Any]] = []
    for place, version in enumerate(versions):
        if spans and spans[-1]["version"] == version:
            spans[-1]["end"] = place + 1
        else:
            spans.append({"version": version, "start": place, "end": place + 1})
    return spans


def _wrong_json(item: Item, place: Place) -> Any:
    wholes: tuple[Any, ...] = ([item], "text", 17, {}, [], msgspec.Raw(b"null"))
    fields: tuple[tuple[str, Any], ...] = (
        ("meta_info", None),
        ("meta_info", []),
        ("text", 5),
        ("output_ids", "abc"),
        ("output_ids", [1.5]),
    )
    metas: tuple[tuple[str, Any], ...] = (
        ("output_token_logprobs", {"0": 1}),
        ("output_token_logprobs", [[-1.0]]),
        ("finish_reason", "stop"),
        ("completion_tokens", "3"),
    )
    chosen = place.fault.variant % (len(wholes) + len(fields) + len(metas))
    if chosen < len(wholes):
        return wholes[chosen]
    chosen -= len(wholes)
    if chosen < len(fields):
        return item | dict([fields[chosen]])
    item["meta_info"] |= dict([metas[chosen - len(fields)]])
    return item


def _no_text(item: Item, _place: Place) -> Any:
    return item | {"text": None}


def _no_ids(item: Item, _place: Place) -> Any:
    del item["output_ids"]
    return item


def _no_logprobs(item: Item, place: Place) -> Any:
    meta = item["meta_info"]
    if place.fault.variant % 3:
        meta["output_token_logprobs"] = None if place.fault.variant % 3 == 1 else []
    else:
        del meta["output_token_logprobs"]
    return item if item["output_ids"] else None


def _one_logprob(value: Any) -> Change:
    def change(item: Item, place: Place) -> Any:
        triples = item["meta_info"].get("output_token_logprobs")
        if not triples:
            return None
        triples[place.fault.variant % len(triples)][0] = value
        return item

    return change


def _wrong_lengths(item: Item, place: Place) -> Any:
    meta, ids = item["meta_info"], item["output_ids"]
    triples = meta.get("output_token_logprobs")
    if not triples or not ids:
        return None
    match place.fault.variant % 6:
        case 0:
            triples.pop()
        case 1:
            ids.pop()
        case 2:
            meta["completion_tokens"] += 1
        case 3:
            ids.append(ids[-1])
        case 4:
            triples.append(triples[-1])
        case _:
            meta["completion_tokens"] -= 1
    return item


def _other_ids(item: Item, place: Place) -> Any:
    ids = item["output_ids"]
    if not ids or not item["meta_info"].get("output_token_logprobs"):
        return None
    at = place.fault.variant % len(ids)
    ids[at] = (ids[at] + 1) % place.vocabulary
    return item


def _outside_vocabulary(item: Item, place: Place) -> Any:
    """One position, in ids and logprobs alike, in every event that names it."""
    sampled, ids = place.sampled, item["output_ids"]
    if not ids or (not sampled.claimed_ids and place.count <= place.fault.after % 3):
        return None
    choices = (place.vocabulary, 2**31, 2**32 - 1, place.vocabulary + 7, 2**32, -1)
    value = choices[place.fault.variant % len(choices)]
    if not sampled.claimed_ids:
        sampled.claimed_ids[place.count - 1] = value
    (position,) = sampled.claimed_ids
    at = position - (place.count - len(ids))
    if at < 0:
        return item
    ids[at] = value
    triples = item["meta_info"].get("output_token_logprobs")
    if triples:
        triples[at][1] = value
    return item


def _no_version(item: Item, place: Place) -> Any:
    item["meta_info"].pop("weight_version")
    item["meta_info"].pop("weight_versions", None)
    place.sampled.claimed_versions = (None,)
    return item


def _wrong_version(item: Item, place: Place) -> Any:
    meta = item["meta_info"]
    value: str | int = ("another", 7, "0", "-1")[place.fault.variant % 4]
    meta["weight_version"] = value
    if "weight_versions" in meta:
        meta["weight_versions"] = [{"version": value, "start": 0, "end": place.count}]
    place.sampled.claimed_versions = (str(value),)
    return item


def _wrong_spans(item: Item, place: Place) -> Any:
    meta = item["meta_info"]
    spans = meta.get("weight_versions")
    if not spans:
        return None
    if place.fault.variant % 5 in (0, 4) and not place.streams:
        # As from a worker that knows no spans: the last version is all that it tells.
        place.sampled.claimed_versions = (meta["weight_version"],)
    match place.fault.variant % 5:
        case 0:
            spans.clear()
        case 1:
            spans[-1]["end"] += 1
        case 2:
            spans[0]["start"] += 1
        case 3:
            spans[-1]["end"] -= 1
        case _:
            meta["weight_versions"] = "all of them"
    return item


def _other_rid(item: Item, place: Place) -> Any:
    """Of one sample only: with several, their ids are the worker's, and the only ones known."""
    if not place.chosen:
        return None
    place.sampled.claimed_rid = place.other_rid
    item["meta_info"]["id"] = place.other_rid
    return item


def _other_index(item: Item, place: Place) -> Any:
    wrong: tuple[Any, ...] = (place.samples, place.samples + 3, -1, "0")
    return item | {"index": wrong[place.fault.variant % len(wrong)]}


def _no_finish(item: Item, _place: Place) -> Any:
    if item["meta_info"]["finish_reason"] is None:
        return None
    item["meta_info"]["finish_reason"] = None
    return item


def _early_finish(item: Item, place: Place) -> Any:
    """The item as if it were the last. Strikes no last one, and none without tokens."""
    meta = item["meta_info"]
    if meta["finish_reason"] is not None or not place.count:
        return None
    meta["finish_reason"] = (
        {"type": "length", "length": place.count}
        if place.fault.variant % 2
        else {"type": "stop", "matched": None}
    )
    meta["weight_versions"] = spans_of(place.sampled.versions[: place.count])
    return item


def _huge(item: Item, place: Place) -> Any:
    return item | {"padding": "0123456789abcdef" * (1 << (8 + place.fault.variant % 5))}


LIES: Final[dict[FaultKind, Lie]] = {
    FaultKind.WRONG_JSON: Lie(_wrong_json),
    FaultKind.NO_TEXT: Lie(_no_text, always=True, damages=False),
    FaultKind.NO_IDS: Lie(_no_ids, always=True, damages=False),
    FaultKind.NO_LOGPROBS: Lie(_no_logprobs, always=True),
    FaultKind.NULL_LOGPROB: Lie(_one_logprob(None)),
    FaultKind.NAN_LOGPROB: Lie(_one_logprob(_NOT_A_NUMBER)),
    FaultKind.WRONG_LENGTHS: Lie(_wrong_lengths),
    FaultKind.OTHER_IDS: Lie(_other_ids),
    FaultKind.OUTSIDE_VOCABULARY: Lie(_outside_vocabulary, always=True, damages=False),
    FaultKind.NO_VERSION: Lie(_no_version, always=True, damages=False),
    FaultKind.WRONG_VERSION: Lie(_wrong_version, always=True, damages=False),
    FaultKind.WRONG_SPANS: Lie(_wrong_spans, always=True, damages=False),
    FaultKind.OTHER_RID: Lie(_other_rid, always=True, damages=False),
    FaultKind.OTHER_INDEX: Lie(_other_index),
    FaultKind.NO_FINISH: Lie(_no_finish, always=True, damages=False),
    FaultKind.FINISH_EARLY: Lie(_early_finish, damages=False),
    FaultKind.AFTER_FINISH: Lie(_early_finish, damages=False),
    FaultKind.HUGE: Lie(_huge, damages=False),
}
"""The kinds that change an item."""
