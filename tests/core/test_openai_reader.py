"""From sampled tokens to what a chat client is shown."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import WorkerError
from slime_core.openai import AnswerReader, CallHead, ContentPiece, ReasoningPiece
from slime_core.openai.answer_text import AnswerText
from slime_core.parsing import AnswerParser, ParserChoice, ShownCall, ShownMessage, assemble
from slime_core.sglang import FinishReason
from slime_core.vocabulary import Vocabulary
from tests.core.openai_support import (
    ADDED,
    BOOK,
    CALL,
    CONTROL,
    END,
    ENDED,
    LENGTH,
    MERGED,
    QWEN3,
    TOOLS,
    chat,
    encode,
    read,
    reader,
    told,
    vocabulary,
)

F = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
G = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
BROKEN = '<tool_call>{"name": "f", "arguments": {"x": 1</tool_call>'
PLAIN = ParserChoice(reasoning=None, tool_calls=None)


def after(text: str | list[int], reason: FinishReason = ENDED, **options: Any) -> AnswerReader:
    """A reader that has read a whole answer."""
    settings = {
        name: options.pop(name) for name in ("parsers", "in_reasoning", "book") if name in options
    }
    made = reader(chat(**{"tools": TOOLS, **options}), **settings)
    read(made, [*encode(text), END] if isinstance(text, str) else text, reason=reason)
    return made


def test_reasoning_content_and_calls_are_told_apart() -> None:
    made = after(f"<think>\nhm\n</think>\n\nWell.\n\n{F}\n{G}")
    assert made.message == ShownMessage(
        reasoning="hm",
        content="Well.",
        tool_calls=(
            ShownCall(name="f", arguments='{"x": 1}'),
            ShownCall(name="g", arguments="{}"),
        ),
    )
    assert (made.call_ids, made.finish_word) == (("call_0", "call_1"), "tool_calls")


def test_the_text_of_an_answer_shows_special_tokens_but_not_what_stopped_it() -> None:
    assert after("<think>a</think>b<ctl>c").text == "<think>a</think>b<ctl>c"


def test_without_parsers_all_is_content() -> None:
    text = f"<think>a</think>{F}"
    assert after(text, parsers=PLAIN).message.content == text


@pytest.mark.parametrize("fields", [{"tools": None}, {"tool_choice": "none"}])
def test_where_no_tool_may_be_called_a_call_is_content(fields: dict[str, Any]) -> None:
    made = after(F, **fields)
    assert (made.message.content, made.message.tool_calls) == (F, ())
    assert made.finish_word == "stop"


def test_a_tag_that_plain_tokens_spell_is_content() -> None:
    spelled = "<tool_call>\n{}\n</tool_call>"
    made = after([*spelled.encode(), END])
    assert made.message.content == spelled


def test_special_tokens_are_looked_for_before_they_are_left_out() -> None:
    book = vocabulary(tags_are_special=True)
    made = after(f"<think>a</think>b<ctl>c{F}", book=book)
    assert made.message == ShownMessage(
        reasoning="a", content="bc", tool_calls=(ShownCall(name="f", arguments='{"x": 1}'),)
    )


def test_special_tokens_are_shown_to_those_who_ask() -> None:
    made = after("<think>a<ctl></think>b<ctl>c", skip_special_tokens=False)
    assert (made.message.reasoning, made.message.content) == ("a<ctl>", "b<ctl>c")


def test_special_tokens_are_left_out_of_reasoning_too() -> None:
    assert after("<think><ctl>a<ctl>b</think>c").message.reasoning == "ab"


def test_a_special_token_that_plain_tokens_spell_is_shown() -> None:
    assert after([*b"a<ctl>b", CONTROL, END]).message.content == "a<ctl>b"


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    made = after("hm</think>Yes", in_reasoning=True)
    assert (made.message.reasoning, made.message.content) == ("hm", "Yes")


def test_reasoning_stays_in_the_content_of_those_who_ask() -> None:
    made = after("<think>hm</think>Yes", separate_reasoning=False)
    assert made.message == ShownMessage(
        reasoning=None, content="<think>hm</think>Yes", tool_calls=()
    )


def test_forced_calls_are_read_from_the_constraints_array() -> None:
    text = '[{"name": "f", "parameters": {"x": 1}}]'
    made = after(text, tool_choice="required")
    assert made.message.tool_calls == (ShownCall(name="f", arguments='{"x": 1}'),)
    assert made.finish_word == "tool_calls"


def test_one_call_is_kept_where_they_may_not_be_parallel() -> None:
    made = after(F + G, parallel_tool_calls=False)
    assert [call.name for call in made.message.tool_calls] == ["f"]


def test_a_broken_call_of_a_whole_answer_is_content() -> None:
    made = after(f"Well.\n{BROKEN}\n{G}")
    assert made.message == ShownMessage(
        reasoning=None,
        content=f"Well.\n{BROKEN}",
        tool_calls=(ShownCall(name="g", arguments="{}"),),
    )
    assert made.call_ids == ("call_0",)


def test_a_stream_that_told_a_call_keeps_it_though_it_breaks() -> None:
    made = reader(chat(stream=True, tools=TOOLS))
    pieces = read(made, [*encode(BROKEN), END], sizes=[5, 20])
    assert CallHead(index=0, id="call_0", name="f") in pieces
    assert [call.name for call in made.message.tool_calls] == ["f"]
    assert (made.message.content, made.finish_word) == (None, "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
def test_a_whole_object_with_text_before_its_tag_is_a_call_in_both_forms(stream: bool) -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1}} extra</tool_call>'
    made = reader(chat(stream=stream, tools=TOOLS))
    read(made, [*encode(text), END], sizes=[7, 30])
    assert made.message == ShownMessage(
        reasoning=None,
        content=" extra",
        tool_calls=(ShownCall(name="f", arguments='{"a": 1}'),),
    )
    assert made.finish_word == "tool_calls"


def test_a_stream_tells_the_rest_of_a_call_that_breaks_as_arguments() -> None:
    made = reader(chat(stream=True, tools=TOOLS))
    text = '<tool_call>{"name": "f", "arguments": {"key": oops}}\n</tool_call>'
    (call,) = told(read(made, [*encode(text), END], sizes=[30]))["calls"]
    assert call["arguments"] == made.message.tool_calls[0].arguments == '{"key": oops}}\n'
    assert made.message.content is None


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (ENDED, "stop"),
        (LENGTH, "length"),
        (FinishReason(type="stop"), "stop"),
        (FinishReason(type="stop", matched="Hi"), "stop"),
    ],
)
def test_the_finish_word_is_the_workers(reason: FinishReason, word: str) -> None:
    assert after("a", reason).finish_word == word


def test_a_call_cut_by_the_limit_is_still_the_limits_doing() -> None:
    assert after(encode(F), LENGTH).finish_word == "length"


@pytest.mark.parametrize("reason", [FinishReason(type="abort"), FinishReason(type="weird")])
def test_an_aborted_answer_can_be_kept_but_has_no_finish_word(reason: FinishReason) -> None:
    made = after(encode("<think>a</think>b"), reason)
    assert (made.text, made.message.content) == ("<think>a</think>b", "b")
    with pytest.raises(WorkerError):
        _ = made.finish_word


def test_what_broke_off_is_kept_as_far_as_it_came() -> None:
    made = reader(chat(stream=True, stop="##", logprobs=True))
    shown = told(made.push(encode("ab#"), [0.0, 0.0, 0.0]))
    assert (shown["content"], made.text) == ("ab", "ab#")
    assert told(made.close())["content"] == "#"
    assert made.close() == []
    assert made.message.content == "ab#"


class TestWhatStopsAnAnswer:
    def test_a_stop_string_ends_it_before_its_first_occurrence(self) -> None:
        reason = FinishReason(type="stop", matched="##")
        assert after(encode("Hi## ##x"), reason, stop=["##"]).text == "Hi"

    def test_the_workers_word_decides_which_string_it_was(self) -> None:
        reason = FinishReason(type="stop", matched="i#")
        assert after(encode("Hi##"), reason, stop=["##", "i#"]).text == "H"

    def test_a_limit_comes_before_a_stop_string(self) -> None:
        for stream in (True, False):
            assert after(encode("Hi##"), LENGTH, stop=["##"], stream=stream).text == "Hi##"

    def test_a_stop_string_is_kept_for_those_who_ask(self) -> None:
        reason = FinishReason(type="stop", matched="##")
        assert after(encode("Hi##"), reason, stop=["##"], no_stop_trim=True).text == "Hi##"

    def test_a_stop_token_is_kept_for_those_who_ask(self) -> None:
        made = after([*b"Hi", END], no_stop_trim=True)
        assert (made.text, made.message.content) == ("Hi<end>", "Hi")

    def test_any_token_may_stop_it(self) -> None:
        assert after(list(b"Hi"), FinishReason(type="stop", matched=ord("i"))).text == "H"

    def test_so_may_several(self) -> None:
        reason = FinishReason(type="stop", matched=(ord("H"), ord("i")))
        assert after(list(b"aHi"), reason).text == "a"

    def test_a_token_that_did_not_come_last_stays(self) -> None:
        assert after(list(b"iH"), FinishReason(type="stop", matched=ord("i"))).text == "iH"

    def test_an_expression_keeps_the_text_back_until_it_is_known(self) -> None:
        made = reader(chat(stream=True, stop_regex="#+"))
        assert made.push(list(b"Hi")) == []
        pieces = made.push(list(b"##"), reason=FinishReason(type="stop", matched="##"))
        assert told(pieces)["content"] == "Hi"

    def test_a_mark_behind_the_cut_is_none(self) -> None:
        reason = FinishReason(type="stop", matched="#")
        made = after(encode("a#<ctl>"), reason, stop=["#"])
        assert (made.text, made.message.content) == ("a", "a")


def test_nothing_of_a_stop_string_leaves_early() -> None:
    made = reader(chat(stream=True, stop="##"))
    assert told(made.push(list(b"a#")))["content"] == "a"
    assert told(made.push(list(b"b#")))["content"] == "#b"
    assert (
        told(made.push([ord("#")], reason=FinishReason(type="stop", matched="##")))["content"] == ""
    )


def test_half_a_character_does_not_leave_early() -> None:
    made = reader(chat(stream=True))
    assert made.push(list("é".encode()[:1])) == []
    assert told(made.push(list("é".encode()[1:])))["content"] == "é"


def test_reasoning_is_streamed_as_it_comes() -> None:
    made = reader(chat(stream=True))
    assert made.push(encode("<think>a")) == [ReasoningPiece(text="a")]


def test_reasoning_comes_in_one_piece_to_those_who_ask() -> None:
    made = reader(chat(stream=True, stream_reasoning=False))
    assert made.push(encode("<think>a")) == []
    assert made.push(encode("b")) == []
    pieces = made.push(encode("</think>c"))
    assert pieces == [ReasoningPiece(text="ab"), ContentPiece(text="c")]


def test_reasoning_that_the_answer_ends_in_is_told_too() -> None:
    made = reader(chat(stream=True, stream_reasoning=False))
    assert made.push(encode("<think>ab"), reason=LENGTH) == [ReasoningPiece(text="ab")]


class TestLogprobs:
    def test_they_are_those_of_the_contents_tokens(self) -> None:
        made = after(f"<think>a</think>bc{F}", logprobs=True)
        assert [(token.data, token.logprob) for token in made.shown_tokens] == [
            (b"b", -98.0),
            (b"c", -99.0),
        ]

    def test_a_token_is_told_as_far_as_it_is_content(self) -> None:
        ids = [*b"Yes", 256 + MERGED.index(b".\n\n"), *encode(F), END]
        made = after(ids, logprobs=True)
        assert made.message.content == "Yes."
        assert [token.data for token in made.shown_tokens] == [b"Y", b"e", b"s", b"."]

    def test_a_token_that_begins_outside_is_told_from_where_it_is_content(self) -> None:
        ids = [*encode("<think>a</think>"), 256 + MERGED.index(b" the"), END]
        made = after(ids, logprobs=True)
        assert [(token.data, token.logprob) for token in made.shown_tokens] == [
            (b"the", -float(ids[-2]))
        ]

    def test_a_broken_call_that_is_content_has_them(self) -> None:
        made = after(f"a{BROKEN}", logprobs=True)
        assert b"".join(token.data or b"" for token in made.shown_tokens).decode() == f"a{BROKEN}"

    def test_there_must_be_one_for_each_token(self) -> None:
        with pytest.raises(WorkerError):
            reader(chat(logprobs=True)).push([1, 2], [0.0])

    def test_nobody_misses_them_who_has_not_asked(self) -> None:
        assert told(reader(chat(stream=True)).push([72]))["content"] == "H"


def byte_fallback() -> Vocabulary:
    """Some characters whole and every byte alone, as SentencePiece has them."""
    whole = ["a", "<", "漢", " b"]
    pieces = [bytes([byte]) for byte in range(256)] + [text.encode() for text in whole]
    return Vocabulary(pieces, {}, byte_fallback=frozenset(range(256)))


@pytest.mark.parametrize(
    ("ids", "content", "starts"),
    [
        ([256, *"é".encode(), 256], "aéa", [0, 1, 1, 2]),
        ([256, 0xC3, 0xC3, 0xA9, 256], "a\ufffd\ufffd\ufffda", [0, 1, 2, 3, 4]),
        ([0xC3, 999, 0xA9, 257], "é<", [0, 0, 0, 1]),
        ([0xC3, 999, 256], "\ufffda", [0, 1, 1]),
        ([0xC3], "\ufffd", [0]),
    ],
)
def test_single_bytes_have_their_place_once_their_run_has_ended(
    ids: list[int], content: str, starts: list[int]
) -> None:
    made = reader(chat(logprobs=True), parsers=PLAIN, book=byte_fallback())
    read(made, ids, reason=LENGTH)
    assert made.message.content == content
    assert [token.start for token in made.shown_tokens] == starts


FRAGMENTS = st.sampled_from(
    [
        *("a", "é", "🙂", " ", "\n", "<", "#", "##", "Hi", "{", "}"),
        *("<think>", "</think>", "<ctl>", "<tool_call>", "</tool_call>"),
        *('{"name": "f", "arguments": {"x": "é"}}', '{"name": 5}', '{"name": "g", "argu', F, G),
        *(BROKEN, "<think>\nso\n</think>\n\n"),
    ]
)
ANY_IDS = st.lists(st.integers(0, 256 + len(MERGED) + len(ADDED)), max_size=12)
ANSWERS = st.lists(FRAGMENTS.map(encode) | ANY_IDS, max_size=6).map(
    lambda parts: [token for part in parts for token in part]
)
SIZES = st.lists(st.integers(0, 5), max_size=25)
FIELDS = st.fixed_dictionaries(
    {
        "tools": st.sampled_from([None, TOOLS]),
        "parallel_tool_calls": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "stop": st.sampled_from([None, ["##"], ["#", "é"]]),
        "stream_reasoning": st.booleans(),
    }
)
REASONS = st.sampled_from([ENDED, LENGTH, FinishReason(type="stop", matched="##")])


@given(ANSWERS, SIZES, FIELDS, REASONS, st.booleans())
def test_a_stream_says_the_same_however_it_is_cut_and_a_whole_answer_does_too(
    ids: list[int], sizes: list[int], fields: dict[str, Any], reason: FinishReason, thinks: bool
) -> None:
    def made(stream: bool) -> AnswerReader:
        return reader(chat(stream=stream, logprobs=True, **fields), in_reasoning=thinks)

    streamed, at_once, whole = made(True), made(True), made(False)
    shown = told(read(streamed, ids, reason=reason, sizes=sizes))
    read(at_once, ids, reason=reason)
    last = told(read(whole, ids, reason=reason))
    assert streamed.text == at_once.text == whole.text
    assert streamed.message == at_once.message
    assert shown["reasoning"] == (streamed.message.reasoning or "")
    assert shown["content"] == (streamed.message.content or "")
    assert shown["tokens"] == list(at_once.shown_tokens)
    assert [call["arguments"] for call in shown["calls"]] == [
        call.arguments for call in streamed.message.tool_calls
    ]
    assert last["content"] == (whole.message.content or "")
    assert whole.message.reasoning == streamed.message.reasoning
    if len(whole.message.tool_calls) == len(streamed.message.tool_calls):
        assert whole.message == streamed.message
        assert list(whole.shown_tokens) == shown["tokens"]


@given(ANSWERS)
def test_a_whole_answer_is_what_the_parsers_events_make(ids: list[int]) -> None:
    made = reader(chat(tools=TOOLS, skip_special_tokens=False))
    read(made, ids, reason=LENGTH)
    source = AnswerText(BOOK, stop=(), holds=False)
    parts = [source.push(ids), source.finish(None)]
    parser = AnswerParser(
        QWEN3, tools=TOOLS, marks=[content for content, _ in ADDED], in_reasoning=False
    )
    events = [event for text, marks in parts for event in parser.push(text, marks)]
    assert made.message == assemble(made.text, events + parser.finish())


TEXTS = st.lists(
    st.sampled_from(["a", "é", "🙂", ".\n\n", "\n", " the", F, "<ctl>", "<think>x</think>"]),
    max_size=8,
).map("".join)


@st.composite
def tokenised(draw: st.DrawFn) -> list[int]:
    """A text as tokens, merged by chance, also across its characters."""
    ids = encode(draw(TEXTS))
    for place, merged in enumerate(MERGED, 256):
        at = 0
        while at < len(ids):
            if ids[at : at + len(merged)] == list(merged) and draw(st.booleans()):
                ids[at : at + len(merged)] = [place]
            at += 1
    return ids


@given(tokenised(), SIZES, st.booleans(), st.booleans(), st.booleans())
def test_the_bytes_of_the_logprobs_are_the_contents(
    ids: list[int], sizes: list[int], skip: bool, stream: bool, tools: bool
) -> None:
    request = chat(
        stream=stream, logprobs=True, skip_special_tokens=skip, tools=TOOLS if tools else None
    )
    made = reader(request)
    read(made, [*ids, END], sizes=sizes)
    data = b"".join(token.data or b"" for token in made.shown_tokens)
    assert data.decode() == (made.message.content or "")
    told_logprobs: Iterator[float | None] = (-float(token) for token in ids)
    assert all(token.logprob in told_logprobs for token in made.shown_tokens)


def test_a_call_tag_that_ends_the_answer_is_content() -> None:
    assert after([*b"a", CALL, END]).message.content == "a<tool_call>"
