"""The depth of JSON, against a count that goes through it character by character."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_trio.limits.json_depth import check_depth, is_deeper
from tests.server.harness import fake_worker, http_response, json_answer, router_with

VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\[]{}é\n')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('"\\[{')), inner),
    max_leaves=60,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(VALUES, st.integers(0, 6), st.booleans(), st.sampled_from([None, 1]))
def test_the_scan_finds_the_depth_that_the_value_has(
    value: object, limit: int, ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert is_deeper(body, limit) == (depth_of(value) > limit)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(0, 40))
def test_many_deep_places_one_after_the_other(depths: list[int], limit: int) -> None:
    body = ("[" + ",".join("[" * one + "]" * one for one in depths) + "]").encode()
    assert is_deeper(body, limit) == (max(depths) + 1 > limit)


@pytest.mark.parametrize("kind", [b"[%b]", b'{"a":%b}'])
def test_the_limit_itself_is_allowed(kind: bytes) -> None:
    body = b"1"
    for _ in range(256):
        body = kind.replace(b"%b", body)
    assert not is_deeper(body, 256)
    assert is_deeper(kind.replace(b"%b", body), 256)


@pytest.mark.parametrize(
    "body",
    [b'{"text":"' + b"[{" * 500 + b'"}', b'{"text":"\\"' + b"[" * 500 + b'"}',
     b'{"text":"\\\\","b":"' + b"[" * 500 + b'"}', b"[" + b"[]," * 5000 + b"[]]",
     b'{"messages":[' + b",".join([b'{"role":"user","content":"x"}'] * 2000) + b"]}"],
)  # fmt: skip
def test_brackets_in_strings_and_side_by_side_are_not_deep(body: bytes) -> None:
    json.loads(body)
    assert not is_deeper(body, 3)


@pytest.mark.parametrize(
    "body",
    [b"[" * 500, b'{"a":' * 500, b'{"a\\"":' * 500, b'["\\\\",' * 500, b"[" * 500 + b"}" * 500,
     b'{"a":"x","b":' + b"[" * 500 + b'"', b"[{" * 250, b' \n[["]]]]]]",' + b"[" * 500],
)  # fmt: skip
def test_what_breaks_off_is_as_deep_as_a_parser_would_go(body: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        check_depth(body, 256)
    assert (caught.value.status, caught.value.code) == (400, "json_too_deep")


@pytest.mark.parametrize("body", [b"", b"x" + b"[" * 500, b"\x00\xff" * 300, b'"[[[[' * 500])
def test_what_is_no_array_and_no_object_is_left_alone(body: bytes) -> None:
    check_depth(body, 8)


@pytest.mark.parametrize(
    "path",
    ["/generate", "/v1/chat/completions", "/v1/completions", "/retrieve_from_text",
     "/retrieve_from_messages_template", "/add_worker", "/sessions", "/thing"],
)  # fmt: skip
async def test_every_path_refuses_what_is_too_deep(path: str) -> None:
    body = b'{"text":"a","prompt":"a","x":' + b"[" * 63 + b"]" * 63 + b"}"
    deeper = body.replace(b"[]", b"[[]]")
    async with (
        fake_worker(json_answer({})) as worker,
        router_with(worker.url, max_json_depth=64) as served,
    ):
        refused = await served.client.post(path, content=deeper)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "json_too_deep"
        assert not worker.arrived
        allowed = await served.client.post(path, content=body)
        assert "json_too_deep" not in allowed.text


async def test_what_passes_through_uncaptured_is_held_to_it_too() -> None:
    async def answer(*_: object) -> bytes:
        return http_response(b"served")

    async with fake_worker(answer) as worker, router_with(worker.url, capture=False) as served:
        assert (await served.client.post("/generate", content=b"[" * 257)).status_code == 400
        assert (await served.client.post("/generate", content=b"[" * 256)).text == "served"
        assert (await served.client.post("/generate", content=b"{not json")).text == "served"
