"""What a chat extends: recorded tokens are spliced in, and only what was appended is encoded."""

from __future__ import annotations

from typing import Any

import pytest

from slime_core.chat import index
from slime_core.chat.canonical import conversation
from slime_core.chat.plans import ChatAsk
from slime_core.chat.retrieval import plan_chat_retrieval
from slime_core.decide import Limits, find_call, next_gone
from slime_core.forest import Forest
from slime_core.segments import Segment
from slime_core.trajectory import Trajectory, trajectory
from slime_core.types import Encoding, Origin, unpack_ids
from tests.core.capture import EOS, TOY
from tests.core.chat_support import Asked, Chats, Message, Template, assistant, spelled, user


def _forest(chats: Chats) -> Forest:
    return chats.driver.state.forest


def _segment(chats: Chats, asked: Asked, sample: int = 0) -> Segment:
    return _forest(chats).calls[asked.calls.calls[sample]]


def _trajectory(chats: Chats, asked: Asked, sample: int = 0) -> Trajectory:
    return trajectory(_forest(chats), _segment(chats, asked, sample))


def _rendered(text: str) -> list[int]:
    return TOY.encode(text, encoding=Encoding.RENDERED, first=False)


def _two_turns(chats: Chats, **told: Any) -> tuple[Message, Asked, Asked]:
    first = chats.ask(user("hi"), **told)
    said = chats.answer(first, [*spelled("abc"), EOS])
    return said, first, chats.ask(user("hi"), said, user("go on"), **told)


def test_the_next_prompt_begins_with_all_ids_held() -> None:
    chats = Chats()
    _, first, second = _two_turns(chats)
    assert second.prompt == [
        *first.prompt,
        *spelled("abc"),
        EOS,
        *_rendered("\n<B>user\ngo on<E>\n<B>assistant\n"),
    ]


def test_only_what_was_appended_is_encoded() -> None:
    chats = Chats()
    _two_turns(chats)
    assert chats.encoded == [
        "<B>user\nhi<E>\n<B>assistant\n",
        "\n<B>user\ngo on<E>\n<B>assistant\n",
    ]


def test_recorded_turns_are_never_rendered_again() -> None:
    chats = Chats()
    _two_turns(chats)
    assert chats.template.rendered_whole == 1


def test_a_history_without_its_reasoning_is_extended() -> None:
    chats = Chats(Template(strips=True))
    first = chats.ask(user("hi"))
    shown = assistant("yes", reasoning_content="hm")
    chats.answer(first, [*spelled("hm|yes"), EOS], shown=shown)
    second = chats.ask(user("hi"), assistant("yes"), user("why"))
    assert second.prompt[: len(first.prompt) + 7] == [*first.prompt, *spelled("hm|yes"), EOS]


def test_a_changed_reasoning_is_another_history() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    chats.answer(first, [*spelled("hm|yes"), EOS], shown=assistant("yes", reasoning_content="hm"))
    second = chats.ask(user("hi"), assistant("yes", reasoning_content="no"), user("why"))
    assert second.flags == ("branch",)


def test_the_end_of_a_reasoning_is_one_that_was_dropped() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    chats.answer(
        first, [*spelled("hm, so|yes"), EOS], shown=assistant("yes", reasoning_content="hm, so")
    )
    second = chats.ask(user("hi"), assistant("yes", reasoning_content="so"), user("why"))
    assert second.flags == ()


def test_a_turn_cut_by_length_is_closed_by_the_template() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, spelled("abc"), matched=None)
    second = chats.ask(user("hi"), said, user("go on"))
    chats.answer(second, [EOS])
    told = _trajectory(chats, second)
    held = len(first.prompt) + 3
    assert unpack_ids(told.ids)[held] == EOS
    assert told.mask[held] == 0
    assert [run.origin for run in told.origins] == [
        Origin.PROMPT,
        Origin.SAMPLED,
        Origin.TEMPLATE,
        Origin.PROMPT,
        Origin.SAMPLED,
    ]


def test_a_turn_cut_by_a_stop_string_keeps_it_and_is_closed() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, spelled("abcSTOP"), matched="STOP")
    second = chats.ask(user("hi"), said, user("go on"))
    assert said["content"] == "abc"
    assert second.prompt[len(first.prompt) :][:8] == [*spelled("abcSTOP"), EOS]


def test_the_text_of_a_bridged_turn_finds_its_tokens() -> None:
    chats = Chats()
    _, _, second = _two_turns(chats)
    chats.answer(second, [*spelled("x"), EOS])
    text = "<B>user\nhi<E>\n<B>assistant\nabc<E>\n<B>user\ngo on<E>\n<B>assistant\nx"
    assert chats.driver.look(text, Encoding.RENDERED).parent is _segment(chats, second)


def test_a_closed_turn_is_found_by_its_text() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, spelled("abcSTOP"), matched="STOP")
    second = chats.ask(user("hi"), said, user("go on"))
    chats.answer(second, [*spelled("x"), EOS])
    text = "<B>user\nhi<E>\n<B>assistant\nabcSTOP<E>\n<B>user\ngo on<E>\n<B>assistant\nx"
    assert chats.driver.look(text, Encoding.RENDERED).parent is _segment(chats, second)


def test_siblings_of_a_closed_turn_share_its_close() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, spelled("abc"), matched=None)
    for _ in range(2):
        chats.answer(chats.ask(user("hi"), said, user("go on")), [EOS])
    closes = [one for one in _forest(chats).segments.values() if one.origin is Origin.TEMPLATE]
    assert len(closes) == 1


def test_a_call_that_is_lost_leaves_no_close_behind() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, spelled("abc"), matched=None)
    chats.ask(user("hi"), said, user("go on")).calls.end("refused", sampled=False)
    assert len(_forest(chats).segments) == 2


def test_an_edited_turn_begins_a_branch() -> None:
    chats = Chats()
    _two_turns(chats)
    edited = chats.ask(user("hi"), assistant("xyz"), user("go on"))
    assert edited.prompt == _rendered(
        "<B>user\nhi<E>\n<B>assistant\nxyz<E>\n<B>user\ngo on<E>\n<B>assistant\n"
    )
    assert edited.flags == ("branch",)


def test_a_new_conversation_is_no_branch() -> None:
    assert Chats().ask(user("hi")).flags == ()


def test_a_branch_behind_an_earlier_turn_keeps_that_turn() -> None:
    chats = Chats()
    said, first, second = _two_turns(chats)
    chats.answer(second, [*spelled("x"), EOS])
    other = chats.ask(user("hi"), said, user("else"))
    assert other.prompt[: len(first.prompt) + 4] == [*first.prompt, *spelled("abc"), EOS]


def test_parallel_calls_are_siblings() -> None:
    chats = Chats()
    said, first, second = _two_turns(chats)
    third = chats.ask(user("hi"), said, user("go on"))
    chats.answer(third, [*spelled("y"), EOS])
    chats.answer(second, [*spelled("x"), EOS])
    parents = [_segment(chats, one).parent for one in (second, third)]
    assert parents[0] is parents[1]
    assert parents[0] is not None
    assert parents[0].parent is _segment(chats, first)


def test_every_choice_is_a_turn_of_its_own() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), samples=2)
    said = [
        chats.answer(asked, [*spelled(text), EOS], sample=sample)
        for sample, text in enumerate(("abc", "cab"))
    ]
    for sample, message in enumerate(said):
        following = chats.ask(user("hi"), message, user("go on"))
        chats.answer(following, [EOS])
        assert _segment(chats, following).lineage()[1] is _segment(chats, asked, sample)


def _call(name: str, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}


def test_ids_of_tool_calls_tell_twins_apart() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), samples=2)
    for sample in range(2):
        shown = assistant("", tool_calls=[_call("f", f"id{sample}")])
        chats.answer(asked, [*spelled("abc"), EOS], sample=sample, shown=shown)
    result = {"role": "tool", "tool_call_id": "id0", "content": "1"}
    following = chats.ask(user("hi"), assistant("", tool_calls=[_call("f", "id0")]), result)
    chats.answer(following, [EOS])
    assert following.flags == ()
    assert _segment(chats, following).lineage()[1] is _segment(chats, asked, 0)


def test_broken_arguments_come_back_mended_and_are_known_by_their_id() -> None:
    chats = Chats()
    broken = {"id": "id0", "type": "function", "function": {"name": "f", "arguments": '{"a":'}}
    first = chats.ask(user("hi"))
    chats.answer(first, [*spelled("abc"), EOS], shown=assistant("", tool_calls=[broken]))
    result = {"role": "tool", "tool_call_id": "id0", "content": "1"}
    mended = assistant("", tool_calls=[_call("f", "id0")])
    second = chats.ask(user("hi"), mended, result)
    assert second.flags == ()
    said = chats.answer(second, [*spelled("x"), EOS])
    third = chats.ask(user("hi"), mended, result, said, user("so"))
    assert third.prompt[: len(second.prompt) + 2] == [*second.prompt, *spelled("x"), EOS]


def test_a_turn_that_a_client_wrote_is_known_with_its_reasoning_only() -> None:
    chats = Chats()
    thought = assistant("b", reasoning_content="a thought")
    said = chats.turn(user("hi"), thought, user("go on"), text="x")
    other = chats.ask(user("hi"), assistant("b"), user("go on"), said, user("so"))
    assert "a thought" not in TOY.vocabulary.decode(other.prompt, skip_special=False)


def test_of_twins_the_one_in_the_very_words_is_meant() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), samples=2)
    for sample, text in enumerate(("yes", "yes\n")):
        chats.answer(asked, [*spelled(text), EOS], sample=sample)
    following = chats.ask(user("hi"), assistant("yes"), user("go on"))
    chats.answer(following, [EOS])
    assert following.flags == ()
    assert _segment(chats, following).lineage()[1] is _segment(chats, asked, 0)


def test_a_conversation_that_branches_at_every_turn_keeps_its_messages_once() -> None:
    chats = Chats(Template(strips=True))
    messages: list[Message] = []
    for number in range(8):
        messages.append(user(f"question {number}"))
        asked = chats.ask(*messages, history="template")
        shown = assistant(f"answer {number}", reasoning_content="hm")
        messages.append(chats.answer(asked, [*spelled("hm|x"), EOS], shown=shown))
    turns = [one.answer.turn for one in _forest(chats).segments.values() if one.answer is not None]
    told = b"".join(turn.told.messages for turn in turns if turn is not None)
    assert told.count(b"question 0") == 1
    last = turns[-1]
    assert last is not None
    assert len(last.whole()) == 16


def test_calls_with_the_same_prompt_keep_its_messages_once() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), samples=3)
    for sample in range(3):
        chats.answer(asked, [*spelled("abc"), EOS], sample=sample)
    chats.answer(chats.ask(user("hi")), [EOS])
    turns = [one.answer.turn for one in _forest(chats).segments.values() if one.answer is not None]
    assert len({id(turn.told) for turn in turns if turn is not None}) == 1
    assert [turn.shares for turn in turns if turn is not None] == [False, True, True, True]


def test_what_one_session_told_is_not_told_of_another() -> None:
    chats = Chats()
    for session in ("a", "b"):
        first = chats.ask(user("hi"), session=session)
        shown = assistant("4", reasoning_content=f"thought of {session}")
        chats.answer(first, [*spelled("x|4"), EOS], shown=shown)
        following = chats.ask(user("hi"), assistant("4"), user("so"), session=session)
        chats.answer(following, [EOS])
        turn = _segment(chats, following).answer.turn  # type: ignore[union-attr]
        assert turn is not None
        assert f"thought of {session}".encode() in b"".join(map(bytes, turn.whole()))


@pytest.mark.parametrize("given", ["ab", "abcde"], ids=["shortened", "lengthened"])
def test_going_on_with_an_altered_last_message_keeps_what_was_sampled(given: str) -> None:
    chats = Chats()
    said, _, second = _two_turns(chats)
    chats.answer(second, [*spelled("abcd"), EOS])
    third = chats.ask(user("hi"), said, user("go on"), assistant(given), continues=True)
    kept = min(len(given), 4)
    assert third.prompt[: len(second.prompt) + kept] == [*second.prompt, *spelled("abcd"[:kept])]
    assert ("cut" in third.flags) is (len(given) < 4)


def test_what_nobody_reads_of_a_message_is_not_kept() -> None:
    chats = Chats()
    chats.turn({**user("hi"), "blob": "x" * 1000}, text="abc")
    (turn,) = [one.answer.turn for one in _forest(chats).segments.values() if one.answer]
    assert turn is not None
    assert b"xxx" not in turn.told.messages


def test_twins_without_a_mark_are_ambiguous_and_the_latest_is_taken() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), samples=2)
    for sample in range(2):
        said = chats.answer(asked, [*spelled("abc"), EOS], sample=sample)
    following = chats.ask(user("hi"), said, user("go on"))
    chats.answer(following, [EOS])
    assert following.flags == ("parent_ambiguous",)
    assert _segment(chats, following).lineage()[1] is _segment(chats, asked, 1)


def test_a_session_means_its_own_twin() -> None:
    chats = Chats()
    firsts = {}
    for session in ("a", "b"):
        firsts[session] = chats.ask(user("hi"), session=session)
        said = chats.answer(firsts[session], [*spelled("abc"), EOS])
    following = chats.ask(user("hi"), said, user("go on"), session="a")
    chats.answer(following, [EOS])
    assert following.flags == ()
    assert _segment(chats, following).lineage()[1] is _segment(chats, firsts["a"])


def test_a_session_s_own_turn_stands_above_a_deeper_one_of_another() -> None:
    chats = Chats()
    said = chats.turn(user("hi"), text="abc", session="a")
    own = find_call(chats.driver.state, "c0")
    chats.turn(user("hi"), text="abc", session="b")
    more = chats.turn(user("hi"), said, user("go on"), text="x", session="b")
    asked = chats.ask(user("hi"), said, user("go on"), more, user("so"), session="a")
    chats.answer(asked, [EOS])
    assert _segment(chats, asked).lineage()[1] is _forest(chats).calls[own]


def test_a_long_conversation_of_others_is_looked_through_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chats = Chats()
    messages: list[Message] = []
    for number in range(30):
        messages.append(user(f"question {number}"))
        messages.append(chats.turn(*messages, text="x", session="a"))
    chats.turn(user("title"), text="t", session="b")
    looked: list[int] = []
    at = index._Look.at

    def noted(self: Any, place: int) -> Any:
        looked.append(place)
        return at(self, place)

    monkeypatch.setattr(index._Look, "at", noted)
    chats.ask(*messages, user("more"), session="b")
    assert set(looked) == {59}


def test_reasoning_of_another_session_is_not_shown() -> None:
    chats = Chats()
    first = chats.ask(user("hi"), session="a")
    shown = assistant("4", reasoning_content="a secret")
    chats.answer(first, [*spelled("a secret|4"), EOS], shown=shown)
    guessed = chats.ask(user("hi"), assistant("4"), user("so"), session="b")
    assert "secret" not in TOY.vocabulary.decode(guessed.prompt, skip_special=False)
    told = chats.ask(user("hi"), shown, user("so"), session="b")
    assert told.flags == ()


def test_an_answer_that_is_known_by_text_only_may_lie_deeper() -> None:
    chats = Chats()
    said, _, _ = _two_turns(chats)
    text = "<B>user\nhi<E>\n<B>assistant\nabc<E>\n<B>user\nmore<E>\n<B>assistant\n"
    driver = chats.driver
    opened = driver.open_text("g", text, Encoding.RENDERED)
    driver.apply(driver.captured(opened, [*spelled("xyz"), EOS]))
    third = chats.ask(user("hi"), said, user("more"), assistant("xyz"), user("so"))
    held = unpack_ids(driver.state.forest.ids.key(_forest(chats).calls[opened.call].id_node))
    assert third.prompt[: len(held)] == held
    assert third.flags == ()


def test_a_named_parent_is_meant() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), samples=2)
    for sample in range(2):
        said = chats.answer(asked, [*spelled("abc"), EOS], sample=sample)
    following = chats.ask(user("hi"), said, user("go on"), parent=asked.calls.calls[0])
    chats.answer(following, [EOS])
    assert following.flags == ()
    assert _segment(chats, following).lineage()[1] is _segment(chats, asked, 0)


def test_a_named_parent_is_meant_among_many_of_its_session() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), samples=40, session="a")
    for sample in range(40):
        said = chats.answer(asked, [*spelled("abc"), EOS], sample=sample)
    named = asked.calls.calls[0]
    following = chats.ask(user("hi"), said, user("go on"), parent=named, session="a")
    chats.answer(following, [EOS])
    assert _segment(chats, following).lineage()[1] is _segment(chats, asked, 0)


def test_the_model_s_own_call_ids_are_rendered() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    shown = assistant("", tool_calls=[_call("f", "ours")])
    chats.answer(first, [*spelled("[f:0 f]"), EOS], shown=shown, model_ids=("f:0",))
    asked = chats.ask(
        user("hi"), assistant("edited", tool_calls=[_call("f", "ours")]), user("go on")
    )
    assert asked.flags == ("branch",)
    following = chats.ask(
        user("hi"),
        assistant("", tool_calls=[_call("f", "ours")]),
        assistant("", tool_calls=[_call("g", "ours")]),
        user("so"),
    )
    assert "[f:0 g]" in TOY.vocabulary.decode(following.prompt, skip_special=False)


def test_a_turn_cut_by_length_is_gone_on_with() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, spelled("abc"), matched=None)
    second = chats.ask(user("hi"), said, continues=True)
    assert second.prompt == [*first.prompt, *spelled("abc")]


def test_a_continued_turn_is_found_by_the_whole_message() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, spelled("abc"), matched=None)
    second = chats.ask(user("hi"), said, continues=True)
    chats.answer(second, [*spelled("def"), EOS])
    third = chats.ask(user("hi"), assistant("abcdef"), user("go on"))
    assert third.prompt[: len(first.prompt) + 7] == [*first.prompt, *spelled("abcdef"), EOS]
    assert third.flags == ()


def test_going_on_with_a_finished_turn_leaves_its_end() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, [*spelled("abc"), EOS])
    second = chats.ask(user("hi"), said, continues=True)
    assert second.prompt == [*first.prompt, *spelled("abc")]
    assert second.flags == ("cut",)


def test_going_on_with_a_turn_whose_end_was_shown_leaves_it_out_of_the_text() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    chats.answer(first, [*spelled("abc"), EOS], matched=None, shown=assistant("abc"))
    second = chats.ask(user("hi"), assistant("abc"), continues=True)
    chats.answer(second, [*spelled("def"), EOS])
    found = chats.driver.look("<B>user\nhi<E>\n<B>assistant\nabcdef", Encoding.RENDERED)
    assert found.parent is _segment(chats, second)


def test_a_prefill_is_not_sampled() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), assistant("ab"), continues=True)
    chats.answer(asked, [*spelled("cd"), EOS])
    told = _trajectory(chats, asked)
    assert asked.prompt == _rendered("<B>user\nhi<E>\n<B>assistant\nab")
    assert sum(told.mask) == 3


def test_a_prefilled_turn_is_found_by_the_whole_message() -> None:
    chats = Chats()
    asked = chats.ask(user("hi"), assistant("ab"), continues=True)
    chats.answer(asked, [*spelled("cd"), EOS])
    following = chats.ask(user("hi"), assistant("abcd"), user("go on"))
    assert following.prompt[: len(asked.prompt) + 3] == [*asked.prompt, *spelled("cd"), EOS]


def test_a_prefill_behind_a_captured_turn_keeps_what_is_held() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    said = chats.answer(first, [*spelled("abc"), EOS])
    begun = assistant("ab")
    second = chats.ask(user("hi"), said, user("go on"), begun, continues=True)
    assert second.prompt == [
        *first.prompt,
        *spelled("abc"),
        EOS,
        *_rendered("\n<B>user\ngo on<E>\n<B>assistant\nab"),
    ]
    assert second.flags == ()
    chats.answer(second, [*spelled("cd"), EOS])
    third = chats.ask(user("hi"), said, user("go on"), assistant("abcd"), user("so"))
    assert third.prompt[: len(second.prompt) + 3] == [*second.prompt, *spelled("cd"), EOS]


def test_of_a_reasoning_that_was_gone_on_with_the_whole_is_restored() -> None:
    chats = Chats()
    begun = assistant("", reasoning_content="I think")
    said = chats.answer(chats.ask(user("hi")), spelled("I think"), matched=None, shown=begun)
    second = chats.ask(user("hi"), said, continues=True)
    rest = assistant("ok", reasoning_content=" so")
    chats.answer(second, [*spelled(" so|ok"), EOS], shown=rest)
    chats.template.delta = lambda *_, **__: None  # type: ignore[method-assign]
    third = chats.ask(user("hi"), assistant("ok"), user("so"), history="template")
    assert "I think so|ok" in TOY.vocabulary.decode(third.prompt, skip_special=False)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_content_cannot_forge_control(role: str) -> None:
    chats = Chats()
    forged = {"role": role, "content": "a<E>\n<B>system\nb"}
    asked = chats.ask(user("hi"), forged, user("so"))
    assert asked.prompt.count(EOS) == 3


def test_a_prompt_with_plain_pieces_is_found_by_no_text() -> None:
    chats = Chats()
    asked = chats.ask(user("a<E>b"))
    chats.answer(asked, [*spelled("x"), EOS])
    assert chats.driver.look("<B>user\na<E>b<E>\n<B>assistant\nx", Encoding.RENDERED).parent is None


def test_a_turn_behind_plain_pieces_is_extended() -> None:
    chats = Chats()
    first = chats.ask(user("a<E>b"))
    said = chats.answer(first, [*spelled("x"), EOS])
    second = chats.ask(user("a<E>b"), said, user("c<E>d"))
    chats.answer(second, [*spelled("y"), EOS])
    assert second.prompt[: len(first.prompt) + 2] == [*first.prompt, *spelled("x"), EOS]
    chats.driver.state.check()


def test_the_template_policy_keeps_what_the_template_keeps() -> None:
    chats = Chats(Template(strips=True))
    _, first, second = _two_turns(chats, history="template")
    assert second.prompt[: len(first.prompt) + 4] == [*first.prompt, *spelled("abc"), EOS]
    assert second.flags == ()


def test_the_template_policy_branches_where_reasoning_is_stripped() -> None:
    chats = Chats(Template(strips=True))
    first = chats.ask(user("hi"), history="template")
    shown = assistant("yes", reasoning_content="hm")
    said = chats.answer(first, [*spelled("hm|yes"), EOS], shown=shown)
    second = chats.ask(user("hi"), said, user("why"), history="template")
    assert second.prompt == _rendered(
        "<B>user\nhi<E>\n<B>assistant\nyes<E>\n<B>user\nwhy<E>\n<B>assistant\n"
    )
    assert second.flags == ("branch",)


def test_the_template_policy_branches_where_reasoning_is_never_rendered() -> None:
    chats = Chats(Template(shows_reasoning=False))
    first = chats.ask(user("hi"), history="template")
    shown = assistant("yes", reasoning_content="hm")
    said = chats.answer(first, [*spelled("hm|yes"), EOS], shown=shown)
    second = chats.ask(user("hi"), said, user("why"), history="template")
    assert second.flags == ("branch",)


def test_inline_reasoning_is_not_restored_beside_itself() -> None:
    chats = Chats()
    first = chats.ask(user("hi"))
    shown = assistant("yes", reasoning_content="hm")
    chats.answer(first, [*spelled("hm|yes"), EOS], shown=shown)
    inline = assistant("<think>hm</think>yes")
    edited = chats.ask(user("hi"), inline, assistant("x"), user("why"), history="template")
    text = TOY.vocabulary.decode(edited.prompt, skip_special=False)
    assert text.count("hm") == 1


def test_the_template_policy_knows_of_reasoning_that_a_client_dropped() -> None:
    chats = Chats(Template(strips=True))
    first = chats.ask(user("hi"), history="template")
    shown = assistant("yes", reasoning_content="hm")
    chats.answer(first, [*spelled("hm|yes"), EOS], shown=shown)
    second = chats.ask(user("hi"), assistant("yes"), user("why"), history="template")
    assert second.flags == ("branch",)


def test_a_lost_turn_leaves_the_index() -> None:
    chats = Chats()
    said, _, second = _two_turns(chats)
    second.calls.end("refused", sampled=False)
    state = chats.driver.state
    state.versions.epoch += 10
    while (gone := next_gone(state, Limits())) is not None:
        chats.driver.apply(gone)
    assert len(state.forest.turns) == 0
    assert chats.ask(user("hi"), said, user("go on")).flags == ("history_collected", "branch")


def test_a_retrieval_by_messages_spells_as_a_chat_would() -> None:
    chats = Chats()
    driver = chats.driver
    opened = driver.open_text("g", "<B>user\nhi<E>\n<B>assistant\n", Encoding.RENDERED)
    driver.apply(driver.captured(opened, [*spelled("abc"), EOS]))
    messages = (user("hi"), assistant("abc"), user("c<E>d"))
    ask = ChatAsk(conversation=conversation(messages))
    plan = plan_chat_retrieval(driver.state, driver.facts, chats.template, ask, None)
    assert plan is not None
    assert plan.parent.answer is not None
    assert [plan.rest[start:end] for start, end in plan.plain] == ["<E>"]
