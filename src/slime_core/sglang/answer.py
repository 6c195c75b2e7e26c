"""A worker's answer to ``/generate``: what was sampled.

An answer is read at two depths. Its frame (counts, shapes, JSON) must be right or the worker is at
fault. Its token data may be incomplete, such as a missing logprob or a count that does not fit:
such an answer still goes to its client, but ``problem`` says why it cannot be captured exactly.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec
from msgspec import Raw

from slime_core.errors import WorkerError
from slime_core.long_lists import SlicedList
from slime_core.sglang.asked import Asked
from slime_core.sglang.errors import read_json
from slime_core.sglang.strip import is_logprob
from slime_core.strict_json import FieldTypeError, decode_typed, is_null
from slime_core.types import PackedIds, pack_logprobs
from slime_core.versions import VersionRun, runs_problem, version_text

__all__ = [
    "Answer",
    "FinishReason",
    "Tokens",
    "build_answer",
    "finish_reason",
    "parse_answer",
    "read_int",
    "read_tokens",
    "read_version",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinishReason:
    """Why a generation ended (SGLang's ``meta_info.finish_reason``)."""

    type: str
    """``stop``, ``length`` or ``abort``."""
    matched: int | tuple[int, ...] | str | None = None
    """What stopped it: a token, several, or a stop string (also: what a stop regex matched)."""
    message: str | None = None
    status_code: int | None = None
    """Of an abort: the status the worker would have answered with; ``None`` for a mere cut."""
    raw: bytes = dataclasses.field(default=b"null", compare=False, repr=False)
    """The worker's own JSON."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample, whole or as far as it came."""

    id: str
    text: str | None
    """``None`` from a worker that does not detokenise."""
    ids: PackedIds
    """Every sampled token, a matched stop token included."""
    logprobs: bytes
    """Packed; one per id, or empty where ``problem`` says that they are not known."""
    finish_reason: FinishReason | None
    """``None`` while unfinished."""
    weight_version: str | None
    versions: tuple[VersionRun, ...]
    """Contiguous from 0 to the number of ids; empty where no version is known."""
    prompt_tokens: int | None
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    top_logprobs: bytes
    """``output_top_logprobs`` as raw JSON, empty if there are none."""
    extras: Mapping[str, bytes]
    """Data that came with the tokens (``routed_experts`` and the like) as raw JSON, untouched."""
    problem: str | None
    """Why this cannot be captured exactly; ``None`` if it can."""


class _Triple(msgspec.Struct, array_like=True, frozen=True, gc=False):
    logprob: float | None
    token: int


class _Matched(msgspec.Struct, frozen=True):
    type: str
    matched: int | tuple[int, ...] | str | None = None
    message: str | None = None
    status_code: int | None = None


class _Span(msgspec.Struct, frozen=True):
    version: str | int
    start: int
    end: int


_ABSENT: Final = Raw(b"null")


class _Item(msgspec.Struct, gc=False):
    meta_info: dict[str, Raw]
    text: str | None = None
    output_ids: Raw = _ABSENT


_ITEM: Final = msgspec.json.Decoder(_Item)
_ITEMS: Final = msgspec.json.Decoder(list[_Item])
_IDS: Final = SlicedList(msgspec.json.Decoder(list[int]))
_TRIPLES: Final = SlicedList(msgspec.json.Decoder(list[_Triple]), end=b"],")
_FINISH: Final[msgspec.json.Decoder[_Matched | None]] = msgspec.json.Decoder(_Matched | None)
_SPANS: Final[msgspec.json.Decoder[list[_Span] | None]] = msgspec.json.Decoder(list[_Span] | None)
_VERSION: Final[msgspec.json.Decoder[str | int | None]] = msgspec.json.Decoder(str | int | None)
_INT: Final[msgspec.json.Decoder[int | None]] = msgspec.json.Decoder(int | None)
_TEXT: Final[msgspec.json.Decoder[str | None]] = msgspec.json.Decoder(str | None)

_TELEMETRY: Final = frozenset(
    {
        "id",
        "finish_reason",
        "weight_version",
        "weight_versions",
        "cached_tokens_details",
    }
)


def parse_answer(body: bytes, request: Asked) -> tuple[Answer, ...]:
    """The answers in the body of a 200, in the worker's order.

    Raises :class:`WorkerError` where the body is not what ``request`` asked for.
    """
    decoded = _items(body) if request.array else [read_json(_ITEM, body, "the answer")]
    if len(decoded) != request.samples:
        raise WorkerError(
            f"The worker gave {len(decoded)} answers where {request.samples} were asked for."
        )
    return tuple(map(_answer, decoded))


def _items(body: bytes) -> list[_Item]:
    return read_json(_ITEMS, body, "the answers")


def _answer(item: _Item) -> Answer:
    tokens = read_tokens(item.output_ids, item.meta_info.get("output_token_logprobs", _ABSENT))
    answer = build_answer(text=item.text, tokens=tokens, meta=item.meta_info, problem=None)
    if answer.finish_reason is None and answer.problem is None:
        return dataclasses.replace(answer, problem="the worker gave no finish reason")
    return answer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Sampled tokens as a worker listed them."""

    ids: array[int]
    logprobs: list[float | None]
    problem: str | None


def read_tokens(output_ids: Raw | bytes, triples: Raw | bytes) -> Tokens:
    """Ids and logprobs out of ``output_ids`` and ``output_token_logprobs``; either may be null.

    Raises :class:`WorkerError` for what is not a list of ids, or of triples.
    """
    ids = None if _null(output_ids) else read_json(_IDS, output_ids, "output_ids")
    if _null(triples):
        problem = "the worker gave no logprobs" if ids else None
        return Tokens(ids=_packed(ids or []), logprobs=[], problem=problem)
    entries = read_json(_TRIPLES, triples, "output_token_logprobs")
    sampled = [entry.token for entry in entries]
    problem = None
    if ids is not None and ids != sampled:
        problem = "output_ids and output_token_logprobs do not name the same tokens"
    return Tokens(
        ids=_packed(sampled if ids is None else ids),
        logprobs=[entry.logprob for entry in entries],
        problem=problem,
    )


def build_answer(
    *,
    text: str | None,
    tokens: Tokens,
    meta: Mapping[str, Raw],
    problem: str | None,
    streamed: tuple[VersionRun, ...] = (),
) -> Answer:
    """The answer made of its parts; ``problem`` is one that is already known.

    ``streamed``: the versions as events told them, one after the other, for all tokens. They count
    unless the worker tells spans.
    """
    count = len(tokens.ids)
    completion_tokens = read_int(meta, "completion_tokens")
    logprobs = _packed_logprobs(tokens.logprobs, count)
    problem = problem or tokens.problem or _problem(tokens, logprobs, completion_tokens)
    version = read_version(meta.get("weight_version", _ABSENT))
    spans = _spans(meta)
    # Spans that contradict the tokens mean that one of the two is not what was sampled.
    contradiction = runs_problem(spans, count) if spans else None
    problem = problem or contradiction
    top = meta.get("output_top_logprobs", _ABSENT)
    return Answer(
        id=read_json(_TEXT, meta.get("id", _ABSENT), "meta_info.id") or "",
        text=text,
        ids=PackedIds(tokens.ids.tobytes()),
        logprobs=logprobs or b"",
        finish_reason=finish_reason(meta),
        weight_version=version,
        versions=_runs(spans, streamed, version, count) if contradiction is None else (),
        prompt_tokens=read_int(meta, "prompt_tokens"),
        completion_tokens=count if completion_tokens is None else completion_tokens,
        cached_tokens=read_int(meta, "cached_tokens") or 0,
        reasoning_tokens=read_int(meta, "reasoning_tokens") or 0,
        top_logprobs=b"" if _null(top) else bytes(top),
        extras={name: bytes(raw) for name, raw in meta.items() if _is_extra(name, raw)},
        problem=problem,
    )


def finish_reason(meta: Mapping[str, Raw]) -> FinishReason | None:
    """``meta_info.finish_reason``; ``None`` while the generation runs."""
    found = read_json(_FINISH, meta.get("finish_reason", _ABSENT), "meta_info.finish_reason")
    if found is None:
        return None
    return FinishReason(
        type=found.type,
        matched=found.matched,
        message=found.message,
        status_code=found.status_code,
        raw=bytes(meta["finish_reason"]),
    )


def read_int(meta: Mapping[str, Raw], name: str) -> int | None:
    """An integer of ``meta_info``, or ``None``. Raises :class:`WorkerError` for another type."""
    return read_json(_INT, meta.get(name, _ABSENT), f"meta_info.{name}")


def _is_extra(name: str, raw: Raw) -> bool:
    """Lists, objects and strings that come with the tokens; plain numbers are telemetry."""
    if name in _TELEMETRY or is_logprob(name) or name.startswith("spec_"):
        return False
    return bytes(memoryview(raw)[:1]) in b'["{'


def _problem(tokens: Tokens, logprobs: bytes | None, completion_tokens: int | None) -> str | None:
    count = len(tokens.ids)
    if logprobs is None:
        return "a sampled token has no logprob"
    if completion_tokens is not None and completion_tokens != count:
        return f"the worker gave {count} ids but counts {completion_tokens} tokens"
    return None


def _packed_logprobs(logprobs: Sequence[float | None], count: int) -> bytes | None:
    """Packed, or ``None`` if there is not one for each token."""
    if len(logprobs) != count:
        return None
    try:
        return pack_logprobs(cast("Sequence[float]", logprobs))
    except TypeError:  # a null among them, which packing finds at no cost of its own
        return None


def _packed(ids: Sequence[int]) -> array[int]:
    try:
        return array("I", ids)
    except OverflowError:
        raise WorkerError("The worker gave a token id that cannot be one.") from None


def read_version(raw: Raw | bytes) -> str | None:
    """``meta_info.weight_version``. Raises :class:`WorkerError` for what cannot be one."""
    return version_text(read_json(_VERSION, raw, "meta_info.weight_version"))


def _spans(meta: Mapping[str, Raw]) -> tuple[VersionRun, ...]:
    """The worker's spans of at least a token; none where it tells none that can be read as such."""
    try:
        told = decode_typed(_SPANS, meta.get("weight_versions", _ABSENT))
    except FieldTypeError:
        return ()
    return tuple(
        VersionRun(version_text(each.version), each.start, each.end)
        for each in told or ()
        if each.start != each.end
    )


def _runs(
    spans: tuple[VersionRun, ...],
    streamed: tuple[VersionRun, ...],
    version: str | None,
    count: int,
) -> tuple[VersionRun, ...]:
    """The best that is known of the versions of ``count`` tokens."""
    if spans or streamed or version is None or count == 0:
        return spans or streamed
    return (VersionRun(version, 0, count),)


def _null(raw: Raw | bytes) -> bool:
    return is_null(raw) if isinstance(raw, Raw) else raw == b"null"
