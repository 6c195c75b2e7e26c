"""Messages in one canonical form, so that a conversation is known however a client spells it.

What SDKs and harnesses do to a turn before they send it back, and what is therefore the same:
content that is null, empty or absent; text split into parts; arguments of tool calls dumped anew
(key order, escapes, ``1`` for ``1.0``); ids of tool calls changed or lost, as long as order and
arity stay; reasoning dropped, or moved between ``content`` and a field of its own; whitespace
around an assistant's content; keys that no template reads. Arguments that were no JSON may come
back mended. What is not the same: any other character, a turn more or less, other tools, other
template arguments.

Every message has two digests. The *loose* one takes an assistant's message for what a model would
have sampled: it goes into the chain that turns are found by. The *strict* one holds for what a
client wrote itself, of which every detail went into the prompt, reasoning too.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

__all__ = [
    "Conversation",
    "Message",
    "canonical_arguments",
    "conversation",
    "digest",
    "is_mended",
    "loosely",
    "reasoning_of",
    "spelled_arguments",
    "verbatim",
    "written",
]

Message = Mapping[str, Any]
"""One message as a client sent it, checked for its types (:mod:`slime_core.openai.messages`)."""

_DIGEST_BYTES: Final = 16
_REASONING_NAMES: Final = ("reasoning_content", "reasoning", "thinking")
_INLINE: Final = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_EXACT: Final = 2**53
"""Up to here a float holds every integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages and what they are rendered with; the tuples have one entry for each message."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    arguments: Mapping[str, Any]
    """Arguments for the chat template."""
    context: bytes
    """Digest of tools and arguments: what the conversation begins with."""
    chains: tuple[bytes, ...]
    """Digest of the context and all messages up to each."""
    strict: tuple[bytes, ...]
    reasonings: tuple[bytes | None, ...]
    """Digest of an assistant message's reasoning; ``None`` where there is none."""
    call_ids: tuple[tuple[str, ...], ...]
    """The ids of an assistant message's tool calls."""

    def is_assistant(self, place: int) -> bool:
        """Whether the message at ``place`` is an assistant's."""
        return self.messages[place].get("role") == "assistant"

    def before(self, place: int) -> bytes:
        """The chain that the message at ``place`` continues."""
        return self.chains[place - 1] if place else self.context

    def with_assistant(self, place: int, message: Message) -> Conversation:
        """This conversation up to ``place``, and ``message``, an assistant's, there."""
        seen = _see(message, 0)
        return replace(
            self,
            messages=(*self.messages[:place], message),
            chains=(*self.chains[:place], _next(self.before(place), seen.loose)),
            strict=(*self.strict[:place], seen.strict),
            reasonings=(*self.reasonings[:place], seen.reasoning),
            call_ids=(*self.call_ids[:place], seen.call_ids),
        )


def conversation(
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    arguments: Mapping[str, Any] | None = None,
    mode: str = "",
) -> Conversation:
    """The conversation in canonical form. ``mode`` names other things that change its ids."""
    # The order of keys in a tool's definition is rendered, that of template arguments is not.
    context = digest(
        json.dumps([mode, [dict(tool) for tool in tools]]).encode(),
        json.dumps(arguments or {}, sort_keys=True).encode(),
    )
    chains: list[bytes] = []
    strict: list[bytes] = []
    reasonings: list[bytes | None] = []
    call_ids: list[tuple[str, ...]] = []
    asked = _Asked()
    chain = context
    for message in messages:
        seen = _see(message, asked.ordinal(message))
        asked.note(message, seen)
        strict.append(seen.strict)
        reasonings.append(seen.reasoning)
        call_ids.append(seen.call_ids)
        chain = _next(chain, seen.loose)
        chains.append(chain)
    return Conversation(
        messages=tuple(messages),
        tools=tuple(tools),
        arguments=arguments or {},
        context=context,
        chains=tuple(chains),
        strict=tuple(strict),
        reasonings=tuple(reasonings),
        call_ids=tuple(call_ids),
    )


def written(conversation: Conversation, start: int, end: int) -> bytes:
    """Digest of ``messages[start:end]``, strictly."""
    return digest(*conversation.strict[start:end])


def digest(*parts: bytes) -> bytes:
    """16 bytes that stand for ``parts``."""
    # The lengths come first, so that no two lists of parts read the same.
    sizes = array("Q", map(len, parts)).tobytes()
    head = len(parts).to_bytes(8, "little")
    return blake2b(b"".join((head, sizes, *parts)), digest_size=_DIGEST_BYTES).digest()


def _next(chain: bytes, loose: bytes) -> bytes:
    """The chain behind one more message; both are digests, so their lengths need not be told."""
    return blake2b(chain + loose, digest_size=_DIGEST_BYTES).digest()


def loosely(before: bytes, message: Message) -> bytes:
    """The chain of an assistant's message behind the chain ``before``."""
    return _next(before, _see(message, 0).loose)


def reasoning_of(message: Message) -> str:
    """An assistant's reasoning, from its field or inline, without blanks around it."""
    return _reasoning(message, _text(message.get("content")))[0]


def canonical_arguments(arguments: Any) -> str:
    """Arguments of a tool call as one spelling of their JSON value; as they are if they have none.

    As every client reads them: numbers are doubles (``1`` is ``1.0``), truth is no number, and of
    keys that come twice the last one holds. ``NaN`` and numbers beyond a double have no value.
    """
    value = _value_of(arguments)
    return spelled_arguments(arguments) if value is None else value


def spelled_arguments(arguments: Any) -> str:
    """Arguments of a tool call as they stand."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _value_of(arguments: Any) -> str | None:
    """One spelling of the JSON value, ``None`` where there is none."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    try:
        return _WRITES.encode(_READS.decode(spelled_arguments(arguments)))
    except (ValueError, RecursionError, TypeError):
        return None


def _number(text: str) -> float | int:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("beyond a double")
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


def _refuse(text: str) -> Any:
    raise ValueError(text)


_READS: Final = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_refuse)
_WRITES: Final = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":"))


def is_mended(kept: Message, given: Message) -> bool:
    """Whether ``given`` is the assistant's message ``kept`` but for arguments that were no JSON.

    Clients mend such arguments, each in its own way, or leave them out.
    """
    broken = _arguments(kept)
    values = _arguments(given)
    if len(broken) != len(values) or _see(_without_arguments(kept), 0).loose != (
        _see(_without_arguments(given), 0).loose
    ):
        return False
    pairs = zip(map(_value_of, broken), map(_value_of, values), strict=True)
    return all(one is None or one == other for one, other in pairs)


def _arguments(message: Message) -> list[Any]:
    return [(call.get("function") or {}).get("arguments") for call in _calls(message)]


def _without_arguments(message: Message) -> Message:
    bare = [
        {"function": {**(call.get("function") or {}), "arguments": ""}} for call in _calls(message)
    ]
    return {**message, "tool_calls": bare}


def _calls(message: Message) -> list[Message]:
    return [call for call in message.get("tool_calls") or () if isinstance(call, Mapping)]


# -- one message -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    loose: bytes
    strict: bytes
    reasoning: bytes | None
    call_ids: tuple[str, ...]


class _Asked:
    """The tool calls that wait for their results: which one a result answers, by its place."""

    def __init__(self) -> None:
        self._ids: tuple[str, ...] = ()
        self._results = 0

    def ordinal(self, message: Message) -> int:
        """Which call a tool's message answers: by its id, else by the order of results."""
        if message.get("role") != "tool":
            return 0
        named = message.get("tool_call_id")
        return self._ids.index(named) if named in self._ids else self._results

    def note(self, message: Message, seen: _Seen) -> None:
        """``message`` is part of the conversation now."""
        if message.get("role") == "tool":
            self._results += 1
        else:
            self._ids, self._results = seen.call_ids, 0


def _see(message: Message, ordinal: int) -> _Seen:
    role = message.get("role")
    role = "system" if role == "developer" else role
    content = _text(message.get("content"))
    name = message.get("name") or ""
    if role != "assistant":
        key = _key(role, name, content, str(ordinal))
        return _Seen(loose=key, strict=key, reasoning=None, call_ids=())
    reasoning, said = _reasoning(message, content)
    calls = _calls(message)
    named = [word for call in calls for word in _call(call, canonical_arguments)]
    spelled = [word for call in calls for word in _call(call, spelled_arguments)]
    return _Seen(
        loose=_key(role, "", said.strip(), *named),
        strict=_key(role, name, content, reasoning, *spelled),
        reasoning=_key(reasoning) if reasoning else None,
        call_ids=tuple(str(call.get("id") or "") for call in calls),
    )


def _key(*parts: Any) -> bytes:
    return digest(*[str(part).encode("utf-8", "surrogatepass") for part in parts])


def _text(content: Any) -> str:
    """Content as one string, parts joined without anything between them."""
    if isinstance(content, str):
        return content
    return "".join(_texts(content or ()))


def _texts(parts: Iterable[Any]) -> Iterable[str]:
    for part in parts:
        if isinstance(part, Mapping):
            text = part.get(part.get("type") or "text")
            if isinstance(text, str):
                yield text


def verbatim(message: Message) -> tuple[str, ...]:
    """An assistant's message in its very words: what tells it from one that is only the same."""
    spelled = map(spelled_arguments, _arguments(message))
    return _text(message.get("content")), reasoning_of(message), *spelled


def _reasoning(message: Message, content: str) -> tuple[str, str]:
    """An assistant's reasoning, and its content without it."""
    for name in _REASONING_NAMES:
        told = message.get(name)
        if isinstance(told, str) and told.strip():
            return told.strip(), content
    inline = _INLINE.match(content)
    if inline is None:
        return "", content
    return inline[1].strip(), content[inline.end() :]


def _call(call: Message, spell: Callable[[Any], str]) -> tuple[str, str]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return "", ""
    return str(function.get("name") or ""), spell(function.get("arguments"))
