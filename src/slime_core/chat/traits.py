"""What a template wants of the messages it is given, found by rendering small conversations.

These are the facts that decide how messages are evened out before rendering
(``slime_trio.chat_messages``); everything else that is worth knowing about a template is in
:mod:`slime_core.chat.probe`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

__all__ = ["Apply", "TemplateTraits", "probe_traits", "tried"]


class Apply(Protocol):
    """A template as it is: nothing is evened out before, and it may raise anything."""

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, **arguments: Any
    ) -> str:
        """The rendering."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateTraits:
    """What start-up probes found out about a template."""

    arguments_as_text: bool = False
    """Former tool calls' arguments must be JSON text; otherwise an object."""
    system_anywhere: bool = True
    """A system message is rendered in the middle of a conversation too."""
    reasoning_field: str | None = None
    """The message field the template takes an assistant's reasoning from."""
    shows_tools: bool = True
    """Tool definitions reach the model at all."""
    shows_tool_calls: bool = True
    """An assistant's former tool calls reach the model at all."""
    reads_clock: bool = False
    """The rendering depends on the date, which is why that is pinned."""
    one_text_beside_calls: bool = False
    """Content and reasoning beside a tool call cannot both be rendered."""
    short_call_ids: bool = False
    """Ids of calls must be nine letters and digits."""


_MARK: Final = "qz7mark"
"""A word that no template writes by itself."""
_SHORT_ID: Final = "c00000001"
_LONG_ID: Final = "call_000000001"
_REASONING_FIELDS: Final = ("reasoning_content", "thinking")
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": f"{_MARK}tool",
        "description": "looks something up",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    },
}


def tried(apply: Apply, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str | None:
    """The rendering, or ``None`` if the template raises, by intent or by accident."""
    try:
        return apply(messages, **settings)
    except Exception:
        return None


def probe_traits(apply: Apply, source: Any) -> TemplateTraits:
    """The traits of a template. ``source`` is its text, or several by name."""
    probe = _Probe(apply)
    after_call = probe.after_call
    as_object = probe.shown(after_call({"key": _MARK}))
    as_text = probe.shown(after_call(json.dumps({"key": _MARK})))
    # Python's spelling of an object in the rendering: the template expected text.
    object_works = bool(as_object) and f"'{_MARK}'" not in as_object
    is_text = bool(as_text) and not object_works
    return TemplateTraits(
        arguments_as_text=is_text,
        system_anywhere=bool(probe.shown(_WITH_LATER_SYSTEM)),
        reasoning_field=probe.reasoning_field(),
        shows_tools=bool(probe.shown([_USER], [_TOOL])),
        shows_tool_calls=bool(as_object or as_text),
        reads_clock="strftime_now" in json.dumps(source),
        one_text_beside_calls=probe.refuses_two_texts(is_text),
        short_call_ids=probe.short_ids,
    )


class _Probe:
    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self.short_ids: Final = _demands_short_ids(apply)

    def shown(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        """The rendering if the mark is in it, else nothing."""
        rendered = tried(self._apply, messages, tools=tools) or ""
        return rendered if _MARK in rendered else ""

    def reasoning_field(self) -> str | None:
        for name in _REASONING_FIELDS:
            reasoning = {name: _MARK}
            if (
                self.shown(self.after_call(_arguments(as_text=False), **reasoning))
                or self.shown(self.after_call(_arguments(as_text=True), **reasoning))
                or self.shown([_USER, {**_ANSWER, **reasoning}])
            ):
                return name
        return None

    def refuses_two_texts(self, as_text: bool) -> bool:
        field = self.reasoning_field()
        if field is None:
            return False
        reasoning, arguments = {field: "Hm."}, _arguments(as_text)
        alone = tried(self._apply, self.after_call(arguments, **reasoning))
        both = tried(self._apply, self.after_call(arguments, content="Hi", **reasoning))
        return alone is not None and both is None

    def after_call(
        self, arguments: Any, *, content: str = "", **fields: Any
    ) -> list[dict[str, Any]]:
        """A conversation after a tool's answer; ``fields`` stand in the message that called it."""
        call_id = _SHORT_ID if self.short_ids else _LONG_ID
        return _after_call(arguments, call_id, content=content, **fields)


def _demands_short_ids(apply: Apply) -> bool:
    works = {
        call_id: any(
            tried(apply, _after_call(_arguments(as_text), call_id)) is not None
            for as_text in (False, True)
        )
        for call_id in (_LONG_ID, _SHORT_ID)
    }
    return works[_SHORT_ID] and not works[_LONG_ID]


def _arguments(as_text: bool) -> Any:
    return '{"key": "value"}' if as_text else {"key": "value"}


_USER: Final = {"role": "user", "content": "Hello"}
_ANSWER: Final = {"role": "assistant", "content": "Hi"}
_WITH_LATER_SYSTEM: Final[tuple[dict[str, Any], ...]] = (
    {"role": "system", "content": "Be brief."},
    _USER,
    _ANSWER,
    {"role": "system", "content": _MARK},
    {"role": "user", "content": "And now?"},
)


def _after_call(
    arguments: Any, call_id: str, *, content: str = "", **fields: Any
) -> list[dict[str, Any]]:
    call = {
        "id": call_id,
        "type": "function",
        "function": {"name": "qz7call", "arguments": arguments},
    }
    return [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "content": content, "tool_calls": [call], **fields},
        {"role": "tool", "tool_call_id": call_id, "content": "found"},
    ]
