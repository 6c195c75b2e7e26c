"""Which grammar a name stands for: the names are those of SGLang's flags, and of its aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from slime_core.parsing.grammar import Grammar
from slime_core.parsing.json_calls import HERMES, LLAMA3, MISTRAL

__all__ = ["HARMONY", "REASONING_PARSERS", "TOOL_CALL_PARSERS", "Block"]

HARMONY: Final = "gpt-oss"
"""The name of the one format that is no text with tags in it but a sequence of messages."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The tags around reasoning; a tag of ``also_ends`` ends it too, and is not part of it.

    Models of some families forget to close their thoughts before they call a tool.
    """

    opens: str
    closes: str
    also_ends: tuple[str, ...] = ()


_THINK: Final = Block(opens="<think>", closes="</think>")

TOOL_CALL_PARSERS: Final[Mapping[str, Grammar | None]] = {
    "hermes": HERMES,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen": HERMES,
    "qwen25": HERMES,
}
"""By the names of SGLang's ``--tool-call-parser``; ``None`` for harmony, which is no grammar."""

REASONING_PARSERS: Final[Mapping[str, Block | None]] = {
    "deepseek-r1": _THINK,
    "deepseek-v3": _THINK,
    "qwen3": _THINK,
    "qwen3-thinking": _THINK,
}
"""By the names of SGLang's ``--reasoning-parser``; ``None`` for harmony, which has no block."""
