"""What a router needs to serve chats: the checkpoint's template, and how its answers are parsed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slime_core.parsing import ParserChoice
from slime_core.parsing.detect import detect
from slime_trio.chat_template import ChatTemplate, SpecialTokens, load_chat_template
from slime_trio.config import AUTO, NONE, Settings
from slime_trio.tokenizer import Tokenizer

__all__ = ["Chatting", "load_chatting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chatting:
    """A template and the parsers of the answers to its prompts."""

    template: ChatTemplate
    parsers: ParserChoice


def load_chatting(path: Path, tokenizer: Tokenizer, settings: Settings) -> Chatting:
    """Load a checkpoint's template and choose parsers. Blocks, for two seconds or more.

    Raises ``CheckpointError`` where the checkpoint cannot be read.
    """
    special_tokens: SpecialTokens = (
        "control" if settings.special_tokens_in_content == "control" else "plain"
    )
    template = load_chat_template(path, tokenizer=tokenizer, special_tokens=special_tokens)
    added = [token.content for token in tokenizer.vocabulary.added.values()]
    found = detect(template.source, added)
    return Chatting(
        template=template,
        parsers=ParserChoice(
            reasoning=_chosen(settings.reasoning_parser, found.reasoning),
            tool_calls=_chosen(settings.tool_call_parser, found.tool_calls),
        ),
    )


def _chosen(wanted: str, found: str | None) -> str | None:
    if wanted == AUTO:
        return found
    return None if wanted == NONE else wanted
