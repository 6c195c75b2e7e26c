"""Which parsers an answer needs, found in the chat template that made the prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, final

__all__ = ["ParserChoice", "detect"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ParserChoice:
    """Names of a reasoning parser and of a tool-call parser; ``None`` for no such parsing."""

    reasoning: str | None
    tool_calls: str | None


_NONE: Final = ParserChoice(reasoning=None, tool_calls=None)

# Texts that a template writes if it teaches the model a form of calls: the first row of which the
# template holds every text decides. What is more particular stands before what it may hold.
_TAUGHT: Final = (
    (("<|channel|>", "<|message|>"), ParserChoice(reasoning="gpt-oss", tool_calls="gpt-oss")),
    (("<minimax:tool_call>",), ParserChoice(reasoning="minimax", tool_calls="minimax-m2")),
    (
        ("<|tool_calls_section_begin|>",),
        ParserChoice(reasoning="kimi_k2", tool_calls="kimi_k2"),
    ),
    (
        ("<｜tool▁calls▁begin｜>", "```json"),
        ParserChoice(reasoning="deepseek-r1", tool_calls="deepseekv3"),
    ),
    (
        ("<｜tool▁calls▁begin｜>",),
        ParserChoice(reasoning="deepseek-v3", tool_calls="deepseekv31"),
    ),
    (("<tool_call>", "<arg_key>"), ParserChoice(reasoning="glm45", tool_calls="glm45")),
    (("<tool_call>", "<function="), ParserChoice(reasoning="qwen3", tool_calls="qwen3_coder")),
    (("<tool_call>",), ParserChoice(reasoning="qwen3", tool_calls="qwen25")),
    (("[TOOL_CALLS]",), ParserChoice(reasoning="mistral", tool_calls="mistral")),
)
_THOUGHTS: Final = (
    # What a template holds if the model thinks in a block of its own, and the parser's name where
    # the form of calls says nothing.
    ("</think>", "qwen3"),
    ("[THINK]", "mistral"),
    ("◁think▷", "kimi"),
)


def detect(template_source: str, added_tokens: Collection[str]) -> ParserChoice:
    """The parsers for answers to prompts of this template, given the vocabulary's added tokens.

    A template that mentions no tools teaches no calls, and one that mentions no block of reasoning
    leaves none to parse, whatever the vocabulary could spell. The vocabulary tells Llama 3 apart,
    whose calls are JSON without any tag that the template must write.
    """
    found = next(
        (choice for texts, choice in _TAUGHT if all(text in template_source for text in texts)),
        _NONE,
    )
    if found.reasoning == "gpt-oss":
        return found
    thought = next((name for text, name in _THOUGHTS if text in template_source), None)
    if thought is not None and found.reasoning is not None:
        thought = found.reasoning
    calls = found.tool_calls
    if calls is None and _is_llama(template_source, added_tokens):
        calls = "llama3"
    return ParserChoice(reasoning=thought, tool_calls=calls)


def _is_llama(template_source: str, added_tokens: Collection[str]) -> bool:
    known = "<|python_tag|>" in template_source or "<|python_tag|>" in added_tokens
    return known and "tools" in template_source and '"parameters"' in template_source
