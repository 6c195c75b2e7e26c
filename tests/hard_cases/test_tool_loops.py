"""A tool loop of several turns in every family: what was sampled comes back, id for id."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.hard_cases.families import RENDERING_ALIKE
from tests.hard_cases.rows import row
from tests.hard_cases.serving import TOOLS, Agent, Message, Turn, result, user
from tests.hard_cases.writing import Form, Said

STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def _said(form: Form) -> list[Said]:
    """Two calls one after the other, an answer, and an answer to another question."""
    first, again = form.thinks, form.thinks and form.thinks_after_results
    return [
        Said(
            reasoning="Let me look." if first else "",
            calls=(("look_up", {"key": "Zürich"}),),
            begun=form.opens_reasoning,
        ),
        Said(reasoning="And the other." if again else "", calls=(("look_up", {"key": "Bern"}),)),
        Said(reasoning="Both known." if again else "", content="Zürich is larger."),
        Said(reasoning="Easy." if first else "", content="Yes.", begun=form.opens_reasoning),
    ]


async def _loop(agent: Agent, **more: Any) -> tuple[list[list[Message]], list[Turn]]:
    """What was asked, and each turn."""
    told: list[Message] = [user("Which is larger?")]
    asked, turns = [], []
    for at, said in enumerate(_said(agent.model.form)):
        turn = await agent.say(told, said, tools=TOOLS, **more)
        asked.append(told)
        turns.append(turn)
        told = [*told, turn.message]
        told.append(
            result(turn.message["tool_calls"][0], f"{at} people") if at < 2 else user("Sure?")
        )
    return asked, turns


@row(2)
@STREAMS
async def test_every_prompt_of_a_tool_loop_begins_with_all_ids_held(
    agent: Agent, stream: bool
) -> None:
    _, turns = await _loop(agent, stream=stream)
    for before, after in pairwise(turns):
        assert after.prompt[: len(before.held)] == before.held
        assert after.flags == []
        # Or the ids would prove nothing.
        assert agent.model.encode(agent.model.decode(after.prompt)) != after.prompt


@row(2)
@row(26)
async def test_a_trajectory_is_what_the_worker_was_given_and_what_it_sampled(agent: Agent) -> None:
    _, turns = await _loop(agent)
    found = await agent.trajectory(turns[-1].calls[0])
    ids: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    for turn in turns:
        (sampled,) = turn.sampled
        appended = len(turn.prompt) - len(ids)
        mask += [0] * appended + [1] * len(sampled)
        logprobs += [0.0] * appended + [-(at + 1) / 4 for at in range(len(sampled))]
        ids = [*turn.prompt, *sampled]
    assert found["tokens"] == ids
    assert found["loss_mask"] == mask
    assert found["rollout_logp"] == logprobs
    assert found["generation_versions"] == [1 if one else -1 for one in mask]
    assert found["cut"] is False


@row(8)
async def test_what_is_appended_is_what_the_template_writes_there(agent: Agent) -> None:
    asked, turns = await _loop(agent)
    for at, (before, after) in enumerate(pairwise(turns), 1):
        appended = agent.model.decode(after.prompt[len(before.held) :])
        rendered = agent.model.render(asked[at], tools=TOOLS)
        assert rendered.endswith(appended)
        assert appended.strip()
        if agent.model.form.renders_alike and at < 3:
            assert agent.model.decode(after.prompt) == rendered


@row(1)
async def test_what_is_appended_is_encoded_by_itself(agent: Agent) -> None:
    _, turns = await _loop(agent)
    for before, after in pairwise(turns):
        appended = after.prompt[len(before.held) :]
        assert appended == agent.model.encode(agent.model.decode(appended))


@row(36)
async def test_the_beginning_of_text_is_written_once(agent: Agent) -> None:
    asked, turns = await _loop(agent)
    assert turns[0].prompt == agent.model.encode(agent.model.render(asked[0], tools=TOOLS))
    begin = agent.model.family.named.get("bos_token")
    if begin is not None:
        assert agent.model.controls(turns[-1].prompt).count(begin) == 1


@row(27)
@STREAMS
async def test_calls_and_reasoning_are_read_from_their_special_tokens(
    agent: Agent, stream: bool
) -> None:
    _, turns = await _loop(agent, stream=stream)
    for said, turn in zip(_said(agent.model.form), turns, strict=True):
        assert turn.asked["sampling_params"]["skip_special_tokens"] is False
        assert (turn.message.get("content") or "") == said.content
        assert (turn.message.get("reasoning_content") or "") == said.reasoning
        calls = turn.message.get("tool_calls", [])
        read = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        assert [(name, json.loads(given)) for name, given in read] == list(said.calls)
        assert turn.finish_reasons == ["tool_calls" if said.calls else "stop"]


@row(2)
async def test_a_rollout_is_found_by_its_whole_text(agent: Agent) -> None:
    _, turns = await _loop(agent)
    found = await agent.served.retrieve(agent.model.decode(turns[-1].held))
    assert found["tokens"] == turns[-1].held
    assert sum(found["loss_mask"]) == sum(len(turn.sampled[0]) for turn in turns)
    assert found["ambiguous"] == 0


@row(2)
async def test_a_rollout_is_found_by_its_messages(agent: Agent) -> None:
    asked, turns = await _loop(agent)
    told = [*asked[-1], turns[-1].message, user("And?")]
    body = {
        "messages": told,
        "tools": TOOLS,
        "chat_template_kwargs": dict(agent.model.form.arguments),
    }
    response = await agent.served.client.post("/retrieve_from_messages_template", json=body)
    found = response.json()
    held = turns[-1].held
    assert found["tokens"][: len(held)] == held
    assert found["response"].endswith(agent.model.decode(found["tokens"][len(held) :]))
    assert sum(found["loss_mask"]) == sum(len(turn.sampled[0]) for turn in turns)
    assert found["ambiguous"] == 0


@row(11)
@RENDERING_ALIKE
async def test_within_a_loop_the_template_s_own_policy_keeps_reasoning_too(agent: Agent) -> None:
    asked, turns = await _loop(agent, slime={"history": "template"})
    for before, after in pairwise(turns[:3]):
        assert after.prompt[: len(before.held)] == before.held
        assert after.flags == []
    assert agent.model.decode(turns[3].prompt) == agent.model.render(asked[3], tools=TOOLS)


@row(21)
async def test_going_back_to_an_earlier_turn_gives_its_very_prompt(agent: Agent) -> None:
    asked, turns = await _loop(agent)
    again = await agent.say(asked[2], Said(content="Other.", reasoning="Hm."), tools=TOOLS)
    assert again.prompt == turns[2].prompt
    assert again.flags == []
    found = await agent.trajectory(turns[3].calls[0])
    assert found["tokens"] == turns[3].held


@row(21)
async def test_history_without_its_calls_is_a_branch(agent: Agent) -> None:
    asked, turns = await _loop(agent)
    told = [asked[0][0], turns[2].message, user("Sure?")]
    again = await agent.say(told, "Hm.", tools=TOOLS)
    assert "branch" in again.flags
    assert agent.model.decode(again.prompt) == agent.model.render(told, tools=TOOLS)


@row(2)
@row(44)
async def test_a_rollout_is_one_sample_without_a_reward(agent: Agent) -> None:
    asked, turns = await _loop(agent, headers={"x-session-id": "rollout"})
    response = await agent.served.client.post("/sessions/rollout/samples", json={})
    (sample,) = response.json()["samples"]
    assert sample["tokens"] == turns[-1].held
    assert sample["messages"] == [*asked[-1], turns[-1].message]
    assert sample["reward"] is None
