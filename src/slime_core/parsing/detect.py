"""Which parsers an answer needs, found in the chat template that made the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["ParserChoice"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ParserChoice:
    """Names of a reasoning parser and of a tool-call parser; ``None`` for no such parsing.

    Raises ``ValueError`` for a name that is none.
    """

    reasoning: str | None
    tool_calls: str | None
