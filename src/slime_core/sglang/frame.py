"""A whole answer without its long lists: all of it that has to be parsed to show and to keep it."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from slime_core.lifted import Lifted, lift
from slime_core.strict_json import BAD_JSON

__all__ = ["ABSENT", "SHORT", "Frame", "Item", "read_frame"]

ABSENT: Final = Raw(b"null")
SHORT: Final = 4096
"""Answers of fewer bytes are parsed sooner than anything is lifted out of them."""


class Item(msgspec.Struct, gc=False):
    """One answer, read one level deep."""

    meta_info: dict[str, Raw]
    text: str | None = None
    output_ids: Raw = ABSENT


_ITEM: Final = msgspec.json.Decoder(Item)


class Frame(NamedTuple):
    """An answer's ``item`` with stand-ins for what was lifted; ``ids`` came out last."""

    item: Item
    triples: Lifted
    ids: Lifted


def read_frame(body: bytes, *, short: int = SHORT) -> Frame | None:
    """The frame of one answer; ``None`` where it is short, not plain, or no answer at all."""
    if len(body) < short:
        return None
    triples = lift(body, b'"output_token_logprobs"')
    ids = None if triples is None else lift(triples.rest, b'"output_ids"', 1)
    if triples is None or ids is None:
        return None
    try:
        item = _ITEM.decode(ids.rest)
    except BAD_JSON:
        return None
    told = item.meta_info.get("output_token_logprobs")
    if not (triples.stands_in(told) and ids.stands_in(item.output_ids)):
        return None
    return Frame(item, triples, ids)
