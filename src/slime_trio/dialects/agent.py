"""SGLang's own dialect as it is spoken with an agent: text, counts, and why the answer ended."""

from __future__ import annotations

from collections.abc import Sequence

from slime_core import sglang, sse
from slime_core.agents import check_generate, shown_answer, shown_item
from slime_trio.dialects.native import NativeDialect
from slime_trio.exchange import Inbound

__all__ = ["AgentDialect"]


class AgentDialect(NativeDialect):
    """One ``/generate`` request that bears a session's key. What is captured is the same.

    Raises ``ClientError`` (403) for a request that asks for more (:mod:`slime_core.agents`).
    """

    def __init__(self, request: sglang.GenerateRequest, inbound: Inbound) -> None:
        check_generate(request)
        super().__init__(request, inbound)

    @property
    def shows_events(self) -> bool:
        """An agent is shown less."""
        return False

    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """What an agent is shown of the body."""
        return self._restored(shown_answer(body, array=self.asked.array))

    def step(self, step: sglang.StreamStep) -> bytes:
        """What an agent is shown of the event."""
        if step.sample is None:
            return step.raw
        (event,) = sse.Decoder().receive(step.raw)
        return self._restored(sse.encode(shown_item(event.data)))
