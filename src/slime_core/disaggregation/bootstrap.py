"""What makes one request a pair's: the three bootstrap fields, and what its answers must merge.

Both workers of a pair get the same body with ``bootstrap_host`` and ``bootstrap_port``, where the
decode worker finds the prefill worker, and ``bootstrap_room``, the name under which the prompt's KV
cache changes hands (SGLang 0.5.23, ``io_struct.GenerateReqInput``). A batch has three parallel
lists of its length, with a room of its own for each element. With ``n`` > 1 SGLang uses the room of
a prompt for each of its samples, which is unsafe there; nothing that a router adds can change it.

A client's own bootstrap fields are replaced: they would name a worker that was not chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec
from msgspec import Raw

from slime_core.disaggregation.splicing import set_fields
from slime_core.strict_json import FieldTypeError, decode_typed, is_null, parse_object

__all__ = [
    "GENERATION_PATHS",
    "ROOM_MAX",
    "PairRequest",
    "Wanted",
    "draw_rooms",
    "read_pair_request",
]

GENERATION_PATHS: Final = ("/generate", "/v1/chat/completions", "/v1/completions")
"""What goes to both workers of a pair; everything else is one worker's business."""

ROOM_MAX: Final = 2**63 - 1
"""The largest room: SGLang keeps rooms in 64 bits with a sign."""

_HALF: Final = 2**32
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_ANY: Final = msgspec.json.Decoder(Any)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an answer holds of which the prefill worker has a part."""

    logprobs: bool = False
    """``input_token_logprobs`` and its two relatives, for some prompt."""
    routed_experts: bool = False
    indexer_topk: bool = False

    @property
    def anything(self) -> bool:
        """Whether the two answers must be merged at all."""
        return self.logprobs or self.routed_experts or self.indexer_topk


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairRequest:
    """A generating request, as far as a pair must know it."""

    body: bytes
    fields: dict[str, Raw]
    prompts: int | None
    """The length of the batch; ``None``: a single prompt, whose fields are no lists."""
    stream: bool
    rids: tuple[str, ...]
    """The ids by which the workers know it; empty if none are named or ``n`` > 1 hides them."""
    wanted: Wanted

    @property
    def rooms(self) -> int:
        """How many rooms it needs."""
        return 1 if self.prompts is None else self.prompts

    def addressed(self, host: str, port: int | None, rooms: tuple[int, ...]) -> bytes:
        """The body for both workers; all bytes but those of the bootstrap fields are the client's.

        ``host``: of the prefill worker's URL, an IPv6 address without brackets. ``port``: its
        bootstrap port, ``None`` if none is configured (the worker then uses its own default).
        ``rooms``: as many as :attr:`rooms`.
        """
        shown = f"[{host}]" if ":" in host else host
        columns: tuple[Any, Any, Any] = (shown, port, rooms[0] if rooms else None)
        if self.prompts is not None:
            columns = ([shown] * self.prompts, [port] * self.prompts, list(rooms))
        names = ("bootstrap_host", "bootstrap_port", "bootstrap_room")
        values = {name: msgspec.json.encode(v) for name, v in zip(names, columns, strict=True)}
        return set_fields(self.body, self.fields, values)


def draw_rooms(
    count: int, chance: Callable[[], float], taken: Collection[int] = ()
) -> tuple[int, ...]:
    """``count`` different rooms in [0, 2⁶³ - 1], none of which is ``taken``.

    ``chance`` gives uniform numbers in [0, 1); a room takes two of them, and two more if it is
    taken already.
    """
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        room = (int(chance() * _HALF) * _HALF + int(chance() * _HALF)) >> 1
        if room not in taken:
            drawn[room] = None
    return tuple(drawn)


def read_pair_request(path: str, body: bytes) -> PairRequest:
    """The request in ``body``, sent to ``path``. Raises :class:`~slime_core.errors.ClientError` for
    what is no JSON object; the values themselves are the workers' to judge."""
    fields = parse_object(body)
    given = {name: raw for name, raw in fields.items() if not is_null(raw)}
    prompts = _prompts(path, given)
    return PairRequest(
        body=body,
        fields=fields,
        prompts=prompts,
        stream=_value(given, "stream") is True,
        rids=() if _has_several_samples(path, given) else _rids(_value(given, "rid"), prompts),
        wanted=_wanted(given),
    )


def _prompts(path: str, given: dict[str, Raw]) -> int | None:
    """The length of a batch, ``None`` for a single prompt (SGLang's rules for each path)."""
    if path == "/v1/completions":
        return _length(given.get("prompt"), b'"[')
    if path != "/generate":
        return None
    if "text" in given:
        return _length(given["text"], None)
    if "input_ids" in given:
        return _length(given["input_ids"], b"[")
    rows = _elements(given.get("input_embeds"))
    # A prompt of embeddings is a list of vectors, so a batch of them has one more level.
    nested = bool(rows) and _begins(rows[0], b"[") and _length(rows[0], b"[") is not None
    return len(rows) if nested else None


def _length(raw: Raw | None, first: bytes | None) -> int | None:
    """The length of an array whose first element begins with one of these bytes."""
    if raw is None or not _begins(raw, b"["):
        return None
    elements = _elements(raw)
    if first is None or (elements and _begins(elements[0], first)):
        return len(elements)
    return None


def _elements(raw: Raw | None) -> list[Raw]:
    if raw is None:
        return []
    try:
        return decode_typed(_RAWS, raw)
    except FieldTypeError:
        return []


def _begins(raw: Raw, with_one_of: bytes) -> bool:
    return bytes(memoryview(raw)[:1]) in with_one_of


def _value(given: dict[str, Raw], name: str) -> Any:
    if name not in given:
        return None
    try:
        return decode_typed(_ANY, given[name])
    except FieldTypeError:
        return None


def _has_several_samples(path: str, given: dict[str, Raw]) -> bool:
    """Whether ``n`` is more than one; of a native batch it is one number for all."""
    if path != "/generate":
        return _value(given, "n") not in (None, 1)
    params = _value(given, "sampling_params")
    first = params[0] if isinstance(params, list) and params else params
    return isinstance(first, dict) and first.get("n") not in (None, 1)


def _rids(rid: object, prompts: int | None) -> tuple[str, ...]:
    if isinstance(rid, str) and rid:
        return (rid,) if prompts is None else tuple(f"{rid}_{i}" for i in range(prompts))
    if isinstance(rid, list):
        return tuple(one for one in rid if isinstance(one, str) and one)
    return ()


def _wanted(given: dict[str, Raw]) -> Wanted:
    start = _value(given, "logprob_start_len")
    starts = start if isinstance(start, list) else [start]
    flags = _value(given, "return_logprob")
    flagged = any(flags) if isinstance(flags, list) else flags is True
    # From -1 on, the default, no prompt token has a logprob: there is nothing to merge.
    in_prompt = any(isinstance(one, int) and one >= 0 for one in starts)
    return Wanted(
        logprobs=flagged and in_prompt,
        routed_experts=_value(given, "return_routed_experts") is True,
        indexer_topk=_value(given, "return_indexer_topk") is True,
    )
