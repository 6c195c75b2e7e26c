"""How a template opens and closes turns, found by rendering a few of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slime_core.errors import ClientError

from .rendering import Render
from .spellings import Spellings

__all__ = ["TurnMarks", "probe_turns"]

_WORD: Final = "qz7word"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnMarks:
    """The added tokens that a template makes turns of; contents, sorted where there are several."""

    close: str = ""
    """What closes an assistant's turn that others follow; empty where the next opener does."""
    close_last: str = ""
    """What closes it at a conversation's end; gpt-oss has another token there."""
    ends: tuple[str, ...] = ()
    """Every token that ends an assistant's turn: those two, and the checkpoint's ends of text."""
    stops: bool = True
    """The checkpoint calls :attr:`close_last` an end of text; otherwise a worker samples past the
    end of the turn."""
    markers: tuple[str, ...] = ()
    """Whatever stands around turns, :attr:`ends` among them. Text that spells one could forge
    a turn; tags for reasoning and calls are no markers."""


def probe_turns(render: Render, added: Spellings, end_of_text: Collection[str]) -> TurnMarks:
    """The marks of the template behind ``render``.

    ``end_of_text`` are the contents of the tokens that the checkpoint's files call an end.
    """
    probe = _Probe(render, added)
    last = probe.behind([_USER, _ASSISTANT_WORD])
    followed = probe.behind([_USER, _ASSISTANT_WORD, _USER])
    closes_users = probe.behind([_USER_WORD])
    # A token in front of which there is text ends something else.
    close_last = next(iter(last), "")
    close = next(iter(followed), "") if close_last else ""
    if close not in (close_last, *closes_users[:1], *end_of_text):
        close = ""
    ends = {close, close_last, *(text for text in end_of_text if text in added.contents)} - {""}
    around = {
        *probe.tokens([{"role": "system", "content": "-"}, _USER_WORD]),
        *probe.tokens([_USER_WORD]),
        *probe.behind([_USER_WORD, _ASSISTANT])[:2],
        *probe.behind([_USER_WORD], add_generation_prompt=True)[:2],
        *probe.added_by([_USER, _CALLING], _RESULT)[:1],
    }
    tags = {text for text in around if "think" in text.lower() or text.startswith("</")} - ends
    return TurnMarks(
        close=close,
        close_last=close_last,
        ends=tuple(sorted(ends)),
        stops=not close_last or close_last in end_of_text,
        markers=tuple(sorted((around | ends) - tags)),
    )


class _Probe:
    def __init__(self, render: Render, added: Spellings) -> None:
        self._render = render
        self._added = added

    def tokens(self, messages: Sequence[dict[str, Any]]) -> list[str]:
        """The added tokens of a rendering."""
        return self._within(self._text(messages))

    def behind(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False
    ) -> list[str]:
        """The added tokens behind the word, in order."""
        text = self._text(messages, add_generation_prompt=add_generation_prompt)
        _, word, rest = text.rpartition(_WORD)
        return self._within(rest) if word else []

    def added_by(self, before: Sequence[dict[str, Any]], message: dict[str, Any]) -> list[str]:
        """The added tokens that a further message brings."""
        old, new = self.behind(before), self.behind([*before, message])
        return new[len(old) :] if new[: len(old)] == old else []

    def _text(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        try:
            return self._render(
                messages, tools=None, arguments={}, add_generation_prompt=add_generation_prompt
            ).text
        except ClientError:
            return ""

    def _within(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self._added.found(text)]


_USER: Final = {"role": "user", "content": "-"}
_USER_WORD: Final = {"role": "user", "content": _WORD}
_ASSISTANT: Final = {"role": "assistant", "content": "-"}
_ASSISTANT_WORD: Final = {"role": "assistant", "content": _WORD}
_CALLING: Final = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "c00000001",
            "type": "function",
            "function": {"name": "call", "arguments": {"key": _WORD}},
        }
    ],
}
_RESULT: Final = {"role": "tool", "tool_call_id": "c00000001", "content": "-"}
