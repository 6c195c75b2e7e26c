"""What the simulation's templates write, and how it must be encoded: the naive way.

Messages are evened out here once more, with nothing of the router's own; the template in Python
tells who wrote which part, so nothing has to be marked to know what is control.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.types import Encoding
from tests.simulate.messages import text_of
from tests.simulate.story import Chat
from tests.simulate.templates import Part, Template, Turns
from tests.simulate.tokens import Tokens

__all__ = ["Written", "written", "written_behind"]

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Text and its ids. ``hidden``: content spells special tokens in it. ``closes``: it begins with
    the close of a turn that was left open."""

    text: str
    ids: list[int]
    hidden: bool
    closes: bool = False


def written(tokens: Tokens, chat: Chat) -> Written:
    """The whole prompt of a chat."""
    turns = _turns(tokens.template, chat)
    if not chat.continues:
        return _encoded(tokens, turns.all(generation=True), first=True)
    opened = Turns(
        head=turns.head, messages=[*turns.messages[:-1], turns.messages[-1][:-1]], opening=[]
    )
    return _encoded(tokens, opened.all(generation=False), first=True)


def written_behind(tokens: Tokens, chat: Chat, place: int, last: int) -> Written:
    """What stands behind the assistant's turn before ``place``, whose last id is ``last``."""
    template, turns = tokens.template, _turns(tokens.template, chat)
    close = tokens.id_of(template.close) if template.close else None
    new = turns.messages[place:]
    opening = turns.opening
    if chat.continues:
        new, opening = [*new[:-1], new[-1][:-1]], []
    parts = [part for turn in new for part in turn] + opening
    rest = _encoded(tokens, [Part(template.separator), *parts], first=False)
    if close is not None and last not in tokens.end_ids:
        return Written(
            text=template.close + rest.text,
            ids=[close, *rest.ids],
            hidden=rest.hidden,
            closes=True,
        )
    if close is None and rest.ids[:1] == [last]:
        opener = tokens.vocabulary.bytes_of(last).decode()
        return Written(text=rest.text[len(opener) :], ids=rest.ids[1:], hidden=rest.hidden)
    return rest


def _turns(template: Template, chat: Chat) -> Turns:
    return template.write([_even(template, message) for message in chat.messages], chat.tools)


def _even(template: Template, message: Message) -> Message:
    even: Message = {"role": message["role"], "content": text_of(message.get("content"))}
    if even["role"] == "developer":
        even["role"] = "system"
    if even["role"] != "assistant":
        return even
    thought = next((message[name] for name in _REASONING if message.get(name)), None)
    if template.thinks_in_field:
        if thought is None:
            thought, even["content"] = _split(even["content"])
        even["reasoning_content"] = thought
    even["tool_calls"] = [
        {"function": {"name": one["function"]["name"], "arguments": _object(one["function"])}}
        for one in message.get("tool_calls") or ()
    ]
    return even


_REASONING = ("reasoning_content", "reasoning", "thinking")


def _split(content: str) -> tuple[str, str]:
    if not content.lstrip().startswith("<think>"):
        return "", content
    thought, close, rest = content.lstrip().removeprefix("<think>").partition("</think>")
    return (thought.strip("\n"), rest.lstrip("\n")) if close else ("", content)


def _object(function: Message) -> Any:
    text = function["arguments"]
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"raw_arguments": text}


# -- encoding --------------------------------------------------------------------------------


def _encoded(tokens: Tokens, parts: Sequence[Part], *, first: bool) -> Written:
    """Special tokens of the template as such, those of content as ordinary text."""
    text = "".join(part.text for part in parts)
    authors = [part.author for part in parts for _ in part.text]
    spans = list(_occurrences(tokens, text))
    control = [
        (start, end) for start, end in spans if _is_control(tokens, text, authors, start, end)
    ]
    hidden = len(control) < len(spans)
    ids: list[int] = []
    kept = 0  # From here on nothing is encoded yet.
    for begin, end in _between(control, len(text)):
        if any(
            begin <= start and stop <= end for start, stop in spans if (start, stop) not in control
        ):
            ids += _ids(tokens, text[kept:begin], first=first and not kept)
            ids += tokens.plain.encode(
                text[begin:end], encoding=Encoding.RENDERED, first=first and not begin
            )
            kept = end
    ids += _ids(tokens, text[kept:], first=first and not kept)
    return Written(text=text, ids=ids, hidden=hidden)


def _ids(tokens: Tokens, text: str, *, first: bool) -> list[int]:
    return tokens.encode(text, encoding=Encoding.RENDERED, first=first) if text else []


def _between(control: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    starts = [0, *(end for _, end in control)]
    ends = [*(start for start, _ in control), size]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def _occurrences(tokens: Tokens, text: str) -> list[tuple[int, int]]:
    """Where added tokens are spelled: leftmost, the longest, without overlap."""
    contents = sorted(tokens.added_contents, key=len, reverse=True)
    spans, at = [], 0
    while at < len(text):
        found = next((one for one in contents if text.startswith(one, at)), None)
        if found is None:
            at += 1
        else:
            spans.append((at, at + len(found)))
            at += len(found)
    return spans


def _is_control(tokens: Tokens, text: str, authors: Sequence[str], start: int, end: int) -> bool:
    who = set(authors[start:end])
    if "client" in who:
        return False
    return "system" not in who or text[start:end] not in tokens.template.markers
