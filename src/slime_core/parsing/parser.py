"""Parsing a sampled answer while it arrives: reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from slime_core.parsing.detect import ParserChoice
from slime_core.parsing.events import Event, Mark
from slime_core.parsing.families import HARMONY, REASONING_PARSERS, TOOL_CALL_PARSERS, Block
from slime_core.parsing.grammar import Grammar, Reading, attempt
from slime_core.parsing.harmony import Harmony
from slime_core.parsing.json_calls import read_array
from slime_core.parsing.source import Source, Steps
from slime_core.parsing.telling import Teller

__all__ = ["AnswerParser"]


class AnswerParser:
    """Eats the text of one answer in pieces of any size and returns what they say.

    ``tools`` are OpenAI function tools; without any, no tool call is looked for and what looks like
    one is content. ``marks`` are the contents of the vocabulary's added tokens: a tag that is one
    of them counts only where a :class:`Mark` says that this token stands there, and text that
    merely spells it is content; a tag that is none is found in the text. Inside a JSON value no tag
    counts. ``in_reasoning``: the prompt has opened the block of reasoning. ``forced``: a constraint
    makes what follows the reasoning a JSON array of ``{"name", "parameters"}`` objects.
    ``parallel=False`` tells the first call only: further ones are dropped without a trace, since
    they are neither wanted as calls nor anything that the model said to the user.

    The events do not depend on how the text was cut, but for where texts are cut. Text leaves as
    soon as it can be no part of a tag, of a call's head or of trimmed whitespace (the rules are
    those of :mod:`slime_core.parsing.telling`). A call whose head is none is content, verbatim, and
    parsing goes on where the grammar broke, so that nothing is read twice. A name need not be one
    of the tools': the agent answers that. Only where no tag announces a call it must.

    A block of reasoning whose tag is known by id may stand anywhere outside of calls; one that is
    found in the text counts only before everything else. A prompt may have opened a block that the
    model opens again. With either parser named ``gpt-oss`` the answer is read as harmony's messages
    and the other parser counts only if it is named so too.

    Raises ``ValueError`` for a choice of unknown names.
    """

    __slots__ = ("_source", "_steps", "_teller")

    def __init__(
        self,
        choice: ParserChoice,
        *,
        tools: Sequence[Mapping[str, Any]],
        marks: Collection[str],
        in_reasoning: bool,
        forced: bool = False,
        parallel: bool = True,
    ) -> None:
        self._source = Source(frozenset(marks))
        self._teller = Teller(self._source, parallel=parallel)
        reading = Reading(source=self._source, teller=self._teller, parameters=_parameters(tools))
        for name, known in (
            (choice.reasoning, REASONING_PARSERS),
            (choice.tool_calls, TOOL_CALL_PARSERS),
        ):
            if name is not None and name not in known:
                raise ValueError(f"there is no parser called {name!r}")
        answer = _Answer(reading, choice, forced=forced and bool(tools))
        self._steps = answer.read(in_reasoning=in_reasoning)

    def push(self, text: str, marks: Sequence[Mark]) -> list[Event]:
        """The events that more text completes.

        ``marks``, in order, are those of the added tokens whose first character is in ``text``. A
        token may end in a later piece. Raises ``ValueError`` after :meth:`finish`.
        """
        if self._source.closed:
            raise ValueError("the answer has ended")
        self._source.push(text, marks)
        return self._events()

    def finish(self) -> list[Event]:
        """The last events: the answer has ended. Again, there are none."""
        self._source.closed = True
        return self._events()

    def _events(self) -> list[Event]:
        next(self._steps, None)
        return self._teller.drain()


class _Answer:
    """An answer as text with tags in it."""

    __slots__ = ("_block", "_forced", "_grammar", "_harmony", "_in_section", "_reading", "_tags")

    def __init__(self, reading: Reading, choice: ParserChoice, *, forced: bool) -> None:
        self._reading = reading
        self._forced = forced
        self._grammar: Grammar | None = None
        if choice.tool_calls is not None and reading.parameters:
            self._grammar = TOOL_CALL_PARSERS[choice.tool_calls]
        self._block = None if choice.reasoning is None else REASONING_PARSERS[choice.reasoning]
        self._harmony: Harmony | None = None
        if HARMONY in (choice.reasoning, choice.tool_calls):
            self._harmony = Harmony(
                reading,
                thinks=choice.reasoning == HARMONY,
                calls=choice.tool_calls == HARMONY and bool(reading.parameters) and not forced,
                untagged=self._untagged,
            )
        self._in_section = False
        self._tags = () if self._grammar is None or forced else self._grammar.tags

    def read(self, *, in_reasoning: bool) -> Steps[None]:
        """Read all of it."""
        if self._harmony is not None:
            yield from self._harmony.read(in_reasoning=in_reasoning)
            return
        source, teller = self._reading.source, self._reading.teller
        if self._block is not None and in_reasoning:
            yield from self._reasoning(self._block)
        opening = () if self._block is None else (self._block.opens,)
        while True:
            yield from self._untagged()
            tag = yield from source.until(opening + self._tags, teller.content)
            if tag is None:
                break
            yield from self._tagged(tag)
        teller.finish()

    def _tagged(self, tag: str) -> Steps[None]:
        source, teller, grammar = self._reading.source, self._reading.teller, self._grammar
        if self._block is not None and tag == self._block.opens:
            if source.is_added(tag) or teller.untouched:
                yield from self._reasoning(self._block)
                return
        elif grammar is not None and tag == grammar.closes and self._in_section:
            source.take(len(tag))
            teller.drop_space()
            self._in_section = False
            return
        elif grammar is not None and (tag == grammar.opens or self._in_section):
            if (yield from attempt(self._reading, grammar.read(self._reading, tag))):
                self._in_section = grammar.closes is not None
            return
        at = source.at
        teller.content(source.take(len(tag)), at)

    def _untagged(self) -> Steps[None]:
        """Read the calls that no tag announces, if the answer begins here."""
        if not self._reading.teller.silent:
            return
        if self._forced:
            yield from attempt(self._reading, self._array())
        elif self._grammar is not None and self._grammar.bare is not None:
            yield from attempt(self._reading, self._grammar.bare(self._reading))

    def _array(self) -> Steps[None]:
        yield from self._reading.source.space()
        yield from read_array(self._reading, self._reading.source.at)

    def _reasoning(self, block: Block) -> Steps[None]:
        """Read a block of reasoning whose tag stands here, or was in the prompt."""
        source, teller = self._reading.source, self._reading.teller
        teller.open_reasoning()
        known = (tag for tag in block.also_ends if tag in self._tags and source.is_added(tag))
        ends = (block.closes, *known)
        yield from source.space()
        if (yield from source.here((block.opens,))):
            source.take(len(block.opens))
        tag = yield from source.until(ends, teller.reasoning)
        teller.close_reasoning()
        if tag == block.closes:
            source.take(len(tag))


def _parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's parameters; empty where there is none."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(function, Mapping) and isinstance(name, str):
            schema = function.get("parameters")
            found[name] = schema if isinstance(schema, Mapping) else {}
    return found
