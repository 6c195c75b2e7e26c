"""A worker's stream, event by event.

SGLang streams in two ways and does not say which. By default every event repeats everything so
far; with ``--incremental-streaming-output`` text, ids and logprobs are what is new. The totals in
``completion_tokens`` tell them apart: an event of a sample that already has ``p`` tokens, with
``k`` ids listed and a total of ``c``, is cumulative if ``k == c`` and incremental if
``k == c - p``. A sample's first event fits both and means the same in both. An abort of a request
that had gone back to the queue repeats the whole text and only the last id in either mode; its
total shows whether that id is new.

The new part of a list that repeats itself is found by comparing bytes with the list before, so
every token is decoded once, however long the answer; only ``memcmp`` and the skipping scan see the
repetition. A list whose bytes do not continue the list before has changed.

What breaks the frame (unreadable JSON, an index that was not asked for, an event after a
sample's end) raises :class:`~slime_core.errors.WorkerError`. What only breaks the capture (counts
that do not add up, ids or text that change) is noted as the sample's ``problem``; the event still
goes to the client as it came.
"""

from __future__ import annotations

import dataclasses
import enum
from array import array
from typing import Final

import msgspec
from msgspec import Raw

from slime_core import sse
from slime_core.errors import SlimeError, WorkerError
from slime_core.sglang.answer import (
    Answer,
    FinishReason,
    build_answer,
    finish_reason,
    read_int,
    read_version,
)
from slime_core.sglang.asked import Asked
from slime_core.sglang.errors import worker_error
from slime_core.sglang.strip import strip_item
from slime_core.sglang.tokens import Tokens, pack, read_tokens
from slime_core.strict_json import FieldTypeError, decode_typed, is_null
from slime_core.types import PackedIds
from slime_core.versions import VersionRun

__all__ = ["Mode", "StreamAssembler", "StreamStep"]


class Mode(enum.Enum):
    """How a worker streams."""

    UNKNOWN = "unknown"
    """Nothing has been seen that would tell."""
    CUMULATIVE = "cumulative"
    """Every event repeats all that came before."""
    INCREMENTAL = "incremental"
    """Every event holds what is new."""


_NO_IDS: Final = PackedIds(b"")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamStep:
    """What one event brought."""

    raw: bytes
    """The client's view: the event's own bytes, or the event without logprobs."""
    sample: int | None = None
    """Which sample; ``None`` for errors and for the end of the stream."""
    text: str = ""
    """The new text."""
    ids: PackedIds = _NO_IDS
    """The new token ids."""
    logprobs: tuple[float | None, ...] = ()
    """The new logprobs; one per new id unless the sample has a problem."""
    top_logprobs: bytes = b""
    """The new ``output_top_logprobs`` as a raw JSON array; empty if there are none."""
    tokens: int = 0
    """How many tokens the sample has now."""
    cached_tokens: int = 0
    """How many tokens of the prompt the worker had cached, as far as it has told."""
    reasoning_tokens: int = 0
    """How many of the sample's tokens the worker counts as reasoning."""
    finish_reason: FinishReason | None = None
    """Set by the event that finishes the sample."""
    error: SlimeError | None = None
    """The worker reports an error instead of an answer."""
    done: bool = False
    """This is ``[DONE]``."""


_NOTHING: Final = Raw(b"null")


class _Event(msgspec.Struct, gc=False):
    index: int | None = None
    text: str | None = None
    output_ids: Raw = _NOTHING
    meta_info: dict[str, Raw] | None = None
    error: Raw = _NOTHING


class _Failure(msgspec.Struct):
    code: int | str | None = None


_EVENT: Final = msgspec.json.Decoder(_Event)
_FAILURE: Final = msgspec.json.Decoder(_Failure)
_RAWS: Final[msgspec.json.Decoder[list[Raw] | None]] = msgspec.json.Decoder(list[Raw] | None)


class _Repeating:
    """A JSON list that is sent anew with more at its end; gives what was added."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before = b"[]"

    def added(self, now: bytes) -> bytes | None:
        """The new elements as a JSON array, or ``None`` if ``now`` does not continue the list."""
        before, self._before = self._before, now
        kept = len(before) - 1
        if not now.startswith(before[:kept]) or now[kept : kept + 1] not in (b",", b"]"):
            # From the empty list there is no comma to continue after.
            return now if before == b"[]" else None
        return b"[" + now[kept + 1 :] if now[kept : kept + 1] == b"," else b"[]"


class _Sample:
    """One sample so far."""

    __slots__ = (
        "finish_reason",
        "has_text",
        "ids",
        "listed_ids",
        "listed_logprobs",
        "listed_top",
        "logprobs",
        "meta",
        "problem",
        "text",
        "tops",
        "versions",
    )

    def __init__(self) -> None:
        self.ids = array("I")
        self.logprobs: list[float | None] = []
        self.tops: list[bytes] = []
        self.text: list[str] = []
        self.has_text = False
        self.meta: dict[str, Raw] = {}
        self.finish_reason: FinishReason | None = None
        self.problem: str | None = None
        self.listed_ids = _Repeating()
        self.listed_logprobs = _Repeating()
        self.listed_top = _Repeating()
        self.versions: list[tuple[bytes, int]] = []

    def note_version(self, told: bytes, start: int) -> None:
        """The tokens from ``start`` on came with this version, as raw JSON."""
        self.meta.pop("weight_versions", None)  # Spans told before them do not speak of them.
        if not self.versions or self.versions[-1][0] != told:
            self.versions.append((told, start))

    def version_runs(self) -> tuple[VersionRun, ...]:
        """The version of every token, as the event that brought it told; empty: none did."""
        ends = [*(start for _, start in self.versions), len(self.ids)][1:]
        runs = tuple(
            VersionRun(read_version(told), start, end)
            for (told, start), end in zip(self.versions, ends, strict=True)
        )
        return runs if any(run.version is not None for run in runs) else ()

    def note(self, problem: str) -> None:
        self.problem = self.problem or problem

    def whole_text(self) -> str:
        if len(self.text) > 1:
            self.text = ["".join(self.text)]
        return self.text[0] if self.text else ""


class StreamAssembler:
    """Turns the events of one worker stream into steps, and into answers at any time.

    Call :meth:`receive` with each event in order; after a cut or at the end ask
    :meth:`partial` for what there is of each sample.
    """

    def __init__(self, request: Asked) -> None:
        self._request = request
        self._samples = [_Sample() for _ in range(request.samples)]
        self._unfinished = request.samples
        self.mode = Mode.UNKNOWN
        self.done = False

    @property
    def finished(self) -> bool:
        """Whether every sample has finished."""
        return self._unfinished == 0

    def partial(self, index: int) -> Answer | None:
        """Sample ``index`` as far as it came, or ``None`` if nothing came.

        Its ``finish_reason`` is ``None`` unless the sample finished.
        """
        sample = self._samples[index]
        if not sample.meta:
            return None
        answer = build_answer(
            text=sample.whole_text() if sample.has_text else None,
            tokens=pack(Tokens(ids=sample.ids, logprobs=sample.logprobs, problem=None)),
            meta=sample.meta,
            problem=sample.problem,
            streamed=sample.version_runs(),
        )
        top = b"[" + b",".join(sample.tops) + b"]" if sample.tops else b""
        return dataclasses.replace(answer, top_logprobs=top)

    def receive(self, event: sse.Event) -> list[StreamStep]:
        """The steps of one event (with SGLang 0.5.23 always exactly one).

        Raises :class:`WorkerError` for what no worker may send.
        """
        if self.done:
            raise WorkerError("The worker sent an event after the end of its stream.")
        if event.data == b"[DONE]":
            self.done = True
            return [StreamStep(raw=event.raw, done=True)]
        try:
            found = decode_typed(_EVENT, event.data)
        except FieldTypeError as error:
            raise WorkerError(
                f"The worker sent an event that cannot be read: {error.message}."
            ) from None
        if not is_null(found.error):
            return [StreamStep(raw=event.raw, error=_failure(found.error, event.data))]
        if found.meta_info is None:
            raise WorkerError("The worker sent an event without meta_info.")
        return [self._step(event, found, found.meta_info)]

    def _step(self, event: sse.Event, found: _Event, meta: dict[str, Raw]) -> StreamStep:
        index = self._index(found.index)
        sample = self._samples[index]
        if sample.finish_reason is not None:
            raise WorkerError(f"The worker went on with sample {index} after its end.")
        reason = finish_reason(meta)
        tokens, top, repeats = self._new_tokens(sample, found, meta, reason)
        if tokens.ids:
            sample.note_version(_bytes(meta.get("weight_version", _NOTHING)), len(sample.ids))
        sample.ids.extend(tokens.ids)
        sample.logprobs.extend(tokens.logprobs)
        if len(top) > len(b"[]"):
            sample.tops.append(top[1:-1])
        text = _new_text(sample, found.text, repeats)
        # An abort in the queue tells less of the prompt than the events before it.
        sample.meta = meta if reason is None else sample.meta | meta
        if reason is not None:
            sample.finish_reason = reason
            self._unfinished -= 1
        shown = self._request.shows_logprobs(index)
        return StreamStep(
            raw=event.raw if shown else sse.encode(strip_item(event.data, meta)),
            sample=index,
            text=text,
            ids=PackedIds(tokens.ids.tobytes()),
            logprobs=tuple(tokens.logprobs),
            top_logprobs=top,
            tokens=len(sample.ids),
            cached_tokens=read_int(sample.meta, "cached_tokens") or 0,
            reasoning_tokens=read_int(sample.meta, "reasoning_tokens") or 0,
            finish_reason=reason,
        )

    def _index(self, index: int | None) -> int:
        if index is None and self._request.samples == 1:
            return 0
        if index is None or not 0 <= index < self._request.samples:
            raise WorkerError(f"The worker sent an event of a sample {index} nobody asked for.")
        return index

    def _new_tokens(
        self, sample: _Sample, found: _Event, meta: dict[str, Raw], reason: FinishReason | None
    ) -> tuple[Tokens, bytes, bool]:
        """What is new, the new top logprobs, and whether the event's text repeats the old."""
        ids = _bytes(found.output_ids)
        triples = _bytes(meta.get("output_token_logprobs", _NOTHING))
        top = _bytes(meta.get("output_top_logprobs", _NOTHING))
        count = _entries(triples) if ids == b"null" else _ids_listed(ids)
        total = read_int(meta, "completion_tokens")
        counts = len(sample.ids), count, count if total is None else total
        queued = _is_queued_abort(reason, meta)
        repeats = _repeats_at_abort(*counts) if queued else self._repeats(*counts)
        if repeats is None:
            return self._irregular(sample, total, reason)
        if repeats:
            ids = _added(sample, sample.listed_ids, ids)
            triples = _added(sample, sample.listed_logprobs, triples)
            top = _added(sample, sample.listed_top, top)
        new = read_tokens(ids, triples)
        if new.problem is not None:
            sample.note(new.problem)
        return new, b"" if top == b"null" else top, repeats or queued

    def _repeats(self, had: int, count: int, total: int) -> bool | None:
        """Whether an event with ``count`` ids of ``total`` repeats the ``had`` before it.

        ``None`` if that fits neither way of streaming.
        """
        if self.mode is Mode.UNKNOWN and had and count != total:
            self.mode = Mode.INCREMENTAL if count == total - had else Mode.UNKNOWN
        elif self.mode is Mode.UNKNOWN and had and total > had:
            self.mode = Mode.CUMULATIVE
        if self.mode is Mode.INCREMENTAL:
            return False if count == total - had else None
        return True if count == total >= had else None

    def _irregular(
        self, sample: _Sample, total: int | None, reason: FinishReason | None
    ) -> tuple[Tokens, bytes, bool]:
        """An event whose counts fit neither mode: nothing new is believed of its tokens."""
        aborted = reason is not None and reason.type == "abort"
        if not aborted or total != len(sample.ids):
            sample.note(
                f"an event counts {total} tokens, which does not follow from {len(sample.ids)}"
            )
        nothing = Tokens(ids=array("I"), logprobs=[], problem=None)
        return nothing, b"", aborted or self.mode is not Mode.INCREMENTAL


def _is_queued_abort(reason: FinishReason | None, meta: dict[str, Raw]) -> bool:
    """Whether a request was aborted while it waited: only then are the prompt's tokens not told."""
    return reason is not None and reason.type == "abort" and "prompt_tokens" not in meta


def _repeats_at_abort(had: int, count: int, total: int) -> bool | None:
    """As ``_repeats``, for an abort in the queue, which tells nothing of how a worker streams."""
    if count == total >= had:
        return True
    return False if count == total - had else None


def _bytes(raw: Raw) -> bytes:
    return b"null" if is_null(raw) else bytes(raw)


def _added(sample: _Sample, listed: _Repeating, now: bytes) -> bytes:
    if now == b"null":
        return now
    added = listed.added(now)
    if added is None:
        sample.note("tokens that were already sent have changed")
        return b"[]"
    return added


def _new_text(sample: _Sample, text: str | None, repeats: bool) -> str:
    if text is None:
        return ""
    sample.has_text = True
    if repeats:
        if not text.startswith(sample.whole_text()):
            sample.note("text that was already sent has changed")
            return ""
        new = text[len(sample.whole_text()) :]
        sample.text = [text]
        return new
    sample.text.append(text)
    return text


def _ids_listed(raw: bytes) -> int:
    """How many ids a JSON array lists, without making them: it repeats itself on every event."""
    return raw.count(b",") + 1 if raw[1:-1].strip() else 0


def _entries(raw: bytes) -> int:
    """How many elements a JSON array has; 0 for null."""
    try:
        return len(decode_typed(_RAWS, raw) or ())
    except FieldTypeError:
        raise WorkerError("The worker sent output_token_logprobs that is no list.") from None


def _failure(error: Raw, data: bytes) -> SlimeError:
    try:
        code = decode_typed(_FAILURE, error).code
    except FieldTypeError:
        code = None
    return worker_error(code if isinstance(code, int) else 500, data)
