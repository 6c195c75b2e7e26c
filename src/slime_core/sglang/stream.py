"""A worker's stream, event by event.

SGLang streams in two ways and does not say which. By default every event repeats everything so
far; with ``--incremental-streaming-output`` text, ids and logprobs are what is new. The totals in
``completion_tokens`` tell them apart: an event of a sample that already has ``p`` tokens, with
``k`` ids listed and a total of ``c``, is cumulative if ``k == c`` and incremental if
``k == c - p``. A sample's first event fits both and means the same in both. An abort of a request
that had gone back to the queue repeats the whole text and only the last id in either mode; its
total shows whether that id is new.

What an event repeats is cut out of its bytes before they are parsed
(:mod:`slime_core.sglang.repetition`), so that every token is decoded once, however long the answer;
only ``memcmp`` sees the repetition. Where there is nothing to cut, as in the first events and in
those that change what was sent, lists are compared with the lists before: one whose bytes do not
continue the list before has changed.

What breaks the frame (unreadable JSON, an index that was not asked for, an event after a
sample's end) raises :class:`~slime_core.errors.WorkerError`. What only breaks the capture (counts
that do not add up, ids or text that change) is noted as the sample's ``problem``; the event still
goes to the client as it came.
"""

from __future__ import annotations

import re
from array import array
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from slime_core import sse
from slime_core.errors import SlimeError, WorkerError
from slime_core.sglang.answer import Answer, FinishReason, build_answer, finish_reason, read_int
from slime_core.sglang.asked import Asked
from slime_core.sglang.errors import worker_error
from slime_core.sglang.repetition import Cut
from slime_core.sglang.stream_event import (
    Meta,
    PlainEvent,
    StreamEvent,
    client_view,
    plain_view,
    read_count,
    read_event,
    read_meta,
    read_plain,
)
from slime_core.sglang.stream_sample import Sample
from slime_core.sglang.stream_step import Mode, StreamStep
from slime_core.sglang.tokens import Tokens, pack, read_tokens
from slime_core.strict_json import FieldTypeError, decode_typed, is_null
from slime_core.types import PackedIds, pack_ids

__all__ = ["StreamAssembler"]


class _New(NamedTuple):
    """What is new in an event: tokens, raw top logprobs, text."""

    tokens: Tokens
    top: bytes
    text: str


class _Failure(msgspec.Struct):
    code: int | str | None = None


_FAILURE: Final = msgspec.json.Decoder(_Failure)
_RAWS: Final[msgspec.json.Decoder[list[Raw] | None]] = msgspec.json.Decoder(list[Raw] | None)
_INDEX: Final = re.compile(rb',"index": ?([0-9]{1,9})\}\Z')
_INDEX_BYTES: Final = 24
_NULL: Final = b"null"


class StreamAssembler:
    """Turns the events of one worker stream into steps, and into answers at any time.

    Call :meth:`receive` with each event in order; after a cut or at the end ask
    :meth:`partial` for what there is of each sample.
    """

    def __init__(self, request: Asked) -> None:
        self._samples = [Sample() for _ in range(request.samples)]
        self._shows_logprobs = [request.shows_logprobs(one) for one in range(request.samples)]
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
        meta = sample.meta
        if not meta:
            return None
        answer = build_answer(
            text=sample.whole_text() if sample.has_text else None,
            tokens=pack(Tokens(ids=sample.ids, logprobs=sample.logprobs, problem=None)),
            meta=meta,
            problem=sample.problem,
            streamed=sample.version_runs(),
        )
        top = b"[" + b",".join(sample.tops) + b"]" if sample.tops else b""
        return replace(answer, top_logprobs=top)

    def receive(self, event: sse.Event) -> list[StreamStep]:
        """The steps of one event (with SGLang 0.5.23 always exactly one).

        Raises :class:`WorkerError` for what no worker may send.
        """
        repeats = self.mode is Mode.CUMULATIVE
        step = None if repeats else self.plain_step(event)
        if step is not None:
            return [step]
        if self.done:
            raise WorkerError("The worker sent an event after the end of its stream.")
        if event.data == b"[DONE]":
            self.done = True
            return [StreamStep(raw=event.raw, done=True)]
        step = self._cut_step(event, may_end=True) if repeats else None
        return [step or self._whole_step(event)]

    def plain_step(self, event: sse.Event) -> StreamStep | None:
        """The step of an event that goes on with its sample as the one before it did.

        ``None``, and nothing has changed, for one that is to be given to :meth:`receive`. Raises
        :class:`WorkerError` likewise.
        """
        if self.mode is Mode.CUMULATIVE and not self.done:
            return self._cut_step(event, may_end=False)
        found = self._plain(event)
        if found is None:
            return None
        meta = found.meta_info
        return StreamStep(
            raw=self._plain_view(event, found),
            sample=found.index,
            text=found.text,
            ids=pack_ids(found.output_ids),
            logprobs=tuple([entry.logprob for entry in meta.output_token_logprobs]),
            tokens=meta.completion_tokens,
            cached_tokens=meta.cached_tokens or 0,
            reasoning_tokens=meta.reasoning_tokens or 0,
        )

    def take_plain(self, event: sse.Event) -> bytes | None:
        """The client's view of an event that goes on with its sample as the one before it did and
        repeats nothing; to a client that is shown the events there is no more to say of it.

        ``None``, and nothing has changed, for any other.
        """
        found = self._plain(event)
        return None if found is None else self._plain_view(event, found)

    def _plain(self, event: sse.Event) -> PlainEvent | None:
        if self.mode is not Mode.INCREMENTAL or self.done:
            return None
        found = read_plain(event.data)
        if found is None:
            return None
        if found.index is None and len(self._samples) == 1:
            found.index = 0
        index = found.index
        if index is None or not 0 <= index < len(self._samples):
            return None
        return found if self._samples[index].take_plain(found, event.data) else None

    def _plain_view(self, event: sse.Event, found: PlainEvent) -> bytes:
        shown = self._shows_logprobs[found.index or 0]
        return event.raw if shown else plain_view(event, found.meta_info)

    def _cut_step(self, event: sse.Event, *, may_end: bool) -> StreamStep | None:
        """The step of an event that repeats the one before it of its sample.

        ``None``, and nothing has changed, if it does not, if it ends its sample and may not, or if
        anything is unusual about it.
        """
        index = self._expected_index(event.data)
        sample = None if index is None else self._samples[index]
        cut = None if sample is None else sample.cut(event.data)
        if index is None or sample is None or cut is None:
            return None
        try:
            found = read_event(cut.rest)
            meta = found.meta_info
            if meta is None or self._index(found.index) != index or not is_null(found.error):
                return None
            ids, triples, top = _lists(found, meta)
            if not sample.is_covered(cut, found.text, top):
                return None
            tokens = read_tokens(ids, triples)
        except WorkerError:
            return None
        listed = sample.listed + len(tokens.ids)
        is_regular = listed == meta.completion_tokens and listed >= len(sample.ids)
        if not is_regular or sample.finish_reason is not None:
            return None
        if not (may_end or is_null(meta.finish_reason)):
            return None
        sample.go_on(event.data, cut, (ids, triples, top)[: len(cut.joints)], listed)
        told = None if is_null(meta.finish_reason) else read_meta(cut.rest)
        new = _New(tokens, _given(top), sample.say(found.text, repeats=False))
        return self._told(event, index, meta, told, new, cut)

    def _expected_index(self, data: bytes) -> int | None:
        """Whose event this is, by its last bytes."""
        if len(self._samples) == 1:
            return 0
        found = _INDEX.search(data, max(0, len(data) - _INDEX_BYTES))
        index = len(self._samples) if found is None else int(found[1])
        return index if index < len(self._samples) else None

    def _whole_step(self, event: sse.Event) -> StreamStep:
        found = read_event(event.data)
        if not is_null(found.error):
            return StreamStep(raw=event.raw, error=_failure(found.error, event.data))
        meta = found.meta_info
        if meta is None:
            raise WorkerError("The worker sent an event without meta_info.")
        index = self._index(found.index)
        sample = self._samples[index]
        if sample.finish_reason is not None:
            raise WorkerError(f"The worker went on with sample {index} after its end.")
        sample.expect_nothing()
        told = None if is_null(meta.finish_reason) else read_meta(event.data)
        new = self._new(sample, event.data, found, meta, told)
        return self._told(event, index, meta, told, new, None)

    def _told(
        self,
        event: sse.Event,
        index: int,
        meta: Meta,
        told: dict[str, Raw] | None,
        new: _New,
        cut: Cut | None,
    ) -> StreamStep:
        """The step of an event, once it is known what is new in it.

        ``told`` is all of the ``meta_info`` of a sample's last event.
        """
        sample, (tokens, top, text) = self._samples[index], new
        sample.take(tokens, top, meta)
        reason = None if told is None else finish_reason(told)
        if told is None or reason is None:
            sample.tell(event.data if cut is None else cut.rest)
            cached = read_count(meta.cached_tokens, "cached_tokens")
            reasoning = read_count(meta.reasoning_tokens, "reasoning_tokens")
        else:
            sample.finish(reason, told, has_new=bool(tokens.ids))
            self._unfinished -= 1
            cached = read_int(sample.meta, "cached_tokens") or 0
            reasoning = read_int(sample.meta, "reasoning_tokens") or 0
        return StreamStep(
            raw=event.raw if self._shows_logprobs[index] else client_view(event, meta, cut),
            sample=index,
            text=text,
            ids=PackedIds(tokens.ids.tobytes()),
            logprobs=tuple(tokens.logprobs),
            top_logprobs=top,
            tokens=len(sample.ids),
            cached_tokens=cached,
            reasoning_tokens=reasoning,
            finish_reason=reason,
        )

    def _index(self, index: int | None) -> int:
        samples = len(self._samples)
        if index is None and samples == 1:
            return 0
        if index is None or not 0 <= index < samples:
            raise WorkerError(f"The worker sent an event of a sample {index} nobody asked for.")
        return index

    def _new(
        self,
        sample: Sample,
        data: bytes,
        found: StreamEvent,
        meta: Meta,
        told: dict[str, Raw] | None,
    ) -> _New:
        """What is new in an event that was read whole."""
        ids, triples, top = values = _lists(found, meta)
        reason = None if told is None else finish_reason(told)
        count = _entries(triples) if ids == _NULL else _ids_listed(ids)
        total = meta.completion_tokens
        counts = len(sample.ids), count, count if total is None else total
        queued = told is not None and _is_queued_abort(reason, told)
        repeats = _repeats_at_abort(*counts) if queued else self._repeats(*counts)
        if repeats is None:
            tokens, repeats_text = self._irregular(sample, total, reason)
            return _New(tokens, b"", sample.say(found.text, repeats=repeats_text))
        if repeats:
            ids, triples, top = sample.added(values)
        tokens = read_tokens(ids, triples)
        if tokens.problem is not None:
            sample.note(tokens.problem)
        text = sample.say(found.text, repeats=repeats or queued)
        if self.mode is Mode.CUMULATIVE and reason is None:
            sample.expect(data, values, count)
        return _New(tokens, _given(top), text)

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
        self, sample: Sample, total: int | None, reason: FinishReason | None
    ) -> tuple[Tokens, bool]:
        """An event whose counts fit neither mode: nothing new is believed of its tokens.

        Those tokens, and whether its text repeats what came before.
        """
        aborted = reason is not None and reason.type == "abort"
        if not aborted or total != len(sample.ids):
            sample.note(
                f"an event counts {total} tokens, which does not follow from {len(sample.ids)}"
            )
        nothing = Tokens(ids=array("I"), logprobs=[], problem=None)
        return nothing, aborted or self.mode is not Mode.INCREMENTAL


def _lists(found: StreamEvent, meta: Meta) -> tuple[bytes, bytes, bytes]:
    """``output_ids``, ``output_token_logprobs`` and ``output_top_logprobs`` in JSON."""
    return (
        bytes(found.output_ids),
        bytes(meta.output_token_logprobs),
        bytes(meta.output_top_logprobs),
    )


def _is_queued_abort(reason: FinishReason | None, meta: dict[str, Raw]) -> bool:
    """Whether a request was aborted while it waited: only then are the prompt's tokens not told."""
    return reason is not None and reason.type == "abort" and "prompt_tokens" not in meta


def _repeats_at_abort(had: int, count: int, total: int) -> bool | None:
    """As ``_repeats``, for an abort in the queue, which tells nothing of how a worker streams."""
    if count == total >= had:
        return True
    return False if count == total - had else None


def _given(top: bytes) -> bytes:
    """Top logprobs as a step tells them."""
    return b"" if top == _NULL else top


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
