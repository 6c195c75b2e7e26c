"""A turn: what one captured answer is as a message of a conversation.

It is kept with the answer, so that a later request whose messages extend the conversation finds
the very tokens. Digests stand for messages: comparing costs the same however long they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

__all__ = ["BRANCH", "SPELLED", "Told", "Turn"]

BRANCH: Final = "branch"
"""The flag of a prompt with assistant turns of which the last is not continued exactly."""
SPELLED: Final = "special_tokens_as_text"
"""The flag of a prompt whose content spells special tokens, which were encoded as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a prompt told of its conversation: messages from place ``first`` on, as JSON.

    Calls with the same prompt share one. The messages before ``first`` are known by the turn
    ``before``; a branch that begins a conversation anew shares them, too, so that a conversation
    that branches at every turn is not kept each time.
    """

    key: bytes
    """Digest of these messages, tools, and the answer behind which they stand."""
    first: int
    messages: bytes
    tools: bytes = b"null"
    """The tools of the conversation, where ``first`` is 0."""
    before: Turn | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.messages) + len(self.tools)


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
    told: Told
    """The messages before this one."""
    shares: bool = False
    """Another turn's books hold what ``told`` weighs."""
    own: bytes
    """This message as it was shown: JSON."""

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        told = 0 if self.shares else self.told.size
        return 200 + len(self.own) + told + 40 * len(self.call_ids)

    def message(self, place: int) -> Mapping[str, Any]:
        """The message at ``place`` of the conversation, at most ``end``."""
        here = self
        while place < here.told.first and here.told.before is not None:
            here = here.told.before
        message: Mapping[str, Any]
        if place == here.end:
            message = msgspec.json.decode(here.own)
        else:
            message = msgspec.json.decode(here.told.messages)[place - here.told.first]
        return message

    def appended(self) -> list[msgspec.Raw]:
        """The messages ``start … end - 1``, each as JSON."""
        return self.whole()[self.start : -1]

    def whole(self) -> list[msgspec.Raw]:
        """The whole conversation up to this message, each message as JSON."""
        parts: list[list[msgspec.Raw]] = []
        here: Turn | None = self
        end = self.end + 1
        while here is not None:
            told = msgspec.json.decode(here.told.messages, type=list[msgspec.Raw])
            parts.append([*told, msgspec.Raw(here.own)][: max(0, end - here.told.first)])
            end = min(end, here.told.first)
            here = here.told.before
        return [message for part in reversed(parts) for message in part]

    @property
    def tools(self) -> bytes:
        """The tools of the conversation as JSON."""
        here = self
        while here.told.before is not None:
            here = here.told.before
        return here.told.tools
