"""What was captured, kept the plain way: every call with its full text, ids, mask and logprobs.

There is no tree and nothing is shared. A look-up goes through all calls. The model is right because
it is dull; it knows nothing of the core but :func:`slime_core.alignment.tokens_before`, which has
tests of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from slime_core.alignment import tokens_before
from slime_core.segments import Outcome
from slime_core.versions import as_number
from slime_core.vocabulary import Vocabulary

__all__ = ["NaiveCall", "NaiveForest"]


@dataclass
class NaiveCall:
    """A call. ``texts`` is the client's view: prompt, then answer; ``None`` for a call from ids."""

    call: str
    parent: str | None
    prompt_text: str | None
    answer_text: str
    answer_ids: list[int]
    ids: list[int]
    mask: list[int]
    logprobs: list[float]
    versions: list[str | None]
    endings: tuple[str, ...] = ()
    outcome: Outcome = Outcome.COMPLETE
    retrieved: bool = False

    @property
    def text(self) -> str | None:
        return None if self.prompt_text is None else self.prompt_text + self.answer_text

    @property
    def answer_start(self) -> int:
        return len(self.ids) - len(self.answer_ids)

    @property
    def numbers(self) -> list[int]:
        """One integer version per token."""
        return [
            as_number(version) if sampled else -1
            for sampled, version in zip(self.mask, self.versions, strict=True)
        ]


@dataclass
class NaiveForest:
    """All calls that are kept, in the order of capture."""

    vocabulary: Vocabulary
    calls: dict[str, NaiveCall] = field(default_factory=dict)

    def add(
        self,
        call: str,
        parent: str | None,
        token_start: int,
        run: list[int],
        *,
        prompt_text: str | None,
        answer_ids: list[int],
        answer_text: str,
        logprobs: list[float],
        versions: list[str | None],
        endings: tuple[str, ...],
        outcome: Outcome,
    ) -> None:
        """``call`` extended the first ``token_start`` tokens of ``parent`` by ``run``."""
        old = None if parent is None else self.calls[parent]
        assert old is not None or token_start == 0
        ids, mask, values, names = (
            ([], [], [], []) if old is None else (old.ids, old.mask, old.logprobs, old.versions)
        )
        new = len(run)
        self.calls[call] = NaiveCall(
            call=call,
            parent=parent,
            prompt_text=prompt_text,
            answer_text=answer_text,
            answer_ids=answer_ids,
            ids=[*ids[:token_start], *run, *answer_ids],
            mask=[*mask[:token_start], *[0] * new, *[1] * len(answer_ids)],
            logprobs=[*values[:token_start], *[0.0] * new, *logprobs],
            versions=[*names[:token_start], *[None] * new, *versions],
            endings=endings,
            outcome=outcome,
        )

    def reaches(self, text: str, matched: int = 0) -> set[tuple[int, str, int]]:
        """What each call offers as history of ``text``: characters, its name, tokens kept.

        Only calls that ``text`` goes through to the end or shares ``matched`` characters with.
        """
        offers = set()
        for one in self.calls.values():
            near = one.text is not None and (
                text.startswith(one.text) or _common(text, one.text) >= matched
            )
            place = self._reach(one, text) if near else None
            if place is not None:
                offers.add((place[0], one.call, place[1]))
        return offers

    def _reach(self, one: NaiveCall, text: str) -> tuple[int, int] | None:
        if one.text is None or one.prompt_text is None or not one.answer_ids:
            return None
        begin = len(one.prompt_text)
        if text.startswith(one.text):
            joint = next((len(e) for e in one.endings if text.startswith(e, len(one.text))), 0)
            unseen = one.outcome is Outcome.PARTIAL and bool(one.endings) and not joint
            if not one.answer_text and not joint:
                return None
            if unseen:
                return self._left(one, begin, len(one.answer_text))
            return (len(one.text) + joint, len(one.ids))
        return self._left(one, begin, _common(text, one.text) - begin)

    def _left(self, one: NaiveCall, begin: int, chars: int) -> tuple[int, int] | None:
        if chars <= 0:
            return None
        place = tokens_before(one.answer_ids, one.answer_text, chars, self.vocabulary)
        if not place.tokens:
            return None
        return begin + place.chars, one.answer_start + place.tokens

    def kept_ids(self, ids: list[int], matched: int = 0) -> set[int]:
        """How many of ``ids`` each call offers as history, ending in sampled tokens.

        Only calls that ``ids`` go through to the end or share ``matched`` tokens with.
        """
        offers = {0}
        for one in self.calls.values():
            shared = _common_ids(ids, one.ids)
            if shared < min(matched, len(one.ids)):
                continue
            while shared and not one.mask[shared - 1]:
                shared -= 1
            offers.add(shared)
        return offers


def _common(left: str, right: str) -> int:
    size = 0
    while size < min(len(left), len(right)) and left[size] == right[size]:
        size += 1
    return size


def _common_ids(left: list[int], right: list[int]) -> int:
    size = 0
    while size < min(len(left), len(right)) and left[size] == right[size]:
        size += 1
    return size
