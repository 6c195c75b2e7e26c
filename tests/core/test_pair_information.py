"""What pairs' workers tell of themselves, as one answer."""

from __future__ import annotations

import msgspec

from slime_core.disaggregation import merge_server_info


def merged(prefill: list[bytes], decode: list[bytes]) -> bytes:
    return msgspec.json.encode(merge_server_info(prefill, decode))


def test_states_are_decode_s_and_every_answer_stands_as_it_came() -> None:
    told = merged(
        [b'{"internal_states":[0],"a":1e-07}'],
        [b'{"internal_states":[{"x":0.10}, 2]}', b'{"b":2,"internal_states":[3]}'],
    )
    assert told == (
        b'{"internal_states":[{"x":0.10},2,3],'
        b'"prefill":[{"internal_states":[0],"a":1e-07}],'
        b'"decode":[{"internal_states":[{"x":0.10}, 2]},{"b":2,"internal_states":[3]}]}'
    )


def test_without_any_state_a_stand_in_is_told() -> None:
    assert merged([], [b"{}", b'{"internal_states":7}']) == (
        b'{"internal_states":[{"last_gen_throughput":0.0,"avg_spec_accept_length":null}],'
        b'"prefill":[],"decode":[{},{"internal_states":7}]}'
    )


def test_what_is_no_object_is_left_out() -> None:
    told = merge_server_info([b"no json", b"[1]"], [b""])
    assert (told["prefill"], told["decode"]) == ([], [])
