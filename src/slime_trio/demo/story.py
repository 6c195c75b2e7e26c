"""What the rollouts talk about, and how a conversation is written in ChatML.

The demonstration writes ChatML by itself rather than through the router's template code: that the
two agree is part of what is checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

__all__ = ["ANSWER_END", "ANSWER_START", "Message", "appended", "follow_up", "opening"]

ANSWER_START: Final = "<|im_start|>assistant\n"
ANSWER_END: Final = "<|im_end|>"

_SYSTEMS: Final = (
    "You are a careful programmer. Prefer small functions and clear names.",
    "You answer in one short sentence.",
    "你是一个乐于助人的助手，请用简洁的中文回答。",
)
_QUESTIONS: Final = (
    "What is the weather like in Lima?",
    "Which planet is the largest?",
    "What does a router do?",
    "请给我讲一个故事。",
    "What is the weather like in Rome?",
    "Add 13 and 47, step by step.",
    "What is a loss mask?",
    "How do you feel today? 🙂",
    "What is the weather like in Tokyo?",
    "How do I sleep in Trio?",
)
_FOLLOW_UPS: Final = (
    "What is 78 times 2?",
    "一天有多少分钟？",
    "What is a token?",
    "Thanks!   And in two  words?\n\n\tPlease.",
    "What is the capital of Japan?",
    "What is reinforcement learning? 👩‍👩‍👧‍👦",
)
_TOOL_RESULT: Final = '{"city": "Lima", "weather": "clear", "degrees": 20}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation. ``role``: system, user, assistant or tool."""

    role: str
    content: str


def opening(group: int, seed: int) -> tuple[Message, ...]:
    """The system prompt and the question of a group."""
    start = Random(f"opening {seed}").randrange(len(_QUESTIONS))
    return (
        Message(role="system", content=_SYSTEMS[(start + group) % len(_SYSTEMS)]),
        Message(role="user", content=_QUESTIONS[(start + group) % len(_QUESTIONS)]),
    )


def follow_up(answer: str, rollout: int, turn: int, seed: int) -> Message:
    """What comes after an answer: a tool's result where a tool was called, else a question."""
    if "<tool_call>" in answer:
        return Message(role="tool", content=_TOOL_RESULT)
    choice = Random(f"follow-up {seed} {rollout} {turn}").choice(_FOLLOW_UPS)
    return Message(role="user", content=choice)


def appended(messages: Iterable[Message], *, after_answer: bool) -> str:
    """``messages`` and the beginning of the answer to them, as text.

    ``after_answer``: they follow an answer, whose turn has to be closed first.
    """
    turns = "".join(f"<|im_start|>{one.role}\n{one.content}{ANSWER_END}\n" for one in messages)
    return (f"{ANSWER_END}\n" if after_answer else "") + turns + ANSWER_START
