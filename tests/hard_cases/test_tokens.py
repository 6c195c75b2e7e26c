"""Tokens and text: where ids and characters do not go together as one would think."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.chat_families import family
from tests.hard_cases.families import MARKING_CALLS, THINKING
from tests.hard_cases.rows import row
from tests.hard_cases.serving import TOOLS, Agent, Model, Sampled, agent_of, assistant, result, user
from tests.hard_cases.writing import CALL, Form, Said, spelled, spelled_plain

LENGTH = {"type": "length", "length": 1}
ASK = [user("Well?")]


def _controls_of(model: Model) -> list[str]:
    """The added tokens that mean something to this family."""
    return [text for text in model.family.ids if text in model.family.source] + list(
        model.family.ends
    )


@row(1)
async def test_a_word_cut_by_the_limit_does_not_merge_with_its_rest(agent: Agent) -> None:
    model = agent.model
    whole = model.text("hello world", ended=False)
    # Canonical ids of both halves, which together are not those of the whole.
    text = model.decode(whole.ids)
    head, tail = model.encode(text.removesuffix("ld")), model.encode("ld")
    assert [*head, *tail] != model.encode(text)
    first = await agent.say(ASK, Sampled(head, LENGTH))
    second = await agent.say(
        [*ASK, first.message], Sampled(tail, LENGTH), continue_final_message=True
    )
    assert second.prompt == first.held
    third = await agent.say([*ASK, assistant("hello world"), *ASK], "Yes.")
    assert third.prompt[: len(second.held)] == second.held


@row(1)
async def test_blanks_at_the_beginning_of_an_answer_do_not_merge_with_the_prompt(
    agent: Agent,
) -> None:
    model = agent.model
    first = await agent.say(ASK, Sampled(model.encode("\n\nhello"), LENGTH))
    second = await agent.say([*ASK, first.message, *ASK], "Yes.")
    assert second.prompt[: len(first.held)] == first.held


@row(3)
async def test_half_a_character_is_held_as_it_was_sampled(agent: Agent) -> None:
    model = agent.model
    ids = model.text("Hi ", ended=False).ids
    half = spelled_plain(model.vocabulary, "🙂")[:2]
    first = await agent.say(ASK, Sampled([*ids, *half], LENGTH))
    assert first.message["content"] == "Hi \ufffd"
    second = await agent.say([*ASK, first.message, *ASK], "Yes.")
    assert second.prompt[: len(first.held)] == first.held
    assert second.flags == []


@row(3)
async def test_a_character_that_two_answers_share_is_held(agent: Agent) -> None:
    """Each half was shown as a replacement character, and that is what comes back."""
    model = agent.model
    halves = spelled_plain(model.vocabulary, "🙂")
    end = model.family.ids[model.form.ends]
    ids = model.text("Hi ", ended=False).ids
    first = await agent.say(ASK, Sampled([*ids, *halves[:2]], LENGTH))
    rest = Sampled([*halves[2:], end], {"type": "stop", "matched": end})
    second = await agent.say([*ASK, first.message], rest, continue_final_message=True)
    assert second.prompt == first.held
    whole = assistant(first.message["content"] + second.message["content"])
    third = await agent.say([*ASK, whole, *ASK], "Yes.")
    assert third.prompt[: len(second.held)] == second.held


@row(3)
async def test_a_character_in_pieces_is_streamed_whole(agent: Agent) -> None:
    turn = await agent.say(ASK, "Hi 🙂, Zürich 你好", stream=True)
    assert "\\ufffd" not in turn.response.text
    assert "\ufffd" not in turn.response.text
    assert turn.message["content"] == "Hi 🙂, Zürich 你好"


@row(3)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_bytes_of_a_fallback_are_characters_and_come_back_as_bytes(stream: bool) -> None:
    """Of a vocabulary with tokens for single bytes, and spaces that its decoder takes away."""
    chosen = family("mistral")
    form = Form(write=lambda said: said.content, ends="</s>", ends_calls="</s>", closes="</s>")
    model = Model(family=chosen, form=form, tokenizer=chosen.tokenizer)
    half = spelled_plain(model.vocabulary, "🙂")[:2]
    async with agent_of(model) as agent:
        first = await agent.say(ASK, " Zürich 🙂", stream=stream)
        assert first.message["content"] == " Zürich 🙂"
        assert "\\ufffd" not in first.response.text
        told = [*ASK, first.message, *ASK]
        cut = Sampled([*model.text("Hi").ids[:-1], *half], LENGTH)
        second = await agent.say(told, cut, stream=stream)
        assert second.prompt[: len(first.held)] == first.held
        assert second.message["content"].startswith("Hi\ufffd")
        third = await agent.say([*told, second.message, *ASK], "Yes.")
        assert third.prompt[: len(second.held)] == second.held
        assert third.flags == []


@row(4)
async def test_users_cannot_forge_control_tokens(agent: Agent) -> None:
    model = agent.model
    forged = "a" + "\n".join(_controls_of(model)) + "z"
    turn = await agent.say([user(forged)], "Yes.")
    plain = await agent.say([user("b")], "Yes.")
    assert model.controls(turn.prompt) == model.controls(plain.prompt)
    assert forged in model.decode(turn.prompt)


@row(4)
async def test_tools_cannot_forge_control_tokens(agent: Agent) -> None:
    model = agent.model
    calling = Said(calls=(CALL,), reasoning="Hm.", begun=model.form.opens_reasoning)
    first = await agent.say(ASK, calling, tools=TOOLS)
    (call,) = first.message["tool_calls"]
    forged = "a" + "".join(_controls_of(model)) + "z"
    turn, plain = [
        await agent.say([*ASK, first.message, result(call, text)], "Yes.", tools=TOOLS)
        for text in (forged, "b")
    ]
    assert model.controls(turn.prompt) == model.controls(plain.prompt)
    assert forged in model.decode(turn.prompt)
    assert turn.prompt[: len(first.held)] == first.held


@row(4)
async def test_invented_answers_cannot_forge_control_tokens(agent: Agent) -> None:
    model = agent.model
    forged = "a" + "".join(_controls_of(model)) + "z"
    turn, plain = [await agent.say([*ASK, assistant(text), *ASK], "Yes.") for text in (forged, "b")]
    assert model.controls(turn.prompt) == model.controls(plain.prompt)
    assert forged in model.decode(turn.prompt)


@row(4)
async def test_nothing_in_an_invented_history_forges_control_tokens(agent: Agent) -> None:
    """Reasoning, arguments and names of calls are content, too."""
    model = agent.model
    forged = "a" + "".join(_controls_of(model)) + "z"

    def told(text: str) -> list[dict[str, Any]]:
        given = json.dumps({"key": text}, ensure_ascii=False)
        function = {"name": f"f{text}", "arguments": given}
        call = {"id": "c", "type": "function", "function": function}
        return [
            *ASK,
            assistant("", tool_calls=[call], reasoning_content=f"r{text}"),
            result(call, f"t{text}"),
            assistant(f"s{text}"),
            *ASK,
        ]

    turn, plain = [await agent.say(told(text), "Yes.", tools=TOOLS) for text in (forged, "b")]
    assert model.controls(turn.prompt) == model.controls(plain.prompt)


@row(4)
async def test_a_special_token_in_several_parts_is_text(agent: Agent) -> None:
    end = agent.model.family.ends[0]
    parts = [{"type": "text", "text": text} for text in (end[:3], end[3:])]
    turn = await agent.say([{"role": "user", "content": parts}], "Yes.")
    plain = await agent.say([user("b")], "Yes.")
    assert agent.model.controls(turn.prompt) == agent.model.controls(plain.prompt)


@row(5)
async def test_a_control_token_sampled_within_an_answer_is_held(agent: Agent) -> None:
    model = agent.model
    end = model.family.ids[model.form.ends]
    before = model.text("It", ended=False).ids
    after = spelled_plain(model.vocabulary, " is.")
    inner = [text for text in _controls_of(model) if text not in model.family.ends]
    for at, text in enumerate(inner):
        sampled = [*before, model.family.ids[text], *after, end]
        ask = [user(f"Well, {text[2:-2]}?")]
        first = await agent.say(
            ask, Sampled(sampled, {"type": "stop", "matched": end}), stream=bool(at % 2)
        )
        second = await agent.say([*ask, first.message, *ASK], "Yes.")
        assert second.prompt[: len(first.held)] == first.held, text


@row(5)
async def test_sampled_text_that_spells_a_special_token_is_text(agent: Agent) -> None:
    model = agent.model
    text = f"a{model.family.ends[0]}b" + "".join(_controls_of(model))
    first = await agent.say(ASK, model.quoting(text))
    assert first.message["content"] == text
    second = await agent.say([*ASK, first.message, *ASK], "Yes.")
    assert second.prompt[: len(first.held)] == first.held
    assert second.flags == []
    appended = second.prompt[len(first.held) :]
    assert model.controls(second.prompt) == model.controls(first.held) + model.controls(appended)


@row(5)
@MARKING_CALLS
async def test_a_call_that_is_spelled_by_ordinary_ids_is_content(agent: Agent) -> None:
    model = agent.model
    text = model.form.write(Said(calls=(CALL,))).strip()
    first = await agent.say(ASK, model.quoting(text), tools=TOOLS)
    assert "tool_calls" not in first.message
    assert first.message["content"] == text


@row(6)
async def test_whatever_token_stopped_an_answer_it_ends_the_turn_once(agent: Agent) -> None:
    model = agent.model
    for end in model.family.ends:
        stop = model.family.ids[end]
        ids = model.text(f"By {end[2:-2]}.", ended=False).ids
        first = await agent.say(ASK, Sampled([*ids, stop], {"type": "stop", "matched": stop}))
        assert end not in first.message["content"]
        told = [*ASK, first.message, *ASK]
        second = await agent.say(told, "Yes.")
        appended = second.prompt[len(first.held) :]
        assert second.prompt[: len(first.held)] == first.held
        assert appended[0] not in (stop, model.family.ids.get(model.form.closes))
        assert model.render(told).endswith(model.decode(appended))


@row(6)
async def test_a_stop_token_that_opens_the_next_turn_is_not_doubled(agent: Agent) -> None:
    model = agent.model
    calling = Said(calls=(CALL,), reasoning="Hm.", begun=model.form.opens_reasoning)
    first = await agent.say(ASK, calling, tools=TOOLS)
    told = [*ASK, first.message, result(first.message["tool_calls"][0], "1")]
    second = await agent.say(told, "Yes.", tools=TOOLS)
    if model.form.renders_alike:
        assert model.decode(second.prompt) == model.render(told, tools=TOOLS)
    assert second.prompt[len(first.held)] != first.held[-1]


@row(7)
async def test_a_turn_that_the_limit_cut_is_closed_by_the_template(agent: Agent) -> None:
    model = agent.model
    first = await agent.say(ASK, model.text("It is", ended=False))
    assert first.finish_reasons == ["length"]
    told = [*ASK, first.message, user("Go on.")]
    second = await agent.say(told, "Yes.")
    held = len(first.held)
    assert second.prompt[:held] == first.held
    assert model.render(told).endswith(model.decode(second.prompt[held:]))
    found = await agent.trajectory(second.calls[0])
    assert found["loss_mask"][held : len(second.prompt)] == [0] * (len(second.prompt) - held)
    if model.form.closes:
        assert second.prompt[held] == model.family.ids[model.form.closes]
        (run,) = [run for run in found["origins"] if run["start"] == held]
        assert (run["origin"], run["end"]) == ("template", held + 1)


@row(7)
@THINKING
async def test_a_thought_that_the_limit_cut_is_closed_too(agent: Agent) -> None:
    model = agent.model
    text = model.form.write(
        Said(content="@", reasoning="Well, let", begun=model.form.opens_reasoning)
    )
    ids = spelled(model.vocabulary, text[: text.index("let")])
    first = await agent.say(ASK, Sampled(ids, LENGTH))
    assert first.message["reasoning_content"].strip() == "Well,"
    assert not first.message["content"]
    for spelling in (first.message, assistant("")):
        second = await agent.say([*ASK, spelling, user("Go on.")], "Yes.")
        assert second.prompt[: len(first.held)] == first.held
        assert second.flags == []


@row(7)
@pytest.mark.parametrize("calls", [(), (CALL,)], ids=["answer", "call"])
async def test_wherever_the_limit_cuts_a_turn_it_is_held(
    agent: Agent, calls: tuple[Any, ...]
) -> None:
    model = agent.model
    content = "" if calls else "It is 🙂."
    said = Said(calls=calls, content=content, reasoning="Hm.", begun=model.form.opens_reasoning)
    ids = model.sampled(said, ended=False).ids
    for length in range(1, len(ids) + 1, 7):
        ask = [user(f"Well, {length}?")]
        cut = Sampled(ids[:length], {"type": "length", "length": length})
        first = await agent.say(ask, cut, tools=TOOLS, stream=bool(length % 2))
        made = first.message.get("tool_calls")
        told = [*ask, first.message, *([result(made[0], "1")] if made else ASK)]
        second = await agent.say(told, "Yes.", tools=TOOLS)
        assert second.prompt[: len(first.held)] == first.held, model.decode(cut.ids)
        assert second.flags == []
        appended = model.decode(second.prompt[len(first.held) :])
        assert model.render(told, tools=TOOLS).endswith(appended)


@row(7)
async def test_a_turn_of_nothing_but_its_end_is_held(agent: Agent) -> None:
    end = agent.model.family.ids[agent.model.form.ends]
    first = await agent.say(ASK, Sampled([end], {"type": "stop", "matched": end}))
    assert first.message["content"] == ""
    second = await agent.say([*ASK, first.message, user("Go on.")], "Yes.")
    assert second.prompt[: len(first.held)] == first.held
    assert second.flags == []


@row(9)
async def test_blanks_that_a_template_trims_are_kept_as_sampled(agent: Agent) -> None:
    model = agent.model
    first = await agent.say(ASK, model.text("  It is. \n\n"))
    content = first.message["content"]
    for spelling in (content, content.strip()):
        second = await agent.say([*ASK, assistant(spelling), *ASK], "Yes.")
        assert second.prompt[: len(first.held)] == first.held
        assert second.flags == []


@row(9)
@pytest.mark.parametrize("role", ["user", "tool"])
async def test_blanks_of_others_are_written_as_the_template_has_them(
    agent: Agent, role: str
) -> None:
    model = agent.model
    calls = (CALL,) if role == "tool" else ()
    said = Said(calls=calls, content="" if calls else "It is.", reasoning="Hm.")
    opened = replace(said, begun=model.form.opens_reasoning)
    first = await agent.say(ASK, opened, tools=TOOLS)
    for text in ("", " ", "\n", "\n\nx\n\n", " x "):
        after = result(first.message["tool_calls"][0], text) if calls else user(text)
        told = [*ASK, first.message, after]
        second = await agent.say(told, "Yes.", tools=TOOLS)
        assert second.prompt[: len(first.held)] == first.held
        assert second.flags == []
        appended = model.decode(second.prompt[len(first.held) :])
        assert model.render(told, tools=TOOLS).endswith(appended)


@row(26)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_stop_string_is_trimmed_from_the_text_alone(agent: Agent, stream: bool) -> None:
    model = agent.model
    ids = model.text("It is END", ended=False).ids
    sampled = Sampled(ids, {"type": "stop", "matched": "END"})
    first = await agent.say(ASK, sampled, stop=["END"], stream=stream)
    assert first.message["content"] == "It is "
    found = await agent.trajectory(first.calls[0])
    assert found["tokens"] == first.held
    assert len(found["rollout_logp"]) == len(found["loss_mask"]) == len(first.held)
    told: list[dict[str, Any]] = [*ASK, first.message, *ASK]
    second = await agent.say(told, "Yes.")
    appended = second.prompt[len(first.held) :]
    assert second.prompt[: len(first.held)] == first.held
    assert model.render(told).endswith(model.decode(appended))
    if model.form.closes:
        assert appended[0] == model.family.ids[model.form.closes]
