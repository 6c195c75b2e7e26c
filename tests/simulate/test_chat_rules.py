"""What one message is, and the rules of chat: each accepts a run and refuses it altered."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.simulate.checking import check
from tests.simulate.knobs import Knobs
from tests.simulate.messages import alike, extends, joined, same
from tests.simulate.oracles import judge
from tests.simulate.run import Run

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1.0}'}}
GIVEN = {
    "role": "assistant",
    "content": None,
    "reasoning_content": "first this, then that",
    "tool_calls": [CALL],
}


def answer(**changes: Any) -> dict[str, Any]:
    return GIVEN | changes


def calling(arguments: str) -> dict[str, Any]:
    return answer(tool_calls=[{"function": {"name": "f", "arguments": arguments}}])


@pytest.mark.parametrize(
    "echo",
    [
        answer(content=""),
        answer(content=[{"type": "text", "text": " "}]),
        answer(reasoning_content=None),
        answer(reasoning_content="then that"),
        answer(reasoning_content=None, content="<think>first this, then that</think>"),
        calling('{"a":1}'),
        answer(refusal=None, name=None),
    ],
)
def test_what_was_sampled_is_known_in_other_words(echo: dict[str, Any]) -> None:
    assert same(GIVEN, echo, sampled=True)


@pytest.mark.parametrize(
    "echo",
    [
        answer(content="x"),
        answer(reasoning_content="something else"),
        answer(tool_calls=[]),
        answer(tool_calls=[CALL, CALL]),
        calling('{"a": true}'),
        calling('{"a": "1"}'),
        calling("{"),
        answer(role="user"),
    ],
)
def test_what_says_something_else_is_not_what_was_sampled(echo: dict[str, Any]) -> None:
    assert not same(GIVEN, echo, sampled=True)


def test_what_a_client_wrote_itself_must_come_back_in_every_detail() -> None:
    assert same(GIVEN, answer(content=""), sampled=False)
    assert not same(GIVEN, answer(reasoning_content=None), sampled=False)
    assert not same(GIVEN, calling('{"a":1}'), sampled=False)


def test_results_answer_calls_by_their_ids_or_by_their_order() -> None:
    calls = answer(tool_calls=[CALL, CALL | {"id": "c2"}])
    results = [{"role": "tool", "tool_call_id": name, "content": "x"} for name in ("c2", "c1")]
    turned = [calls, *results]
    assert alike(turned, [True, False, False], turned)
    assert not alike(turned, [True, False, False], [calls, *reversed(results)])


def test_a_message_that_is_gone_on_with_is_joined() -> None:
    begun = {"role": "assistant", "content": [{"type": "text", "text": "The "}]}
    rest = {"role": "assistant", "content": "answer", "reasoning_content": "hm"}
    assert joined(begun, rest) == rest | {"content": "The answer"}


def test_a_conversation_extends_another_if_it_begins_so() -> None:
    user = {"role": "user", "content": "a"}
    assert extends([user], GIVEN, [user, answer(content=""), user])
    assert not extends([user], GIVEN, [user])


def chatted(*more: str) -> Run:
    """One agent that goes on from what it was given."""
    settings = ["chat_share=1.0", "turns=5", "answer_tokens=8", "template=thinks", "scripts=0.5"]
    checked = check(Knobs(seed=3).with_settings([*settings, *more]), "core")
    assert checked.violations == ()
    assert checked.run is not None
    assert checked.run.story.marks["checked:conversation extended"]
    return checked.run


def broken(run: Run) -> set[str]:
    return {one.rule for one in judge(run)}


def test_a_run_of_chats_breaks_no_rule() -> None:
    assert broken(chatted()) == set()


def test_a_prompt_with_other_new_tokens_is_refused() -> None:
    run = chatted()
    last = run.story.exchanges[-1]
    chat = last.ask.chat
    assert chat is not None
    other = (*chat.messages[:-1], {"role": "user", "content": "something else"})
    last.ask = dataclasses.replace(last.ask, chat=dataclasses.replace(chat, messages=other))
    assert "3 chat is extended" in broken(run)


def test_a_branch_that_is_none_is_refused() -> None:
    run = chatted()
    run.story.exchanges[-1].headers["x-slime-flags"] = "branch"
    assert "4 branches are said" in broken(run)


def test_a_prompt_that_is_not_the_whole_rendering_is_refused() -> None:
    run = chatted()
    last = run.story.exchanges[0]
    chat = last.ask.chat
    assert chat is not None
    before = ({"role": "assistant", "content": "not so"}, *chat.messages)
    last.ask = dataclasses.replace(last.ask, chat=dataclasses.replace(chat, messages=before))
    assert "3 chat is written as the template does" in broken(run)


def test_a_message_that_was_not_sampled_is_refused() -> None:
    run = chatted()
    got = run.story.exchanges[0].samples[0]
    assert got.message is not None
    got.message = got.message | {"content": "qqq never sampled"}
    assert "client messages" in broken(run)


def test_bytes_whose_character_the_stop_token_would_complete_may_be_shown() -> None:
    run = chatted("tokenizer=metaspace")
    exchange = run.story.exchanges[0]
    sampled = next(one for one in run.story.sampled if one.exchange == exchange.number)
    vocabulary, got = run.tokens.vocabulary, exchange.samples[0]
    byte_ids = {vocabulary.bytes_of(token): token for token in vocabulary.byte_fallback}
    ids = [byte_ids[bytes([byte])] for byte in "好".encode()]
    sampled.ids[:], sampled.finish = ids, {"type": "stop", "matched": ids[-1]}
    shown = vocabulary.decode(ids[:-1], skip_special=False, at_start=False)
    got.message = {"role": "assistant", "content": shown}
    assert "client messages" not in broken(run)
