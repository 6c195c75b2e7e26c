"""The table of hard cases, and the mark for tests that show one.

The numbers are those of the survey of exact token capture that the project was designed against.
Most cases are shown in this package, by tests that carry ``@row(number)``; what other tests show
already is listed in :data:`ELSEWHERE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["CASES", "ELSEWHERE", "UNANSWERED", "row"]

T = TypeVar("T", bound=Callable[..., object])

CASES: Final[dict[int, str]] = {
    1: "merges across the boundary of a turn",
    2: "the same text in other ids",
    3: "characters in pieces",
    4: "special tokens in what users and tools say",
    5: "sampled text that spells a special token",
    6: "a stop token that is not the eos token, and may open the next turn",
    7: "a turn that the length limit cut",
    8: "the separator behind the end of a turn",
    9: "a template that trims",
    10: "arguments of calls written anew",
    11: "reasoning that the client or the template drops",
    12: "ids of calls changed or lost",
    13: "content as null, nothing or parts",
    14: "one prompt sampled many times",
    15: "two samples of the same ids",
    16: "retries of SDKs",
    17: "a client that leaves in mid-stream",
    18: "a reply lost after its commit",
    19: "several choices",
    20: "calls in parallel, results in any order",
    21: "history compacted or edited",
    22: "sub-agents at the same time in one session",
    23: "replies in another order than requests",
    24: "a system text that changes every turn",
    25: "auxiliary calls",
    26: "stop strings, and text shorter than its ids",
    27: "skipped special tokens that a parser needs",
    28: "prefill",
    29: "one answer under several weights",
    30: "updates around the time of an answer",
    31: "a worker that comes back with old weights",
    32: "updates that abort everything",
    33: "which logprobs they are",
    34: "writes after the end of a session",
    35: "placeholders of images",
    36: "a beginning of text that is added again",
    37: "limits absent or beyond the context",
    38: "ids, logprobs and versions from a client",
    39: "hostile JSON",
    40: "idle connections that a worker closed",
    41: "a router that stops between dispatch and record",
    42: "a record that cannot be written",
    43: "small deviations of real clients",
    44: "no reward, and rollouts that failed",
}

ELSEWHERE: Final[dict[int, tuple[str, ...]]] = {
    4: (
        "core/test_chat_marking.py::test_what_content_spells_is_plain",
        "core/test_chat_marking.py::test_system_text_spells_everything_but_turns",
        "core/test_chat_prompts.py::test_content_cannot_forge_control",
    ),
    15: ("core/test_chat_prompts.py::test_ids_of_tool_calls_tell_twins_apart",),
    16: (
        "server/test_retries.py::test_a_retry_joins_what_is_in_flight",
        "server/test_retries.py::test_twins_never_join",
        "server/test_retries_http.py::test_a_key_is_answered_once",
        "core/test_retries.py::test_of_several_none_is_guessed",
    ),
    17: (
        "server/test_relay.py::test_a_client_gone_in_mid_stream_leaves_exactly_what_was_received",
        "server/test_chat.py::test_a_client_that_goes_leaves_nothing_taken",
        "core/test_samples.py::test_a_partial_answer_is_dropped_by_name",
    ),
    18: (
        "server/test_relay.py::test_a_turn_is_committed_when_its_last_event_arrives",
        "server/test_relay.py::test_a_whole_turn_is_committed_when_its_first_byte_arrives",
        "server/test_retries.py::test_a_reply_that_was_lost_after_its_commit_is_replayed",
    ),
    23: ("core/test_rules.py::test_rule_6_the_order_of_commits_does_not_change_the_forest",),
    25: ("core/test_samples.py::test_an_auxiliary_call_is_dropped_by_name",),
    29: (
        "core/test_sglang_stream.py::"
        "test_new_weights_in_mid_stream_are_those_of_the_tokens_that_came_with_them",
        "server/test_generate.py::test_a_weight_update_between_turns_gives_each_turn_its_version",
    ),
    30: (
        "core/test_sglang_stream.py::test_the_spans_of_the_last_event_outrank_what_the_events_told",
        "core/test_sglang_answer.py::test_without_readable_spans_the_one_version_holds_for_all",
    ),
    31: (
        "core/test_weights.py::"
        "test_a_worker_that_comes_back_with_old_weights_gets_no_work_until_they_match",
        "server/test_tending_weights.py::"
        "test_a_worker_that_comes_back_with_old_weights_gets_no_work_until_updated",
    ),
    32: (
        "server/test_control_weights.py::"
        "test_a_new_name_for_weights_aborts_nothing_unless_it_is_asked_to",
        "server/test_control_weights.py::test_a_new_name_aborts_nothing_that_embedded_workers_run",
        "server/test_slime_requests.py::test_a_generation_over_an_update_tells_both_weights",
    ),
    33: (
        "core/test_logprob_kinds.py::test_an_engine_is_never_taken_for_another",
        "server/test_observe_logprobs.py::"
        "test_an_engine_s_kind_is_found_out_and_told_with_its_answers",
        "server/test_observe_logprobs.py::test_what_is_not_found_out_is_unknown",
        "server/test_observe_logprobs.py::test_answers_of_workers_that_differ_are_mixed",
    ),
    34: ("core/test_sessions.py::test_a_session_that_ended_leaves_word_of_why",),
    35: ("server/test_generate.py::test_media_pass_untouched_and_say_that_they_are_not_captured",),
    39: ("server/test_hostile_json.py::test_hostile_json_is_the_clients_error",),
    40: (
        "server/test_upstream_pool.py::"
        "test_a_reused_connection_that_ends_without_a_byte_is_replaced_once",
        "server/test_upstream_pool.py::test_nothing_is_sent_again_after_a_byte_came_back",
        "server/test_upstream_pool.py::test_a_connection_too_long_idle_is_replaced_unseen",
    ),
    41: ("server/test_shutdown_sweep.py::test_a_server_stopped_at_any_step_leaves_nothing_behind",),
    42: (
        "server/test_relay.py::test_counts_that_do_not_fit_reach_the_client_and_are_not_captured",
        "server/test_streaming.py::"
        "test_a_stream_that_cannot_be_captured_says_so_before_its_last_event",
    ),
    44: (
        "core/test_samples_wire.py::test_no_reward_is_not_a_reward_of_zero",
        "core/test_samples.py::test_the_status_follows_the_finish_reason",
    ),
}
"""What tests of other packages show of a case: the file below ``tests`` and the test."""

UNANSWERED: Final[dict[int, tuple[str, str]]] = {}
"""Cases that the router does not meet as the survey demands: what it does, and what shows that."""


def row(number: int) -> Callable[[T], T]:
    """Mark a test as one that shows the case of that number."""
    if number not in CASES:
        raise ValueError(f"there is no case {number}")

    def mark(test: T) -> T:
        return test

    return mark
