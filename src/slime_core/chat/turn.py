"""A turn: what one captured answer is as a message of a conversation.

It is kept with the answer, so that a later request whose messages extend the conversation finds
the very tokens. Digests stand for messages: comparing costs the same however long they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    reasonings: tuple[bytes | None, ...]
    """Digest of the reasoning of every assistant message in ``start … end``, ``None`` without."""
    continues: bool = False
    """It goes on with the very message that its parent answer is."""
    call_ids: tuple[str, ...] = ()
    """The ids that the client was given for its tool calls, made by the router."""
    model_ids: tuple[str | None, ...] = ()
    """What the model itself called them, where its format has ids."""
    messages: bytes = b"[]"
    """``messages[start:end]`` as the client sent them and this message as it was shown: JSON."""
    tools: bytes = b"null"
    """The tools of the conversation as JSON, where ``start`` is 0."""

    def message(self, place: int) -> Mapping[str, Any]:
        """The message at ``place`` of the conversation, ``start … end``."""
        message: Mapping[str, Any] = msgspec.json.decode(self.messages)[place - self.start]
        return message

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return 200 + len(self.messages) + len(self.tools) + 40 * len(self.call_ids)
