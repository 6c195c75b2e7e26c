"""What a chat client is told of an answer, piece by piece, before it is framed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import msgspec

from slime_core.openai.logprobs import ShownToken

__all__ = ["CallHead", "CallPiece", "ContentPiece", "Piece", "ReasoningPiece", "joined"]


@final
class ReasoningPiece(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """More reasoning."""

    text: str


@final
class ContentPiece(msgspec.Struct, frozen=True, kw_only=True):
    """More content, and the logprobs of the tokens that it completes.

    Either may be empty: a token is told when all its characters are decided.
    """

    text: str
    tokens: tuple[ShownToken, ...] = ()


@final
class CallHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tool call ``index`` begins; ``id`` is the router's."""

    index: int
    id: str
    name: str


@final
class CallPiece(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """More of the arguments of tool call ``index``."""

    index: int
    text: str


Piece = ReasoningPiece | ContentPiece | CallHead | CallPiece
"""The closed union of what a reader gives."""


def joined(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """The same with neighbours as one where they continue each other: fewer, larger chunks."""
    if len(pieces) < 2:
        return pieces
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
