"""Telling content from control in a rendering: marks go in before it and are found again after it.

A template sees one kind of text only. So where content spells an added token, the spelling is
broken up by a **marker**, one character that the request does not hold, and the template renders
that. Afterwards an added token that stands whole in the rendering was written by the template, and
one that stands there only without the markers was spelt by content, or by both at a seam: then what
of it is no token of the template's is plain.

The marker goes behind the first character of the spelling. There it is neither at the beginning nor
at the end of a content (seams apart), so trimming and the like go on as without it. What a template
does with the spelling itself (Qwen 3 looks for ``<tool_response>`` in user messages, DeepSeek for
``</think>``) it no longer does: that is what "text, not control" means.

Which tokens count depends on who wrote the text. What users, tools and the client's own assistant
turns say may spell none; system text and tool definitions speak about ``<tool_call>`` and the like
on purpose and may spell all but those that make turns. No text may spell one together with what the
template writes beside it: that could take a token of the template's with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from slime_core.errors import ClientError

from .rendering import Rendered
from .spellings import Spellings

__all__ = ["Marked", "Marking", "split_reasoning", "strings_of"]

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"
_STRUCTURE: Final = frozenset({"role", "type"})
"""Fields of a message that templates compare with fixed words; nobody's content."""
_MARKERS: Final = (range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
"""Noncharacters, which no text should hold; then characters for private use."""

_Breaks: TypeAlias = Callable[[str], Iterable[int]]
"""Where a text is to be broken up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A request ready for a template, and the marker in it; ``None`` where none was needed."""

    messages: list[dict[str, Any]]
    tools: Any
    arguments: dict[str, Any]
    marker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """Breaks spellings of added tokens up, and finds them again.

    ``added`` are those of the vocabulary, ``turns`` those of them that make turns.
    """

    added: Spellings
    turns: Spellings

    def mark(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, arguments: Mapping[str, Any]
    ) -> Marked:
        """The request with every spelling broken up. What is given is not changed.

        Raises :class:`ClientError` for a request that leaves no character to mark with.
        """
        # Once each: most are names of fields.
        texts = dict.fromkeys(strings_of((*messages, tools, arguments)))
        marker = _absent(texts) if any(map(self.added.breaks, texts)) else None
        if marker is None:
            return Marked(
                messages=[dict(message) for message in messages],
                tools=tools,
                arguments=dict(arguments),
                marker=None,
            )
        return Marked(
            messages=[self._message(message, marker) for message in messages],
            tools=_broken(tools, self._turn_breaks, marker),
            arguments=_broken(dict(arguments), self._turn_breaks, marker),
            marker=marker,
        )

    def read(self, rendering: str, marker: str | None) -> Rendered:
        """The rendering without markers, and where content spelt a token."""
        if marker is None:
            return Rendered(text=rendering)
        # A template that escapes all but ASCII when it writes JSON escapes the marker too.
        marked = rendering.replace(_escaped(marker), marker)
        if marker not in marked:
            return Rendered(text=marked)
        control: list[tuple[int, int]] = []
        at = length = 0
        for start, end in self.added.found(marked):
            length += start - at - marked.count(marker, at, start)
            control.append((length, length + end - start))
            length += end - start
            at = end
        text = marked.replace(marker, "")
        return Rendered(text=text, plain=self.added.beside(text, tuple(control)))

    def _turn_breaks(self, text: str) -> list[int]:
        """Where to break a text that may spell tokens which make no turns."""
        return self.turns.breaks(text, seams=self.added)

    def _message(self, message: Mapping[str, Any], marker: str) -> dict[str, Any]:
        breaks = self._turn_breaks if message.get("role") == "system" else self.added.breaks
        broken = {
            name: value if name in _STRUCTURE else _broken(value, breaks, marker)
            for name, value in message.items()
        }
        content = message.get("content")
        if message.get("role") == "assistant" and isinstance(content, str):
            broken["content"] = self._said(content, marker)
        return broken

    def _said(self, content: str, marker: str) -> str:
        """An assistant's content. A reasoning block at its beginning, which is there only where
        the template has no other place for it, keeps its tags: they are structure."""
        block = split_reasoning(content)
        if block is None:
            return _broken_text(content, self.added.breaks, marker)
        reasoning, rest = (_broken_text(text, self.added.breaks, marker) for text in block)
        return content[: content.index(_OPEN)] + _OPEN + reasoning + _CLOSE + rest


def split_reasoning(content: str) -> tuple[str, str] | None:
    """The inside of a ``<think>`` block at the beginning of ``content``, and what follows it."""
    if not content.lstrip().startswith(_OPEN):
        return None
    reasoning, close, rest = content[content.index(_OPEN) + len(_OPEN) :].partition(_CLOSE)
    return (reasoning, rest) if close else None


def strings_of(value: Any) -> Iterator[str]:
    """Every string in a JSON value, names of fields included, however deep it is nested."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            rest += reversed([part for item in one.items() for part in item])
        elif isinstance(one, list | tuple):
            rest += reversed(one)


def _absent(texts: Collection[str]) -> str:
    """A character that none of ``texts`` holds, escaped or not."""
    held = frozenset().union(*texts)
    for candidates in _MARKERS:
        for code in candidates:
            marker = chr(code)
            if marker not in held and not any(_escaped(marker) in text for text in texts):
                return marker
    raise ClientError("the request holds every character of private use", param="messages")


def _escaped(marker: str) -> str:
    r"""The character as JSON writes it in ASCII: ``\ufdd0``."""
    return "".join(
        f"\\u{int.from_bytes(pair, 'big'):04x}" for pair in _pairs(marker.encode("utf-16-be"))
    )


def _pairs(units: bytes) -> Iterator[bytes]:
    for at in range(0, len(units), 2):
        yield units[at : at + 2]


def _broken(value: Any, breaks: _Breaks, marker: str) -> Any:
    """A JSON value with the spellings in all its strings broken up."""
    if isinstance(value, str):
        return _broken_text(value, breaks, marker)
    if isinstance(value, Mapping):
        return {
            _broken(name, breaks, marker): _broken(inner, breaks, marker)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_broken(inner, breaks, marker) for inner in value]
    return value


def _broken_text(text: str, breaks: _Breaks, marker: str) -> str:
    at = 0
    pieces = []
    for position in breaks(text):
        pieces.append(text[at:position])
        at = position
    return marker.join((*pieces, text[at:]))
