"""The capture of one request in the shell: :mod:`slime_core.capture`, with encoding that may wait.

The relay ends the capture in a ``finally``, without an await, whatever happens to the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from slime_core import sglang
from slime_core.calls import Calls
from slime_core.chat.places import Shown
from slime_core.lookup import Wish
from slime_core.types import PackedIds, WorkerUrl
from slime_trio.observability.spans import NO_SPANS
from slime_trio.router import Router

__all__ = ["Capture", "capture_of"]


class Capture(Calls):
    """The calls of one request to a router."""

    def __init__(self, router: Router, wish: Wish) -> None:
        super().__init__(
            router.state,
            router.shared.facts,
            commit=router.commit,
            new_id=router.new_call_id,
            wish=wish,
        )
        self.write_ids = router.shared.id_texts.encode
        self._router: Final = router

    async def encode(self) -> list[PackedIds]:
        """Encode what is new; the whole ids of every prompt."""
        tokenizer = self._router.tokenizer
        for place, prompt in self.to_encode():
            ids = PackedIds(b"")
            if prompt.rest is not None:
                ids = await tokenizer.encode_async(
                    prompt.rest,
                    encoding=prompt.encoding,
                    first=prompt.is_first,
                    plain=prompt.plain,
                )
            self.encoded(place, ids)
        return self.prompts


class _Traced(Capture):
    """The same in spans, where traces are made."""

    async def encode(self) -> list[PackedIds]:
        """Likewise."""
        with self._router.shared.spans.child("slime.encode"):
            return await super().encode()

    def keep(
        self,
        sample: int,
        answer: sglang.Answer,
        worker: WorkerUrl,
        *,
        aliases: Sequence[str] = (),
        shown: Shown | None = None,
    ) -> bool:
        """Likewise."""
        with self._router.shared.spans.child("slime.commit"):
            return super().keep(sample, answer, worker, aliases=aliases, shown=shown)


def capture_of(router: Router, wish: Wish) -> Capture:
    """The calls of a new request."""
    made = Capture if router.shared.spans is NO_SPANS else _Traced
    return made(router, wish)
