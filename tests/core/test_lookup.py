"""Look-ups by text and by ids: whose answer a prompt extends, and what of it is reused."""

from __future__ import annotations

from slime_core.alignment import hidden_endings
from slime_core.lookup import TextFound
from slime_core.segments import Outcome
from slime_core.types import Encoding, unpack_ids
from slime_trio.tokenizer import Tokenizer
from tests.core.capture import BOS, EOS, TOY, TOY_BOS, Driver, Opened
from tests.tokenizers import metaspace_bpe

_A_AND_A_HALF = 270
"""The toy's token for ``a`` and the first byte of ``é``."""


def _bytes(text: str) -> list[int]:
    """Ids that spell ``text`` byte by byte, which no tokenizer would choose."""
    return list(text.encode())


def _encoded(text: str) -> list[int]:
    return TOY.encode(text, encoding=Encoding.RENDERED, first=False)


def _parent_call(opened: Opened) -> str | None:
    parent = opened.found.parent
    return None if parent is None or parent.answer is None else parent.answer.call


# -- the end of an answer ----------------------------------------------------------------


def test_nothing_known_is_encoded_whole() -> None:
    opened = Driver().open_text("1", "abc")
    assert (opened.parent, unpack_ids(opened.prompt_ids)) == (None, _encoded("abc"))


def test_appended_text_extends_the_answer() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abc"))
    opened = driver.open_text("2", "xabcd")
    assert (_parent_call(opened), opened.found.token_start) == ("1", 4)
    assert unpack_ids(opened.prompt_ids) == _encoded("d")


def test_the_end_of_a_mere_prompt_is_no_place_to_go_on_from() -> None:
    driver = Driver()
    driver.say("1", "a", _bytes("q"))
    opened = driver.open_text("2", "abc")
    assert unpack_ids(opened.prompt_ids) == _encoded("abc")


def test_a_prompt_seen_before_is_not_encoded_again() -> None:
    driver = Driver()
    driver.say("1", "abc", _bytes("q"))
    assert driver.look("abc").encode_from == 3


def test_a_prompt_is_known_up_to_its_last_hard_token() -> None:
    driver = Driver()
    driver.say("1", "ab<E>cd", _bytes("q"))
    found = driver.look("ab<E>cx")
    assert (unpack_ids(found.run_ids), found.encode_from) == (_encoded("ab<E>"), 5)


def test_a_hidden_stop_token_is_consumed_by_the_appended_text() -> None:
    driver = Driver()
    driver.say("1", "x", [*_bytes("a"), EOS], matched=EOS)
    opened = driver.open_text("2", "xa<E>b")
    assert (opened.found.token_start, unpack_ids(opened.prompt_ids)) == (3, _encoded("b"))


def test_appended_text_that_does_not_begin_with_the_stop_token_keeps_it() -> None:
    driver = Driver()
    driver.say("1", "x", [*_bytes("a"), EOS], matched=EOS)
    opened = driver.open_text("2", "xab")
    assert (opened.found.token_start, unpack_ids(opened.prompt_ids)) == (3, _encoded("b"))


def test_the_rest_of_a_token_behind_a_stop_string_may_be_left_out_by_the_client() -> None:
    driver = Driver()
    overhang = TOY.encode("!a", encoding=Encoding.RENDERED, first=False)
    driver.say("1", "x", [*_bytes("b#"), *overhang], text_shown="b", matched="#!")
    bare = driver.look("xb#!c")
    whole = driver.look("xb#!ac")
    assert (bare.token_start, bare.joint) == (4, 2)
    assert (whole.token_start, whole.joint) == (4, 3)


def test_an_empty_answer_is_extended_where_its_stop_token_follows() -> None:
    driver = Driver()
    driver.say("1", "x", [EOS], matched=EOS)
    assert driver.look("x<E>a").token_start == 2


def test_an_empty_answer_is_not_extended_by_other_text() -> None:
    driver = Driver()
    driver.say("1", "x", [EOS], matched=EOS)
    assert driver.look("xa").parent is None


def test_an_empty_answer_is_extended_when_it_is_named() -> None:
    driver = Driver()
    driver.say("1", "x", [EOS], matched=EOS)
    assert driver.look("xa", parent_call="1").token_start == 2


def test_an_answer_without_tokens_breaks_no_run() -> None:
    driver = Driver()
    driver.say("1", "a", [])
    opened = driver.open_text("2", "abc", parent_call="1")
    assert unpack_ids(opened.prompt_ids) == _encoded("abc")


# -- cuts --------------------------------------------------------------------------------


def test_text_that_leaves_an_answer_midway_keeps_the_tokens_before_the_cut() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abcd"))
    found = driver.look("xabQ")
    assert (found.token_start, found.cut, found.encode_from) == (3, True, 3)


def test_a_cut_inside_a_token_leaves_that_token_out() -> None:
    driver = Driver()
    driver.say("1", "x", [*_bytes("d"), *_encoded("abc")])
    found = driver.look("xdabQ")
    assert (found.token_start, found.encode_from) == (2, 2)


def test_a_cut_before_the_first_token_is_no_history() -> None:
    driver = Driver()
    driver.say("1", "x", _encoded("abc"))
    found = driver.look("xabQ")
    assert (found.parent, found.cut) == (None, False)


def test_a_prompt_under_a_cut_is_found_again() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abcdef"))
    first = driver.say("2", "xabQQ", _bytes("q"))
    twin = driver.open_text("3", "xabQQ")
    assert (twin.parent, twin.found.token_start) == (first.parent, first.found.token_start)
    assert unpack_ids(twin.found.run_ids) == _encoded("QQ")  # type: ignore[union-attr]


def test_a_prompt_of_ids_under_a_cut_is_found_again() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abcdef"))
    first = driver.open_ids("2", _bytes("xabQQ"))
    driver.apply(driver.captured(first, _bytes("q")))
    twin = driver.open_ids("3", _bytes("xabQQ"))
    assert (twin.parent, twin.found.token_start) == (first.parent, first.found.token_start)


def test_another_end_of_a_prompt_under_a_cut_keeps_the_sampled_tokens() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abcdef"))
    driver.say("2", "xabQRS", _bytes("q"))
    opened = driver.open_text("3", "xabQRT")
    assert (_parent_call(opened), opened.found.token_start) == ("1", 3)


def test_a_cut_below_a_cut_keeps_both() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abcdef"))
    driver.say("2", "xabQ", _bytes("uvw"))
    opened = driver.open_text("3", "xabQuvX")
    assert (_parent_call(opened), opened.found.token_start) == ("2", 6)


def test_a_cut_below_a_cut_that_keeps_nothing_falls_back_to_the_first() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abcdef"))
    driver.say("2", "xabQ", _encoded("abc"))
    opened = driver.open_text("3", "xabQaX")
    assert (_parent_call(opened), opened.found.token_start) == ("1", 3)


def test_sampled_text_is_found_beside_an_equal_prompt() -> None:
    driver = Driver()
    driver.say("1", "xaaaaa", _bytes("q"))
    opened = driver.open_ids("2", _bytes("x"))
    driver.apply(driver.captured(opened, _bytes("aaaaaaa")))
    assert _parent_call(driver.open_text("3", "xaaQ")) == "2"


def test_what_a_client_never_saw_of_a_broken_answer_is_cut_off() -> None:
    driver = Driver()
    opened = driver.open_text("1", "x")
    fact = driver.captured(opened, _bytes("abcd"), "ab", outcome=Outcome.PARTIAL)
    driver.apply(fact)
    found = driver.look("xabQ")
    assert (found.token_start, found.cut) == (3, True)


def test_a_broken_answer_of_which_no_token_was_shown_whole_is_no_history() -> None:
    driver = Driver()
    opened = driver.open_text("1", "x")
    driver.apply(driver.captured(opened, [_A_AND_A_HALF], "a", outcome=Outcome.PARTIAL))
    again = driver.open_text("2", "xab")
    assert _parent_call(again) is None
    assert unpack_ids(again.prompt_ids) == _encoded("xab")


def test_new_tokens_may_repeat_those_behind_a_cut() -> None:
    driver = Driver()
    opened = driver.open_text("1", "x")
    driver.apply(driver.captured(opened, _bytes("qrstu"), "qr", outcome=Outcome.PARTIAL))
    driver.say("2", "xqrsX", _bytes("q"))
    driver.state.check()


def test_without_a_vocabulary_no_answer_is_left_midway() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abcd"))
    driver.facts = type(driver.facts)(vocabulary=None, hard_tokens=TOY.hard_tokens)
    assert driver.look("xabQ").parent is None


# -- whose answer ------------------------------------------------------------------------


def _twins(*texts: str) -> Driver:
    """One prompt, one call for each text; call ``i`` belongs to session ``s{i}``."""
    driver = Driver()
    opened = [driver.open_text(str(i), "x", session=f"s{i}") for i in range(len(texts))]
    for one, text in zip(opened, texts, strict=True):
        driver.apply(driver.captured(one, _bytes(text)))
    return driver


def _meant(found: TextFound) -> tuple[str | None, bool]:
    answer = None if found.parent is None else found.parent.answer
    return None if answer is None else answer.call, found.ambiguous


def _hidden_and_bare(session: str | None = None) -> Driver:
    """Two answers that look the same, of which the first goes on with a hidden stop token."""
    driver = Driver()
    hidden, bare = (driver.open_text(one, "x", session=session) for one in ("hidden", "bare"))
    driver.apply(driver.captured(hidden, [*_bytes("ab"), EOS], "ab", matched=EOS))
    driver.apply(driver.captured(bare, _bytes("ab")))
    return driver


def test_of_equal_answers_the_one_whose_hidden_ending_follows_is_meant() -> None:
    driver = _hidden_and_bare()
    found = driver.look("xab<E>c")
    assert (_meant(found)[0], found.joint) == ("hidden", 3)
    assert _meant(driver.look("xabc"))[0] == "bare"


def test_a_hidden_ending_that_follows_may_have_been_written_by_a_template() -> None:
    assert _hidden_and_bare().look("xab<E>c").ambiguous
    assert _hidden_and_bare("s").look("xab<E>c", session="s").ambiguous


def test_the_answer_that_is_named_is_meant_though_the_hidden_ending_of_another_follows() -> None:
    named = _hidden_and_bare().look("xab<E>c", parent_call="bare")
    assert _meant(named) == ("bare", False)


def test_the_sessions_answer_that_is_named_is_meant_though_the_ending_of_another_follows() -> None:
    named = _hidden_and_bare("s").look("xab<E>c", session="s", parent_call="bare")
    assert _meant(named) == ("bare", False)


def test_the_latest_of_equal_answers_is_meant_and_said_to_be_ambiguous() -> None:
    assert _meant(_twins("ab", "ab").look("xabQ")) == ("1", True)


def test_the_sessions_own_answer_is_meant() -> None:
    assert _meant(_twins("ab", "ab").look("xabQ", session="s0")) == ("0", False)


def test_the_answer_that_is_named_is_meant() -> None:
    assert _meant(_twins("ab", "ab").look("xabQ", parent_call="0")) == ("0", False)


def test_a_longer_answer_of_others_does_not_take_the_place_of_the_sessions_own() -> None:
    assert _meant(_twins("ab", "abc").look("xabcd", session="s0")) == ("0", False)


def test_a_longer_answer_of_others_does_not_take_the_place_of_the_named_one() -> None:
    assert _meant(_twins("ab", "abc").look("xabcd", parent_call="0")) == ("0", False)


def test_a_longer_answer_is_meant_by_a_client_without_history() -> None:
    assert _meant(_twins("ab", "abc").look("xabcd", session="s9")) == ("1", False)


def test_what_continues_the_sessions_own_answer_is_meant() -> None:
    driver = _twins("ab", "ab")
    for call, session in (("2", "s1"), ("3", "s0")):
        opened = driver.open_text(call, "xabQ", session=session)
        driver.apply(driver.captured(opened, _bytes(f"u{'vw'}")))
    assert _meant(driver.look("xabQuvwX", parent_call="0")) == ("3", False)


def test_the_sessions_own_answer_is_the_one_that_is_cut() -> None:
    driver = _twins("abY", "abZ")
    assert _meant(driver.look("xabQ", session="s0")) == ("0", False)
    assert _meant(driver.look("xabQ", session="s1")) == ("1", False)


def test_the_named_answer_is_the_one_that_is_cut() -> None:
    driver = _twins("abY", "abZ")
    assert _meant(driver.look("xabQ", parent_call="0")) == ("0", False)


def test_a_longer_match_of_others_does_not_hide_that_the_named_answer_is_cut() -> None:
    driver = Driver()
    driver.say("0", "xabQrst", _bytes("u"))
    driver.say("1", "x", _bytes("abc"))
    assert _meant(driver.look("xabQrs", parent_call="1")) == ("1", False)


def test_a_cut_that_leaves_several_answers_is_said_to_be_ambiguous() -> None:
    assert _meant(_twins("abY", "abZ").look("xabQ")) == ("1", True)


# -- runs --------------------------------------------------------------------------------


def test_ids_of_a_client_are_no_encoding_of_their_text() -> None:
    driver = Driver()
    opened = driver.open_ids("1", _bytes("abc"))
    driver.apply(driver.captured(opened, _bytes("q")))
    assert unpack_ids(driver.open_text("2", "abc").prompt_ids) == _encoded("abc")


def test_ids_that_a_text_client_encoded_too_are_reused() -> None:
    driver = Driver()
    opened = driver.open_ids("1", _encoded("abc"))
    driver.apply(driver.captured(opened, _bytes("q")))
    driver.tell_all()
    driver.say("2", "abc", _bytes("r"))
    assert driver.look("abc").encode_from == 3


def test_a_later_run_is_no_model_for_the_first() -> None:
    driver = Driver(TOY_BOS)
    driver.say("1", "", [EOS])
    driver.apply(driver.captured(driver.open_text("2", "foo", parent_call="1"), _bytes("q")))
    assert unpack_ids(driver.open_text("3", "foo").prompt_ids) == [BOS, *_bytes("foo")]


def test_raw_and_rendered_text_are_kept_apart_where_raw_text_gets_a_prefix() -> None:
    driver = Driver(TOY_BOS)
    driver.say("1", "foo", _bytes("q"))
    assert driver.look("foo", Encoding.RENDERED).matched == 0


def test_a_prompt_from_ids_is_found_by_its_text() -> None:
    driver = Driver()
    opened = driver.open_ids("1", _bytes("x"))
    driver.apply(driver.captured(opened, _bytes("ab")))
    assert driver.look("xabQ").token_start == 3


# -- ids ---------------------------------------------------------------------------------


def test_ids_extend_the_answer_that_they_begin_with() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("ab"))
    opened = driver.open_ids("2", _bytes("xabQ"))
    assert (_parent_call(opened), opened.found.token_start) == ("1", 3)


def test_ids_may_leave_an_answer_anywhere() -> None:
    driver = Driver()
    driver.say("1", "x", [0xC3, 0xA9, 97])
    opened = driver.open_ids("2", [*_bytes("x"), 0xC3, 98])
    assert (_parent_call(opened), opened.found.token_start, opened.found.cut) == ("1", 2, True)


def test_ids_that_end_within_an_answer_cut_it() -> None:
    driver = Driver()
    driver.say("1", "x", _bytes("abc"))
    opened = driver.open_ids("2", _bytes("xa"))
    assert (_parent_call(opened), opened.found.token_start) == ("1", 2)


def test_an_empty_answer_is_no_end_for_ids() -> None:
    driver = Driver()
    driver.say("1", "x", [])
    assert driver.open_ids("2", _bytes("xa")).parent is None


# -- endings -----------------------------------------------------------------------------


def test_an_answer_may_begin_with_a_space_that_a_text_could_not() -> None:
    tokenizer = Tokenizer(metaspace_bpe().to_str().encode())
    ids = tokenizer.encode(" the dog</s>", encoding=Encoding.RENDERED, first=False)
    assert hidden_endings(ids, " the dog", ids[-1], tokenizer.vocabulary) == ("</s>",)
