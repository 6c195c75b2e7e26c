"""Lists that are lifted out of JSON, against a parser that reads it as it came."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from slime_core import sglang
from slime_core.errors import ClientError
from slime_core.lifted import lift
from slime_core.sglang import request as requests

FIELDS = msgspec.json.Decoder(dict[str, Raw])
KEY = b'"ids"'


def lifted_value(body: bytes) -> bytes | None:
    """The list that counts as the value of ``ids``, if one was lifted."""
    lifted = lift(body, KEY)
    if lifted is None:
        return None
    try:
        fields = FIELDS.decode(lifted.rest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not lifted.stands_in(fields.get("ids")):
        return None
    assert lifted.put_back(lifted.rest) == body
    return lifted.raw


@pytest.mark.parametrize(
    "body",
    [
        b'{"ids":[1,2],"b":3}',
        b'{"b":"x","ids":[1,2]}',
        b'{ "ids" : [ 1 , [2] ]\n, "b":[3]}',
        b'{"ids":[]}',
        b'{"text":"say \\"ids\\":[7]","ids":[1]}',
    ],
)
def test_a_plain_list_is_lifted(body: bytes) -> None:
    assert lifted_value(body) == bytes(FIELDS.decode(body)["ids"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"b":[1]}',
        b'{"ids":5}',
        b'{"ids":"[1]"}',
        b'{"ids":{"a":[1]}}',
        b'{"ids":["a","b"]}',
        b'{"ids":[1,"a]"]}',
        b'{"ids":[1],"ids":[2]}',
        b'{"b":{"ids":[1]}}',
        b'{"b":{"ids":[1]},"\\u0069ds":[2]}',
        b'{"ids":[1',
        b'{"ids":[1] 5}',
        b'{"b":"\\"ids":[1]}',
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(body: bytes) -> None:
    assert lifted_value(body) is None


def test_what_is_no_list_for_all_its_brackets_is_lifted_for_its_reader_to_refuse() -> None:
    assert lifted_value(b'{"ids":[1]]}') == b"[1]]"


def test_a_stand_in_that_somebody_sent_stands_for_nothing() -> None:
    lifted = lift(b'{"ids":[1],"b":2}', KEY)
    assert lifted is not None
    forged = b'{"x":{"ids":[9]},"\\u0069ds":%b}' % lifted.stand_in
    assert FIELDS.decode(forged)["ids"] == Raw(lifted.stand_in)
    assert lifted_value(forged) is None


def test_numbers_tell_two_lists_apart() -> None:
    first = lift(b'{"ids":[1],"more":[2]}', KEY)
    assert first is not None
    second = lift(first.rest, b'"more"', 1)
    assert second is not None
    fields = FIELDS.decode(second.rest)
    assert first.stands_in(fields["ids"])
    assert second.stands_in(fields["more"])
    assert not first.stands_in(fields["more"])


VALUES = st.recursive(
    st.integers() | st.text(st.sampled_from('ids":[],{}\\ ')),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["ids", "a", 'i"ids', '"ids"']), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["ids", "a", '"ids', "b"]), VALUES), st.booleans())
@settings(max_examples=300)
def test_what_is_lifted_is_what_the_parser_finds(value: dict[str, Any], spaced: bool) -> None:
    body = json.dumps(value, separators=(", ", ": ") if spaced else (",", ":")).encode()
    found = lifted_value(body)
    if found is not None:
        assert json.loads(found) == value["ids"]


@given(st.text(st.sampled_from('"ids:[]{},1 \\'), max_size=40))
@settings(max_examples=300)
def test_no_malformed_body_is_given_a_value_that_a_parser_refuses(words: str) -> None:
    body = b'{"a":1,' + words.encode() + b'"b":2}'
    found = lifted_value(body)
    try:
        expected = FIELDS.decode(body)["ids"]
    except (msgspec.DecodeError, KeyError):
        # Then its own reader refuses the list.
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(b"x" if found is None else found)
    else:
        assert found in (None, bytes(expected))


# -- requests ----------------------------------------------------------------------------------

PROMPTS = st.one_of(
    st.lists(st.integers(-1, 9), max_size=4),
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
    st.lists(st.sampled_from([1, "1", None, 2**31, 1.5, True]), max_size=3),
)


@given(PROMPTS, st.sampled_from(["", "]", ",[3]", ',"text":"x"', ',"input_ids":[4]', " "]))
@settings(max_examples=200)
def test_a_request_is_read_the_same_with_and_without_lifting(prompt: Any, more: str) -> None:
    body = b'{"stream":false,"input_ids":%b%b,"rid":"r"}'
    body %= (json.dumps(prompt).encode(), more.encode())
    assert _read(body, short=0) == _read(body, short=2**20)


def _read(body: bytes, *, short: int) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "_LONG", short)
        try:
            return sglang.parse_generate(body)
        except ClientError as error:
            return (error.message, error.code, error.param, error.status)
