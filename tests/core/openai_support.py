"""A small vocabulary and requests over it, for reading answers as chat clients are shown them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from slime_core.openai import AnswerReader, ChatRequest, Piece, Reading, parse_chat
from slime_core.openai.pieces import CallHead, CallPiece, ContentPiece, ReasoningPiece
from slime_core.parsing import ParserChoice
from slime_core.sglang import FinishReason
from slime_core.vocabulary import AddedToken, Vocabulary

MERGED: Final = (
    b"Hi",
    b" the",
    b".\n\n",
    b"\n\n",
    b'{"',
    b'": "',
    b"</",
    "🙂".encode()[:2],
    "🙂".encode()[2:],
    b"a" + "é".encode()[:1],
    "é".encode()[1:] + b"b<",
    b"##",
    b"#",
)
ADDED: Final = (
    ("<end>", True),
    ("<think>", False),
    ("</think>", False),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<ctl>", True),
)
_FIRST_ADDED: Final = 256 + len(MERGED)
END, THINK, THOUGHT, CALL, CALLED, CONTROL = range(_FIRST_ADDED, _FIRST_ADDED + len(ADDED))


def vocabulary(*, tags_are_special: bool = False) -> Vocabulary:
    """Every byte, some merged tokens, and the tags of Qwen 3 as added tokens."""
    added = {
        token: AddedToken(id=token, content=content, special=special or tags_are_special)
        for token, (content, special) in enumerate(ADDED, _FIRST_ADDED)
    }
    return Vocabulary([*(bytes([byte]) for byte in range(256)), *MERGED], added)


BOOK: Final = vocabulary()
QWEN3: Final = ParserChoice(reasoning="qwen3", tool_calls="qwen25")
TOOLS: Final = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("f", "g")
]
ENDED: Final = FinishReason(type="stop", matched=END)
LENGTH: Final = FinishReason(type="length")


def encode(text: str) -> list[int]:
    """Ids of a text in which added tokens may be spelled: they are the tokens."""
    ids: list[int] = []
    while text:
        for token, (content, _) in enumerate(ADDED, _FIRST_ADDED):
            if text.startswith(content):
                ids.append(token)
                text = text[len(content) :]
                break
        else:
            ids += text[0].encode()
            text = text[1:]
    return ids


def chat(**fields: Any) -> ChatRequest:
    """A request; ``n``, ``stream`` and all else as given."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body).encode())


def reader(
    request: ChatRequest,
    *,
    parsers: ParserChoice = QWEN3,
    in_reasoning: bool = False,
    book: Vocabulary = BOOK,
) -> AnswerReader:
    """What reads an answer to this request."""
    reading = Reading(chat=request, vocabulary=book, parsers=parsers, in_reasoning=in_reasoning)
    return AnswerReader(reading, call_id="call_{}".format)


def read(
    reading: AnswerReader,
    ids: Sequence[int],
    *,
    reason: FinishReason = ENDED,
    sizes: Sequence[int] = (),
) -> list[Piece]:
    """Push ``ids`` in steps of these sizes, the rest with the reason; every piece.

    The last id comes with the reason, as it does from every worker.
    """
    pieces: list[Piece] = []
    at = 0
    for wanted in sizes:
        size = max(0, min(wanted, len(ids) - 1 - at))
        part = ids[at : at + size]
        pieces += reading.push(part, [-float(token) for token in part])
        at += size
    rest = ids[at:]
    return pieces + reading.push(rest, [-float(token) for token in rest], reason=reason)


def told(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The pieces added up as a client does."""
    calls: dict[int, dict[str, str]] = {}
    sums: dict[str, Any] = {"reasoning": "", "content": "", "tokens": []}
    for piece in pieces:
        match piece:
            case ReasoningPiece():
                sums["reasoning"] += piece.text
            case ContentPiece():
                sums["content"] += piece.text
                sums["tokens"] += piece.tokens
            case CallHead():
                assert piece.index == len(calls)
                calls[piece.index] = {"id": piece.id, "name": piece.name, "arguments": ""}
            case CallPiece():
                calls[piece.index]["arguments"] += piece.text
    return sums | {"calls": list(calls.values())}
