"""Which grammar a name stands for: the names are those of SGLang's flags, and of its aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from slime_core.parsing.grammar import Grammar
from slime_core.parsing.json_calls import HERMES, LLAMA3, MISTRAL
from slime_core.parsing.section_calls import DEEPSEEK_V3, DEEPSEEK_V31, KIMI_K2
from slime_core.parsing.tagged_calls import GLM, MINIMAX_M2, QWEN3_CODER

__all__ = ["HARMONY", "REASONING_PARSERS", "TOOL_CALL_PARSERS", "Block"]

HARMONY: Final = "gpt-oss"
"""The name of the one format that is no text with tags in it but a sequence of messages."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The tags around reasoning; a tag of ``also_ends``, if known by id, ends it too.

    Models of some families forget to close their thoughts before they call a tool. The call's tag
    is no part of the block.
    """

    opens: str
    closes: str
    also_ends: tuple[str, ...] = ()


_THINK: Final = Block(opens="<think>", closes="</think>")
_GLM_THINK: Final = Block(opens="<think>", closes="</think>", also_ends=("<tool_call>",))
_KIMI_THINK: Final = Block(
    opens="<think>", closes="</think>", also_ends=("<|tool_calls_section_begin|>",)
)

TOOL_CALL_PARSERS: Final[Mapping[str, Grammar | None]] = {
    "deepseekv3": DEEPSEEK_V3,
    "deepseekv31": DEEPSEEK_V31,
    "glm": GLM,
    "glm45": GLM,
    "glm47": GLM,
    HARMONY: None,
    "hermes": HERMES,
    "kimi_k2": KIMI_K2,
    "llama3": LLAMA3,
    "minimax-m2": MINIMAX_M2,
    "mistral": MISTRAL,
    "qwen": HERMES,
    "qwen25": HERMES,
    "qwen3_coder": QWEN3_CODER,
    "step3p5": QWEN3_CODER,
}
"""By the names of SGLang's ``--tool-call-parser``; ``None`` for harmony, which is no grammar."""

REASONING_PARSERS: Final[Mapping[str, Block | None]] = {
    "deepseek-r1": _THINK,
    "deepseek-v3": _THINK,
    "glm45": _GLM_THINK,
    HARMONY: None,
    "interns1": _THINK,
    "kimi": Block(opens="◁think▷", closes="◁/think▷"),
    "kimi_k2": _KIMI_THINK,
    "mimo": _THINK,
    "minimax": _THINK,
    "mistral": Block(opens="[THINK]", closes="[/THINK]"),
    "nemotron_3": _THINK,
    "qwen3": _THINK,
    "qwen3-thinking": _THINK,
    "step3": _THINK,
    "step3p5": _THINK,
}
"""By the names of SGLang's ``--reasoning-parser``; ``None`` for harmony, which has no block."""
