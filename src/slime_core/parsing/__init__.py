"""What a sampled answer says: reasoning, content and tool calls, parsed while it arrives."""

from slime_core.parsing.detect import ParserChoice, detect
from slime_core.parsing.events import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Mark,
    Reasoning,
)
from slime_core.parsing.families import REASONING_PARSERS, TOOL_CALL_PARSERS
from slime_core.parsing.message import ShownCall, ShownMessage, assemble
from slime_core.parsing.parser import AnswerParser

__all__ = [
    "REASONING_PARSERS",
    "TOOL_CALL_PARSERS",
    "AnswerParser",
    "CallArguments",
    "CallBegun",
    "CallEnded",
    "Content",
    "Event",
    "Mark",
    "ParserChoice",
    "Reasoning",
    "ShownCall",
    "ShownMessage",
    "assemble",
    "detect",
]
