"""A turn: what one captured answer is as a message of a conversation.

It is kept with the answer, so that a later request whose messages extend the conversation finds
the very tokens. Digests stand for messages: comparing costs the same however long they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

__all__ = ["BRANCH", "SPELLED", "Turn"]

BRANCH: Final = "branch"
"""The flag of a prompt with assistant turns of which the last is not continued exactly."""
SPELLED: Final = "special_tokens_as_text"
"""The flag of a prompt whose content spells special tokens, which were encoded as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An assistant's message that was sampled, at place ``end`` of its conversation.

    Its call's prompt added the messages ``start … end - 1`` to the turn that its parent answer is;
    0 where it began a branch of its own, whatever of that was known by text.
    """

    chain: bytes
    """Digest of the conversation up to and with this message (:mod:`slime_core.chat.canonical`)."""
    start: int
    end: int
    written: bytes
    """Digest of ``messages[start:end]``, which the client wrote, in every detail."""
    reasoning: bytes | None
    """Digest of this message's reasoning, ``None`` without."""
    continues: bool = False
    """It goes on with the very message that its parent answer is."""
    call_ids: tuple[str, ...] = ()
    """The ids that the client was given for its tool calls, made by the router."""
    model_ids: tuple[str | None, ...] = ()
    """What the model itself called them, where its format has ids."""
    first: int
    """The place of the first message in :attr:`messages`."""
    messages: bytes
    """``messages[first:end]`` as the client sent them and this message as it was shown: JSON."""
    before: Turn | None = field(default=None, repr=False, compare=False)
    """The turn that knows the messages before ``first``. A branch that begins a conversation anew
    shares them, too, so that a conversation that branches at every turn is not kept each time."""
    tools: bytes = b"null"
    """The tools of the conversation as JSON, where ``first`` is 0."""

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return 200 + len(self.messages) + len(self.tools) + 40 * len(self.call_ids)

    def message(self, place: int) -> Mapping[str, Any]:
        """The message at ``place`` of the conversation, at most ``end``."""
        here = self
        while place < here.first and here.before is not None:
            here = here.before
        message: Mapping[str, Any] = msgspec.json.decode(here.messages)[place - here.first]
        return message

    def own(self) -> list[msgspec.Raw]:
        """The messages ``start … end``, each as JSON."""
        return self.whole()[self.start :]

    def whole(self) -> list[msgspec.Raw]:
        """The whole conversation up to this message, each message as JSON."""
        parts: list[list[msgspec.Raw]] = []
        here: Turn | None = self
        end = self.end + 1
        while here is not None and end > 0:
            told = msgspec.json.decode(here.messages, type=list[msgspec.Raw])
            parts.append(told[: max(0, end - here.first)])
            end = min(end, here.first)
            here = here.before
        return [message for part in reversed(parts) for message in part]

    @property
    def root(self) -> Turn:
        """The turn that knows the first message, and the tools."""
        here = self
        while here.before is not None:
            here = here.before
        return here
