"""The calls of one request: their books, from the first look-up to the last transition.

Every sample that a request asks for is a call, and every call ends exactly once, kept or lost.
Only the encoding of new text lies outside, because it may take long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from msgspec.structs import replace

from slime_core import sglang
from slime_core.capture import Prompt, conclude, prompt_of_ids, prompt_of_text
from slime_core.chat.places import Shown
from slime_core.chat.plans import ChatAsk, ChatPlan, ChatTemplate, plan_chat
from slime_core.chat.prompts import prompt_of_chat
from slime_core.decide import find_call
from slime_core.errors import ClientError
from slime_core.long_lists import WriteIds, encode_ids
from slime_core.lookup import TokenizerFacts, Wish
from slime_core.sessions import may_write
from slime_core.state import RouterState
from slime_core.transitions import CallCaptured, CallLost, CallOpened, Transition
from slime_core.types import CallId, Encoding, PackedIds, WorkerUrl
from slime_core.unread import next_unread, read_unread

__all__ = ["Calls", "Commit", "wish_of"]


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
        self.write_ids: WriteIds = encode_ids
        """What writes prompts for a worker."""
        self.calls: Final[list[CallId]] = []
        """Their ids, in the order of the samples."""
        self.flags: tuple[str, ...] = ()
        """What a client should know of how its prompts were understood."""
        self.in_flight: Final[set[int]] = set()
        """The samples whose calls have not ended."""
        self.prompts: Final[list[PackedIds]] = []
        """The whole ids of every prompt; empty where it is not encoded yet."""
        self.unencoded = 0
        """How many prompts :meth:`to_encode` gives."""
        self._prompts: Final[list[Prompt]] = []
        self._prompt_of: Final[list[int]] = []
        self._samples: Final[list[range]] = []
        self._opened: Final[list[CallOpened]] = []
        self._sample_of: dict[str, int] = {}  # made when it is needed first
        self._words: tuple[str, ...] = ()

    @property
    def state(self) -> RouterState:
        """What the calls belong to."""
        return self._state

    def add_flags(self, words: tuple[str, ...]) -> None:
        """Words about the request itself, for every prompt that is opened from now on."""
        self._words += words

    def read_all(self) -> None:
        """Read all that was kept unread: no look-up may come upon it."""
        while (unread := next_unread(self._state)) is not None:
            self._commit(read_unread(unread))

    # -- before the worker ---------------------------------------------------------------

    def open_text(self, text: str, encoding: Encoding, samples: int) -> None:
        """Look ``text`` up and open a call for each of its samples."""
        if self._state.forest.unread:
            self.read_all()
        prompt = prompt_of_text(self._state, self._facts, text, encoding, self._wish)
        self._add(prompt, samples)

    def open_ids(self, ids: PackedIds, samples: int) -> None:
        """Look ``ids`` up and open a call for each of their samples."""
        if self._state.forest.unread:
            self.read_all()
        self._add(prompt_of_ids(self._state, ids, self._wish), samples)

    def plan_chat(self, template: ChatTemplate, ask: ChatAsk) -> ChatPlan:
        """Look a chat up; what it gives may be rendered in another thread before it is opened."""
        self.read_all()
        return plan_chat(self._state, template, ask, self._wish)

    def open_chat(
        self, template: ChatTemplate, ask: ChatAsk, samples: int, *, plan: ChatPlan | None = None
    ) -> None:
        """Look a chat up and open a call for each of its samples. Raises ``ClientError``.

        ``plan`` is what :meth:`plan_chat` gave for the same; it may be old.
        """
        plan = plan or self.plan_chat(template, ask)
        self.read_all()
        self._add(prompt_of_chat(self._state, self._facts, plan, self._wish), samples)

    def _add(self, prompt: Prompt, samples: int) -> None:
        if self._words:
            prompt = replace(prompt, flags=(*prompt.flags, *self._words))
        first, place = len(self.calls), len(self._prompts)
        parent, session = prompt.parent, self._wish.session
        facts: list[Transition] = []
        for sample in range(first, first + samples):
            opened = CallOpened(call=self._new_id(), parent=parent, session=session)
            facts.append(opened)
            self.in_flight.add(sample)
            self.calls.append(opened.call)
            self._prompt_of.append(place)
            self._opened.append(opened)
        self._prompts.append(prompt)
        self.prompts.append(prompt.whole)
        self._samples.append(range(first, first + samples))
        if prompt.flags:
            self.flags = tuple(dict.fromkeys((*self.flags, *prompt.flags)))
        if prompt.ids is None:
            self.unencoded += 1
        else:
            facts.append(prompt.looked_up())
        self._commit(*facts)

    def to_encode(self) -> Iterator[tuple[int, Prompt]]:
        """Every prompt without its ids, by its place; ``prompt.rest`` is what :meth:`encoded` must
        be given.

        Each must be answered by :meth:`encoded` before the next is asked for.
        """
        for place, prompt in enumerate(self._prompts):
            if prompt.ids is None:
                yield place, prompt

    def encoded(self, place: int, rest_ids: PackedIds) -> None:
        """The ids of what was left to encode of the prompt at ``place``; none if nothing was.

        From here on, calls that begin before this one ends may share them.
        """
        prompt = self._prompts[place] = self._prompts[place].encoded(rest_ids)
        self.prompts[place] = prompt.whole
        self.unencoded -= 1
        kept = [prompt.kept(self._opened[sample].call) for sample in self._samples[place]]
        self._commit(*kept, prompt.looked_up())

    # -- after the worker ----------------------------------------------------------------

    def keep(
        self,
        sample: int,
        answer: sglang.Answer,
        worker: WorkerUrl,
        *,
        aliases: Sequence[str] = (),
        shown: Shown | None = None,
    ) -> bool:
        """Commit what was sampled; whether it could be kept.

        ``aliases`` are other names by which the client knows this sample, its own ids among them;
        ``shown`` is the message that it was given, if it is a chat's.
        """
        opened, prompt = self._opened[sample], self._prompts[self._prompt_of[sample]]
        session = opened.session
        refused = None if session is None else may_write(self._state, session)
        if refused is not None:
            self.in_flight.discard(sample)
            self._commit(CallLost(call=opened.call, reason=refused, sampled=bool(answer.ids)))
            return False
        facts = conclude(
            self._state,
            self._facts,
            prompt,
            opened,
            answer,
            worker,
            aliases=aliases,
            names_sibling=answer.id != opened.call and self._names_sibling(sample, answer.id),
            shown=shown,
        )
        self.in_flight.discard(sample)
        self._commit(*facts)
        is_kept = isinstance(facts[-1], CallCaptured)
        if is_kept and prompt.place is not None:
            self._prompts[self._prompt_of[sample]] = prompt.shared()
        return is_kept

    def _names_sibling(self, sample: int, told: str) -> bool:
        """Whether this is the id of another sample of the same prompt."""
        siblings = self._samples[self._prompt_of[sample]]
        if len(siblings) == 1:
            return False
        if not self._sample_of:
            self._sample_of = {call: place for place, call in enumerate(self.calls)}
        return self._sample_of.get(told, -1) in siblings

    def end(self, reason: str, *, sampled: bool) -> None:
        """Lose every call that is still open. Safe to repeat."""
        for sample in sorted(self.in_flight):
            call = self.calls[sample]
            self._commit(CallLost(call=call, reason=reason, sampled=sampled))
        self.in_flight.clear()
