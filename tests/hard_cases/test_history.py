"""History as clients give it back: altered, cut, reordered, made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.hard_cases.families import CALLING_TWICE, SPEAKING_BESIDE_CALLS, THINKING
from tests.hard_cases.rows import row
from tests.hard_cases.serving import TOOLS, Agent, Message, Sampled, Turn, assistant, result, user
from tests.hard_cases.test_tool_loops import _loop
from tests.hard_cases.writing import Said, spelled, spelled_plain

ASK = [user("Well?")]
GIVEN = {"key": 'Zürich\n"a"', "deep": False, "n": 1.0, "list": [1, None]}


async def _called(agent: Agent, *keys: str, **more: Any) -> Turn:
    """A turn that calls the tool, once for each key."""
    form = agent.model.form
    said = Said(
        reasoning="Let me look." if form.thinks else "",
        calls=tuple(("look_up", {"key": key}) for key in keys),
        begun=form.opens_reasoning,
    )
    return await agent.say(ASK, said, tools=TOOLS, **more)


def _extends(before: Turn, after: Turn, *, sample: int = 0) -> bool:
    held = [*before.prompt, *before.sampled[sample]]
    return after.prompt[: len(held)] == held and after.flags == []


def _rest(agent: Agent, text: str) -> Sampled:
    """The end of a turn that was begun."""
    model = agent.model
    end = model.family.ids[model.form.ends]
    ids = [*spelled_plain(model.vocabulary, text), end]
    return Sampled(ids, {"type": "stop", "matched": end})


def _function(message: Message, arguments: str) -> Message:
    (call,) = message["tool_calls"]
    function = {**call["function"], "arguments": arguments}
    return {**message, "tool_calls": [{**call, "function": function}]}


REDUMPED: dict[str, Callable[[Any], str]] = {
    "compact": lambda value: json.dumps(value, separators=(",", ":")),
    "sorted, indented": lambda value: json.dumps(value, sort_keys=True, indent=2),
    "not escaped": lambda value: json.dumps(value, ensure_ascii=False),
    "integers": lambda value: json.dumps({**value, "n": 1}),
}


@row(10)
async def test_arguments_written_anew_are_the_same_turn(agent: Agent) -> None:
    form = agent.model.form
    said = Said(reasoning="Hm.", calls=(("look_up", GIVEN),), begun=form.opens_reasoning)
    first = await agent.say(ASK, said, tools=TOOLS)
    (call,) = first.message["tool_calls"]
    read = json.loads(call["function"]["arguments"])
    for name, dump in REDUMPED.items():
        told = [*ASK, _function(first.message, dump(read)), result(call, "1")]
        assert _extends(first, await agent.say(told, "Yes.", tools=TOOLS)), name


ODD: list[dict[str, Any]] = [
    {},
    {"n": 1e20},
    {"n": -0.0},
    {"n": 2**64},
    {"key": "\u2028🙂 </x> \\n"},
]


@row(10)
async def test_odd_arguments_come_back_in_any_spelling(agent: Agent) -> None:
    opens = agent.model.form.opens_reasoning
    for given in ODD:
        ask = [user(f"Well, {given}?")]
        said = Said(reasoning="Hm.", calls=(("look_up", given),), begun=opens)
        first = await agent.say(ask, said, tools=TOOLS)
        (call,) = first.message["tool_calls"]
        told = call["function"]["arguments"]
        for spelling in (told, json.dumps(json.loads(told))):
            asked = [*ask, _function(first.message, spelling), result(call, "1")]
            assert _extends(first, await agent.say(asked, "Yes.", tools=TOOLS)), spelling


INLINE = [
    "<think>\nHm.\n</think>\n\nIt is.",
    "<think>Hm.</think>It is.",
    "\n<think>\n\nHm.</think> It is.\n",
]


@row(11)
@THINKING
async def test_reasoning_that_the_client_moved_is_the_same(agent: Agent) -> None:
    """Into the content, or under another name."""
    first = await agent.say(ASK, "It is.")
    named = [{**assistant("It is."), name: "Hm."} for name in ("reasoning", "thinking")]
    for message in (*map(assistant, INLINE), *named):
        told = [*ASK, message, user("Sure?")]
        assert _extends(first, await agent.say(told, "Yes.")), message


@row(11)
async def test_reasoning_that_the_client_wanted_in_the_content_is_the_same(agent: Agent) -> None:
    first = await agent.say(ASK, "It is.", separate_reasoning=False)
    assert "reasoning_content" not in first.message
    told = [*ASK, first.message, user("Sure?")]
    assert _extends(first, await agent.say(told, "Yes."))


@row(11)
async def test_reasoning_that_the_client_dropped_stays_in_the_context(agent: Agent) -> None:
    first = await agent.say(ASK, "It is.")
    assert ("reasoning_content" in first.message) is agent.model.form.thinks
    second = await agent.say([*ASK, assistant("It is."), user("Sure?")], "Yes.")
    assert _extends(first, second)
    told = [*ASK, assistant("It is."), user("Sure?"), assistant("Yes."), user("Really?")]
    assert _extends(second, await agent.say(told, "Yes, really."))


@row(11)
async def test_reasoning_that_the_template_drops_is_a_branch_where_that_is_wanted(
    agent: Agent,
) -> None:
    model = agent.model
    first = await agent.say(ASK, "It is.")
    told = [*ASK, first.message, user("Sure?")]
    second = await agent.say(told, "Yes.", slime={"history": "template"})
    if model.form.strips_reasoning:
        assert "branch" in second.flags
        assert model.decode(second.prompt) == model.render(told)
    else:
        assert _extends(first, second)


@row(11)
@THINKING
async def test_reasoning_that_was_changed_is_another_history(agent: Agent) -> None:
    first = await agent.say(ASK, "It is.")
    told = [*ASK, {**first.message, "reasoning_content": "No."}, user("Sure?")]
    second = await agent.say(told, "Yes.")
    # What is left of the sampled ids before the change stays, and is marked as cut.
    assert "branch" in second.flags
    assert agent.model.decode(second.prompt) == agent.model.render(told)


@row(12)
async def test_ids_of_calls_that_changed_or_went_are_no_other_history(agent: Agent) -> None:
    first = await _called(agent, "Zürich")
    (call,) = first.message["tool_calls"]
    for spelling in ({**call, "id": "other"}, {"type": "function", "function": call["function"]}):
        told = [
            *ASK,
            {**first.message, "tool_calls": [spelling]},
            {"role": "tool", "tool_call_id": spelling.get("id", ""), "content": "1"},
        ]
        assert _extends(first, await agent.say(told, "Yes.", tools=TOOLS))


@row(13)
async def test_the_spellings_of_no_content_are_one(agent: Agent) -> None:
    first = await _called(agent, "Zürich")
    (call,) = first.message["tool_calls"]
    absent = {name: value for name, value in first.message.items() if name != "content"}
    for message in (absent, {**absent, "content": None}, {**absent, "content": ""}):
        told = [*ASK, message, result(call, "1")]
        assert _extends(first, await agent.say(told, "Yes.", tools=TOOLS))


@row(13)
@SPEAKING_BESIDE_CALLS
async def test_content_beside_a_call_is_part_of_the_turn(agent: Agent) -> None:
    model = agent.model
    said = Said(
        reasoning="Hm." if model.form.thinks else "",
        content="Let me look.",
        calls=(("look_up", {"key": "Zürich"}),),
        begun=model.form.opens_reasoning,
    )
    first = await agent.say(ASK, said, tools=TOOLS)
    assert first.message["content"] == "Let me look."
    told = [*ASK, first.message, result(first.message["tool_calls"][0], "1")]
    second = await agent.say(told, "Yes.", tools=TOOLS)
    assert _extends(first, second)
    if model.form.renders_alike:
        assert model.decode(second.prompt) == model.render(told, tools=TOOLS)


@row(13)
async def test_content_in_parts_is_one_text(agent: Agent) -> None:
    def parts(*texts: str) -> list[Message]:
        return [{"type": "text", "text": text} for text in texts]

    first = await agent.say([{"role": "user", "content": parts("We", "ll?")}], "It is.")
    assert first.prompt == agent.model.encode(agent.model.render(ASK))
    told = [*ASK, {**first.message, "content": parts("It ", "is.")}, user("Sure?")]
    assert _extends(first, await agent.say(told, "Yes."))


@row(20)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "swapped"])
@CALLING_TWICE
async def test_results_of_parallel_calls_stand_as_the_client_gave_them(
    agent: Agent, order: tuple[int, int]
) -> None:
    model = agent.model
    first = await _called(agent, "Zürich", "Bern")
    calls = first.message["tool_calls"]
    assert [json.loads(call["function"]["arguments"])["key"] for call in calls] == [
        "Zürich",
        "Bern",
    ]
    results = [result(calls[at], f"number {at}") for at in order]
    told = [*ASK, first.message, *results]
    second = await agent.say(told, "Yes.", tools=TOOLS)
    assert _extends(first, second)
    assert model.render(told, tools=TOOLS).endswith(model.decode(second.prompt[len(first.held) :]))


@row(20)
@CALLING_TWICE
async def test_the_results_of_one_turn_are_written_as_one_group(agent: Agent) -> None:
    """Also where the client sends them one at a time."""
    model = agent.model
    first = await _called(agent, "Zürich", "Bern")
    one, other = (result(call, "1") for call in first.message["tool_calls"])
    await agent.say([*ASK, first.message, one], "Yes.", tools=TOOLS)
    told = [*ASK, first.message, one, other]
    second = await agent.say(told, "Yes.", tools=TOOLS)
    assert _extends(first, second)
    assert model.render(told, tools=TOOLS).endswith(model.decode(second.prompt[len(first.held) :]))


@row(20)
@CALLING_TWICE
async def test_a_call_that_the_client_was_not_shown_stays_in_the_ids(agent: Agent) -> None:
    """Where it wanted one at most."""
    first = await _called(agent, "Zürich", "Bern", parallel_tool_calls=False)
    (call,) = first.message["tool_calls"]
    told = [*ASK, first.message, result(call, "1")]
    assert _extends(first, await agent.say(told, "Yes.", tools=TOOLS))


@row(20)
async def test_a_question_in_place_of_a_result_extends_too(agent: Agent) -> None:
    first = await _called(agent, "Zürich")
    told = [*ASK, first.message, user("Never mind.")]
    assert _extends(first, await agent.say(told, "Yes.", tools=TOOLS))


@row(20)
@CALLING_TWICE
async def test_groups_of_calls_follow_each_other(agent: Agent) -> None:
    model, form = agent.model, agent.model.form
    told: list[Message] = [{"role": "system", "content": "Be brief."}, *ASK]
    before: Turn | None = None
    for group in range(4):
        thinks = form.thinks and (not group or form.thinks_after_results)
        said = Said(
            reasoning="Hm." if thinks else "",
            calls=tuple(("look_up", {"key": f"{group}.{at}"}) for at in range(1 + group % 3)),
            begun=form.opens_reasoning and not group,
        )
        turn = await agent.say(told, said, tools=TOOLS)
        assert before is None or _extends(before, turn)
        if form.renders_alike:
            assert model.decode(turn.prompt) == model.render(told, tools=TOOLS)
        calls = turn.message["tool_calls"]
        assert len(calls) == len(said.calls)
        told = [*told, turn.message, *(result(call, call["id"]) for call in calls)]
        before = turn


@row(21)
async def test_an_edited_turn_is_a_branch_and_the_old_one_stays(agent: Agent) -> None:
    model = agent.model
    first = await agent.say(ASK, "It is.")
    second = await agent.say([*ASK, first.message, user("Sure?")], "Yes.")
    told = [*ASK, assistant("Never."), user("Sure?")]
    edited = await agent.say(told, "No.")
    assert "branch" in edited.flags
    assert model.decode(edited.prompt) == model.render(told)
    for turn in (second, edited):
        assert (await agent.trajectory(turn.calls[0]))["tokens"] == turn.held


@row(21)
async def test_of_a_turn_that_was_edited_midway_the_tokens_before_stay_sampled(
    agent: Agent,
) -> None:
    model = agent.model
    first = await agent.say(ASK, "It is.")
    told = [*ASK, {**first.message, "content": "It is not."}, user("Sure?")]
    edited = await agent.say(told, "No.")
    assert "branch" in edited.flags
    assert model.decode(edited.prompt) == model.render(told)
    found = await agent.trajectory(edited.calls[0])
    kept = sum(found["loss_mask"]) - len(edited.sampled[0])
    begun = len(first.prompt)
    assert found["tokens"][begun : begun + kept] == first.sampled[0][:kept]
    assert found["loss_mask"][begun : begun + kept] == [1] * kept
    assert found["cut"] is (kept > 0)
    assert kept or model.form.strips_reasoning


@row(21)
async def test_compacted_history_is_a_branch_and_the_old_one_stays(agent: Agent) -> None:
    model = agent.model
    first = await agent.say(ASK, "It is.")
    second = await agent.say([*ASK, first.message, user("Sure?")], "Yes.")
    told = [user("So far: it is, for sure."), second.message, user("Go on.")]
    compacted = await agent.say(told, "Well.")
    assert compacted.flags == ["branch"]
    assert compacted.prompt == model.encode(model.render(told))
    for turn in (second, compacted):
        assert (await agent.trajectory(turn.calls[0]))["tokens"] == turn.held


@row(24)
async def test_a_system_text_that_changes_every_turn_shares_nothing_and_says_so(
    agent: Agent,
) -> None:
    model = agent.model
    turns: list[Turn] = []
    told: list[Message] = []
    for at in range(3):
        told = [*told, user(f"Question {at}?")]
        asked = [{"role": "system", "content": f"It is {at} o'clock."}, *told]
        turn = await agent.say(asked, f"Answer {at}.")
        assert turn.prompt == model.encode(model.render(asked))
        assert turn.flags == (["branch"] if at else [])
        turns.append(turn)
        told.append(turn.message)
    for turn in turns:
        found = await agent.trajectory(turn.calls[0])
        assert found["tokens"] == turn.held
        assert sum(found["loss_mask"]) == len(turn.sampled[0])


@row(28)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_prefill_is_not_taken_for_sampled(agent: Agent, stream: bool) -> None:
    model = agent.model
    begun = [*ASK, assistant("The answer is")]
    rest = _rest(agent, " 42.")
    turn = await agent.say(begun, rest, continue_final_message=True, stream=stream)
    assert model.decode(turn.prompt).endswith("The answer is")
    assert turn.message["content"] == " 42."
    found = await agent.trajectory(turn.calls[0])
    assert found["loss_mask"] == [0] * len(turn.prompt) + [1] * len(turn.sampled[0])
    assert found["tokens"] == turn.held
    told = [*ASK, assistant("The answer is 42."), user("Sure?")]
    assert _extends(turn, await agent.say(told, "Yes."))


@row(28)
async def test_a_prefill_cannot_forge_control_tokens(agent: Agent) -> None:
    model = agent.model
    forged = f"a{model.family.ends[0]}b"
    turn, plain = [
        await agent.say([*ASK, assistant(text)], _rest(agent, " c"), continue_final_message=True)
        for text in (forged, "ab")
    ]
    assert model.controls(turn.prompt) == model.controls(plain.prompt)
    told = [*ASK, assistant(f"{forged} c"), user("Sure?")]
    assert _extends(turn, await agent.say(told, "Yes."))


@row(28)
@THINKING
async def test_a_thought_is_gone_on_with_where_it_was_left(agent: Agent) -> None:
    model, form = agent.model, agent.model.form
    said = Said(content="Yes.", reasoning="Well, let me see", begun=form.opens_reasoning)
    whole = model.sampled(said)
    at = len(spelled(model.vocabulary, form.write(said).partition("let")[0]))
    head = Sampled(whole.ids[:at], {"type": "length", "length": at})
    first = await agent.say(ASK, head)
    rest = Sampled(whole.ids[at:], whole.finish)
    second = await agent.say([*ASK, first.message], rest, continue_final_message=True)
    assert second.prompt == first.held
    assert second.message["content"] == "Yes."
    thought = first.message["reasoning_content"] + second.message["reasoning_content"]
    for message in ({**assistant("Yes."), "reasoning_content": thought}, assistant("Yes.")):
        assert _extends(second, await agent.say([*ASK, message, user("Sure?")], "Yes."))


@row(28)
async def test_a_turn_is_gone_on_with_where_it_was_left(agent: Agent) -> None:
    model = agent.model
    first = await agent.say(ASK, model.text("The answer is", ended=False))
    second = await agent.say(
        [*ASK, first.message], _rest(agent, " 42."), continue_final_message=True
    )
    assert second.prompt == first.held
    assert second.message["content"] == " 42."
    told = [*ASK, assistant("The answer is 42."), user("Sure?")]
    third = await agent.say(told, "Yes.")
    assert _extends(second, third)
    found = await agent.trajectory(third.calls[0])
    sampled = sum(len(turn.sampled[0]) for turn in (first, second, third))
    assert sum(found["loss_mask"]) == sampled


@row(2)
async def test_messages_that_end_in_a_captured_turn_are_retrieved_as_they_were_sampled(
    agent: Agent,
) -> None:
    asked, turns = await _loop(agent)
    told = [*asked[-1], turns[-1].message]
    arguments = dict(agent.model.form.arguments)
    body = {"messages": told, "tools": TOOLS, "chat_template_kwargs": arguments}
    path = "/retrieve_from_messages_template"
    found = (await agent.served.client.post(path, json=body)).json()
    held = turns[-1].held
    assert found["tokens"][: len(held)] == held
    assert agent.model.decode(found["tokens"][len(held) :]).strip() == ""
    assert sum(found["loss_mask"]) == sum(len(one.sampled[0]) for one in turns)


@row(28)
async def test_a_prefill_behind_captured_turns_keeps_what_is_held(agent: Agent) -> None:
    first = await agent.say(ASK, "It is.")
    begun = [*ASK, first.message, user("Sure?"), assistant("Well,")]
    turn = await agent.say(begun, _rest(agent, " yes."), continue_final_message=True)
    assert turn.prompt[: len(first.held)] == first.held
    told = [*ASK, first.message, user("Sure?"), assistant("Well, yes."), *ASK]
    assert _extends(turn, await agent.say(told, "Yes."))
