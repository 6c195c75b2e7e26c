"""What both workers of a pair are sent."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.disaggregation import ROOM_MAX, Wanted, draw_rooms, read_pair_request
from slime_core.errors import ClientError

_NAMES = ("bootstrap_host", "bootstrap_port", "bootstrap_room")


def addressed(
    body: bytes, rooms: tuple[int, ...] = (7,), *, path: str = "/generate", host: str = "p"
) -> bytes:
    return read_pair_request(path, body).addressed(host, 8998, rooms)


def test_a_single_prompt_gets_three_scalars_behind_the_client_s_own_bytes() -> None:
    body = b'{ "input_ids" : [1, 2],"temperature":1.0e-07 , "unknown":{"b":1,"a":2} }'
    assert addressed(body) == (
        body[:-1] + b',"bootstrap_host":"p","bootstrap_port":8998,"bootstrap_room":7}'
    )


def test_a_batch_gets_three_lists_of_its_length_with_a_room_of_its_own_for_each() -> None:
    sent = json.loads(addressed(b'{"text":["a","b"]}', (5, 6)))
    assert [sent[name] for name in _NAMES] == [["p", "p"], [8998, 8998], [5, 6]]


@pytest.mark.parametrize(
    ("path", "body", "prompts"),
    [
        ("/generate", b'{"text":"a"}', None),
        ("/generate", b'{"text":["a"]}', 1),
        ("/generate", b'{"input_ids":[1,2,3]}', None),
        ("/generate", b'{"input_ids":[[1],[2,3]]}', 2),
        ("/generate", b'{"text":null,"input_ids":[[1],[2,3]]}', 2),
        ("/generate", b'{"text":["a","b"],"input_ids":[1]}', 2),
        ("/generate", b'{"input_embeds":[[0.5],[0.25]]}', None),
        ("/generate", b'{"input_embeds":[[[0.5],[0.25]],[[1]]]}', 2),
        ("/v1/completions", b'{"prompt":"a"}', None),
        ("/v1/completions", b'{"prompt":["a","b"]}', 2),
        ("/v1/completions", b'{"prompt":[1,2]}', None),
        ("/v1/completions", b'{"prompt":[[1],[2],[3]]}', 3),
        ("/v1/chat/completions", b'{"messages":[{},{}],"n":4}', None),
    ],
)
def test_the_batch_s_length_is_found_as_the_worker_finds_it(
    path: str, body: bytes, prompts: int | None
) -> None:
    assert read_pair_request(path, body).prompts == prompts


def test_a_port_that_is_not_configured_is_null() -> None:
    request = read_pair_request("/generate", b'{"text":["a","b"]}')
    assert json.loads(request.addressed("p", None, (1, 2)))["bootstrap_port"] == [None, None]
    request = read_pair_request("/generate", b'{"text":"a"}')
    assert json.loads(request.addressed("p", None, (1,)))["bootstrap_port"] is None


def test_an_ipv6_host_stands_in_brackets() -> None:
    assert json.loads(addressed(b'{"text":"a"}', host="::1"))["bootstrap_host"] == "[::1]"


def test_a_client_s_own_bootstrap_fields_are_replaced_where_they_stand() -> None:
    body = b'{"bootstrap_room" : "mine","text":"a", "bootstrap_\\u0068ost":"evil"}'
    assert addressed(body) == (
        b'{"bootstrap_room" : 7,"text":"a", "bootstrap_\\u0068ost":"p","bootstrap_port":8998}'
    )


def test_a_field_that_is_named_twice_leaves_no_second_reading() -> None:
    sent = addressed(b'{"bootstrap_room":1,"text":"a","bootstrap_room":2}')
    pairs = json.loads(sent, object_pairs_hook=list)
    assert sorted(pairs) == sorted(
        [("bootstrap_room", 7), ("text", "a"), ("bootstrap_host", "p"), ("bootstrap_port", 8998)]
    )


def test_an_empty_object_gets_no_stray_comma() -> None:
    assert list(json.loads(addressed(b"{ }"))) == list(_NAMES)


def test_media_ride_along_untouched() -> None:
    body = b'{"text":"<image>","image_data":["data:image/png;base64,AA\\/="]}'
    assert addressed(body).startswith(body[:-1])


def test_what_is_no_object_is_the_client_s_fault() -> None:
    with pytest.raises(ClientError):
        read_pair_request("/generate", b"[1]")


@pytest.mark.parametrize(
    ("body", "rids"),
    [
        (b'{"text":"a","rid":"r"}', ("r",)),
        (b'{"text":["a","b"],"rid":"r"}', ("r_0", "r_1")),
        (b'{"text":["a","b"],"rid":["x","y"]}', ("x", "y")),
        (b'{"text":"a","rid":"r","sampling_params":{"n":2}}', ()),
        (b'{"text":"a","rid":null}', ()),
        (b'{"text":"a","rid":7}', ()),
    ],
)
def test_the_ids_are_those_by_which_the_workers_know_the_request(
    body: bytes, rids: tuple[str, ...]
) -> None:
    assert read_pair_request("/generate", body).rids == rids


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, Wanted()),
        ({"return_logprob": True}, Wanted()),
        ({"return_logprob": True, "logprob_start_len": -1}, Wanted()),
        ({"return_logprob": False, "logprob_start_len": 0}, Wanted()),
        ({"return_logprob": True, "logprob_start_len": 0}, Wanted(logprobs=True)),
        ({"return_logprob": [False, True], "logprob_start_len": [-1, 3]}, Wanted(logprobs=True)),
        ({"return_routed_experts": True}, Wanted(routed_experts=True)),
        ({"return_indexer_topk": True}, Wanted(indexer_topk=True)),
    ],
)
def test_merged_is_only_what_was_asked_for(fields: dict[str, Any], wanted: Wanted) -> None:
    body = json.dumps({"text": "a"} | fields).encode()
    assert read_pair_request("/generate", body).wanted == wanted


def test_a_stream_is_known_by_its_flag() -> None:
    assert read_pair_request("/generate", b'{"text":"a","stream":true}').stream
    assert not read_pair_request("/generate", b'{"text":"a"}').stream


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(["text", "x", "é", "a\\b", '"', "bootstrap_room", "bootstrap_port"])


@given(fields=st.dictionaries(_names | st.text(), _json), indent=st.sampled_from([None, 2]))
def test_all_other_fields_keep_their_place_and_value(
    fields: dict[str, Any], indent: int | None
) -> None:
    fields["text"] = "a"
    body = json.dumps(fields, indent=indent, ensure_ascii=indent is None).encode(
        "utf-8", "surrogatepass"
    )
    try:
        request = read_pair_request("/generate", body)
    except ClientError:  # A lone surrogate.
        return
    sent = list(json.loads(request.addressed("p", None, (3,))).items())
    ours = dict(zip(_NAMES, ("p", None, 3), strict=True))
    kept = {name: ours.get(name, value) for name, value in fields.items()}
    assert sent == list((kept | ours).items())


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=2))
def test_rooms_are_numbers_of_63_bits(chances: list[float]) -> None:
    (room,) = draw_rooms(1, itertools.cycle(chances).__next__)
    assert 0 <= room <= ROOM_MAX


def test_the_largest_chance_gives_the_largest_room() -> None:
    assert draw_rooms(1, lambda: 1 - 2**-53) == (ROOM_MAX,)


def test_rooms_are_different_from_each_other_and_from_those_in_use() -> None:
    chances = iter([0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.25, 0.0])
    assert draw_rooms(2, chances.__next__, {0}) == (2**62, 2**61)
