"""A worker's answer to ``/generate``: what was sampled.

An answer is read at two depths. Its frame (counts, shapes, JSON) must be right or the worker is at
fault. Its token data may be incomplete, such as a missing logprob or a count that does not fit:
such an answer still goes to its client, but ``problem`` says why it cannot be captured exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from slime_core.errors import WorkerError
from slime_core.sglang.asked import Asked
from slime_core.sglang.errors import read_json
from slime_core.sglang.frame import ABSENT, SHORT, Item, read_frame
from slime_core.sglang.strip import is_logprob
from slime_core.sglang.tokens import (
    Sampled,
    agrees_at_its_ends,
    pack,
    plain_tokens,
    read_ids,
    read_logprobs,
    read_tokens,
)
from slime_core.sglang.told import Span, Told, read_plain
from slime_core.strict_json import FieldTypeError, decode_typed
from slime_core.types import ID_BYTES, PackedIds
from slime_core.versions import VersionRun, runs_problem, version_text

__all__ = [
    "Answer",
    "FinishReason",
    "build_answer",
    "finish_reason",
    "parse_answer",
    "read_int",
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


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sample, whole or as far as it came.

    A ``Struct``, for every request makes one and a frozen dataclass takes ten times as long.
    """

    id: str
    text: str | None
    """``None`` from a worker that does not detokenise."""
    ids: PackedIds
    """Every sampled token, a matched stop token included."""
    logprobs: bytes
    """Packed; one per id, or empty where ``problem`` says that they are not known."""
    unread: bytes = b""
    """Logprobs as the worker wrote them, which :func:`read_logprobs` packs; then ``logprobs`` is
    empty, and whether they are those of ``ids`` is not known yet."""
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


class _Matched(msgspec.Struct, frozen=True):
    type: str
    matched: int | tuple[int, ...] | str | None = None
    message: str | None = None
    status_code: int | None = None


_ITEM: Final = msgspec.json.Decoder(Item)
_ITEMS: Final = msgspec.json.Decoder(list[Item])
_FINISH: Final[msgspec.json.Decoder[_Matched | None]] = msgspec.json.Decoder(_Matched | None)
_SPANS: Final[msgspec.json.Decoder[list[Span] | None]] = msgspec.json.Decoder(list[Span] | None)
_VERSION: Final[msgspec.json.Decoder[str | int | None]] = msgspec.json.Decoder(str | int | None)
_INT: Final[msgspec.json.Decoder[int | None]] = msgspec.json.Decoder(int | None)
_TEXT: Final[msgspec.json.Decoder[str | None]] = msgspec.json.Decoder(str | None)

_NO_EXTRAS: Final[Mapping[str, bytes]] = {}
_SHORT_REASON: Final = 64

_TELEMETRY: Final = frozenset(
    {
        "id",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "output_token_logprobs",
        "e2e_latency",
        "weight_version",
        "weight_versions",
        "cached_tokens_details",
    }
)


def parse_answer(
    body: bytes, request: Asked, *, unread_from: int | None = None
) -> tuple[Answer, ...]:
    """The answers in the body of a 200, in the worker's order.

    Logprobs that are written in ``unread_from`` bytes or more may be left unread; ``None``: they
    are all read. Raises :class:`WorkerError` where the body is not what ``request`` asked for.
    """
    if not request.array:
        short = SHORT if unread_from is None else min(SHORT, unread_from)
        whole = _plain(body) if len(body) < short else _framed(body, short, unread_from)
        if whole is not None:
            return (whole,)
    decoded = _items(body) if request.array else [read_json(_ITEM, body, "the answer")]
    if len(decoded) != request.samples:
        raise WorkerError(
            f"The worker gave {len(decoded)} answers where {request.samples} were asked for."
        )
    return tuple(map(_answer, decoded))


def _plain(body: bytes) -> Answer | None:
    """A short answer, or ``None`` where it is not plain or something is wrong: likewise."""
    item = read_plain(body)
    if item is None:
        return None
    told = item.meta_info
    tokens = plain_tokens(item.output_ids, told.output_token_logprobs)
    if tokens is None:
        return None
    try:
        answer = _made(item.text, tokens, told, _NO_EXTRAS, None, ())
    except WorkerError:
        return None
    return None if answer.finish_reason is None else answer


def _framed(body: bytes, short: int, unread_from: int | None) -> Answer | None:
    """A long answer, or ``None`` where something is wrong: the body as it came says what."""
    frame = read_frame(body, short=short)
    if frame is None:
        return None
    raw = frame.triples.raw
    try:
        ids = read_ids(frame.ids.raw)
        logprobs, problem = b"", None
        unread = raw if unread_from is not None and len(raw) >= unread_from else b""
        if not unread or not agrees_at_its_ends(raw, ids):
            unread = b""
            logprobs, problem = read_logprobs(raw, ids)
        return None if problem else _whole(frame.item, Sampled(ids, logprobs, None, unread))
    except WorkerError:
        return None


def _items(body: bytes) -> list[Item]:
    return read_json(_ITEMS, body, "the answers")


def _answer(item: Item) -> Answer:
    triples = item.meta_info.get("output_token_logprobs", ABSENT)
    return _whole(item, pack(read_tokens(item.output_ids, triples)))


def _whole(item: Item, tokens: Sampled) -> Answer:
    answer = build_answer(text=item.text, tokens=tokens, meta=item.meta_info, problem=None)
    if answer.finish_reason is None and answer.problem is None:
        return replace(answer, problem="the worker gave no finish reason")
    return answer


def build_answer(
    *,
    text: str | None,
    tokens: Sampled,
    meta: Mapping[str, Raw],
    problem: str | None,
    streamed: tuple[VersionRun, ...] = (),
) -> Answer:
    """The answer made of its parts; ``problem`` is one that is already known.

    ``streamed``: the versions as events told them, one after the other, for all tokens. They count
    unless the worker tells spans.
    """
    told = Told(
        id=read_json(_TEXT, meta.get("id", ABSENT), "meta_info.id"),
        finish_reason=meta.get("finish_reason", ABSENT),
        prompt_tokens=read_int(meta, "prompt_tokens"),
        completion_tokens=read_int(meta, "completion_tokens"),
        cached_tokens=read_int(meta, "cached_tokens"),
        reasoning_tokens=read_int(meta, "reasoning_tokens"),
        weight_version=read_version(meta.get("weight_version", ABSENT)),
        weight_versions=_spans(meta["weight_versions"]) if "weight_versions" in meta else None,
        output_top_logprobs=meta.get("output_top_logprobs", ABSENT),
    )
    extras = {name: bytes(raw) for name, raw in meta.items() if _is_extra(name, raw)}
    return _made(text, tokens, told, extras, problem, streamed)


def _made(
    text: str | None,
    tokens: Sampled,
    told: Told,
    extras: Mapping[str, bytes],
    problem: str | None,
    streamed: tuple[VersionRun, ...],
) -> Answer:
    count = len(tokens.ids) // ID_BYTES
    version = told.weight_version
    if version is not None and not isinstance(version, str):
        version = version_text(version)
    runs = _runs(told.weight_versions) if told.weight_versions else ()
    # Spans that contradict the tokens mean that one of the two is not what was sampled.
    contradiction = runs_problem(runs, count) if runs else None
    if contradiction is not None:
        runs = ()
    elif not runs:
        runs = streamed or (
            () if version is None or not count else (VersionRun(version, 0, count),)
        )
    completed, miscount = told.completion_tokens, None
    if completed is None:
        completed = count
    elif completed != count:
        miscount = f"the worker gave {count} ids but counts {completed} tokens"
    top = told.output_top_logprobs
    return Answer(
        id=told.id or "",
        text=text,
        ids=tokens.ids,
        logprobs=tokens.logprobs,
        unread=tokens.unread,
        finish_reason=_reason(bytes(told.finish_reason)),
        weight_version=version,
        versions=runs,
        prompt_tokens=told.prompt_tokens,
        completion_tokens=completed,
        cached_tokens=told.cached_tokens or 0,
        reasoning_tokens=told.reasoning_tokens or 0,
        top_logprobs=b"" if top == ABSENT else bytes(top),
        extras=extras,
        problem=problem or tokens.problem or miscount or contradiction,
    )


def finish_reason(meta: Mapping[str, Raw]) -> FinishReason | None:
    """``meta_info.finish_reason``; ``None`` while the generation runs."""
    return _reason(bytes(meta.get("finish_reason", ABSENT)))


def _reason(raw: bytes) -> FinishReason | None:
    return _read_reason(raw) if len(raw) > _SHORT_REASON else _known_reason(raw)


def _read_reason(raw: bytes) -> FinishReason | None:
    found = read_json(_FINISH, raw, "meta_info.finish_reason")
    if found is None:
        return None
    return FinishReason(
        type=found.type,
        matched=found.matched,
        message=found.message,
        status_code=found.status_code,
        raw=raw,
    )


_known_reason: Final = lru_cache(maxsize=256)(_read_reason)
"""Most answers end for one of a few reasons, in the very same words."""


def read_int(meta: Mapping[str, Raw], name: str) -> int | None:
    """An integer of ``meta_info``, or ``None``. Raises :class:`WorkerError` for another type."""
    raw = meta.get(name)
    return None if raw is None else read_json(_INT, raw, f"meta_info.{name}")


def _is_extra(name: str, raw: Raw) -> bool:
    """Lists, objects and strings that come with the tokens; plain numbers are telemetry."""
    if name in _TELEMETRY or name.startswith("spec_") or is_logprob(name):
        return False
    return bytes(memoryview(raw)[:1]) in b'["{'


def read_version(raw: Raw | bytes) -> str | None:
    """``meta_info.weight_version``. Raises :class:`WorkerError` for what cannot be one."""
    return version_text(read_json(_VERSION, raw, "meta_info.weight_version"))


def _spans(raw: Raw) -> list[Span] | None:
    """The worker's spans; none where it tells none that can be read as such."""
    try:
        return decode_typed(_SPANS, raw)
    except FieldTypeError:
        return None


def _runs(spans: Sequence[Span]) -> tuple[VersionRun, ...]:
    """Spans of at least a token as runs."""
    return tuple(
        VersionRun(version_text(each.version), each.start, each.end)
        for each in spans
        if each.start != each.end
    )
