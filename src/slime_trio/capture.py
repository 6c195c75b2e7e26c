"""The capture of one request in the shell: calls opened, new text encoded, answers kept.

What to keep is decided by :mod:`slime_core.capture`; here the decisions are committed in their
order, and what takes long happens in between. A request opens one call for each sample it asks
for. Every call ends exactly once, kept or lost, whatever happens to the request: the relay ends
the capture in a ``finally``, without an await.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from slime_core import sglang
from slime_core.capture import Prompt, conclude, prompt_of_ids, prompt_of_text
from slime_core.decide import find_call
from slime_core.errors import ClientError
from slime_core.lookup import Wish
from slime_core.transitions import CallCaptured, CallLost, CallOpened
from slime_core.types import CallId, Encoding, PackedIds, WorkerUrl
from slime_trio.router import Router

__all__ = ["Capture", "wish_of"]


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
        self._prompts: Final[list[Prompt]] = []
        self._prompt_of: Final[list[int]] = []
        self._opened: Final[list[CallOpened]] = []
        self._open: Final[set[int]] = set()

    @property
    def calls(self) -> list[CallId]:
        """Their ids, in the order of the samples."""
        return [opened.call for opened in self._opened]

    # -- before the worker ---------------------------------------------------------------

    def open_text(self, text: str, encoding: Encoding, samples: int) -> None:
        """Look ``text`` up and open a call for each of its samples."""
        router = self._router
        self._add(prompt_of_text(router.state, router.facts, text, encoding, self._wish), samples)

    def open_ids(self, ids: PackedIds, samples: int) -> None:
        """Look ``ids`` up and open a call for each of their samples."""
        self._add(prompt_of_ids(self._router.state, ids, self._wish), samples)

    def _add(self, prompt: Prompt, samples: int) -> None:
        for _ in range(samples):
            opened = prompt.opened(self._router.new_call_id(), self._wish.session)
            self._open.add(len(self._opened))
            self._prompt_of.append(len(self._prompts))
            self._opened.append(opened)
            self._router.commit(opened)
        self._prompts.append(prompt)

    async def encode(self) -> list[PackedIds]:
        """Encode what is new; the whole ids of every prompt."""
        for place, prompt in enumerate(self._prompts):
            if prompt.ids is None:
                self._prompts[place] = prompt = await self._encoded(prompt)
                self._keep_prompt(place, prompt)
            self._router.commit(prompt.looked_up())
        return [prompt.whole for prompt in self._prompts]

    async def _encoded(self, prompt: Prompt) -> Prompt:
        rest = prompt.rest
        if rest is None:
            return prompt.encoded(PackedIds(b""))
        tokenizer = self._router.tokenizer
        return prompt.encoded(
            await tokenizer.encode_async(rest, encoding=prompt.encoding, first=prompt.is_first)
        )

    def _keep_prompt(self, place: int, prompt: Prompt) -> None:
        for opened, of in zip(self._opened, self._prompt_of, strict=True):
            if of == place:
                self._router.commit(prompt.kept(opened.call))

    def reused_tokens(self, place: int) -> int:
        """How many tokens of the prompt at ``place`` came from the forest."""
        return self._prompts[place].reused_tokens

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
        aliases: Sequence[str] = (),
    ) -> bool:
        """Commit what was sampled; whether it could be kept."""
        router = self._router
        prompt, opened = self._prompts[self._prompt_of[sample]], self._opened[sample]
        facts = conclude(router.state, router.facts, prompt, opened, answer, worker, aliases)
        self._open.discard(sample)
        router.commit(*facts)
        return isinstance(facts[-1], CallCaptured)

    def is_open(self, sample: int) -> bool:
        """Whether this sample's call has not ended."""
        return sample in self._open

    def end(self, reason: str, *, sampled: bool) -> None:
        """Lose every call that is still open. Synchronous, and safe to repeat."""
        for sample in sorted(self._open):
            call = self._opened[sample].call
            self._router.commit(CallLost(call=call, reason=reason, sampled=sampled))
        self._open.clear()
