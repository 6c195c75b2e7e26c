"""What the probes find out about templates, here ones written in Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from slime_core.chat.bridge import Bridge
from slime_core.chat.probe import TemplateReport, opens_reasoning, probe_template
from slime_core.chat.rendering import Message, Rendered
from slime_core.chat.spellings import Spellings
from slime_core.chat.traits import probe_traits
from slime_core.chat.turn_close import TurnMarks, probe_turns
from slime_core.errors import ClientError

_ADDED = Spellings(("<s>", "<e>", "<eos>", "<think>", "</think>", "<c>", "</c>", "<tool>"))

Messages = Sequence[Message]
Template = Callable[..., str]
"""Messages, and by name: tools, add_generation_prompt and the template's arguments."""


def _turn(message: Message, content: str | None = None) -> str:
    said = message.get("content") if content is None else content
    calls = "".join(
        f"<c>{call['id']} {json.dumps(call['function'])}</c>"
        for call in message.get("tool_calls") or ()
    )
    if not isinstance(said, str):
        raise TypeError("no text")
    return f"<s>{message['role']}\n{said}{calls}<e>\n"


def _honest(messages: Messages, tools: Any = None, **settings: Any) -> str:
    shown = f"<s>tools\n{json.dumps(tools)}<e>\n" if tools else ""
    prompt = "<s>assistant\n" if settings.get("add_generation_prompt") else ""
    return shown + "".join(map(_turn, messages)) + prompt


def _render(template: Template) -> Callable[..., Rendered]:
    def render(
        messages: Messages,
        *,
        tools: Any,
        arguments: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> Rendered:
        try:
            text = template(
                messages, tools, add_generation_prompt=add_generation_prompt, **arguments
            )
        except Exception as error:
            raise ClientError(str(error)) from error
        return Rendered(text=text)

    return render


def _marks(template: Template, *ends: str) -> TurnMarks:
    return probe_turns(_render(template), _ADDED, ends or ("<e>",))


def _report(template: Template, *ends: str) -> TemplateReport:
    render, marks = _render(template), _marks(template, *ends)
    return probe_template(
        template,
        render,
        Bridge(render, added=_ADDED, turn_ends=marks.ends),
        traits=probe_traits(template, ""),
        marks=marks,
    )


def _with(change: Callable[[Message], str]) -> Template:
    """The honest template with other turns."""

    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        return "".join(map(change, messages)) + _honest((), tools, **settings)

    return template


# --- turns -------------------------------------------------------------------------------------


def test_the_close_of_a_turn_is_found() -> None:
    assert _marks(_honest) == TurnMarks(
        close="<e>", close_last="<e>", ends=("<e>",), markers=("<e>", "<s>")
    )


def test_ends_of_text_that_are_no_added_tokens_do_not_count() -> None:
    assert _marks(_honest, "<e>", "<unknown>", "<eos>").ends == ("<e>", "<eos>")


def test_a_close_that_does_not_stop_a_worker_is_said() -> None:
    report = _report(_honest, "<eos>")
    assert not report.marks.stops
    assert any("no worker stops there" in finding for finding in report.findings())


def test_a_last_turn_may_be_closed_otherwise() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        text = _honest(messages, tools)
        if messages and messages[-1]["role"] == "assistant":
            text = text.removesuffix("<e>\n") + "<eos>"
        return text + _honest((), **settings)

    marks = _marks(template, "<eos>")
    assert (marks.close, marks.close_last, marks.ends) == ("<e>", "<eos>", ("<e>", "<eos>"))


def test_turns_without_an_end_have_no_close() -> None:
    marks = _marks(_with(lambda m: f"<s>{m['role']}\n{m['content']}"), "<s>")
    assert (marks.close, marks.close_last, marks.ends) == ("", "", ("<s>",))


def test_what_opens_a_history_in_place_of_a_close_is_none() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        text = "".join(f"<s>{m['role']}\n{m['content']}" for m in messages)
        is_last = bool(messages) and messages[-1]["role"] == "assistant"
        return text + ("<eos>" if is_last else "")

    marks = _marks(template, "<eos>")
    assert (marks.close, marks.close_last) == ("", "<eos>")


def test_reasoning_and_calls_are_no_markers() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        prompt = "<s>assistant\n<think>\n" if settings.get("add_generation_prompt") else ""
        return _honest(messages, tools) + prompt

    assert _marks(template).markers == ("<e>", "<s>")


def test_what_opens_a_tools_turn_is_a_marker() -> None:
    marks = _marks(_with(lambda m: f"<tool>{m['content']}" if m["role"] == "tool" else _turn(m)))
    assert marks.markers == ("<e>", "<s>", "<tool>")


def test_a_template_that_always_raises_has_only_the_checkpoints_ends() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        raise TypeError("no")

    assert _marks(template) == TurnMarks(ends=("<e>",), markers=("<e>",))


# --- the report --------------------------------------------------------------------------------


def test_an_honest_template_gives_no_findings() -> None:
    assert _report(_honest).findings() == ()


def test_a_report_of_an_honest_template() -> None:
    report = _report(_honest)
    assert all(change.stable and change.bridged is not False for change in report.changes)
    assert report.trims == ()
    assert report.injected == ""
    assert (report.developer, report.list_content) == ("shown", "refused")
    assert report.two_calls == "shown"
    assert report.prompt == report.prompt_after_tool == "<s>assistant\n"
    assert (report.opens_reasoning, report.shows_call_ids, report.alternates) == (
        False,
        True,
        False,
    )


def test_a_report_is_json_and_a_table() -> None:
    report = _report(_honest)
    known = json.loads(json.dumps(report.as_json()))
    assert known["changes"]["assistant → user"] == "stable, extended exactly"
    assert known["changes"]["user → assistant"] == "stable"
    assert known["marks"]["close"] == "<e>"
    assert ("generation prompt", "'<s>assistant\\n'") in report.table()
    assert all(isinstance(cell, str) for row in report.table() for cell in row)


def test_roles_whose_content_is_trimmed_are_named() -> None:
    report = _report(
        _with(lambda m: _turn(m, m["content"].strip()) if m["role"] != "user" else _turn(m))
    )
    assert report.trims == ("system", "assistant")


def test_an_injected_system_text_is_told() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        return "<s>system\nBe kind.<e>\n" + _honest(messages, tools, **settings)

    assert _report(template).injected == "<s>system\nBe kind.<e>\n"


@pytest.mark.parametrize(
    ("change", "field", "word"),
    [
        (lambda m: "" if m["role"] == "developer" else _turn(m), "developer", "dropped"),
        (lambda m: f"<s>{m['content']}<e>", "list_content", "printed"),
        (
            lambda m: _turn(m, "" if isinstance(m["content"], list) else None),
            "list_content",
            "dropped",
        ),
        (lambda m: f"<s>{m['content']}<e>", "null_content", "printed"),
        (_turn, "null_content", "refused"),
        (
            lambda m: _turn({**m, "tool_calls": m.get("tool_calls", ())[:1]}),
            "two_calls",
            "dropped",
        ),
    ],
)
def test_what_becomes_of_unusual_messages_is_told(
    change: Callable[[Message], str], field: str, word: str
) -> None:
    assert getattr(_report(_with(change)), field) == word


def test_alternation_is_found() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        roles = [message["role"] for message in messages]
        if any(one == other for one, other in pairwise(roles)):
            raise TypeError("roles must alternate")
        return _honest(messages, tools, **settings)

    assert _report(template).alternates


def test_a_switch_that_changes_only_the_prompt_is_told_from_one_that_changes_history() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        silent = "/silent" if settings.get("enable_thinking") is False else ""
        prompt = "<think>" if settings.get("thinking") else ""
        text = _honest(messages, tools, **settings)
        return silent + text + (prompt if settings.get("add_generation_prompt") else "")

    assert _report(template).thinking_switches == (
        ("enable_thinking", "history"),
        ("thinking", "prompt"),
    )


def test_a_history_that_is_rendered_otherwise_is_told() -> None:
    def template(messages: Messages, tools: Any = None, **settings: Any) -> str:
        last = len(messages) - 1
        turns = (
            _turn(m, f"<think></think>{m['content']}")
            if m["role"] == "assistant" and at == last
            else _turn(m)
            for at, m in enumerate(messages)
        )
        return "".join(turns) + _honest((), tools, **settings)

    changes = {change.name: change for change in _report(template).changes}
    assert changes["assistant → user"].words == "rendered otherwise, extended exactly"
    assert changes["tool → assistant"].words == "stable"


def test_turns_that_cannot_be_extended_are_a_finding() -> None:
    report = _report(_with(lambda m: f"{m['role']}: {m['content']}\n"))
    assert any("cannot be extended exactly" in finding for finding in report.findings())


def test_changes_that_a_template_refuses_are_told() -> None:
    def change(message: Message) -> str:
        if message["role"] == "tool":
            raise TypeError("no tools")
        return _turn(message)

    changes = {change.name: change.words for change in _report(_with(change)).changes}
    assert changes["calls → tool"] == "refused"
    assert changes["assistant → user"] == "stable, extended exactly"


# --- traits ------------------------------------------------------------------------------------


def test_ids_of_nine_letters_are_found_to_be_demanded() -> None:
    def change(message: Message) -> str:
        for call in message.get("tool_calls") or ():
            if len(call["id"]) != 9:
                raise TypeError("nine letters")
        return _turn(message)

    traits = probe_traits(_with(change), "")
    assert traits.short_call_ids
    assert traits.shows_tool_calls
    assert not probe_traits(_honest, "").short_call_ids


def test_a_template_that_takes_one_text_beside_calls_is_found() -> None:
    def change(message: Message) -> str:
        if message.get("tool_calls") and message["content"] and message.get("thinking"):
            raise TypeError("one text only")
        return _turn(message, f"{message.get('thinking') or ''}{message['content']}")

    assert probe_traits(_with(change), "").one_text_beside_calls
    reading = _with(lambda m: _turn(m, f"{m.get('thinking') or ''}{m['content']}"))
    assert not probe_traits(reading, "").one_text_beside_calls


# --- prompts that begin reasoning --------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        ("<s>user\n<think><e><s>assistant\n", False),
        ("<s>assistant\n<think>\n", True),
        ("<s>assistant\n<think>\nHm, let", True),
        ("<s>assistant\n<think>\n\n</think>\n\n", False),
        ("<s>assistant\nwe write <think> for", False),
        ("<think>", True),
        ("", False),
    ],
)
def test_only_a_tag_at_the_beginning_of_the_last_turn_begins_reasoning(
    prompt: str, begins: bool
) -> None:
    assert opens_reasoning(prompt, Spellings(("<s>", "<e>"))) is begins
