"""What a chat client is told of an answer, piece by piece, before it is framed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from slime_core.openai.logprobs import ShownToken

__all__ = ["CallHead", "CallPiece", "ContentPiece", "Piece", "ReasoningPiece"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPiece:
    """More reasoning."""

    text: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPiece:
    """More content, and the logprobs of the tokens that it completes.

    Either may be empty: a token is told when all its characters are decided.
    """

    text: str
    tokens: tuple[ShownToken, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CallHead:
    """Tool call ``index`` begins; ``id`` is the router's."""

    index: int
    id: str
    name: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """More of the arguments of tool call ``index``."""

    index: int
    text: str


Piece = ReasoningPiece | ContentPiece | CallHead | CallPiece
"""The closed union of what a reader gives."""
