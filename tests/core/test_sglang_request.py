"""``/generate`` requests: read shallowly, sent on byte for byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError, InvariantError
from slime_core.sglang import (
    EmbedsPrompt,
    GenerateRequest,
    IdsPrompt,
    TextPrompt,
    compose_generate,
    encode_generate,
    parse_generate,
)
from slime_core.types import pack_ids


def request(**fields: Any) -> GenerateRequest:
    return parse_generate(json.dumps(fields).encode())


def sent(body: bytes, *, ids: list[list[int]] | None = None, rids: Any = None) -> bytes:
    packed = None if ids is None else [pack_ids(each) for each in ids]
    return encode_generate(parse_generate(body), input_ids=packed, rids=rids)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{}", "text", "missing_required_parameter"),
        (b'{"text":null}', "text", "missing_required_parameter"),
        (b'{"text":""}', "text", "empty_string"),
        (b'{"text":[]}', "text", "empty_array"),
        (b'{"text":["a",""]}', "text[1]", "empty_string"),
        (b'{"text":["a",3]}', "text[1]", "invalid_type"),
        (b'{"text":{"a":1}}', "text", "invalid_type"),
        (b'{"input_ids":[]}', "input_ids", "empty_array"),
        (b'{"input_ids":[[1],[]]}', "input_ids[1]", "empty_array"),
        (b'{"input_ids":[1,2,3,"a"]}', "input_ids[3]", "invalid_type"),
        (b'{"input_ids":[1,2.0]}', "input_ids[1]", "invalid_type"),
        (b'{"input_ids":[true]}', "input_ids[0]", "invalid_type"),
        (b'{"input_ids":[[1],[2,-1]]}', "input_ids[1][1]", "integer_below_min_value"),
        (b'{"input_ids":[2147483648]}', "input_ids[0]", "integer_above_max_value"),
        (b'{"input_ids":[[1],2]}', "input_ids[1]", "invalid_type"),
        (b'{"input_ids":"1 2"}', "input_ids", "invalid_type"),
        (b'{"input_embeds":[]}', "input_embeds", "empty_array"),
        (b'{"text":"a","input_ids":[1]}', "input_ids", "invalid_value"),
        (b'{"text":"a","stream":"yes"}', "stream", "invalid_type"),
        (b'{"text":"a","sampling_params":7}', "sampling_params", "invalid_type"),
        (b'{"text":"a","sampling_params":{"n":0}}', "sampling_params.n", "integer_below_min_value"),
        (b'{"text":["a"],"sampling_params":[{"n":"2"}]}', "sampling_params[0].n", "invalid_type"),
        (b'{"text":"a","sampling_params":[{}]}', "sampling_params", "invalid_value"),
        (b'{"text":["a","b"],"sampling_params":[{}]}', "sampling_params", "invalid_value"),
        (
            b'{"text":["a","b"],"sampling_params":[{"n":1},{"n":2}]}',
            "sampling_params",
            "invalid_value",
        ),
        (b'{"text":["a","b"],"return_logprob":[true]}', "return_logprob", "invalid_value"),
        (b'{"text":"a","rid":5}', "rid", "invalid_type"),
        (b"[]", None, "invalid_type"),
        (b'{"text":"a","temperature":NaN}', None, "invalid_json"),
        (b'{"text":"\\ud800 alone"}', None, "invalid_json"),
        (b'{"text":"a","other":"\xff"}', None, "invalid_json"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", None, "invalid_json"),
        (b"", None, "invalid_json"),
    ],
)
def test_a_fault_is_refused_and_named(body: bytes, param: str | None, code: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_generate(body)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


def test_a_single_text_is_one_prompt_and_one_sample() -> None:
    parsed = request(text="hé", sampling_params={"stop": "x", "max_new_tokens": None})
    assert parsed.prompts == (TextPrompt(text="hé"),)
    assert (parsed.batch, parsed.n, parsed.samples, parsed.array) == (False, 1, 1, False)


def test_a_list_of_one_is_a_batch() -> None:
    parsed = request(input_ids=[[7, 8]])
    assert parsed.prompts == (IdsPrompt(ids=pack_ids([7, 8])),)
    assert (parsed.batch, parsed.samples, parsed.array) == (True, 1, True)


def test_n_multiplies_the_samples_prompt_major() -> None:
    parsed = request(
        text=["a", "b"],
        sampling_params=[{"n": 2, "stop": ["x", ""]}, {"n": 2}],
        return_logprob=[False, True],
    )
    assert (parsed.samples, parsed.array) == (4, True)
    assert [parsed.shows_logprobs(sample) for sample in range(4)] == [False, False, True, True]


def test_sampling_parameters_are_the_workers_to_judge() -> None:
    body = b'{"text":"a","sampling_params":{"n":2,"stop":5,"max_new_tokens":"x","huh":[null]}}'
    assert parse_generate(body).samples == 2


def test_n_of_a_single_prompt_makes_an_array() -> None:
    assert request(text="a", sampling_params={"n": 3}).array


def test_null_options_count_as_absent() -> None:
    parsed = parse_generate(
        b'{"text":"a","input_ids":null,"sampling_params":null,"rid":null,"stream":null,'
        b'"return_logprob":null,"image_data":null,"session_params":null}'
    )
    assert (parsed.n, parsed.stream, parsed.client_rids, parsed.opaque) == (1, False, (), False)
    assert parsed.wants_logprobs == (False,)


def test_client_rids_are_kept_in_either_form() -> None:
    assert request(text="a", rid="r").client_rids == ("r",)
    assert request(text=["a", "b"], rid=["r", "s"]).client_rids == ("r", "s")


@pytest.mark.parametrize("field", ["image_data", "video_data", "audio_data"])
def test_media_makes_a_request_opaque(field: str) -> None:
    parsed = request(text="a", **{field: ["data:,"]})
    assert parsed.media
    assert parsed.opaque
    assert not request(text="a", **{field: []}).opaque


def test_embeddings_pass_as_opaque_prompts() -> None:
    assert request(input_embeds=[[0.5, 1.0]]).prompts == (EmbedsPrompt(),)
    batch = request(input_embeds=[[[0.5]], [[1.0]]])
    assert (len(batch.prompts), batch.batch, batch.opaque) == (2, True, True)


def test_a_continued_session_may_bring_no_ids_and_is_opaque() -> None:
    parsed = request(input_ids=[], session_params={"id": "s"})
    assert parsed.prompts == (IdsPrompt(ids=pack_ids([])),)
    assert parsed.opaque
    assert request(text="a", session_id="s").opaque
    assert not request(text="a", session_params={}).opaque


def test_a_request_with_nothing_to_add_is_sent_as_its_own_bytes() -> None:
    body = b'{ "text" : "a" , "rid":"r", "return_logprob":true, "x":1.00 }'
    assert sent(body, rids="unused") == body


def test_ids_take_the_place_of_the_text_and_all_else_keeps_its_bytes() -> None:
    body = rb'{"a":[1 , 2.50],"text":"h\u00e9","z\n":{"seed":18446744073709551615,"p":1e-07}}'
    assert sent(body, ids=[[5, 6]], rids="r-1") == (
        rb'{"a":[1 , 2.50],"input_ids":[5,6],"z\n":{"seed":18446744073709551615,"p":1e-07},'
        rb'"rid":"r-1","return_logprob":true}'
    )


def test_a_batch_of_texts_becomes_a_batch_of_ids() -> None:
    assert sent(b'{"text":["a"]}', ids=[[5]], rids=["r"]) == (
        b'{"input_ids":[[5]],"rid":["r"],"return_logprob":true}'
    )


def test_null_input_ids_beside_text_do_not_survive_the_ids() -> None:
    assert json.loads(sent(b'{"text":"a","input_ids":null}', ids=[[5]]))["input_ids"] == [5]
    assert sent(b'{"text":"a","input_ids":null}', ids=[[5]]).count(b"input_ids") == 1


def test_the_ids_of_a_client_keep_their_own_bytes() -> None:
    body = b'{"input_ids":[1,  2],"rid":null}'
    assert sent(body, rids="r") == b'{"input_ids":[1,  2],"rid":"r","return_logprob":true}'


def test_the_last_of_two_equal_keys_wins_and_travels_alone() -> None:
    assert sent(b'{"text":"a","text":"b"}') == b'{"text":"b","return_logprob":true}'


def test_asking_for_logprobs_does_not_wake_what_the_worker_would_ignore() -> None:
    body = b'{"text":"a","logprob_start_len":0,"top_logprobs_num":5,"return_logprob":false}'
    assert sent(body) == (
        b'{"text":"a","logprob_start_len":-1,"top_logprobs_num":0,"return_logprob":true}'
    )


def test_logprob_options_stay_where_logprobs_were_asked_for() -> None:
    body = b'{"text":"a","logprob_start_len":0,"return_logprob":true}'
    assert sent(body) == body


def test_ids_that_do_not_fit_the_prompts_are_our_bug() -> None:
    with pytest.raises(InvariantError):
        sent(b'{"text":"a"}', ids=[[1], [2]])
    with pytest.raises(InvariantError):
        sent(b'{"input_ids":[1]}', ids=[[1]])


def compose(sampling: dict[str, bytes], **others: bytes) -> bytes:
    return compose_generate(
        input_ids=pack_ids([1, 2]),
        sampling=sampling,
        rid="r",
        stream=False,
        top_logprobs=2,
        others=others,
    )


def test_a_request_is_composed_of_raw_parts_that_cannot_replace_its_own() -> None:
    assert compose({"top_p": b"1e-07"}, priority=b"3", rid=b'"forged"') == (
        b'{"rid":"r","input_ids":[1,2],"sampling_params":{"top_p":1e-07},"stream":false,'
        b'"return_logprob":true,"top_logprobs_num":2,"priority":3}'
    )


def test_a_composed_request_is_one_that_parses() -> None:
    parsed = parse_generate(compose({"n": b"2"}))
    assert (parsed.samples, parsed.shows_logprobs(1)) == (2, True)


def test_a_sampling_parameter_no_worker_knows_is_our_bug() -> None:
    with pytest.raises(InvariantError):
        compose({"max_tokens": b"5"})


@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_the_clients_fault(body: bytes) -> None:
    try:
        parsed = parse_generate(body)
    except ClientError:
        return
    assert parsed.samples >= 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé🙂\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner),
    max_leaves=8,
)
FIELDS = (
    "text",
    "input_ids",
    "input_embeds",
    "sampling_params",
    "stream",
    "return_logprob",
    "rid",
    "image_data",
    "session_params",
    "session_id",
    "logprob_start_len",
    "other",
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_values_are_a_request_or_the_clients_fault(fields: dict[str, Any]) -> None:
    try:
        parsed = request(**fields)
    except ClientError:
        return
    again = json.loads(encode_generate(parsed, input_ids=None, rids=None))
    changed = {"return_logprob", "logprob_start_len"}
    kept = {name: value for name, value in fields.items() if name not in changed}
    assert {name: value for name, value in again.items() if name not in changed} == kept
    assert again["return_logprob"] is True
