"""How the models of each family write: what they would sample for a turn, and ids that spell it.

A turn is written as the family's template writes it in a history, so that renderings of a whole
conversation can be compared with what was kept of it. Its ids spell it byte by byte, added tokens
apart, which no encoding of the text does: whoever encodes it again is found out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from slime_core.vocabulary import Vocabulary

__all__ = ["CALL", "FORMS", "Form", "Said", "spelled", "spelled_plain"]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model means to say."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    begun: bool = False
    """The prompt has opened the reasoning."""


CALL: Final = ("look_up", {"key": "Zürich", "deep": False})
"""A tool call: name and arguments."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One family's way of writing."""

    write: Callable[[Said], str]
    """The text of a turn, without what ends it."""
    ends: str
    """The token that ends a turn with an answer."""
    ends_calls: str
    """The token that ends a turn with calls."""
    closes: str
    """The token that closes a turn in a history; empty where the next turn does."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the template must be told for the model to think."""
    thinks: bool = False
    thinks_after_results: bool = False
    """Each turn of a tool loop has reasoning of its own."""
    opens_reasoning: bool = False
    """The prompt after a user's message does."""
    several_calls: bool = True
    content_beside_calls: bool = True
    marks_calls: bool = True
    """Tokens stand around calls."""
    renders_alike: bool = True
    """Within a tool loop the template writes an old turn as it was sampled."""
    strips_reasoning: bool = False
    """It leaves the reasoning out of turns before the last question."""

    def end(self, said: Said) -> str:
        """The token that ends this turn."""
        return self.ends_calls if said.calls else self.ends


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _hermes(said: Said, between: str = "\n") -> str:
    calls = [
        '<tool_call>\n{"name": "' + name + '", "arguments": ' + _json(given) + "}\n</tool_call>"
        for name, given in said.calls
    ]
    return between.join([said.content, *calls] if said.content else calls)


def _qwen3(said: Said) -> str:
    return f"<think>\n{said.reasoning}\n</think>\n\n{_hermes(said)}"


def _llama(said: Said) -> str:
    if not said.calls:
        return said.content
    ((name, given),) = said.calls
    return f'{{"name": "{name}", "parameters": {_json(given)}}}'


def _deepseek_v3(said: Said) -> str:
    thought = f"{said.reasoning}\n</think>\n\n" if said.begun else ""
    calls = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(given)}\n```"
        "<｜tool▁call▁end｜>"
        for name, given in said.calls
    ]
    section = "<｜tool▁calls▁begin｜>" + "\n".join(calls) + "<｜tool▁calls▁end｜>" if calls else ""
    return thought + said.content + section


def _deepseek_v3_1(said: Said) -> str:
    thought = f"{said.reasoning}</think>" if said.begun else ""
    calls = [
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(given)}<｜tool▁call▁end｜>"
        for name, given in said.calls
    ]
    section = "<｜tool▁calls▁begin｜>" + "".join(calls) + "<｜tool▁calls▁end｜>" if calls else ""
    return thought + said.content + section


def _glm(said: Said) -> str:
    text = f"\n<think>{said.reasoning}</think>"
    if said.content:
        text += "\n" + said.content
    for name, given in said.calls:
        pairs = "".join(
            f"<arg_key>{key}</arg_key>\n"
            f"<arg_value>{value if isinstance(value, str) else _json(value)}</arg_value>\n"
            for key, value in given.items()
        )
        text += f"\n<tool_call>{name}\n{pairs}</tool_call>"
    return text


def _harmony(said: Said) -> str:
    channels = [f"<|channel|>analysis<|message|>{said.reasoning}"] if said.reasoning else []
    if said.calls:
        ((name, given),) = said.calls
        to = f" to=functions.{name}<|channel|>commentary json<|message|>{_json(given)}"
        channels.append(to)
    else:
        channels.append(f"<|channel|>final<|message|>{said.content}")
    return "<|end|><|start|>assistant".join(channels)


_DEEPSEEK_END: Final = "<｜end▁of▁sentence｜>"

FORMS: Final[dict[str, Form]] = {
    "qwen2_5": Form(write=_hermes, ends="<|im_end|>", ends_calls="<|im_end|>", closes="<|im_end|>"),
    "qwen3": Form(
        write=_qwen3,
        ends="<|im_end|>",
        ends_calls="<|im_end|>",
        closes="<|im_end|>",
        thinks=True,
        thinks_after_results=True,
        strips_reasoning=True,
    ),
    "llama3_1": Form(
        write=_llama,
        ends="<|eot_id|>",
        ends_calls="<|eot_id|>",
        closes="<|eot_id|>",
        several_calls=False,
        content_beside_calls=False,
        marks_calls=False,
    ),
    "deepseek_v3": Form(
        write=_deepseek_v3,
        ends=_DEEPSEEK_END,
        ends_calls=_DEEPSEEK_END,
        closes=_DEEPSEEK_END,
        thinks=True,
        opens_reasoning=True,
        renders_alike=False,
        strips_reasoning=True,
    ),
    "deepseek_v3_1": Form(
        write=_deepseek_v3_1,
        ends=_DEEPSEEK_END,
        ends_calls=_DEEPSEEK_END,
        closes=_DEEPSEEK_END,
        arguments={"thinking": True},
        thinks=True,
        opens_reasoning=True,
        renders_alike=False,
        strips_reasoning=True,
    ),
    "glm4_5": Form(
        write=_glm,
        ends="<|user|>",
        ends_calls="<|observation|>",
        closes="",
        thinks=True,
        thinks_after_results=True,
        strips_reasoning=True,
    ),
    "gpt_oss": Form(
        write=_harmony,
        ends="<|return|>",
        ends_calls="<|call|>",
        closes="<|end|>",
        thinks=True,
        thinks_after_results=True,
        several_calls=False,
        content_beside_calls=False,
        strips_reasoning=True,
    ),
}
"""By the name of the family."""


def spelled(vocabulary: Vocabulary, text: str) -> list[int]:
    """``text`` with the added tokens as they are and all else byte by byte."""
    added = {token.content: token_id for token_id, token in vocabulary.added.items()}
    ids: list[int] = []
    at = 0
    while at < len(text):
        end = min((found for one in added if (found := text.find(one, at)) >= 0), default=len(text))
        ids += spelled_plain(vocabulary, text[at:end])
        if end == len(text):
            break
        token = max((one for one in added if text.startswith(one, end)), key=len)
        ids.append(added[token])
        at = end + len(token)
    return ids


def spelled_plain(vocabulary: Vocabulary, text: str) -> list[int]:
    """``text`` byte by byte, spellings of added tokens too."""
    byte_ids = _byte_ids(vocabulary)
    return [byte_ids[byte] for byte in text.encode()]


@cache
def _byte_ids(vocabulary: Vocabulary) -> dict[int, int]:
    """The id of every single byte: among the first of a byte-level vocabulary."""
    pieces = ((vocabulary.bytes_of(token), token) for token in range(min(1000, len(vocabulary))))
    return {piece[0]: token for piece, token in pieces if len(piece) == 1}
