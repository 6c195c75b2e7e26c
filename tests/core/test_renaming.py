"""Ids in place of ids: what workers are sent, and what their clients are shown."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_core.sglang import Restorer, parse_generate, rename_request, shown_names

OWN = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


def names(own: list[str], **fields: Any) -> dict[str, str]:
    return shown_names(parse_generate(json.dumps(fields).encode()), own)


# -- what a client is shown --------------------------------------------------------------------


def test_an_id_is_shown_as_its_client_gave_it() -> None:
    assert names([OWN], text="a", rid="mine") == {OWN: "mine"}


def test_a_list_names_the_prompts_of_a_batch() -> None:
    told = names([OWN, OTHER], text=["a", "b"], rid=["x", "y"])
    assert told == {OWN: "x", OTHER: "y"}


def test_one_id_for_a_batch_is_numbered_as_workers_number_it() -> None:
    assert names([OWN, OTHER], text=["a", "b"], rid="x") == {OWN: "x_0", OTHER: "x_1"}


def test_without_an_id_nothing_is_put_back() -> None:
    assert names([OWN], text="a") == {}


@pytest.mark.parametrize(
    ("own", "fields"),
    [
        ([OWN], {"text": "a", "rid": ["x"]}),
        ([OWN, OTHER], {"text": ["a", "b"], "rid": ["x"]}),
        ([OWN, OTHER], {"text": ["a", "b"], "rid": ["x", "x"]}),
    ],
)
def test_a_list_that_does_not_fit_is_refused_as_workers_refuse_it(
    own: list[str], fields: dict[str, Any]
) -> None:
    with pytest.raises(ClientError) as refused:
        names(own, **fields)
    assert (refused.value.status, refused.value.param) == (400, "rid")


# -- what is passed through --------------------------------------------------------------------


def test_only_the_id_of_a_body_is_replaced() -> None:
    body = b'{ "a": 1.50e0 , "rid":"mine", "b": [ "rid" ] }'
    sent, told = rename_request(body, OWN)
    assert told == {OWN: "mine"}
    assert sent == b'{"a":1.50e0,"rid":"%s","b":[ "rid" ]}' % OWN.encode()


def test_a_list_of_ids_is_replaced_by_ids_of_one_length_that_one_prefix_ends() -> None:
    body = json.dumps({"rid": [f"r{place}" for place in range(12)]}).encode()
    sent, told = rename_request(body, OWN)
    assert json.loads(sent) == {"rid": list(told)}
    assert list(told.values()) == [f"r{place}" for place in range(12)]
    assert len({len(one) for one in told}) == 1
    assert all(one.startswith(OWN) for one in told)
    answer = json.dumps(list(told)).encode()
    assert json.loads(Restorer(told).whole(answer)) == list(told.values())


@pytest.mark.parametrize("body", [b"", b"no JSON", b'{"text":"rid"}', b'{"rid":null}', b"[1]"])
def test_a_body_without_an_id_passes_as_it_is(body: bytes) -> None:
    assert rename_request(body, OWN) == (body, {})


def test_what_is_no_id_is_refused() -> None:
    with pytest.raises(ClientError) as refused:
        rename_request(b'{"rid":7}', OWN)
    assert refused.value.param == "rid"


# -- what is put back --------------------------------------------------------------------------


def test_an_id_is_put_back_where_it_stands_alone() -> None:
    body = f'{{"text":"{OWN} {OTHER}","meta_info":{{"id":"{OWN}"}}}}'.encode()
    shown = Restorer({OWN: 'a"b'}).whole(body)
    assert json.loads(shown) == {"text": f"{OWN} {OTHER}", "meta_info": {"id": 'a"b'}}


def test_the_number_of_a_batchs_part_stays() -> None:
    assert Restorer({OWN: "x"}).whole(f'"{OWN}_17"'.encode()) == b'"x_17"'


def test_what_only_begins_like_an_id_stays() -> None:
    body = f'["{OWN}0","{OWN[:-1]}","x{OWN}","{OTHER}"]'.encode()
    assert Restorer({OWN: "x"}).whole(body) == body


def test_an_id_behind_as_many_characters_as_it_has_is_found() -> None:
    filler = "z" * (len(OWN) - 4)
    body = f'"a":1{filler}"{OWN}"'.encode()
    assert body.replace(OWN.encode(), b"x") == Restorer({OWN: "x"}).whole(body)


_PIECES = st.sampled_from(
    [f'"{OWN}"', f'"{OTHER}"', f'"{OWN}_3"', f'"{OWN}_x"', OWN, f'"{OWN[:9]}', '"', "_1", "a", ","]
)


@given(st.lists(_PIECES, max_size=12), st.lists(st.integers(0, 200), max_size=8))
def test_however_a_body_is_cut_the_same_is_shown(pieces: list[str], cuts: list[int]) -> None:
    body = "".join(pieces).encode()
    told = {OWN: "one", OTHER: 'tw"o'}
    ends = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    restorer = Restorer(told)
    shown = [restorer.feed(body[a:b]) for a, b in itertools.pairwise(ends)]
    assert b"".join([*shown, restorer.close()]) == Restorer(told).whole(body)


def test_what_cannot_be_an_id_does_not_wait() -> None:
    restorer = Restorer({OWN: "x"})
    assert restorer.feed(b'data: {"text":"a"}\n\n') == b'data: {"text":"a"}\n\n'
    assert restorer.close() == b""


def test_without_names_everything_passes() -> None:
    assert Restorer({}).feed(b'"') == b'"'
    assert Restorer({}).whole(b'"a"') == b'"a"'
