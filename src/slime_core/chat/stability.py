"""Whether a longer conversation begins like the shorter one, for each way in which one grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slime_core.errors import ClientError

from .bridge import Bridge
from .rendering import Message, Render

__all__ = ["Change", "probe_changes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One way to grow."""

    name: str
    stable: bool | None
    """The old rendering, with the generation prompt where an assistant's turn follows, begins the
    new one. ``None``: the template refuses such conversations."""
    bridged: bool | None = None
    """What follows a held turn can be rendered alone; ``None`` where no held turn comes before."""

    @property
    def words(self) -> str:
        """Both answers in a few words."""
        if self.stable is None:
            return "refused"
        rendered = "stable" if self.stable else "rendered otherwise"
        if self.bridged is None:
            return rendered
        return f"{rendered}, {'extended exactly' if self.bridged else 'not extended'}"


def probe_changes(render: Render, bridge: Bridge) -> Iterator[Change]:
    """Every change of roles that occurs in tool loops and conversations."""
    for name, before, added in _CHANGES:
        is_held = before[-1]["role"] == "assistant"
        to_answer = added["role"] == "assistant"
        old = _text(render, before, add_generation_prompt=to_answer)
        new = _text(render, [*before, added])
        stable = None if old is None or new is None else new.startswith(old)
        bridged = None
        if is_held and stable is not None:
            bridged = bridge.delta(before, [added]) is not None
        yield Change(name=name, stable=stable, bridged=bridged)


def _text(
    render: Render, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> str | None:
    try:
        return render(
            messages, tools=None, arguments={}, add_generation_prompt=add_generation_prompt
        ).text
    except ClientError:
        return None


def _calling(*numbers: int, **fields: str) -> dict[str, Any]:
    calls = [
        {
            "id": f"c0000000{number}",
            "type": "function",
            "function": {"name": "call", "arguments": {"key": "value"}},
        }
        for number in numbers
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls, **fields}


def _result(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"c0000000{number}", "content": "found"}


_USER: Final = {"role": "user", "content": "Hello"}
_ANSWER: Final = {"role": "assistant", "content": "Hi"}
_THOUGHT: Final = {"reasoning_content": "Hm."}
_CALL: Final = _calling(1)
_HELD_CALL: Final = (_USER, _CALL)

_CHANGES: Final[tuple[tuple[str, tuple[Mapping[str, Any], ...], Mapping[str, Any]], ...]] = (
    ("user → assistant", (_USER,), _ANSWER),
    ("user → assistant with reasoning", (_USER,), {**_ANSWER, **_THOUGHT}),
    ("user → calls", (_USER,), _CALL),
    ("calls → tool", _HELD_CALL, _result(1)),
    ("calls with reasoning → tool", (_USER, _calling(1, **_THOUGHT)), _result(1)),
    ("two calls → tool", (_USER, _calling(1, 2)), _result(1)),
    ("tool → second result", (_USER, _calling(1, 2), _result(1)), _result(2)),
    ("tool → calls", (*_HELD_CALL, _result(1)), _calling(2)),
    ("second calls → tool", (*_HELD_CALL, _result(1), _calling(2)), _result(2)),
    ("tool → assistant", (*_HELD_CALL, _result(1)), _ANSWER),
    ("assistant → user", (_USER, _ANSWER), _USER),
    ("assistant with reasoning → user", (_USER, {**_ANSWER, **_THOUGHT}), _USER),
    ("assistant after tool → user", (*_HELD_CALL, _result(1), _ANSWER), _USER),
    ("calls → user", _HELD_CALL, _USER),
)
