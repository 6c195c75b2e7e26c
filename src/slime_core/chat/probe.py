"""What a template does, found out when it is loaded: for the log, and for who asks the server.

Templates are code, and what they do to a conversation is written down nowhere. Each answer here
comes from rendering a few short conversations; together they say what a user should know before
trusting a rollout: what the model never gets to see, where a longer conversation does not begin
like the shorter one, and where a held turn can be extended nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from slime_core.errors import ClientError

from .bridge import Bridge
from .rendering import Message, Render
from .spellings import Spellings
from .stability import Change, probe_changes
from .traits import Apply, TemplateTraits, tried
from .turn_close import TurnMarks

__all__ = ["TemplateReport", "opens_reasoning", "probe_template"]

_WORD: Final = "qz7word"
_END: Final = "qz7end"
_REASONING: Final = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
"""What reasoning begins and ends with where a prompt may begin it."""
_SWITCHES: Final = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateReport:
    """A template's ways. Words for outcomes: ``shown`` (it reaches the model), ``dropped``
    (silently), ``printed`` (as Python or JSON writes it), ``refused`` (the template raises)."""

    traits: TemplateTraits
    marks: TurnMarks
    changes: tuple[Change, ...]
    """How conversations grow, step by step."""
    trims: tuple[str, ...]
    """Roles whose content loses blanks at its edges."""
    injected: str
    """What stands before a first user message although no system message was given."""
    list_content: str
    developer: str
    null_content: str
    two_calls: str
    """Two calls in one turn, and their results."""
    alternates: bool
    """Two user messages in a row are refused."""
    shows_call_ids: bool
    prompt: str | None
    """The generation prompt behind a user's message; ``None`` where it is no mere addition."""
    prompt_after_tool: str | None
    """The same behind a tool's result, where several templates add nothing."""
    opens_reasoning: bool
    """The generation prompt begins the model's reasoning."""
    thinking_switches: tuple[tuple[str, str], ...]
    """Template arguments that switch thinking, and what they change: the ``prompt`` only, or
    ``history``, which no captured prefix survives."""

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can express, by name."""
        known = asdict(self)
        known["thinking_switches"] = dict(self.thinking_switches)
        known["changes"] = {change.name: change.words for change in self.changes}
        return known

    def table(self) -> tuple[tuple[str, str], ...]:
        """Rows for a log: what was asked, and the answer."""
        return tuple(_rows(self))

    def findings(self) -> tuple[str, ...]:
        """Lines about what a user of this template should know before trusting a rollout."""
        found = []
        if not self.traits.shows_tools:
            found.append("the chat template does not show tool definitions to the model")
        if not self.traits.shows_tool_calls:
            found.append("the chat template drops the tool calls of earlier turns")
        if self.traits.reads_clock:
            found.append("the chat template writes the date, which stays that of the start")
        if not self.marks.stops:
            found.append(
                f"the chat template ends turns with {self.marks.close_last}, which the "
                "checkpoint does not name as an end of text: no worker stops there by itself"
            )
        broken = [change.name for change in self.changes if change.bridged is False]
        if broken:
            found.append(f"a captured turn cannot be extended exactly: {', '.join(broken)}")
        return tuple(found)


def opens_reasoning(prompt: str, markers: Spellings) -> bool:
    """Whether a rendered prompt, or its end, has begun the answer's reasoning.

    It has if what follows the last of the turns' ``markers`` begins with such a tag, a role's name
    apart, and does not end it.
    """
    turns = markers.found(prompt)
    begun = prompt[turns[-1][1] :] if turns else prompt
    for opening, closing in _REASONING:
        role, tag, thought = begun.partition(opening)
        if tag and len(role.split()) <= 1:
            return closing not in thought
    return False


def probe_template(
    apply: Apply, render: Render, bridge: Bridge, *, traits: TemplateTraits, marks: TurnMarks
) -> TemplateReport:
    """Everything about a template. ``apply`` is the template as it is, ``render`` evens messages
    out first, as for requests. About a hundred small renderings."""
    probe = _Probe(apply, render)
    called = [_USER, _calling("one"), _result("one")]
    user, tool = probe.prompt([_USER]), probe.prompt(called)
    return TemplateReport(
        traits=traits,
        marks=marks,
        changes=tuple(probe_changes(render, bridge)),
        trims=tuple(role for role in ("system", "user", "assistant") if probe.trims(role)),
        injected=probe.injected(marks),
        list_content=probe.fate([_said([{"type": "text", "text": _WORD}])]),
        developer=probe.fate([{"role": "developer", "content": _WORD}, _USER]),
        null_content=probe.null_content(),
        two_calls=probe.two_calls(),
        alternates=probe.text([_USER, _USER]) is None,
        shows_call_ids=_call_id("one") in (probe.text(called) or ""),
        prompt=user,
        prompt_after_tool=tool,
        opens_reasoning=opens_reasoning(user or "", Spellings(marks.markers)),
        thinking_switches=tuple(probe.switches()),
    )


class _Probe:
    """Answers to single questions."""

    def __init__(self, apply: Apply, render: Render) -> None:
        self._apply = apply
        self._render = render

    def text(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **arguments: Any
    ) -> str | None:
        try:
            return self._render(
                messages,
                tools=None,
                arguments=arguments,
                add_generation_prompt=add_generation_prompt,
            ).text
        except ClientError:
            return None

    def prompt(self, messages: Sequence[Message], **arguments: Any) -> str | None:
        before = self.text(messages, **arguments)
        behind = self.text(messages, add_generation_prompt=True, **arguments)
        if before is None or behind is None or not behind.startswith(before):
            return None
        return behind[len(before) :]

    def trims(self, role: str) -> bool:
        message = {"role": role, "content": f"  {_WORD}  "}
        messages = [message, _USER] if role == "system" else [_USER, message]
        if role == "user":
            messages = [message]
        rendered = self.text(messages)
        return rendered is not None and _WORD in rendered and f"  {_WORD}  " not in rendered

    def injected(self, marks: TurnMarks) -> str:
        """What stands before a first user's text, less what opens such a turn later on as well."""
        held = [_USER, {"role": "assistant", "content": _WORD}]
        before = (self.text([_said(_WORD)]) or "").partition(_WORD)[0]
        alone = (self.text(held) or "").rpartition(_WORD)[2]
        between = (self.text([*held, _said(_END)]) or "").partition(_WORD)[2].partition(_END)[0]
        opener = between.removeprefix(marks.close)
        alone = alone.removeprefix(marks.close_last)
        return before.removesuffix(opener.removeprefix(_common(opener, alone)))

    def fate(self, messages: Sequence[Message]) -> str:
        """What became of the word in ``messages``, rendered as they are."""
        rendered = tried(self._apply, messages)
        if rendered is None:
            return "refused"
        if _WORD not in rendered:
            return "dropped"
        is_printed = "'type'" in rendered or '"type"' in rendered
        return "printed" if is_printed else "shown"

    def null_content(self) -> str:
        calls = {**_calling("one"), "content": None}
        rendered = tried(self._apply, [_USER, calls])
        if rendered is None:
            return "refused"
        return "printed" if "None" in rendered else "shown"

    def two_calls(self) -> str:
        messages = [_USER, _calling("one", "two"), _result("one"), _result("two")]
        rendered = self.text(messages)
        if rendered is None:
            return "refused"
        return "shown" if "one" in rendered and "two" in rendered else "dropped"

    def switches(self) -> Iterator[tuple[str, str]]:
        """Where ``true`` and ``false`` give different texts, and whether already in the history."""
        for name in _SWITCHES:
            on, off = (
                self.text([_USER, _ANSWER, _USER], add_generation_prompt=True, **{name: value})
                for value in (True, False)
            )
            held = [self.text([_USER, _ANSWER, _USER], **{name: v}) for v in (True, False)]
            if on != off:
                yield name, "prompt" if held[0] == held[1] else "history"


_USER: Final = {"role": "user", "content": "Hello"}
_ANSWER: Final = {"role": "assistant", "content": "Hi"}
_CALL_ID: Final = "qz7c00000"


def _common(one: str, other: str) -> str:
    """The beginning that two texts share."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def _said(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _call_id(name: str) -> str:
    return _CALL_ID[: -len(name)] + name


def _calling(*names: str) -> dict[str, Any]:
    calls = [
        {
            "id": _call_id(name),
            "type": "function",
            "function": {"name": "call", "arguments": {"key": name}},
        }
        for name in names
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _result(name: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": _call_id(name), "content": "found"}


def _rows(report: TemplateReport) -> Iterator[tuple[str, str]]:
    marks, traits = report.marks, report.traits
    yield "an assistant's turn ends with", " or ".join(marks.ends) or "what opens the next one"
    yield "tool definitions", "shown" if traits.shows_tools else "dropped"
    yield "former tool calls", "shown" if traits.shows_tool_calls else "dropped"
    yield "their arguments as", "text" if traits.arguments_as_text else "an object"
    yield "their ids", "shown" if report.shows_call_ids else "not shown"
    yield "two calls in a turn", report.two_calls
    yield "reasoning is read from", traits.reasoning_field or "nowhere"
    yield "generation prompt", _quoted(report.prompt)
    yield "generation prompt after a tool's result", _quoted(report.prompt_after_tool)
    yield "the generation prompt begins reasoning", _yes(report.opens_reasoning)
    for name, what in report.thinking_switches:
        yield f"argument {name} changes", f"the {what}"
    yield "text before a first user message", _quoted(report.injected)
    yield "writes the date", _yes(traits.reads_clock)
    yield "trims content of", ", ".join(report.trims) or "nobody"
    yield "system messages later on", "shown" if traits.system_anywhere else "refused"
    yield "the role developer", report.developer
    yield "content as a list", report.list_content
    yield "content of null", report.null_content
    yield "roles must alternate", _yes(report.alternates)
    for change in report.changes:
        yield change.name, change.words


def _quoted(text: str | None) -> str:
    return "no mere addition" if text is None else repr(text) if text else "none"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
