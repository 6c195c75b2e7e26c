"""Which call is which: samples of one prompt, twins, choices, and many at the same time."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.hard_cases.rows import row
from tests.hard_cases.serving import TOOLS, Agent, Turn, agent_of, assistant, result, user
from tests.hard_cases.writing import Said
from tests.server.harness import Arrived, settled

ASK = [user("Well?")]


async def _together(agent: Agent, *asked: dict[str, Any]) -> list[Turn]:
    """Ask all of it, one after the other, without waiting for answers."""
    turns: dict[int, Turn] = {}

    async def ask(place: int, given: dict[str, Any]) -> None:
        turns[place] = await agent.say(given["messages"], given["sampled"], **given["more"])

    async with trio.open_nursery() as nursery:
        for place, given in enumerate(asked):
            nursery.start_soon(ask, place, given)
            with trio.fail_after(5):
                while len(agent.worker.arrived) <= place:  # noqa: ASYNC110 - another side's socket
                    await trio.sleep(0.001)
    return [turns[place] for place in range(len(asked))]


def _asking(text: str, sampled: str, *before: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [*before, user(text)], "sampled": sampled, "more": more}


@row(14)
@pytest.mark.parametrize("answers", [("One.", "Two."), ("Same.", "Same.")], ids=["other", "equal"])
async def test_samples_of_one_prompt_are_never_taken_for_one(
    small: Agent, answers: tuple[str, ...]
) -> None:
    small.may_answer = lambda arrived: len(small.worker.arrived) >= 2
    turns = await _together(small, *(_asking("Well?", text) for text in answers))
    turns.append(await small.say(ASK, answers[0]))
    assert len({turn.calls[0] for turn in turns}) == 3
    for turn in turns:
        assert turn.flags == []
        assert (await small.trajectory(turn.calls[0]))["tokens"] == turn.held


@row(15)
async def test_a_turn_behind_equal_answers_extends_one_and_says_that_it_chose(
    small: Agent,
) -> None:
    twins = [await small.say(ASK, "Same.") for _ in range(2)]
    told = [*ASK, twins[0].message, user("Sure?")]
    following = await small.say(told, "Yes.")
    assert following.flags == ["parent_ambiguous"]
    assert following.prompt[: len(twins[1].held)] == twins[1].held
    found = await small.trajectory(following.calls[0])
    assert found["parent_id"] == twins[1].calls[0]


@row(15)
async def test_a_client_can_say_which_of_equal_answers_it_means(small: Agent) -> None:
    twins = [await small.say(ASK, "Same.") for _ in range(2)]
    told = [*ASK, twins[0].message, user("Sure?")]
    named = {"x-slime-parent-id": twins[0].calls[0]}
    following = await small.say(told, "Yes.", headers=named)
    assert following.flags == []
    found = await small.trajectory(following.calls[0])
    assert found["parent_id"] == twins[0].calls[0]


@row(19)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_every_choice_can_be_gone_on_with(agent: Agent, stream: bool) -> None:
    form = agent.model.form
    both = [
        Said(reasoning="Hm.", calls=(("look_up", {"key": key}),), begun=form.opens_reasoning)
        for key in ("Zürich", "Bern")
    ]
    first = await agent.say(ASK, *both, n=2, tools=TOOLS, stream=stream)
    assert len(first.messages) == len(first.calls) == 2
    for message, sampled, call in zip(first.messages, first.sampled, first.calls, strict=True):
        told = [*ASK, message, result(message["tool_calls"][0], "1")]
        second = await agent.say(told, "Yes.", tools=TOOLS)
        held = [*first.prompt, *sampled]
        assert second.prompt[: len(held)] == held
        assert second.flags == []
        assert (await agent.trajectory(second.calls[0]))["parent_id"] == call


@row(22)
async def test_calls_of_one_session_are_generated_at_the_same_time(small: Agent) -> None:
    """Neither is answered before both have reached the worker."""
    small.may_answer = lambda arrived: len(small.worker.arrived) >= 2
    session = {"x-session-id": "rollout"}
    turns = await _together(
        small,
        _asking("Search the web.", "Found.", headers=session),
        _asking("Read the file.", "Read.", headers=session),
    )
    small.may_answer = lambda arrived: True
    for turn, words in zip(turns, ("Search the web.", "Read the file."), strict=True):
        found = await small.trajectory(turn.calls[0])
        assert (found["tokens"], found["session_id"]) == (turn.held, "rollout")
        told = [user(words), turn.message, user("And?")]
        following = await small.say(told, "Done.", headers=session)
        assert following.prompt[: len(turn.held)] == turn.held
        assert following.flags == []


async def _replies(agent: Agent, *, backwards: bool) -> tuple[set[Any], int]:
    """Three questions behind one answer, answered in one order or the other: what is captured."""
    first = await agent.say(ASK, "It is.")
    before = (*ASK, first.message)
    at = len(agent.worker.arrived)

    def its_turn(arrived: Arrived) -> bool:
        asked = agent.worker.arrived[at:]
        place = asked.index(arrived)
        others = asked[place + 1 :] if backwards else asked[:place]
        return len(asked) == 3 and all(one.json["rid"] in agent.given for one in others)

    agent.may_answer = its_turn
    async with trio.open_nursery() as nursery:
        for place, (text, said) in enumerate((("Why?", "So."), ("How?", "Thus."), ("Why?", "So."))):
            nursery.start_soon(agent.say, [*before, user(text)], said)
            with trio.fail_after(5):
                while len(agent.worker.arrived) <= at + place:  # noqa: ASYNC110 - see above
                    await trio.sleep(0.001)
    await settled(agent.served)
    forest = agent.served.router.state.forest
    found = [await agent.trajectory(call) for call in forest.calls]
    return {(tuple(one["tokens"]), tuple(one["loss_mask"])) for one in found}, len(forest.segments)


@row(23)
async def test_replies_in_another_order_make_the_same_forest(small: Agent) -> None:
    forwards = await _replies(small, backwards=False)
    async with agent_of(small.model) as other:
        assert await _replies(other, backwards=True) == forwards


@row(25)
async def test_a_title_asked_for_in_between_disturbs_no_turn(small: Agent) -> None:
    session = {"x-session-id": "rollout"}
    first = await small.say(ASK, "It is.", headers=session)
    title = [user("Give this a title: Well? It is.")]
    aside = await small.say(title, "A question", headers=session, model="small", stream=True)
    following = await small.say([*ASK, first.message, user("Sure?")], "Yes.", headers=session)
    assert aside.flags == following.flags == []
    assert following.prompt[: len(first.held)] == first.held
    assert (await small.trajectory(aside.calls[0]))["tokens"] == aside.held


@row(34)
async def test_nothing_is_added_to_a_sealed_session(small: Agent) -> None:
    """Neither by a new request nor by an answer that was on its way."""
    client = small.served.client
    session = (await client.post("/sessions", json={})).json()["session_id"]
    path = f"/sessions/{session}/v1/chat/completions"
    sealed: list[Any] = []
    small.may_answer = lambda arrived: sealed
    late: list[Any] = []

    async def ask() -> None:
        late.append(await client.post(path, json=small.body(ASK)))

    small.script.append(small.model.text("Too late."))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with trio.fail_after(5):
            while not small.worker.arrived:  # noqa: ASYNC110 - see above
                await trio.sleep(0.001)
        sealed.append(await client.post(f"/sessions/{session}/seal"))
    assert sealed[0].status_code == 200
    assert late[0].headers["x-slime-captured"] == "false"
    refused = await client.post(path, json=small.body(ASK))
    assert (refused.status_code, len(small.worker.arrived)) == (409, 1)
    assert refused.json()["error"]["code"] == "session_sealed"
    assert not small.served.router.state.forest.calls


@row(38)
async def test_nothing_that_a_client_says_of_tokens_is_believed(small: Agent) -> None:
    first = await small.say(ASK, "It is.")
    forged: dict[str, Any] = {
        "token_ids": [1, 2, 3],
        "prompt_token_ids": [4, 5],
        "output_token_logprobs": [[-9.0, 1, None]],
        "weight_version": "99",
        "loss_mask": [1, 1, 1],
    }
    invented = await small.say(
        [{**user("Other?"), **forged}, assistant("No.", **forged), *ASK], "So."
    )
    plain = [user("Other?"), assistant("No."), *ASK]
    assert invented.prompt == small.model.encode(small.model.render(plain))
    found = await small.trajectory(invented.calls[0])
    assert found["loss_mask"] == [0] * len(invented.prompt) + [1] * len(invented.sampled[0])
    assert set(found["generation_versions"]) == {-1, 1}
    told = [*ASK, {**first.message, **forged}, user("Sure?")]
    following = await small.say(told, "Yes.", **forged)
    assert following.prompt[: len(first.held)] == first.held
    found = await small.trajectory(following.calls[0])
    assert found["rollout_logp"][len(first.prompt)] == -0.25
    assert set(found["generation_versions"]) == {-1, 1}
