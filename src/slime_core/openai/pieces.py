"""What a chat client is told of an answer, piece by piece, before it is framed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from slime_core.openai.logprobs import ShownToken

__all__ = ["CallHead", "CallPiece", "ContentPiece", "Piece", "ReasoningPiece", "joined"]


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


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same with neighbours as one where they continue each other: fewer, larger chunks."""
    told: list[Piece] = []
    for piece in pieces:
        match (told[-1] if told else None), piece:
            case ReasoningPiece() as before, ReasoningPiece():
                told[-1] = ReasoningPiece(text=before.text + piece.text)
            case ContentPiece() as before, ContentPiece():
                tokens = before.tokens + piece.tokens
                told[-1] = ContentPiece(text=before.text + piece.text, tokens=tokens)
            case CallPiece() as before, CallPiece() if before.index == piece.index:
                told[-1] = CallPiece(index=piece.index, text=before.text + piece.text)
            case _:
                told.append(piece)
    return told
