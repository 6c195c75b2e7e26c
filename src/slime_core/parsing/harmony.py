"""The format of gpt-oss: an answer is a sequence of messages, each with a channel.

::

    <|channel|>analysis<|message|>…<|end|>                                     reasoning
    <|start|>assistant<|channel|>commentary<|message|>…<|end|>                 content
    <|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json
        <|message|>{…}<|call|>                                                 a call, in one line
    <|start|>assistant<|channel|>final<|message|>…<|return|>                   content

The prompt ends in ``<|start|>assistant``, so the first message begins with its channel, or with a
recipient. The recipient may stand before the channel or behind it. What is a message to something
other than a function, or in an unknown channel, is content, header and all: there is nothing else
to call it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from slime_core.parsing.grammar import Reading, attempt, one_call
from slime_core.parsing.json_calls import arguments
from slime_core.parsing.source import Broken, Sink, Steps
from slime_core.parsing.telling import Call

__all__ = ["Harmony"]

_START: Final = "<|start|>"
_CHANNEL: Final = "<|channel|>"
_MESSAGE: Final = "<|message|>"
_ENDS: Final = ("<|end|>", "<|return|>", "<|call|>")
_CHANNEL_NAME: Final = re.compile(r"<\|channel\|>\s*(\w*)")
_RECIPIENT: Final = re.compile(r"\bto=([^\s<]*)")
_FUNCTION: Final = re.compile(r"functions\.([^\s<>\"'\x00-\x1f]+)")


class Harmony:
    """Reads an answer of messages.

    ``thinks``: the analysis channel is told as reasoning; else it is content like any unknown
    message. ``calls``: messages to functions are told as calls; else they are content.
    ``untagged`` is read wherever text for the user may begin: it looks for forced calls.
    """

    __slots__ = ("_calls", "_reading", "_thinks", "_untagged")

    def __init__(
        self,
        reading: Reading,
        *,
        thinks: bool,
        calls: bool,
        untagged: Callable[[], Steps[None]],
    ) -> None:
        self._reading = reading
        self._thinks = thinks
        self._calls = calls
        self._untagged = untagged

    def read(self, *, in_reasoning: bool) -> Steps[None]:
        """Read all of it."""
        source, teller = self._reading.source, self._reading.teller
        if self._thinks and in_reasoning:
            yield from self._analysis()
        else:
            yield from attempt(self._reading, self._message(bare=True))
            yield from self._untagged()
        while (yield from source.until((_START, _CHANNEL), teller.content)) is not None:
            yield from attempt(self._reading, self._message(bare=False))
        teller.finish()

    def _message(self, *, bare: bool) -> Steps[None]:
        """Read a message. Raises :class:`Broken` behind the header of one that is unknown."""
        source = self._reading.source
        start = source.at
        header = yield from self._header(bare=bare)
        recipient = _RECIPIENT.search(header)
        function = _FUNCTION.fullmatch(recipient[1]) if recipient else None
        channel = _CHANNEL_NAME.search(header)
        name = channel[1] if channel else "final"
        if function is not None and self._calls:
            call = self._reading.teller.call(start)
            call.name = function[1]
            steps = self._call(call)
            yield from one_call(self._reading, call, steps, (*_ENDS, _START), _ENDS)
        elif recipient is not None or name not in ("analysis", "commentary", "final"):
            raise Broken("malformed")
        elif name != "analysis":
            source.forget()
            yield from self._untagged()
            yield from self._text(self._reading.teller.content)
        elif self._thinks:
            source.forget()
            yield from self._analysis()
        else:
            raise Broken("malformed")

    def _header(self, *, bare: bool) -> Steps[str]:
        """Take all before a message's text; ``bare``: it must begin with a recipient."""
        source = self._reading.source
        pieces: list[str] = []
        if bare:
            yield from source.space()
            yield from source.expect("to=")
            pieces.append("to=")
        else:
            tag = yield from source.here((_START, _CHANNEL))
            pieces.append(source.take(len(tag or "")))
        ends = (_MESSAGE, _START, *_ENDS)
        tag = yield from source.until(ends, lambda piece, _start: pieces.append(piece))
        if tag != _MESSAGE:
            raise source.broken()
        source.take(len(tag))
        return "".join(pieces)

    def _call(self, call: Call) -> Steps[None]:
        source = self._reading.source
        yield from source.space()
        yield from arguments(self._reading, call)
        call.complete()

    def _analysis(self) -> Steps[None]:
        self._reading.teller.open_reasoning()
        yield from self._text(self._reading.teller.reasoning)
        self._reading.teller.close_reasoning()

    def _text(self, sink: Sink) -> Steps[None]:
        """Give out the text of a message, and take the tag that ends it."""
        tag = yield from self._reading.source.until((*_ENDS, _START), sink)
        if tag in _ENDS:
            self._reading.source.take(len(tag))
