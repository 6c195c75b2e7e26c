"""The capture of one request: look up, encode what is new, keep what was sampled.

A request opens one call for each sample it asks for. Every call ends exactly once, kept or lost,
whatever happens to the request: the relay ends the capture in a ``finally``, without an await.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from slime_core import sglang
from slime_core.alignment import hidden_endings
from slime_core.decide import find_call
from slime_core.errors import ClientError
from slime_core.lookup import Wish, find_ids, find_text
from slime_core.segments import Answer, Outcome
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
    CallId,
    Encoding,
    PackedIds,
    WorkerUrl,
    token_count,
    unpack_ids,
)
from slime_core.versions import VersionRun
from slime_trio.router import Router

__all__ = ["Capture", "wish_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """A prompt on its way: where its new part begins, and what is known of it.

    ``held`` are the ids of the trajectory it extends, ``known`` the first ids of the new part;
    ``text[encode_from:]`` becomes the rest. ``ids`` is the whole new part once it is encoded.
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


def wish_of(router: Router, session: str | None, parent: str | None) -> Wish:
    """Which of several equal answers is meant. Raises ``ClientError`` for an unknown parent."""
    if parent is None:
        return Wish(session=session)
    try:
        return Wish(session=session, parent_call=find_call(router.state, parent))
    except ClientError as error:
        error.param = "parent_id"
        raise


class Capture:
    """The calls of one request. ``calls[i]`` is sample ``i``, as prompts × samples."""

    def __init__(self, router: Router, wish: Wish) -> None:
        self._router: Final = router
        self._wish: Final = wish
        self._prompts: Final[list[_Prompt]] = []
        self._prompt_of: Final[list[int]] = []
        self._open: Final[set[int]] = set()
        self.calls: Final[list[CallId]] = []
        self.captured: Final[set[int]] = set()

    # -- before the worker ---------------------------------------------------------------

    def open_text(self, text: str, encoding: Encoding, samples: int) -> None:
        """Look ``text`` up and open a call for each of its samples."""
        router = self._router
        forest = router.state.forest
        found = find_text(forest, text, encoding, router.facts, wish=self._wish)
        parent = found.parent
        held = b"" if parent is None else forest.ids.key(parent.id_node)
        prompt = _Prompt(
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
        self._add(prompt, samples)

    def open_ids(self, ids: PackedIds, samples: int) -> None:
        """Look ``ids`` up and open a call for each of their samples."""
        found = find_ids(self._router.state.forest, ids, wish=self._wish)
        parent, start = found.parent, found.token_start
        prompt = _Prompt(
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
        self._add(prompt, samples)

    def _add(self, prompt: _Prompt, samples: int) -> None:
        router = self._router
        for _ in range(samples):
            call = router.new_call_id()
            self._prompt_of.append(len(self._prompts))
            self._open.add(len(self.calls))
            self.calls.append(call)
            router.commit(CallOpened(call=call, parent=prompt.parent, session=self._wish.session))
        self._prompts.append(prompt)

    async def encode(self) -> list[PackedIds]:
        """Encode what is new; the whole ids of every prompt."""
        for place, prompt in enumerate(self._prompts):
            if prompt.ids is None:
                self._prompts[place] = prompt = await self._encoded(prompt)
                self._keep_prompt(place, prompt)
            whole, reused = token_count(prompt.whole), self.reused_tokens(place)
            self._router.commit(Lookup(tokens=whole, reused=reused, used=prompt.used))
        return [prompt.whole for prompt in self._prompts]

    def _keep_prompt(self, place: int, prompt: _Prompt) -> None:
        """Let calls that begin before this one ends share what was just encoded."""
        assert prompt.ids is not None
        for sample, of in enumerate(self._prompt_of):
            if of == place:
                self._router.commit(
                    PromptKept(
                        call=self.calls[sample],
                        encoding=prompt.encoding,
                        token_start=prompt.token_start,
                        text_start=prompt.text_start,
                        joint=prompt.joint,
                        prompt_ids=prompt.ids,
                        prompt_text=prompt.text,
                    )
                )

    async def _encoded(self, prompt: _Prompt) -> _Prompt:
        assert prompt.text is not None
        rest = prompt.text[prompt.encode_from :]
        is_first = prompt.parent is None and not prompt.known
        if not rest and not is_first:
            return replace(prompt, ids=prompt.known)
        tail = await self._router.tokenizer.encode_async(
            rest, encoding=prompt.encoding, first=is_first
        )
        return replace(prompt, ids=PackedIds(prompt.known + tail))

    def reused_tokens(self, place: int) -> int:
        """How many tokens of the prompt at ``place`` came from the forest."""
        prompt = self._prompts[place]
        return prompt.token_start + token_count(prompt.known)

    @property
    def flags(self) -> tuple[str, ...]:
        """What a client should know of how its prompts were understood."""
        return tuple(dict.fromkeys(flag for prompt in self._prompts for flag in prompt.flags))

    # -- after the worker ----------------------------------------------------------------

    def keep(
        self,
        sample: int,
        answer: sglang.Answer,
        worker: WorkerUrl,
        *,
        aliases: tuple[str, ...] = (),
    ) -> bool:
        """Commit what was sampled; whether it could be kept."""
        call = self.calls[sample]
        self._open.discard(sample)
        prompt = self._prompts[self._prompt_of[sample]]
        text = answer.text
        if answer.problem is not None:
            told = self._whole_text(prompt, text)
            self._router.commit(CallLost(call=call, reason="corrupt", sampled=True, text=told))
            return False
        if text is None:
            ids = unpack_ids(answer.ids)
            text = self._router.tokenizer.vocabulary.decode(ids, skip_special=True)
        assert prompt.ids is not None
        self._note_version(answer, worker)
        self._router.commit(
            CallCaptured(
                call=call,
                parent=prompt.parent,
                encoding=prompt.encoding,
                token_start=prompt.token_start,
                text_start=prompt.text_start,
                joint=prompt.joint,
                prompt_ids=prompt.ids,
                prompt_text=prompt.text,
                answer_ids=answer.ids,
                answer_text=text,
                answer=self._answer(call, answer, text, prompt.flags, aliases),
            )
        )
        self.captured.add(sample)
        return True

    def _note_version(self, answer: sglang.Answer, worker: WorkerUrl) -> None:
        """Learn of new weights. Before the capture: what they sampled is as new as they are, and
        must not be collected for the versions that they were ahead."""
        version = answer.versions[-1].version if answer.versions else answer.weight_version
        known = self._router.state.fleet.workers.get(worker)
        if version is not None and (known is None or known.version != version):
            self._router.commit(VersionSeen(worker=worker, version=version))

    def _whole_text(self, prompt: _Prompt, answer: str | None) -> str | None:
        """What the client holds after this answer, where that is known as text."""
        if prompt.text is None or not answer:
            return None
        forest = self._router.state.forest
        parent = forest.find(prompt.parent)
        before = ""
        if parent is not None and parent.text_node is not None:
            before = forest.texts[parent.encoding].key(parent.text_node)[: prompt.text_start]
        return before + prompt.text + answer

    def _answer(
        self,
        call: CallId,
        answer: sglang.Answer,
        text: str,
        flags: tuple[str, ...],
        aliases: tuple[str, ...],
    ) -> Answer:
        reason = answer.finish_reason
        vocabulary = self._router.facts.vocabulary
        matched = None if reason is None else reason.matched
        count = token_count(answer.ids)
        return Answer(
            call=call,
            session=self._wish.session,
            outcome=_outcome(reason),
            logprobs=answer.logprobs,
            runs=answer.versions or ((VersionRun(None, 0, count),) if count else ()),
            finish_reason=b"null" if reason is None else reason.raw,
            endings=()
            if vocabulary is None
            else hidden_endings(
                unpack_ids(answer.ids),
                text,
                matched,
                vocabulary,
                is_whole=_outcome(reason) is Outcome.COMPLETE,
            ),
            aliases=(answer.id, *aliases) if answer.id and answer.id != call else aliases,
            extras=tuple(answer.extras.items()),
            flags=flags,
        )

    def is_open(self, sample: int) -> bool:
        """Whether this sample's call has not ended."""
        return sample in self._open

    def end(self, reason: str, *, sampled: bool) -> None:
        """Lose every call that is still open. Synchronous, and safe to repeat."""
        for sample in sorted(self._open):
            self._router.commit(CallLost(call=self.calls[sample], reason=reason, sampled=sampled))
        self._open.clear()


def _flags(cut: bool, ambiguous: bool) -> tuple[str, ...]:
    return (("cut",) if cut else ()) + (("parent_ambiguous",) if ambiguous else ())


def _outcome(reason: sglang.FinishReason | None) -> Outcome:
    if reason is None:
        return Outcome.PARTIAL
    return Outcome.ABORTED if reason.type == "abort" else Outcome.COMPLETE
