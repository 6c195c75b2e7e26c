"""The capture of a call, as decisions: what its prompt extends, and what is kept of its answer.

Nothing here changes the state. Look-ups make a :class:`Prompt`; everything that becomes true of a
call on its way (opened, looked up, its prompt kept, captured or lost) is a transition made from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from msgspec import Struct, structs

from slime_core import sglang
from slime_core.alignment import hidden_endings
from slime_core.chat.places import ChatPlace, Shown, turn_of
from slime_core.gone import UNKNOWN
from slime_core.logprob_kinds import LogprobKind
from slime_core.lookup import TokenizerFacts, Wish, find_ids, find_text
from slime_core.segments import Answer, Outcome
from slime_core.state import RouterState
from slime_core.transitions import (
    CallCaptured,
    CallLost,
    CallOpened,
    Lookup,
    PromptKept,
    VersionSeen,
)
from slime_core.types import (
    ID_BYTES,
    NO_IDS,
    CallId,
    Encoding,
    PackedIds,
    WorkerUrl,
    unpack_ids,
)
from slime_core.versions import VersionRun

__all__ = ["Prompt", "conclude", "prompt_flags", "prompt_of_ids", "prompt_of_text"]


class Prompt(Struct, frozen=True, kw_only=True):
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
    whole: PackedIds = NO_IDS
    """All ids of the prompt, once it is encoded."""
    plain: tuple[tuple[int, int], ...] = ()
    """Where in :attr:`rest` special tokens are spelled that must stay plain text."""
    close_ids: PackedIds = NO_IDS
    close_text: str = ""
    place: ChatPlace | None = None
    """Of a chat prompt: what it adds to which conversation."""

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

    def shared(self) -> Prompt:
        """A chat's prompt for further samples: the first one's books hold what it weighs."""
        assert self.place is not None
        return structs.replace(self, place=dataclasses.replace(self.place, shares=True))

    def encoded(self, rest_ids: PackedIds) -> Prompt:
        """The prompt with the ids of :attr:`rest` (none where nothing was left)."""
        ids = PackedIds(self.known + rest_ids)
        whole = PackedIds(self.held + self.close_ids + ids)
        return structs.replace(self, ids=ids, whole=whole)

    def looked_up(self) -> Lookup:
        """The look-up, for the books. The prompt must be encoded."""
        reused = self.token_start + len(self.known) // ID_BYTES
        return Lookup(tokens=len(self.whole) // ID_BYTES, reused=reused, used=self.used)

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
            close_ids=self.close_ids,
            close_text=self.close_text,
            hidden=bool(self.plain),
        )


def prompt_of_text(
    state: RouterState,
    facts: TokenizerFacts,
    text: str,
    encoding: Encoding,
    wish: Wish,
    plain: tuple[tuple[int, int], ...] = (),
) -> Prompt:
    """What ``text`` extends, and what of it must be encoded.

    ``plain`` are ranges that must be encoded as plain text; only what stands before the first of
    them is looked up, since nothing else is known by its text.
    """
    forest = state.forest
    known = text[: plain[0][0]] if plain else text
    found = find_text(forest, known, encoding, facts, wish=wish, is_whole=not plain)
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
        flags=(*prompt_flags(found.cut, found.ambiguous), *found.history_flags),
        plain=tuple((start - found.encode_from, end - found.encode_from) for start, end in plain),
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
        flags=(*prompt_flags(found.cut, found.ambiguous), *found.history_flags),
        ids=PackedIds(ids[start * ID_BYTES :]),
        whole=ids,
    )


def prompt_flags(cut: bool, ambiguous: bool) -> tuple[str, ...]:
    """Words for how a prompt was understood."""
    return (("cut",) if cut else ()) + (("parent_ambiguous",) if ambiguous else ())


def conclude(
    state: RouterState,
    facts: TokenizerFacts,
    prompt: Prompt,
    opened: CallOpened,
    answer: sglang.Answer,
    worker: WorkerUrl,
    *,
    aliases: Sequence[str] = (),
    names_sibling: bool = False,
    shown: Shown | None = None,
) -> Sequence[VersionSeen | CallCaptured | CallLost]:
    """What becomes true when ``worker`` has answered the call: kept, or lost with a reason.

    An answer that bears the id of another call is that call's, whatever it was sent for, and is
    lost as corrupt; unless the client gave it that id itself, as one of ``aliases``, or it
    ``names_sibling``: a worker may call all samples of a prompt by the id of one. ``shown`` is the
    message that a chat's client was given for it. New weights come first: what they sampled is as
    new as they are, and must not be collected for the versions that they were ahead.
    """
    is_own = names_sibling or answer.id == opened.call or answer.id in aliases
    if answer.problem is not None or not (is_own or _is_new(state, answer.id)):
        told = _whole_text(state, prompt, answer.text)
        return [CallLost(call=opened.call, reason="corrupt", sampled=True, text=told)]
    text = _decoded(facts, answer) if answer.text is None else answer.text
    known = state.fleet.workers.get(worker)
    kind = LogprobKind.UNKNOWN if known is None else known.logprob_kind
    names = aliases if names_sibling else (answer.id, *aliases)
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
        answer=_answer(facts, prompt, opened, answer, text, names, shown, kind),
        close_ids=prompt.close_ids,
        close_text=prompt.close_text,
        hidden=bool(prompt.plain),
    )
    version = answer.versions[-1].version if answer.versions else answer.weight_version
    if version is None or (known is not None and known.version == version):
        return (captured,)
    return (VersionSeen(worker=worker, version=version), captured)


def _decoded(facts: TokenizerFacts, answer: sglang.Answer) -> str:
    """The text of an answer that came without."""
    if facts.vocabulary is None:
        raise ValueError("an answer without text needs a vocabulary to read it")
    return facts.vocabulary.decode(unpack_ids(answer.ids), skip_special=True)


def _is_new(state: RouterState, told: str) -> bool:
    """Whether no call is known by this id, nor was."""
    call = CallId(told)
    is_known = call in state.open_calls or call in state.forest.calls
    return not is_known and state.forest.gone.call(call) == UNKNOWN


def _whole_text(state: RouterState, prompt: Prompt, answer: str | None) -> str | None:
    """What the client holds after this answer, where that is known as text."""
    if prompt.text is None or prompt.plain or not answer:
        return None
    forest = state.forest
    parent = forest.find(prompt.parent)
    before = ""
    if parent is not None:
        if parent.text_node is None:
            return None
        before = forest.texts[parent.encoding].key(parent.text_node)[: prompt.text_start]
    return before + prompt.close_text + prompt.text + answer


def _answer(
    facts: TokenizerFacts,
    prompt: Prompt,
    opened: CallOpened,
    answer: sglang.Answer,
    text: str,
    names: Sequence[str],
    shown: Shown | None,
    kind: LogprobKind,
) -> Answer:
    call, reason = opened.call, answer.finish_reason
    count = len(answer.ids) // ID_BYTES
    outcome = _outcome(reason)
    endings: tuple[str, ...] = ()
    if facts.vocabulary is not None:  # What the sampled ids hold beyond the text that was shown.
        endings = hidden_endings(
            memoryview(answer.ids).cast("I"),
            text,
            None if reason is None else reason.matched,
            facts.vocabulary,
            is_whole=outcome is Outcome.COMPLETE,
        )
    return Answer(
        call=call,
        session=opened.session,
        outcome=outcome,
        logprobs=answer.logprobs,
        unread=answer.unread,
        runs=answer.versions or ((VersionRun(None, 0, count),) if count else ()),
        finish_reason=b"null" if reason is None else reason.raw,
        endings=endings,
        # One name, the router's own, is nearly always all.
        aliases=() if names == (call,) else _aliases(names, call),
        extras=tuple(answer.extras.items()) if answer.extras else (),
        flags=prompt.flags,
        logprob_kind=kind,
        turn=None if prompt.place is None or shown is None else turn_of(prompt.place, shown),
    )


def _aliases(names: Sequence[str], call: CallId) -> tuple[str, ...]:
    """The names that are none of the router's own."""
    return tuple(name for name in dict.fromkeys(names) if name and name != call)


def _outcome(reason: sglang.FinishReason | None) -> Outcome:
    if reason is None:
        return Outcome.PARTIAL
    return Outcome.ABORTED if reason.type == "abort" else Outcome.COMPLETE
