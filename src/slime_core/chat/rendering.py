"""What a chat template makes of a conversation: text, and which of it must not be control.

A rendering is one text in which special tokens stand as text. Those that the template wrote are
control tokens; those that a client's content merely spells must be encoded as ordinary text, or a
message could forge a turn (``reference``: transformers#29279). ``plain`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Message", "Ranges", "Render", "Rendered"]

Message = Mapping[str, Any]
"""A chat message as a client sends it; never changed."""

Ranges = tuple[tuple[int, int], ...]
"""Half-open character ranges of a text, in order and without overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A rendering, or the end of one."""

    text: str
    plain: Ranges = ()
    """Where content spells an added token of the vocabulary. These characters get the ids of
    ordinary text. Not empty: the request held such text, which is worth counting."""

    def before(self, position: int) -> Rendered:
        """What stands before ``position``. A range that lies across it is cut."""
        return Rendered(
            text=self.text[:position],
            plain=tuple(
                (start, min(end, position)) for start, end in self.plain if start < position
            ),
        )

    def behind(self, position: int) -> Rendered:
        """What follows ``position``. A range that lies across it is cut."""
        return Rendered(
            text=self.text[position:],
            plain=tuple(
                (max(0, start - position), end - position)
                for start, end in self.plain
                if end > position
            ),
        )


class Render(Protocol):
    """How a conversation is rendered; deterministic, so that renderings can be compared."""

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        arguments: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> Rendered:
        """The rendering of ``messages``; ``arguments`` are those of the template.

        With ``continue_final`` the last message, an assistant's, is left open: the text ends with
        its content. Raises :class:`~slime_core.errors.ClientError` for what cannot be rendered.
        """
        ...
