"""One event of a worker's stream, as far as all events are read."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw

from slime_core import sse
from slime_core.errors import WorkerError
from slime_core.sglang.errors import read_json
from slime_core.sglang.repetition import Cut
from slime_core.sglang.strip import cut_members, strip_item
from slime_core.sglang.tokens import Triple
from slime_core.strict_json import BAD_JSON, FieldTypeError, decode_typed

__all__ = [
    "Meta",
    "PlainEvent",
    "PlainMeta",
    "StreamEvent",
    "client_view",
    "plain_view",
    "read_count",
    "read_event",
    "read_meta",
    "read_plain",
]

_NOTHING: Final = Raw(b"null")
_ZERO: Final = Raw(b"0")
_LOGPROBS: Final = b"_logprobs"
"""Stands once in every key that is there because logprobs were asked for."""
_LISTS: Final = re.compile(
    rb'"(?:input|output)_token_logprobs":\[(?:\[[^\[\]"]*\](?:,(?=\[)|(?=\])))*\],'
)
"""Such a member, of lists with nothing but numbers and words, and the comma behind it."""


class Meta(msgspec.Struct, gc=False):
    """``meta_info``, without what only the last event of a sample is asked for.

    What is raw is read when its event has been taken: one that tells nonsense there ends its call.
    """

    finish_reason: Raw = _NOTHING
    completion_tokens: int | None = None
    cached_tokens: Raw = _NOTHING
    reasoning_tokens: Raw = _NOTHING
    weight_version: Raw = _NOTHING
    output_token_logprobs: Raw = _NOTHING
    output_top_logprobs: Raw = _NOTHING
    input_token_logprobs: Raw = _NOTHING
    output_token_logprobs_length: Raw = _NOTHING


class StreamEvent(msgspec.Struct, gc=False):
    """An event; lists as they were written."""

    index: int | None = None
    text: str | None = None
    output_ids: Raw = _NOTHING
    meta_info: Meta | None = None
    error: Raw = _NOTHING


class PlainMeta(msgspec.Struct, gc=False):
    """``meta_info`` of a plain event."""

    completion_tokens: int
    output_token_logprobs: list[Triple]
    finish_reason: None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    weight_version: Raw = _NOTHING
    output_top_logprobs: None = None
    input_token_logprobs: Raw = _NOTHING


class PlainEvent(msgspec.Struct, gc=False):
    """An event of new text and new tokens with their logprobs, and nothing else: nearly all are.

    Read in one go it costs a third of what :class:`StreamEvent` and its lists cost.
    """

    text: str
    output_ids: list[int]
    meta_info: PlainMeta
    index: int | None = None
    error: None = None


class _Whole(msgspec.Struct, gc=False):
    meta_info: dict[str, Raw]


_EVENT: Final = msgspec.json.Decoder(StreamEvent)
_PLAIN: Final = msgspec.json.Decoder(PlainEvent)
_COUNT: Final[msgspec.json.Decoder[int | None]] = msgspec.json.Decoder(int | None)
_WHOLE: Final = msgspec.json.Decoder(_Whole)


def read_event(data: bytes) -> StreamEvent:
    """The event. Raises :class:`WorkerError` for what is none."""
    try:
        return decode_typed(_EVENT, data)
    except FieldTypeError as error:
        path = error.path.removeprefix(".")
        if path.startswith("meta_info."):
            words = f"The worker's answer cannot be read: {path}: {error.message}."
        else:
            words = f"The worker sent an event that cannot be read: {error.message}."
        raise WorkerError(words) from None


def read_plain(data: bytes) -> PlainEvent | None:
    """The event, if it is a plain one that says nothing but what a plain one says; or ``None``."""
    try:
        return _PLAIN.decode(data)
    except BAD_JSON:
        return None


def read_count(raw: Raw, name: str) -> int:
    """A count of ``meta_info``, 0 where it is not told. Raises :class:`WorkerError` likewise."""
    if raw in (_ZERO, _NOTHING):
        return 0
    try:
        return _COUNT.decode(raw) or 0
    except BAD_JSON:
        return read_json(_COUNT, raw, f"meta_info.{name}") or 0


def read_meta(data: bytes) -> dict[str, Raw]:
    """All of an event's ``meta_info``. Raises :class:`WorkerError` likewise."""
    return read_json(_WHOLE, data, "the event").meta_info


def client_view(event: sse.Event, meta: Meta, cut: Cut | None) -> bytes:
    """The event without its logprobs.

    Of one that was cut, ``meta`` is that of the rest; only the rest is searched.
    """
    rest = event.data if cut is None else cut.rest
    members = [
        (key, value)
        for key, value in (
            (b'"output_token_logprobs":', meta.output_token_logprobs),
            (b'"input_token_logprobs":', meta.input_token_logprobs),
            (b'"output_token_logprobs_length":', meta.output_token_logprobs_length),
            (b'"output_top_logprobs":', meta.output_top_logprobs),
        )
        if value is not _NOTHING
    ]
    view = _without_lists(rest, len(members))
    if view is None and rest.count(_LOGPROBS) == len(members):
        view = cut_members(rest, members)
    if view is not None and cut is not None:
        head, rest_head = cut.joints[0][1], cut.rest_head
        view = (
            event.data[:head] + view[rest_head:] if view[:rest_head] == rest[:rest_head] else None
        )
    return sse.encode(strip_item(event.data) if view is None else view)


def plain_view(event: sse.Event, meta: PlainMeta) -> bytes:
    """The same of a plain event."""
    members = 1 if meta.input_token_logprobs is _NOTHING else 2
    view = _without_lists(event.data, members)
    return sse.encode(strip_item(event.data) if view is None else view)


def _without_lists(data: bytes, members: int) -> bytes | None:
    """An event without the two lists of logprobs; ``None`` if that is not all there is, or plain.

    So many ``members`` are known to be in its ``meta_info``: if there are no more of the kind, they
    are those that are found.
    """
    if data.count(_LOGPROBS) != members:
        return None
    view, count = _LISTS.subn(b"", data)
    return view if count == members else None
