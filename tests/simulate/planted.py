"""Bugs on purpose: each is switched on for a while, and must be found by the simulation.

A bug is planted in the product, never in the world, the harnesses or the oracles. The names patched
are the product's own; where one is renamed, planting fails loudly.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio
from msgspec import structs

from slime_core import calls, capture, decide, history_looks, lookup, sglang, sse
from slime_core.calls import Calls
from slime_core.capture import Prompt
from slime_core.fleet import Fleet, Worker
from slime_core.forest import Forest
from slime_core.gone import GoneMemory
from slime_core.history_looks import History
from slime_core.lookup import TextFound
from slime_core.segments import Outcome, Segment
from slime_core.sglang import Answer, StreamAssembler
from slime_core.sglang.tokens import read_logprobs
from slime_core.trajectory import SampledRun, Trajectory, _Builder
from slime_core.transitions import CallCaptured, CallOpened
from slime_core.types import PackedIds, pack_logprobs, unpack_logprobs
from slime_core.versions import VersionRun
from slime_trio import quart_listener, relay
from slime_trio.dialects import NativeDialect
from slime_trio.dispatch.dispatcher import Asking, Dispatcher
from slime_trio.exchange import ClientGone
from slime_trio.listener import answer as listener_answer
from slime_trio.listener.connection import Connection
from slime_trio.upstream import STREAM_FAILURES, UpstreamError

__all__ = ["PLANTED", "Planted", "bug", "patched"]

_Patch = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A bug. ``plant`` makes it real until the context is left."""

    name: str
    description: str
    harnesses: tuple[str, ...]
    plant: _Patch
    of_chat: bool = False
    """Only chats can meet it."""
    of_control: bool = False
    """Only what is asked through the router can."""


PLANTED: Final[dict[str, Planted]] = {}


def bug(description: str, *harnesses: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Register a bug by the name of its function; without harnesses named: both."""

    def register(make: Callable[[], Iterator[None]]) -> None:
        name = make.__name__.strip("_")
        PLANTED[name] = Planted(
            name=name,
            description=description,
            harnesses=harnesses or ("core", "shell"),
            plant=contextmanager(make),
            of_chat=make.__module__.endswith("_chat"),
            of_control=".control." in make.__module__,
        )

    return register


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` for a while. The very object comes back, descriptors included."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# -- trajectories ------------------------------------------------------------------------


@bug("the loss mask is shifted by one token")
def _mask_off_by_one() -> Iterator[None]:
    build = _Builder.build

    def shifted(self: _Builder, ids: PackedIds, end: int) -> Trajectory:
        self._sampled = [
            run._replace(start=max(0, run.start - 1), end=run.end - 1) for run in self._sampled
        ]
        return build(self, ids, end)

    with patched(_Builder, "build", shifted):
        yield


@bug("an answer is given the logprobs and versions of its twin with the same ids")
def _logprobs_of_the_twin() -> Iterator[None]:
    add = _Builder.add

    def twins(self: _Builder, segment: Segment, stop: int) -> None:
        mine = segment.answer
        segment.answer = (segment.id_node.marks or [segment])[0].answer or mine
        add(self, segment, stop)
        segment.answer = mine

    with patched(_Builder, "add", twins):
        yield


@bug("all tokens of an answer are given the version of its first one")
def _version_of_the_first_token() -> Iterator[None]:
    add = _Builder._add_versions

    def whole(self: _Builder, run: VersionRun, offset: int, count: int) -> None:
        if run.start == 0:
            add(self, VersionRun(run.version, 0, count), offset, count)

    with patched(_Builder, "_add_versions", whole):
        yield


@bug("a trajectory that leaves an answer midway is not marked as cut")
def _cut_not_marked() -> Iterator[None]:
    build = _Builder.build

    def unmarked(self: _Builder, ids: PackedIds, end: int) -> Trajectory:
        self._cut = False
        return build(self, ids, end)

    with patched(_Builder, "build", unmarked):
        yield


@bug("ids that a client sent count as sampled")
def _client_ids_believed() -> Iterator[None]:
    add = _Builder.add

    def believing(self: _Builder, segment: Segment, stop: int) -> None:
        add(self, segment, stop)
        if segment.from_ids and segment.answer is None and stop > segment.token_start:
            nothing = array("d", bytes(8 * (stop - segment.token_start)))
            self._sampled.append(SampledRun(segment.token_start, stop, nothing))

    with patched(_Builder, "add", believing):
        yield


# -- capture -----------------------------------------------------------------------------


def _read(answer: Answer) -> Answer:
    """``answer`` with its logprobs read, if they were to be read later."""
    if not answer.unread:
        return answer
    logprobs, problem = read_logprobs(answer.unread, answer.ids)
    return structs.replace(answer, unread=b"", logprobs=logprobs, problem=problem)


def _concluding(change: Callable[[Answer], Answer]) -> AbstractContextManager[None]:
    """Every answer is changed before it is captured."""
    own = capture.conclude

    def changed(
        state: Any, facts: Any, prompt: Any, opened: Any, answer: Answer, *most: Any, **more: Any
    ) -> Any:
        return own(state, facts, prompt, opened, change(_read(answer)), *most, **more)

    return patched(calls, "conclude", changed)


@bug("all tokens of an answer are given the version in force at its end")
def _version_of_the_finish() -> Iterator[None]:
    def last(answer: Answer) -> Answer:
        if not answer.versions:
            return answer
        end = answer.versions[-1]
        return structs.replace(answer, versions=(VersionRun(end.version, 0, end.end),))

    with _concluding(last):
        yield


@bug("the logprobs of an answer are shifted by one token")
def _logprobs_shifted() -> Iterator[None]:
    def shifted(answer: Answer) -> Answer:
        count = len(answer.ids) // 4
        if answer.problem is not None or count < 2:
            return answer
        values = unpack_logprobs(answer.logprobs, count)
        return structs.replace(answer, logprobs=pack_logprobs(values[1:] + values[:1]))

    with _concluding(shifted):
        yield


@bug("an answer whose data do not fit together is captured nevertheless")
def _corrupt_answer_kept() -> Iterator[None]:
    def trusted(answer: Answer) -> Answer:
        count = len(answer.ids) // 4
        fits = len(answer.logprobs) in (4 * count, 8 * count) and answer.versions
        return structs.replace(answer, problem=None) if fits else answer

    with _concluding(trusted):
        yield


@bug("the stop token is left out of what is captured")
def _stop_token_left_out() -> Iterator[None]:
    def without(answer: Answer) -> Answer:
        reason, count = answer.finish_reason, len(answer.ids) // 4
        stopped = reason is not None and isinstance(reason.matched, int)
        if answer.problem is not None or not stopped or count < 2:
            return answer
        values = unpack_logprobs(answer.logprobs, count)[:-1]
        runs = tuple(
            VersionRun(run.version, run.start, min(run.end, count - 1))
            for run in answer.versions
            if run.start < count - 1
        )
        return structs.replace(
            answer,
            ids=PackedIds(answer.ids[:-4]),
            logprobs=pack_logprobs(values),
            versions=runs,
        )

    with _concluding(without):
        yield


@bug("an answer that broke off is called complete")
def _partial_called_complete() -> Iterator[None]:
    own = capture._outcome

    def complete(reason: sglang.FinishReason | None) -> Outcome:
        return Outcome.COMPLETE if reason is None else own(reason)

    with patched(capture, "_outcome", complete):
        yield


@bug("each answer is committed twice, the second time as another call")
def _committed_twice() -> Iterator[None]:
    keep = Calls.keep

    def twice(self: Calls, sample: int, answer: Answer, worker: Any, **more: Any) -> bool:
        prompt, opened = self._prompts[self._prompt_of[sample]], self._opened[sample]
        again = CallOpened(call=self._new_id(), parent=opened.parent, session=opened.session)
        self._commit(again)
        kept = keep(self, sample, answer, worker, **more)
        self._commit(*capture.conclude(self._state, self._facts, prompt, again, answer, worker))
        return kept

    with patched(Calls, "keep", twice):
        yield


@bug("an answer that was not captured does not say so")
def _loss_not_said() -> Iterator[None]:
    keep = Calls.keep

    def silent(self: Calls, sample: int, answer: Answer, worker: Any, **more: Any) -> bool:
        keep(self, sample, answer, worker, **more)
        return True

    with patched(Calls, "keep", silent):
        yield


def _never_ending(reason: str) -> AbstractContextManager[None]:
    end = Calls.end

    def forgetful(self: Calls, why: str, *, sampled: bool) -> None:
        if why != reason:
            end(self, why, sampled=sampled)

    return patched(Calls, "end", forgetful)


@bug("a call whose worker refuses it never ends")
def _refused_calls_never_end() -> Iterator[None]:
    with _never_ending("refused"):
        yield


@bug("a call whose client leaves never ends", "core")
def _left_calls_never_end() -> Iterator[None]:
    with _never_ending("client_gone"):
        yield


@bug("what a worker sampled for a call that was lost is not counted as sampled")
def _losses_not_counted() -> Iterator[None]:
    end = Calls.end

    def uncounted(self: Calls, reason: str, *, sampled: bool) -> None:
        end(self, reason, sampled=False)

    with patched(Calls, "end", uncounted):
        yield


@bug("the answers of one request change places")
def _answers_change_places() -> Iterator[None]:
    keep = Calls.keep

    def swapped(self: Calls, sample: int, answer: Answer, worker: Any, **more: Any) -> bool:
        other = len(self._opened) - 1 - sample
        return keep(self, other if other in self.in_flight else sample, answer, worker, **more)

    with patched(Calls, "keep", swapped):
        yield


# -- look-ups ----------------------------------------------------------------------------


@bug("history is encoded again instead of being extended")
def _history_encoded_again() -> Iterator[None]:
    with patched(lookup, "text_history", lambda *_: History(None, 0, 0)):
        yield


@bug("what was trimmed from an answer's text is encoded again behind it")
def _joint_doubled() -> Iterator[None]:
    with patched(history_looks.TextLook, "_joint", lambda *_: 0):
        yield


@bug("a cut keeps one token too many")
def _cut_keeps_too_much() -> Iterator[None]:
    right: Any = vars(history_looks)["tokens_before"]

    def greedy(ids: Any, text: str, chars: int, vocabulary: Any) -> Any:
        place = right(ids, text, chars, vocabulary)
        return type(place)(min(place.tokens + 1, len(ids)), place.chars)

    with patched(history_looks, "tokens_before", greedy):
        yield


@bug("a prompt that leaves an answer midway keeps nothing of it")
def _cut_keeps_nothing() -> Iterator[None]:
    with patched(history_looks.TextLook, "cut", lambda *_: None):
        yield


@bug("a client does not hear that its prompt was a cut, or of several equal answers")
def _flags_not_said() -> Iterator[None]:
    with patched(capture, "prompt_flags", lambda *_: ()):
        yield


@bug("someone else's longer sample takes the place of a session's own")
def _owners_ignored() -> Iterator[None]:
    with patched(history_looks, "_owners", lambda *_: {}):
        yield


@bug("ids that a client sent are taken for the encoding of their text")
def _client_ids_reused_for_text() -> Iterator[None]:
    with patched(Segment, "from_ids", property(lambda _: False, lambda *_: None)):
        yield


@bug("a known prompt is cut at its end, where the next character changes its last token", "core")
def _cut_at_the_end_of_a_prompt() -> Iterator[None]:
    def eager(
        forest: Forest, text: str, found: Any, base: History, _facts: Any, _is_whole: bool
    ) -> Any:
        start = base.text_start + base.joint
        source = lookup._run_source(found, base, start) if found.length > start else None
        if source is None or source.text_end > found.length:
            return None, PackedIds(b""), start
        return source, PackedIds(forest.own_ids(source)), source.text_end

    with patched(lookup, "_equal_run", eager):
        yield


@bug("text that goes on is encoded as if it were first")
def _beginning_encoded_twice() -> Iterator[None]:
    with patched(Prompt, "is_first", property(lambda self: not self.known)):
        yield


@bug("looking up changes what is evicted first")
def _look_up_that_touches() -> Iterator[None]:
    find: Any = vars(capture)["find_text"]

    def touching(forest: Forest, *args: Any, **more: Any) -> TextFound:
        found: TextFound = find(forest, *args, **more)
        if found.parent is not None:
            forest.touch(found.parent, 0)
        return found

    with patched(capture, "find_text", touching):
        yield


# -- the forest --------------------------------------------------------------------------


@bug("an answer with the text of another is taken for the same")
def _answers_merged_by_text() -> Iterator[None]:
    own = Forest.capture

    def merged(self: Forest, fact: CallCaptured, epoch: int) -> Segment:
        for one in self.calls.values():
            same = one.text_node is not None and self.own_text(one) == fact.answer_text
            if same and one.tokens * 4 == len(fact.answer_ids):
                return one
        return own(self, fact, epoch)

    with patched(Forest, "capture", merged):
        yield


@bug("the parent is chosen when the answer is committed")
def _parent_chosen_at_commit() -> Iterator[None]:
    own = Forest.capture

    def latest(self: Forest, fact: CallCaptured, epoch: int) -> Segment:
        fitting = [
            one
            for one in self.calls.values()
            if one.token_end == fact.token_start and one.text_end == fact.text_start
        ]
        if fitting and fact.parent is not None:
            fact = structs.replace(fact, parent=fitting[-1].number)
        return own(self, fact, epoch)

    with patched(Forest, "capture", latest):
        yield


@bug("what a call in flight extends may be evicted")
def _eviction_of_what_is_in_use() -> Iterator[None]:
    def unpinned(segment: Segment) -> bool:
        return not segment.children and segment.number > 0

    with patched(Forest, "_is_leaf", staticmethod(unpinned)):
        yield


@bug("answers that nobody has retrieved go although there is room")
def _unretrieved_evicted_early() -> Iterator[None]:
    with patched(Forest, "data_bytes", property(lambda _: 2**60)):
        yield


@bug("a prompt is forgotten although another call in flight needs it")
def _prompt_dropped_in_flight() -> Iterator[None]:
    def drop(self: Forest, segment: Segment) -> None:
        if segment.unanswered and not segment.children and segment.number > 0:
            self._remove(segment)

    with patched(Forest, "drop_if_unused", drop):
        yield


@bug("what became of lost answers is forgotten")
def _losses_forgotten() -> Iterator[None]:
    with patched(GoneMemory, "note_call", lambda *_: None):
        yield


@bug("answers that went unretrieved are not counted")
def _unretrieved_not_counted() -> Iterator[None]:
    gone = decide._gone

    def uncounted(*args: Any) -> Any:
        return structs.replace(gone(*args), unretrieved=0)

    with patched(decide, "_gone", uncounted):
        yield


# -- workers -----------------------------------------------------------------------------


@bug("workers that are not fit get work")
def _unfit_workers_chosen() -> Iterator[None]:
    with patched(Worker, "is_fit", property(lambda self: True)):
        yield


@bug("of a request with several calls only one slot is given back", "core")
def _slots_leaked() -> Iterator[None]:
    give = Fleet.give

    def first(self: Fleet, url: Any, calls: tuple[Any, ...]) -> None:
        give(self, url, calls[:1])

    with patched(Fleet, "give", first):
        yield


@bug("a slot is not given back if its request fails or is cancelled", "shell")
def _slot_leaked_on_failure() -> Iterator[None]:
    own = Dispatcher._end

    def leaking(self: Dispatcher, asking: Asking) -> None:
        if asking.is_complete or not asking.entry.workers:
            own(self, asking)

    with patched(Dispatcher, "_end", leaking):
        yield


# -- the stream and the client -----------------------------------------------------------


@bug("an event whose bytes came in several pieces is dropped")
def _event_dropped_at_a_split() -> Iterator[None]:
    own = sse.Decoder.receive

    def dropping(self: sse.Decoder, data: bytes) -> list[sse.Event]:
        began = bool(self._buffer or self._begun)
        events = own(self, data)
        return events[1:] if began else events

    with patched(sse.Decoder, "receive", dropping):
        yield


@bug("a stream that ends before its answer does is passed on as if it were whole")
def _truncated_stream_ends_cleanly() -> Iterator[None]:
    with patched(StreamAssembler, "finished", property(lambda _: True)):
        yield


@bug("an error in mid-stream is told as a proper end")
def _error_told_as_an_end() -> Iterator[None]:
    with patched(NativeDialect, "error", lambda *_: sse.DONE):
        yield


@bug("the last event of an answer is told twice")
def _finish_told_twice() -> Iterator[None]:
    def twice(_self: NativeDialect, step: sglang.StreamStep) -> bytes:
        return step.raw * (2 if step.finish_reason is not None else 1)

    with patched(NativeDialect, "step", twice):
        yield


@bug("an answer is committed after its last byte", "shell")
def _commit_after_the_last_byte() -> Iterator[None]:
    keep, take = relay._Exchange._keep, relay._Exchange._take

    def later(self: Any, sample: int, answer: Answer, worker: Any) -> bool:
        waiting = vars(self).get("waiting")
        if waiting is None:
            return keep(self, sample, answer, worker)
        waiting.append((sample, answer, worker))
        return True

    async def taken(self: Any, *args: Any) -> None:
        self.waiting = []
        try:
            await take(self, *args)
        finally:
            waiting, self.waiting = self.waiting, None
            for sample, answer, worker in waiting:
                keep(self, sample, answer, worker)

    with ExitStack() as stack:
        stack.enter_context(patched(relay._Exchange, "_keep", later))
        stack.enter_context(patched(relay._Exchange, "_take", taken))
        yield


@bug("a request is sent again after the worker's answer broke off", "shell")
def _second_attempt() -> Iterator[None]:
    ask = relay._Exchange._ask

    async def again(self: Any, *args: Any) -> None:
        try:
            await ask(self, *args)
        except UpstreamError:
            await ask(self, *args)

    with patched(relay._Exchange, "_ask", again):
        yield


class _EndlessChannels:
    """Stands for the module ``trio``."""

    open_memory_channel: Final = {bytes: lambda _size: trio.open_memory_channel[bytes](math.inf)}

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


@bug("a stream is read on from its worker while its client reads nothing", "shell")
def _endless_buffer() -> Iterator[None]:
    own, end = Connection.send, listener_answer.Answer.end
    waiting: dict[Connection, bytes] = {}

    def send_now(self: Connection, data: bytes) -> int:
        whole = waiting.pop(self, b"") + data
        try:
            taken = self._stream.send_now(whole)
        except STREAM_FAILURES as error:
            raise ClientGone("the connection is lost") from error
        if taken < len(whole):
            waiting[self] = whole[taken:]
        return len(data)

    async def send(self: Connection, data: bytes) -> None:
        send_now(self, data)

    async def last(self: Any) -> None:
        await end(self)
        await own(self._sends, waiting.pop(self._sends, b""))

    with ExitStack() as stack:
        stack.enter_context(patched(quart_listener, "trio", _EndlessChannels()))
        stack.enter_context(patched(Connection, "send", send))
        stack.enter_context(patched(Connection, "send_now", send_now))
        stack.enter_context(patched(listener_answer.Answer, "end", last))
        yield


@bug("calls are lost without a reason")
def _reasons_left_out() -> Iterator[None]:
    end = Calls.end
    with patched(Calls, "end", lambda self, _, *, sampled: end(self, "", sampled=sampled)):
        yield


# Those of chat and of the fleet register themselves.
from tests.simulate import planted_chat as _chat  # noqa: E402, F401
from tests.simulate import planted_fleet as _fleet  # noqa: E402, F401
from tests.simulate.control import planted as _control  # noqa: E402, F401
