"""The capture of a request: what its prompts extend, and what is kept of its answers.

Look-ups make a :class:`Prompt`; everything that becomes true of a call on its way (opened, looked
up, its prompt kept, captured or lost) is a transition made from it. :class:`Calls` keeps the books
of one request: every sample it asks for is a call, and every call ends exactly once. Only the
encoding of new text lies outside, because it may take long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from slime_core import sglang
from slime_core.alignment import hidden_endings
from slime_core.decide import find_call
from slime_core.errors import ClientError
from slime_core.lookup import TokenizerFacts, Wish, find_ids, find_text
from slime_core.segments import Answer, Outcome
from slime_core.state import RouterState
from slime_core.transitions import (
    CallCaptured,
    CallLost,
    CallOpened,
    Lookup,
    PromptKept,
    Transition,
    VersionSeen,
)
from slime_core.types import (
    ID_BYTES,
    CallId,
    Encoding,
    PackedIds,
    WorkerUrl,
    token_count,
    unpack_ids,
)
from slime_core.versions import VersionRun

__all__ = ["Calls", "Commit", "Prompt", "conclude", "prompt_of_ids", "prompt_of_text", "wish_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt on its way: where its new part begins, and what is known of it.

    ``held`` are the ids of the trajectory it extends, ``known`` the first ids of the new part;
    ``text[encode_from:]`` becomes the rest. ``ids`` is the whole new part once it is encoded.
    ``flags`` say how it was understood. The other fields are those of
    :class:`~slime_core.transitions.CallCaptured`.
    """

    parent: int | None
    encoding: Encoding
    token_start: int
    text_start: int
    joint: int
    text: str | None
    held: PackedIds
    known: PackedIds
    encode_from: int
    used: tuple[int, ...]
    flags: tuple[str, ...]
    ids: PackedIds | None = None

    @property
    def whole(self) -> PackedIds:
        """All ids of the prompt. It must be encoded."""
        assert self.ids is not None
        return PackedIds(self.held + self.ids)

    @property
    def reused_tokens(self) -> int:
        """How many of its tokens came from the forest."""
        return self.token_start + token_count(self.known)

    @property
    def is_first(self) -> bool:
        """Whether what is to be encoded begins the whole text."""
        return self.parent is None and not self.known

    @property
    def rest(self) -> str | None:
        """The text that must be encoded yet; ``None`` if nothing must.

        A text of its own must be encoded even where it is empty: special tokens may stand before
        it.
        """
        if self.ids is not None or self.text is None:
            return None
        rest = self.text[self.encode_from :]
        return rest if rest or self.is_first else None

    def encoded(self, rest_ids: PackedIds) -> Prompt:
        """The prompt with the ids of :attr:`rest` (none where nothing was left)."""
        return replace(self, ids=PackedIds(self.known + rest_ids))

    def opened(self, call: CallId, session: str | None) -> CallOpened:
        """The call begins."""
        return CallOpened(call=call, parent=self.parent, session=session)

    def looked_up(self) -> Lookup:
        """The look-up, for the books. The prompt must be encoded."""
        tokens = token_count(self.whole)
        return Lookup(tokens=tokens, reused=self.reused_tokens, used=self.used)

    def kept(self, call: CallId) -> PromptKept:
        """Calls that begin before this one ends may share what was just encoded."""
        assert self.ids is not None
        return PromptKept(
            call=call,
            encoding=self.encoding,
            token_start=self.token_start,
            text_start=self.text_start,
            joint=self.joint,
            prompt_ids=self.ids,
            prompt_text=self.text,
        )


def prompt_of_text(
    state: RouterState, facts: TokenizerFacts, text: str, encoding: Encoding, wish: Wish
) -> Prompt:
    """What ``text`` extends, and what of it must be encoded."""
    forest = state.forest
    found = find_text(forest, text, encoding, facts, wish=wish)
    parent = found.parent
    held = b"" if parent is None else forest.ids.key(parent.id_node)
    return Prompt(
        parent=None if parent is None else parent.number,
        encoding=encoding,
        token_start=found.token_start,
        text_start=found.text_start,
        joint=found.joint,
        text=text[found.text_start :],
        held=PackedIds(held[: found.token_start * ID_BYTES]),
        known=found.run_ids,
        encode_from=found.encode_from - found.text_start,
        used=found.used,
        flags=(*_flags(found.cut, found.ambiguous), *found.history_flags),
    )


def prompt_of_ids(state: RouterState, ids: PackedIds, wish: Wish) -> Prompt:
    """What ``ids`` extend. Nothing is left to encode."""
    found = find_ids(state.forest, ids, wish=wish)
    parent, start = found.parent, found.token_start
    return Prompt(
        parent=None if parent is None else parent.number,
        encoding=Encoding.RENDERED if parent is None else parent.encoding,
        token_start=start,
        text_start=0 if parent is None else parent.text_end,
        joint=0,
        text=None,
        held=PackedIds(ids[: start * ID_BYTES]),
        known=PackedIds(b""),
        encode_from=0,
        used=() if parent is None else (parent.number,),
        flags=(*_flags(found.cut, found.ambiguous), *found.history_flags),
        ids=PackedIds(ids[start * ID_BYTES :]),
    )


def _flags(cut: bool, ambiguous: bool) -> tuple[str, ...]:
    return (("cut",) if cut else ()) + (("parent_ambiguous",) if ambiguous else ())


def conclude(
    state: RouterState,
    facts: TokenizerFacts,
    prompt: Prompt,
    opened: CallOpened,
    answer: sglang.Answer,
    worker: WorkerUrl,
    aliases: Sequence[str] = (),
) -> Sequence[VersionSeen | CallCaptured | CallLost]:
    """What becomes true when ``worker`` has answered the call: kept, or lost with a reason.

    New weights come first: what they sampled is as new as they are, and must not be collected for
    the versions that they were ahead.
    """
    if answer.problem is not None:
        told = _whole_text(state, prompt, answer.text)
        return [CallLost(call=opened.call, reason="corrupt", sampled=True, text=told)]
    text = answer.text
    if text is None:
        if facts.vocabulary is None:
            raise ValueError("an answer without text needs a vocabulary to read it")
        text = facts.vocabulary.decode(unpack_ids(answer.ids), skip_special=True)
    assert prompt.ids is not None
    captured = CallCaptured(
        call=opened.call,
        parent=prompt.parent,
        encoding=prompt.encoding,
        token_start=prompt.token_start,
        text_start=prompt.text_start,
        joint=prompt.joint,
        prompt_ids=prompt.ids,
        prompt_text=prompt.text,
        answer_ids=answer.ids,
        answer_text=text,
        answer=_answer(facts, prompt, opened, answer, text, aliases),
    )
    return [*_new_version(state, answer, worker), captured]


def _new_version(
    state: RouterState, answer: sglang.Answer, worker: WorkerUrl
) -> Sequence[VersionSeen]:
    version = answer.versions[-1].version if answer.versions else answer.weight_version
    known = state.fleet.workers.get(worker)
    if version is None or (known is not None and known.version == version):
        return []
    return [VersionSeen(worker=worker, version=version)]


def _whole_text(state: RouterState, prompt: Prompt, answer: str | None) -> str | None:
    """What the client holds after this answer, where that is known as text."""
    if prompt.text is None or not answer:
        return None
    forest = state.forest
    parent = forest.find(prompt.parent)
    before = ""
    if parent is not None and parent.text_node is not None:
        before = forest.texts[parent.encoding].key(parent.text_node)[: prompt.text_start]
    return before + prompt.text + answer


def _answer(
    facts: TokenizerFacts,
    prompt: Prompt,
    opened: CallOpened,
    answer: sglang.Answer,
    text: str,
    aliases: Sequence[str],
) -> Answer:
    call, reason = opened.call, answer.finish_reason
    count = token_count(answer.ids)
    own_id = (answer.id,) if answer.id and answer.id != call else ()
    return Answer(
        call=call,
        session=opened.session,
        outcome=_outcome(reason),
        logprobs=answer.logprobs,
        runs=answer.versions or ((VersionRun(None, 0, count),) if count else ()),
        finish_reason=b"null" if reason is None else reason.raw,
        endings=_endings(facts, answer, text),
        aliases=(*own_id, *aliases),
        extras=tuple(answer.extras.items()),
        flags=prompt.flags,
    )


def _endings(facts: TokenizerFacts, answer: sglang.Answer, text: str) -> tuple[str, ...]:
    """What the sampled ids hold beyond the text that was shown."""
    if facts.vocabulary is None:
        return ()
    reason = answer.finish_reason
    return hidden_endings(
        unpack_ids(answer.ids),
        text,
        None if reason is None else reason.matched,
        facts.vocabulary,
        is_whole=_outcome(reason) is Outcome.COMPLETE,
    )


def _outcome(reason: sglang.FinishReason | None) -> Outcome:
    if reason is None:
        return Outcome.PARTIAL
    return Outcome.ABORTED if reason.type == "abort" else Outcome.COMPLETE


def wish_of(state: RouterState, session: str | None, parent: str | None) -> Wish:
    """Which of several equal answers is meant. Raises ``ClientError`` for an unknown parent."""
    if parent is None:
        return Wish(session=session)
    try:
        return Wish(session=session, parent_call=find_call(state, parent))
    except ClientError as error:
        error.param = "parent_id"
        raise


class Commit(Protocol):
    """Makes transitions true, in their order, before it returns."""

    def __call__(self, *facts: Transition) -> None: ...


class Calls:
    """The calls of one request. ``calls[i]`` is sample ``i``, as prompts × samples.

    ``commit`` applies to ``state``; ``new_id`` makes call ids. Between :meth:`open_text` or
    :meth:`open_ids` and the worker, whatever :meth:`to_encode` gives must be encoded.
    """

    def __init__(
        self,
        state: RouterState,
        facts: TokenizerFacts,
        *,
        commit: Commit,
        new_id: Callable[[], CallId],
        wish: Wish,
    ) -> None:
        self._state: Final = state
        self._facts: Final = facts
        self._commit: Final = commit
        self._new_id: Final = new_id
        self._wish: Final = wish
        self._prompts: Final[list[Prompt]] = []
        self._prompt_of: Final[list[int]] = []
        self._opened: Final[list[CallOpened]] = []
        self._open: Final[set[int]] = set()

    @property
    def calls(self) -> list[CallId]:
        """Their ids, in the order of the samples."""
        return [opened.call for opened in self._opened]

    @property
    def flags(self) -> tuple[str, ...]:
        """What a client should know of how its prompts were understood."""
        return tuple(dict.fromkeys(flag for prompt in self._prompts for flag in prompt.flags))

    # -- before the worker ---------------------------------------------------------------

    def open_text(self, text: str, encoding: Encoding, samples: int) -> None:
        """Look ``text`` up and open a call for each of its samples."""
        prompt = prompt_of_text(self._state, self._facts, text, encoding, self._wish)
        self._add(prompt, samples)

    def open_ids(self, ids: PackedIds, samples: int) -> None:
        """Look ``ids`` up and open a call for each of their samples."""
        self._add(prompt_of_ids(self._state, ids, self._wish), samples)

    def _add(self, prompt: Prompt, samples: int) -> None:
        for _ in range(samples):
            opened = prompt.opened(self._new_id(), self._wish.session)
            self._open.add(len(self._opened))
            self._prompt_of.append(len(self._prompts))
            self._opened.append(opened)
            self._commit(opened)
        self._prompts.append(prompt)

    def to_encode(self) -> Iterator[tuple[int, Prompt]]:
        """Every prompt by its place; ``prompt.rest`` is what :meth:`encoded` must be given.

        Each must be answered by :meth:`encoded` before the next is asked for.
        """
        yield from enumerate(self._prompts)

    def encoded(self, place: int, rest_ids: PackedIds) -> None:
        """The ids of what was left to encode of the prompt at ``place``; none if nothing was.

        From here on, calls that begin before this one ends may share them.
        """
        prompt = self._prompts[place]
        if prompt.ids is None:
            prompt = self._prompts[place] = prompt.encoded(rest_ids)
            for opened, of in zip(self._opened, self._prompt_of, strict=True):
                if of == place:
                    self._commit(prompt.kept(opened.call))
        self._commit(prompt.looked_up())

    @property
    def prompts(self) -> list[PackedIds]:
        """The whole ids of every prompt. All must be encoded."""
        return [prompt.whole for prompt in self._prompts]

    # -- after the worker ----------------------------------------------------------------

    def keep(
        self,
        sample: int,
        answer: sglang.Answer,
        worker: WorkerUrl,
        *,
        aliases: Sequence[str] = (),
    ) -> bool:
        """Commit what was sampled; whether it could be kept."""
        prompt, opened = self._prompts[self._prompt_of[sample]], self._opened[sample]
        facts = conclude(self._state, self._facts, prompt, opened, answer, worker, aliases)
        self._open.discard(sample)
        self._commit(*facts)
        return isinstance(facts[-1], CallCaptured)

    def is_open(self, sample: int) -> bool:
        """Whether this sample's call has not ended."""
        return sample in self._open

    def end(self, reason: str, *, sampled: bool) -> None:
        """Lose every call that is still open. Safe to repeat."""
        for sample in sorted(self._open):
            call = self._opened[sample].call
            self._commit(CallLost(call=call, reason=reason, sampled=sampled))
        self._open.clear()
