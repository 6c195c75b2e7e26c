"""Sound input of every kind, which targets alter, and what they ask of errors and of output."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from slime_core import openai, sglang, sse
from slime_core.errors import InvariantError, SlimeError, as_openai
from slime_core.strict_json import BAD_JSON
from slime_core.vocabulary import AddedToken, Vocabulary
from tests.fuzzing.mutate import alter_bytes, alter_json, random_bytes

__all__ = [
    "ANSWERS",
    "ASKED",
    "CHATS",
    "COMPLETIONS",
    "GENERATES",
    "INFOS",
    "PARSED_CHATS",
    "PARSED_COMPLETIONS",
    "REFUSALS",
    "RUNS",
    "STREAMS",
    "VOCABULARY",
    "altered_json",
    "assert_as_good_as",
    "attempt",
    "check_words",
]

T = TypeVar("T")

DATA: Final = Path(__file__).parent.parent / "core" / "data"
_ANSWER: Final = (DATA / "sglang" / "answer.json").read_bytes()
_STREAM_FILES: Final = tuple(
    (DATA / "sglang" / name).read_bytes() for name in ("cumulative.sse", "incremental.sse")
)

GENERATES: Final = (
    b'{"text":"Hello","sampling_params":{"n":1,"temperature":0.5,"max_new_tokens":9},"stream":true,'
    b'"return_logprob":true,"logprob_start_len":-1,"top_logprobs_num":2,"rid":"a","parent_id":"p"}',
    b'{"text":["Hello","you"],"sampling_params":[{"n":2,"stop":["a"]},{"n":2}],"rid":["a","b"],'
    b'"return_logprob":[true,false],"image_data":[],"token_ids_logprob":null}',
    b'{"input_ids":[5,6,7],"sampling_params":{"n":3,"logit_bias":{"5":1.5},"stop_regex":"a|b",'
    b'"stop_token_ids":[2],"sampling_seed":4,"top_k":4,"min_p":0.1},"session_params":{"id":null}}',
    b'{"input_ids":[[5,6],[7]],"return_logprob":false,"return_routed_experts":true}',
    b'{"input_embeds":[[0.5,0.25]],"session_id":"s"}',
)
CHATS: Final = (
    b'{"model":"m","messages":[{"role":"system","content":"x"},{"role":"user","content":[{"type":'
    b'"text","text":"hi"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":'
    b'"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c",'
    b'"content":"ok"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":'
    b'"object","properties":{}}}}],"tool_choice":"auto","stream":true,"stream_options":'
    b'{"include_usage":true},"n":2,"logprobs":true,"top_logprobs":2,"stop":["a","b"]}',
    b'{"model":"m","messages":[{"role":"user","content":"x","name":"y"}],"temperature":1,"seed":5,'
    b'"max_completion_tokens":7,"logit_bias":{"5":1},"response_format":{"type":"json_schema",'
    b'"json_schema":{"name":"s","schema":{"type":"object"}}},"metadata":{"a":"b"},"modalities":'
    b'["text"],"reasoning":{"effort":"low","enabled":true},"chat_template_kwargs":{"a":1},'
    b'"return_token_ids":true,"return_meta_info":true,"custom_params":{"a":[1]}}',
    b'{"model":"m","messages":[{"role":"user","content":"x"}],"input_ids":[5,6],"tool_choice":'
    b'{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function",'
    b'"function":{"name":"f"}}]}},"tools":[{"type":"function","function":{"name":"f"}}]}',
)
COMPLETIONS: Final = (
    b'{"model":"m","prompt":"Hello","max_tokens":5,"echo":true,"n":2,"best_of":2,"stop":"a",'
    b'"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}',
    b'{"model":"m","prompt":["a","b"],"logprobs":3,"temperature":0.5,"top_p":0,"top_k":0}',
    b'{"model":"m","prompt":[5,6,7],"logprobs":0,"presence_penalty":1,"return_prompt_token_ids":true}',
    b'{"model":"m","prompt":[[5],[6,7]],"session_params":{"id":"s"},"suffix":null}',
)
ANSWERS: Final = (_ANSWER, b"[" + _ANSWER + b"]", b"[" + _ANSWER + b"," + _ANSWER + b"]")


def _numbered(stream: bytes, index: int) -> list[bytes]:
    return [
        block.replace(b'{"text"', b'{"index":%d,"text"' % index) + b"\n\n"
        for block in stream.split(b"\n\n")
        if block.startswith(b"data: {")
    ]


_BOTH: Final = zip(_numbered(_STREAM_FILES[0], 0), _numbered(_STREAM_FILES[0], 1), strict=True)
STREAMS: Final = (
    *_STREAM_FILES,
    b"".join(block for pair in _BOTH for block in pair) + sse.DONE,
    _STREAM_FILES[0].replace(b'"matched":2', b'"matched":2,"message":"m","status_code":400'),
    b'data: {"error":{"message":"no","code":400}}\n\n' + sse.DONE,
    b"\xef\xbb\xbf: hi\r\n\r\nevent: e\r\ndata: 1\r\ndata: 2\r\rid: 7\ndata\n\n" + sse.DONE,
)
REFUSALS: Final = (
    b'{"error":"text"}',
    b'{"error":{"message":"The context length of (7) is","code":400}}',
    b'{"object":"error","message":"context length: 4096 tokens"}',
    b'{"detail":"Not Found"}',
    b"plain words",
)
INFOS: Final = (
    b'{"model_path":"m","weight_version":"12","is_generation":true}',
    b'{"model_path":"m","weight_version":7}',
    b'{"tokens":[1,2,3],"count":3,"max_model_len":4096}',
)
ASKED: Final[tuple[sglang.Asked, ...]] = tuple(
    map(
        sglang.parse_generate,
        (
            b'{"text":"a"}',
            b'{"text":"a","return_logprob":true}',
            b'{"text":["a"]}',
            b'{"text":["a","b"],"return_logprob":[true,false]}',
            b'{"text":"a","sampling_params":{"n":2}}',
        ),
    )
)
PARSED_CHATS: Final = tuple(
    openai.parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x"}]%b}' % more)
    for more in (
        b"",
        b',"logprobs":true,"top_logprobs":2,"return_meta_info":true,"return_token_ids":true',
        b',"n":2,"logprobs":true,"stream":true,"stream_options":{"include_usage":true}',
    )
)
PARSED_COMPLETIONS: Final = tuple(
    openai.parse_completion(b'{"model":"m","prompt":%b}' % more)
    for more in (b'"a"', b'["a","b"],"logprobs":2', b'"a","n":2,"logprobs":0,"echo":false')
)

VOCABULARY: Final = Vocabulary(
    [bytes([byte]) for byte in range(256)] + [b"ab", b"", "é".encode(), b"\xf0\x9f", None],
    {2: AddedToken(id=2, content="<e>", special=True)},
)
RUNS: Final = Vocabulary(
    [b"a", b"<e>", b" b", *(bytes([byte]) for byte in range(128, 256)), None, b""],
    {1: AddedToken(id=1, content="<e>", special=True)},
    byte_fallback=frozenset(range(3, 131)),
    lead_spaces=1,
)


def altered_json(goldens: Sequence[bytes], chance: random.Random) -> bytes:
    """A golden with its values altered, or its bytes, or no golden at all."""
    golden = chance.choice(goldens)
    if chance.random() < 0.03:
        return random_bytes(chance)
    if chance.random() < 0.75:
        return alter_json(golden, goldens, chance)
    return alter_bytes(golden, goldens, chance)


def attempt(
    work: Callable[..., T], *arguments: Any, may: type[SlimeError], **keywords: Any
) -> T | None:
    """What ``work`` gives, or ``None`` for an error of the family that it may raise.

    Every such error must have words that can be sent.
    """
    try:
        return work(*arguments, **keywords)
    except InvariantError:
        raise
    except may as error:
        check_words(error)
        return None


def check_words(error: SlimeError) -> None:
    assert not isinstance(error, InvariantError)
    assert 400 <= error.status <= 599
    msgspec.json.encode(as_openai(error))


def assert_as_good_as(body: bytes, made: bytes) -> None:
    """What was made of a body may hold parts that are no JSON only if the body did."""
    try:
        msgspec.json.decode(made)
    except BAD_JSON:
        try:
            msgspec.json.decode(body)
        except BAD_JSON:
            return
        raise
