"""What an agent holds of the samples that it was given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.simulate.story import Ask, Chat, Ending, Exchange

__all__ = ["Held", "held_of", "names_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One sample, as far as its agent saw it."""

    number: int
    """Of the exchange."""
    sample: int
    ask: Ask
    """What was asked for this sample."""
    shown: str
    ids: tuple[int, ...] | None
    whole: bool
    """The agent knows that there is no more of it."""
    matched: int | str | None
    """The stop token or stop string that ended it, if the agent was told."""
    trimmed: bool
    """Whether ``matched`` is missing in ``shown``."""
    call: str | None
    message: dict[str, Any] | None = None
    """Of chat: the message, as it was given."""

    @property
    def chat(self) -> Chat:
        """The conversation that it was asked for with."""
        assert self.ask.chat is not None
        return self.ask.chat

    @property
    def text(self) -> str | None:
        """The prompt and what was shown."""
        return None if self.ask.text is None else self.ask.text + self.shown


def held_of(exchange: Exchange, sample: int) -> Held | None:
    """What is held of that sample; ``None`` if there is nothing to go on from.

    It is whole if its finish was seen. Of a message that came to a proper end without any the
    agent believes nothing.
    """
    got = exchange.samples[sample] if sample < len(exchange.samples) else None
    if got is None or exchange.status != 200:
        return None
    whole = got.finish is not None and exchange.ending is not Ending.OPEN
    if not whole and not got.text and not got.message:
        return None
    ask, calls = exchange.ask.of(sample), exchange.calls
    matched = (got.finish or {}).get("matched")
    return Held(
        number=exchange.number,
        sample=sample,
        ask=ask,
        shown=got.text,
        ids=None if got.ids is None else tuple(got.ids),
        whole=whole,
        matched=matched if isinstance(matched, int | str) else None,
        trimmed=not ask.body.get("sampling_params", ask.body).get("no_stop_trim", False),
        call=calls[sample] if sample < len(calls) else None,
        message=got.message,
    )


def names_of(exchange: Exchange) -> list[str]:
    """All names of its calls that a client can know."""
    match = re.search(rb'"id": ?"((?:chat)?cmpl-[^"]+)"', bytes(exchange.body))
    names = [*exchange.calls]
    if match is not None:
        name = match[1].decode()
        names += [name, *(f"{name}:{place}" for place in range(exchange.ask.samples))]
    return names
