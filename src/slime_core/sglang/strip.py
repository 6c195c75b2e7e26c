"""The client's view of an answer: without the logprobs that only the router asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from slime_core.errors import WorkerError
from slime_core.sglang.asked import Asked
from slime_core.sglang.errors import read_json
from slime_core.sglang.frame import ABSENT, read_frame

__all__ = ["cut_members", "is_logprob", "strip_item", "strip_logprobs"]

# All that a worker adds to meta_info because return_logprob is true (the flat forms of the top
# logprobs are found by their beginning). Sampling masks are asked for on their own and stay.
_LOGPROB_KEYS: Final = frozenset(
    {
        "input_token_logprobs",
        "output_token_logprobs",
        "output_token_logprobs_length",
        "input_token_ids_logprobs",
        "output_token_ids_logprobs",
    }
)
_COMMA: Final = 0x2C
_OPENS: Final = 0x7B
_CLOSES: Final = 0x7D
_LOGPROB_BEGINNINGS: Final = ("input_top_logprobs", "output_top_logprobs")


class _Item(msgspec.Struct, gc=False):
    meta_info: dict[str, Raw]


_ITEM: Final = msgspec.json.Decoder(_Item)
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])


def is_logprob(name: str) -> bool:
    """Whether a key of ``meta_info`` is there only because logprobs were asked for."""
    return name in _LOGPROB_KEYS or name.startswith(_LOGPROB_BEGINNINGS)


def strip_logprobs(body: bytes, request: Asked) -> bytes:
    """The client's view of the body that :func:`parse_answer` accepted.

    What the worker said only because the router asked for logprobs is gone from the samples for
    which the client did not ask; every other value keeps its bytes and its place. Where the client
    asked for all of them, this is the body itself.
    """
    shown = [request.shows_logprobs(sample) for sample in range(request.samples)]
    if all(shown):
        return body
    if not request.array:
        framed = _strip_framed(body)
        if framed is not None:
            return framed
        return strip_item(body, read_json(_ITEM, body, "the answer").meta_info)
    raws = read_json(_RAWS, body, "the answers")
    if len(raws) != len(shown):
        raise WorkerError(f"The worker gave {len(raws)} answers for {len(shown)} samples.")
    views = [bytes(raw) if show else strip_item(raw) for raw, show in zip(raws, shown, strict=True)]
    return b"[" + b",".join(views) + b"]"


def _strip_framed(body: bytes) -> bytes | None:
    """The view of one answer, without a look at its long lists; ``None`` where it is not plain."""
    frame = read_frame(body)
    cut = None if frame is None else _cut(frame.ids.rest, frame.item.meta_info)
    return None if frame is None or cut is None else frame.ids.put_back(cut)


def strip_item(data: bytes | Raw, meta: Mapping[str, Raw] | None = None) -> bytes:
    """One answer, or one stream event, without its logprobs.

    ``meta`` is its ``meta_info``, where that is known already.
    """
    if meta is not None:
        cut = _cut(bytes(data), meta)
        if cut is not None:
            return cut
    fields = read_json(_FIELDS, data, "the answer")
    told = read_json(_FIELDS, fields.get("meta_info", ABSENT), "meta_info")
    kept = {name: raw for name, raw in told.items() if not is_logprob(name)}
    return _joined({**fields, "meta_info": _joined(kept)})


def _cut(data: bytes, meta: Mapping[str, Raw]) -> bytes | None:
    """``data`` with the logprobs' bytes cut out, or ``None`` if it is not plain where they are."""
    names = filter(is_logprob, meta)
    return cut_members(data, [(b'"' + name.encode() + b'":', meta[name]) for name in names])


def cut_members(data: bytes, members: Sequence[tuple[bytes, Raw]]) -> bytes | None:
    """``data`` without these members, or ``None`` if it is not plain where they are.

    A member is its key with quotation marks and colon, and its value. A quotation mark inside a
    JSON string is escaped, so ``"name":`` is found as a key or not at all; found once, and followed
    by the very value, it is the one that is meant. Cutting saves the scans that taking the object
    apart would cost on every event of a stream.
    """
    for key, raw in members:
        value = bytes(raw)
        start = data.find(key)
        end = start + len(key) + len(value)
        if start < 0 or not data.startswith(value, start + len(key)) or data.find(key, end) >= 0:
            return None
        before, behind = data[start - 1], data[end]
        if behind == _COMMA:
            end += 1
        elif behind == _CLOSES and before == _COMMA:
            start -= 1
        elif behind != _CLOSES or before != _OPENS:
            return None
        data = data[:start] + data[end:]
    return data


def _joined(fields: Mapping[str, Raw | bytes]) -> bytes:
    pieces: list[Any] = [b"{"]
    for name, value in fields.items():
        pieces += (msgspec.json.encode(name), b":", value, b",")
    if len(pieces) > 1:
        pieces.pop()
    pieces.append(b"}")
    # A Raw is a buffer, which its stub keeps to itself; views of them take ten times as long.
    return b"".join(pieces)
