"""The agents: the same script for a seed, everything they may do, and asks that keep their word."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from slime_core import openai, sglang
from slime_core.errors import ClientError
from slime_core.placing import target_worker
from slime_core.state import RouterState
from slime_core.weights import parse_version_wish
from tests.simulate.agents.vandal import MALFORMED, WRONG_HEADERS
from tests.simulate.agents.wording import EDITS
from tests.simulate.agents_play import SEEDS, Play, play, played
from tests.simulate.knobs import Knobs
from tests.simulate.messages import extends, joined
from tests.simulate.story import Ask, Kind


def all_asks() -> list[Ask]:
    """Every prompt of every seed, those of lists too."""
    return [one for seed in SEEDS for ask in played(seed).asks for one in (ask, *ask.others)]


def good_asks() -> list[Ask]:
    return [ask for seed in SEEDS for ask in played(seed).asks if ask.malformed is None]


def test_the_same_seed_plays_the_same() -> None:
    for seed in range(30):
        again = play(Knobs.draw(seed))
        assert again.asks == played(seed).asks
        assert again.retrieved == played(seed).retrieved


def test_leaving_out_an_agent_does_not_change_the_others_first_words() -> None:
    for seed in range(30):
        knobs = Knobs.draw(seed).with_settings(["agents=3", "wrong_parent=0"])
        fewer = play(replace(knobs, agents=1))

        def first(played: Play) -> Ask:
            return next(one.ask for one in played.exchanges if one.agent == "agent0")

        assert first(play(knobs)) == first(fewer)


def test_quiet_knobs_are_one_whole_text_request() -> None:
    for seed in range(20):
        [ask] = play(Knobs(seed=seed)).asks
        assert (ask.path, ask.kind, ask.stream, ask.samples) == ("/generate", Kind.ROOT, False, 1)
        assert ask.headers == ()
        assert set(ask.body) == {"text", "sampling_params"}


def test_a_run_has_some_dozens_of_requests() -> None:
    counts = sorted(len(played(seed).asks) for seed in SEEDS)
    assert 10 <= counts[len(counts) // 2] <= 60
    assert counts[-1] < 400


# What an ask says of itself


def test_exactly_one_of_text_ids_and_chat_is_given() -> None:
    for ask in all_asks():
        assert [ask.text, ask.ids, ask.chat].count(None) == 2


def test_appending_is_exactly_that_and_only_to_what_was_whole() -> None:
    appended = 0
    for seed in SEEDS:
        story = played(seed)
        for ask in (one for whole in story.asks for one in (whole, *whole.others)):
            if ask.meant is not Kind.APPEND:
                assert not ask.appended
                continue
            assert ask.after is not None
            before = story.exchanges[ask.after]
            got = before.samples[ask.after_sample]
            if ask.chat is not None:
                continue
            assert (
                ask.text == (before.ask.of(ask.after_sample).text or "") + got.text + ask.appended
            )
            assert got.finish is not None
            appended += 1
    assert appended > 500


def test_cuts_keep_the_prompt_and_edits_do_not() -> None:
    for seed in SEEDS:
        story = played(seed)
        for ask in story.asks:
            if ask.meant is Kind.ROOT:
                assert ask.after is None
            if ask.meant in (Kind.CUT, Kind.EDITED) and ask.text is not None:
                assert ask.after is not None
                before = story.exchanges[ask.after].ask.of(ask.after_sample)
                keeps = before.text is not None and ask.text.startswith(before.text)
                assert keeps == (ask.meant is Kind.CUT)


def test_what_is_continued_was_answered_before() -> None:
    for seed in SEEDS:
        for exchange in played(seed).exchanges:
            for ask in (exchange.ask, *exchange.ask.others):
                if ask.after is not None:
                    before = played(seed).exchanges[ask.after]
                    assert before.number < exchange.number
                    assert before.agent == exchange.agent
                    assert ask.after_sample < before.ask.samples


def test_the_bytes_sent_are_the_body() -> None:
    spellings = Counter[bool]()
    for ask in good_asks():
        if ask.raw is not None:
            assert json.loads(ask.raw) == ask.body
            spellings[ask.raw.isascii()] += 1
    assert min(spellings.values()) > 10


def test_the_body_asks_for_what_the_ask_says() -> None:
    for ask in good_asks():
        if ask.path != "/generate":
            continue
        body = ask.body
        request = sglang.parse_generate(json.dumps(body).encode())
        assert request.samples == ask.samples
        assert request.stream == ask.stream
        given = body.get("text") or body["input_ids"]
        prompts = given if request.batch else [given]
        n = ask.samples // len(prompts)
        for sample in range(ask.samples):
            one = ask.of(sample)
            told = one.text if one.ids is None else list(one.ids)
            assert told == prompts[sample // n]


def test_chats_are_sent_as_they_say() -> None:
    chats = [ask for ask in all_asks() if ask.chat is not None]
    for ask in chats:
        chat = openai.parse_chat(ask.raw or b"")
        assert ask.chat is not None
        assert chat.messages == ask.chat.messages
        assert len(chat.tools) == len(ask.chat.tools)
        assert chat.continue_final_message is ask.chat.continues
    assert len(chats) > 100


def test_chats_that_append_repeat_what_they_were_given() -> None:
    appended = 0
    for seed in SEEDS:
        exchanges = played(seed).exchanges
        for ask in (one.ask for one in exchanges):
            if ask.chat is None or ask.meant is not Kind.APPEND or ask.after is None:
                continue
            before = exchanges[ask.after]
            got, chat = before.samples[ask.after_sample].message, before.ask.chat
            assert chat is not None
            assert got is not None
            told = chat.messages
            if chat.continues:
                told, got = told[:-1], joined(told[-1], got)
            assert extends(told, got, ask.chat.messages)
            appended += 1
    assert appended > 50


def test_completions_prompts_are_what_the_ask_says() -> None:
    for ask in good_asks():
        if ask.path == "/v1/completions":
            parsed = openai.parse_completion(json.dumps(ask.body).encode(), vocabulary_size=None)
            assert parsed.samples == ask.samples
            if not ask.others and ask.ids is not None and ask.samples == parsed.n:
                assert ask.body["prompt"] == list(ask.ids)


def test_sessions_and_parents_are_named_on_the_wire() -> None:
    for ask in good_asks():
        headers = {name.lower(): value for name, value in ask.headers}
        assert ask.session == (headers.get("x-session-id") or headers.get("x-smg-routing-key"))
        assert ask.parent == ask.body.get("parent_id", headers.get("x-slime-parent-id"))


def test_a_repeated_request_is_the_same_request() -> None:
    for seed in SEEDS:
        asks = played(seed).asks
        for place, ask in enumerate(asks):
            if ask.kind is Kind.REPEAT:
                assert ask.original not in (None, Kind.REPEAT)
                assert any(one.raw == ask.raw and one.path == ask.path for one in asks[:place])


# Everything occurs

REACHED: dict[str, Callable[[Ask], object]] = {
    "root": lambda ask: ask.kind is Kind.ROOT,
    "append": lambda ask: ask.kind is Kind.APPEND,
    "append_nothing": lambda ask: ask.kind is Kind.APPEND and not ask.appended,
    "cut": lambda ask: ask.kind is Kind.CUT,
    "edited": lambda ask: ask.kind is Kind.EDITED,
    "ids": lambda ask: ask.kind is Kind.IDS and ask.after is not None,
    "ids_as_text": lambda ask: ask.kind is Kind.EDITED and ask.path != "/v1/chat/completions",
    "repeat": lambda ask: ask.kind is Kind.REPEAT and not ask.conduct.delay_s,
    "repeat_while_it_runs": lambda ask: ask.kind is Kind.REPEAT and ask.conduct.delay_s,
    "chat": lambda ask: ask.chat is not None,
    "chat_by_ids": lambda ask: ask.path == "/v1/chat/completions" and ask.ids,
    "completions": lambda ask: ask.path == "/v1/completions",
    "stream": lambda ask: ask.stream,
    "usage": lambda ask: "stream_options" in ask.body,
    "n": lambda ask: ask.body.get("sampling_params", {}).get("n", 1) > 1,
    "choices": lambda ask: ask.body.get("n", 1) > 1,
    "list_of_alike": lambda ask: isinstance(ask.body.get("text"), list) and not ask.others,
    "list_of_unlike": lambda ask: isinstance(ask.body.get("text"), list) and ask.others,
    "list_of_ids": lambda ask: ask.ids and isinstance(ask.body.get("input_ids", [0])[0], list),
    "prompts": lambda ask: isinstance(ask.body.get("prompt"), list) and ask.samples > 1,
    "session": lambda ask: ask.session,
    "parent_field": lambda ask: "parent_id" in ask.body and not ask.malformed,
    "parent_header": lambda ask: ask.parent and "parent_id" not in ask.body,
    "weights": lambda ask: "x-smg-version-policy" in dict(ask.headers),
    "worker": lambda ask: "x-smg-target-worker" in dict(ask.headers),
    "unknown_parent": lambda ask: ask.malformed == "unknown_parent",
    "forged_field": lambda ask: "loss_mask" in ask.body,
    "forged_header": lambda ask: ("x-slime-captured", "false") in ask.headers,
    "idempotency_key": lambda ask: "Idempotency-Key" in dict(ask.headers),
    "retry_count": lambda ask: "x-stainless-retry-count" in dict(ask.headers),
    "rid": lambda ask: isinstance(ask.body.get("rid"), str),
    "rids": lambda ask: isinstance(ask.body.get("rid"), list),
    "logprobs": lambda ask: ask.body.get("return_logprob") or ask.body.get("logprobs"),
    "leave_at_head": lambda ask: ask.conduct.leave_after_pieces == 0,
    "leave_midway": lambda ask: (ask.conduct.leave_after_pieces or 0) > 1,
    "leave_in_time": lambda ask: ask.conduct.leave_after_s,
    "leave_at_once": lambda ask: ask.conduct.leave_after_s == 0,
    "slow": lambda ask: ask.conduct.read_pause_s,
    "half_close": lambda ask: ask.conduct.half_close,
    "upload": lambda ask: ask.conduct.upload_pieces > 1,
    "stop": lambda ask: isinstance(_params(ask).get("stop"), str),
    "stops": lambda ask: isinstance(_params(ask).get("stop"), list),
    "stop_token_ids": lambda ask: _params(ask).get("stop_token_ids"),
    "stop_regex": lambda ask: _params(ask).get("stop_regex"),
    "ignore_eos": lambda ask: _params(ask).get("ignore_eos"),
    "no_stop_trim": lambda ask: _params(ask).get("no_stop_trim"),
    "show_special": lambda ask: _params(ask).get("skip_special_tokens") is False,
    "one_token": lambda ask: (
        1 in (_params(ask).get("max_new_tokens"), _params(ask).get("max_tokens"))
    ),
    "no_token": lambda ask: _params(ask).get("max_new_tokens") == 0,
    "control_token_as_text": lambda ask: ask.text and "<|endoftext|>" in ask.text,
    "combining": lambda ask: ask.text and "\u0301" in ask.text,
    "huge": lambda ask: ask.text and len(ask.text) > 10_000,
}


def _params(ask: Ask) -> dict[str, Any]:
    params: dict[str, Any] = ask.body.get("sampling_params", ask.body)
    return params


@pytest.mark.parametrize("behaviour", REACHED)
def test_some_seed_does(behaviour: str) -> None:
    asks = (ask for seed in SEEDS for ask in played(seed).asks)
    assert any(REACHED[behaviour](ask) for ask in asks)


def test_groups_ask_side_by_side() -> None:
    assert max(count for seed in SEEDS for count in played(seed).together) >= 3


@pytest.mark.parametrize("ask_for", ["/trajectories/", "/retrieve_from_text", "/retrieve_from_m"])
@pytest.mark.parametrize("who", ["agent", "trainer"])
def test_trajectories_are_asked_for_in_every_way(who: str, ask_for: str) -> None:
    retrieved = [one for seed in SEEDS for one in played(seed).retrieved]
    assert any(name.startswith(who) and one.path.startswith(ask_for) for name, one in retrieved)


def test_trainers_name_calls_and_ask_twice_and_ask_nonsense() -> None:
    steps = [step for seed in SEEDS for name, step in played(seed).retrieved if "trainer" in name]
    bodies = [step.body for step in steps]
    assert any("id" in body for body in bodies)
    assert {"text": ""} in bodies
    assert {} in bodies
    assert any(one == two for one, two in pairwise(steps))
    assert any("chatcmpl-0" in step.path for step in steps)


# Malformed requests

JUDGED_LATER = ("unknown_parent", "parent_is_number", "n_is_huge")
"""Those that only the router's state or its settings can tell."""


@pytest.mark.parametrize("word", [word for word in MALFORMED if word not in JUDGED_LATER])
def test_what_is_called_malformed_is_refused(word: str) -> None:
    path, wrong = MALFORMED[word]
    body = wrong if isinstance(wrong, bytes) else json.dumps(wrong).encode()
    parsers: dict[str, Callable[[bytes], object]] = {
        "/generate": sglang.parse_generate,
        "/v1/completions": lambda body: openai.parse_completion(body, vocabulary_size=700),
        "/v1/chat/completions": lambda body: openai.parse_chat(body, vocabulary_size=700),
    }
    with pytest.raises(ClientError) as raised:
        parsers[path](body)
    assert 400 <= raised.value.status < 500


def test_every_malformation_is_tried() -> None:
    tried = {ask.malformed for seed in range(600) for ask in _vandalism(seed)}
    assert {*MALFORMED, *WRONG_HEADERS} <= tried


@pytest.mark.parametrize("word", WRONG_HEADERS)
def test_a_field_that_is_called_wrong_is_refused(word: str) -> None:
    name, value = WRONG_HEADERS[word]
    judge: Callable[[str], object] = parse_version_wish
    if "target" in word:
        judge = partial(target_worker, RouterState())
    with pytest.raises(ClientError) as raised:
        judge(value)
    assert name.rpartition("-")[0].replace("slime", "smg") in str(raised.value.param)


def _vandalism(seed: int) -> Sequence[Ask]:
    return play(Knobs(seed=seed, agents=0, vandals=1)).asks


# Wording


def test_no_alteration_of_a_history_fails_on_any_text() -> None:
    for edit in EDITS:
        for text in ("", "a", " ", "two words", "好 🙂"):
            for seed in range(20):
                assert isinstance(edit(text, random.Random(seed)), str)
