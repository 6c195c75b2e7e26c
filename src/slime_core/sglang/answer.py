"""A worker's answer to ``/generate``: what was sampled, and the client's view of it.

An answer is read at two depths. Its frame (counts, shapes, JSON) must be right or the worker is at
fault. Its token data may be incomplete, such as a missing logprob or a count that does not fit:
such an answer still goes to its client, but ``problem`` says why it cannot be captured exactly.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar, cast

import msgspec
from msgspec import Raw

from slime_core.errors import WorkerError
from slime_core.strict_json import FieldTypeError, decode_fields, decode_typed, is_null
from slime_core.types import PackedIds, pack_logprobs

__all__ = [
    "Answer",
    "Asked",
    "FinishReason",
    "Tokens",
    "VersionSpan",
    "build_answer",
    "finish_reason",
    "parse_answer",
    "read_int",
    "read_tokens",
    "strip_item",
    "strip_logprobs",
]

T = TypeVar("T")


class Asked(Protocol):
    """What a request says about the form of its answer."""

    @property
    def samples(self) -> int:
        """How many answers were asked for."""

    @property
    def array(self) -> bool:
        """Whether they come as an array."""

    def shows_logprobs(self, sample: int) -> bool:
        """Whether the client asked for this sample's logprobs."""


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """A run of output tokens ``start`` … ``end`` - 1 sampled under one weight version."""

    version: str
    start: int
    end: int


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
    versions: tuple[VersionSpan, ...]
    """Contiguous from 0 to the number of ids; empty where no version is known."""
    versions_reported: bool
    """The worker gave the spans; otherwise ``weight_version`` stands for the whole."""
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
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_IDS: Final = msgspec.json.Decoder(list[int])
_TRIPLES: Final = msgspec.json.Decoder(list[_Triple])
_FINISH: Final[msgspec.json.Decoder[_Matched | None]] = msgspec.json.Decoder(_Matched | None)
_SPANS: Final[msgspec.json.Decoder[list[_Span] | None]] = msgspec.json.Decoder(list[_Span] | None)
_VERSION: Final[msgspec.json.Decoder[str | int | None]] = msgspec.json.Decoder(str | int | None)
_INT: Final[msgspec.json.Decoder[int | None]] = msgspec.json.Decoder(int | None)
_TEXT: Final[msgspec.json.Decoder[str | None]] = msgspec.json.Decoder(str | None)

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
_LOGPROB_BEGINNINGS: Final = ("input_top_logprobs", "output_top_logprobs")

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
    decoded = _items(body) if request.array else [_worker(_ITEM, body, "the answer")]
    if len(decoded) != request.samples:
        raise WorkerError(
            f"The worker gave {len(decoded)} answers where {request.samples} were asked for."
        )
    return tuple(map(_answer, decoded))


def _items(body: bytes) -> list[_Item]:
    return _worker(_ITEMS, body, "the answers")


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
    ids = None if _null(output_ids) else _worker(_IDS, output_ids, "output_ids")
    if _null(triples):
        problem = "the worker gave no logprobs" if ids else None
        return Tokens(ids=_packed(ids or []), logprobs=[], problem=problem)
    entries = _worker(_TRIPLES, triples, "output_token_logprobs")
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
    *, text: str | None, tokens: Tokens, meta: Mapping[str, Raw], problem: str | None
) -> Answer:
    """The answer made of its parts; ``problem`` is one that is already known."""
    count = len(tokens.ids)
    completion_tokens = read_int(meta, "completion_tokens")
    logprobs = _packed_logprobs(tokens.logprobs, count)
    problem = problem or tokens.problem or _problem(tokens, logprobs, completion_tokens)
    version = _version(meta)
    spans = _spans(meta, count)
    top = meta.get("output_top_logprobs", _ABSENT)
    return Answer(
        id=_worker(_TEXT, meta.get("id", _ABSENT), "meta_info.id") or "",
        text=text,
        ids=PackedIds(tokens.ids.tobytes()),
        logprobs=logprobs or b"",
        finish_reason=finish_reason(meta),
        weight_version=version,
        versions=_one_span(version, count) if spans is None else spans,
        versions_reported=spans is not None,
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
    found = _worker(_FINISH, meta.get("finish_reason", _ABSENT), "meta_info.finish_reason")
    if found is None:
        return None
    return FinishReason(
        type=found.type,
        matched=found.matched,
        message=found.message,
        status_code=found.status_code,
    )


def read_int(meta: Mapping[str, Raw], name: str) -> int | None:
    """An integer of ``meta_info``, or ``None``. Raises :class:`WorkerError` for another type."""
    return _worker(_INT, meta.get(name, _ABSENT), f"meta_info.{name}")


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
        return strip_item(body, _worker(_ITEM, body, "the answer").meta_info)
    raws = _worker(_RAWS, body, "the answers")
    views = [bytes(raw) if show else strip_item(raw) for raw, show in zip(raws, shown, strict=True)]
    return b"[" + b",".join(views) + b"]"


def strip_item(data: bytes | Raw, meta: Mapping[str, Raw] | None = None) -> bytes:
    """One answer, or one stream event, without its logprobs.

    ``meta`` is its ``meta_info``, where that is known already.
    """
    if meta is not None:
        cut = _cut(bytes(data), meta)
        if cut is not None:
            return cut
    fields = _fields(data)
    if "meta_info" not in fields:
        return bytes(data)
    kept = {n: raw for n, raw in _fields(fields["meta_info"]).items() if not _is_logprob(n)}
    return _joined({**fields, "meta_info": _joined(kept)})


def _cut(data: bytes, meta: Mapping[str, Raw]) -> bytes | None:
    """``data`` with the logprobs' bytes cut out, or ``None`` if it is not plain where they are.

    A quotation mark inside a JSON string is escaped, so ``"name":`` is found as a key or not at
    all; found once, and followed by the very value, it is the one that is meant. Cutting saves the
    scans that taking the object apart would cost on every event of a stream.
    """
    for name, value in meta.items():
        if not _is_logprob(name):
            continue
        key = b'"' + name.encode() + b'":'
        start = data.find(key)
        end = start + len(key) + len(memoryview(value))
        if start < 0 or data[start + len(key) : end] != bytes(value):
            return None
        if data.find(key, end) >= 0:
            return None
        around = data[start - 1 : start] + data[end : end + 1]
        if around.endswith(b","):
            end += 1
        elif around == b",}":
            start -= 1
        elif around != b"{}":
            return None
        data = data[:start] + data[end:]
    return data


def _joined(fields: Mapping[str, Raw | bytes]) -> bytes:
    pieces: list[Raw | bytes] = [b"{"]
    for name, value in fields.items():
        pieces += (msgspec.json.encode(name), b":", value, b",")
    if len(pieces) > 1:
        pieces.pop()
    pieces.append(b"}")
    return b"".join(map(memoryview, pieces))


def _is_logprob(name: str) -> bool:
    return name in _LOGPROB_KEYS or name.startswith(_LOGPROB_BEGINNINGS)


def _is_extra(name: str, raw: Raw) -> bool:
    """Lists, objects and strings that come with the tokens; plain numbers are telemetry."""
    if name in _TELEMETRY or _is_logprob(name) or name.startswith("spec_"):
        return False
    return bytes(memoryview(raw)[:1]) in b'["{'


def _problem(tokens: Tokens, logprobs: bytes | None, completion_tokens: int | None) -> str | None:
    count = len(tokens.ids)
    if len(tokens.logprobs) != count:
        return f"the worker gave {count} ids but {len(tokens.logprobs)} logprobs"
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


def _version(meta: Mapping[str, Raw]) -> str | None:
    raw = meta.get("weight_version", _ABSENT)
    version = _worker(_VERSION, raw, "meta_info.weight_version")
    return None if version is None else str(version)


def _spans(meta: Mapping[str, Raw], count: int) -> tuple[VersionSpan, ...] | None:
    """The worker's spans if they cover the tokens without a gap, else ``None``."""
    try:
        spans = decode_typed(_SPANS, meta.get("weight_versions", _ABSENT))
    except FieldTypeError:
        return None
    if spans is None:
        return None
    edges = [0, *(span.end for span in spans)]
    starts = [span.start for span in spans]
    if starts != edges[:-1] or edges != sorted(set(edges)) or edges[-1] != count:
        return None
    return tuple(
        VersionSpan(version=str(span.version), start=span.start, end=span.end) for span in spans
    )


def _one_span(version: str | None, count: int) -> tuple[VersionSpan, ...]:
    if version is None or count == 0:
        return ()
    return (VersionSpan(version=version, start=0, end=count),)


def _null(raw: Raw | bytes) -> bool:
    return is_null(raw) if isinstance(raw, Raw) else raw == b"null"


def _fields(raw: bytes | Raw) -> dict[str, Raw]:
    try:
        return decode_fields(raw)
    except FieldTypeError as error:
        raise WorkerError(f"The worker's answer cannot be read: {error.message}.") from None


def _worker(decoder: msgspec.json.Decoder[T], raw: bytes | Raw, what: str) -> T:
    try:
        return decode_typed(decoder, raw)
    except FieldTypeError as error:
        raise WorkerError(
            f"The worker's answer cannot be read: {what}{error.path}: {error.message}."
        ) from None
