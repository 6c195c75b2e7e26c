"""What clients send, as the core and the embedded worker's engine read it; and token ids."""

from __future__ import annotations

import inspect
import random
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from slime_core import openai, sglang
from slime_core.detokenize import IncrementalDetokenizer
from slime_core.engine import parse_generate as parse_as_worker
from slime_core.engine import parse_sampling_params, plan
from slime_core.engine.openai_dialect import chat_body, completion_body
from slime_core.errors import ClientError
from slime_core.long_lists import IdList, SlicedList
from slime_core.strict_json import BAD_JSON, FieldTypeError, decode_typed, parse_object
from slime_core.types import pack_ids, unpack_ids
from tests.fuzzing.goldens import (
    CHATS,
    COMPLETIONS,
    GENERATES,
    RUNS,
    VOCABULARY,
    altered_json,
    assert_as_good_as,
    attempt,
)
from tests.fuzzing.mutate import alter_bytes, put_anywhere
from tests.fuzzing.targets import Register, given

__all__ = ["TARGETS"]

T = TypeVar("T")

_register = Register()
TARGETS: Final = _register.targets


# -- clients' requests -------------------------------------------------------------------------


@_register
def generate_request(chance: random.Random) -> None:
    """A ``/generate`` body; what goes on to the worker means the same."""
    body = altered_json(GENERATES, chance)
    with given(body=body):
        request = attempt(sglang.parse_generate, body, may=ClientError)
        if request is None:
            return
        texts = all(isinstance(prompt, sglang.TextPrompt) for prompt in request.prompts)
        ids = [pack_ids([1, 2]) for _ in request.prompts] if texts else None
        made = sglang.encode_generate(request, input_ids=ids, rids="r")
        assert_as_good_as(body, made)
        again = sglang.parse_generate(made)
        assert (again.n, again.batch, again.stream) == (request.n, request.batch, request.stream)
        assert all(again.wants_logprobs)
        assert len(again.prompts) == len(request.prompts)
        assert again.opaque == request.opaque


@_register
def chat_request(chance: random.Random) -> None:
    """A chat completion's body, and the ``/generate`` body made of it."""
    body = altered_json(CHATS, chance)
    with given(body=body):
        chat = attempt(openai.parse_chat, body, vocabulary_size=256, may=ClientError)
        if chat is None:
            return
        made = attempt(
            openai.generate_body,
            chat,
            input_ids=pack_ids([1, 2]),
            rid="r",
            context_length=chance.choice((None, 2, 100)),
            may=ClientError,
        )
        if made is not None:
            assert_as_good_as(body, made)


@_register
def completion_request(chance: random.Random) -> None:
    """A text completion's body, and the ``/generate`` body made of it."""
    body = altered_json(COMPLETIONS, chance)
    with given(body=body):
        request = attempt(openai.parse_completion, body, vocabulary_size=256, may=ClientError)
        if request is None:
            return
        made = attempt(
            openai.completions_body,
            request,
            input_ids=[pack_ids([1, 2]) for _ in request.prompts],
            rids="r",
            context_length=chance.choice((None, 2, 100)),
            may=ClientError,
        )
        if made is not None:
            assert_as_good_as(body, made)


@_register
def any_object(chance: random.Random) -> None:
    """The first look at any body: an object of raw values, each of which is JSON or is refused."""
    body = altered_json(GENERATES + CHATS + COMPLETIONS, chance)
    with given(body=body):
        fields = attempt(parse_object, body, may=ClientError)
        for raw in (fields or {}).values():
            with suppress(FieldTypeError):
                decode_typed(_ANY, raw)


_ANY: Final = msgspec.json.Decoder(Any)
_INTS: Final[msgspec.json.Decoder[list[Any]]] = msgspec.json.Decoder(list[int])
_PAIRS: Final[msgspec.json.Decoder[list[Any]]] = msgspec.json.Decoder(
    list[tuple[int, float | None]]
)


@_register
def long_list(chance: random.Random) -> None:
    """Long lists, read in slices: what the library reads in one go, and no more."""
    count = chance.choice((3, 7000, 9000))
    numbers = b"[" + b",".join(b"%d" % (at * 37 % 50000) for at in range(count)) + b"]"
    pairs = b"[" + b",".join(b"[%d,-0.5]" % at for at in range(count // 2)) + b"]"
    is_ints = chance.random() < 0.5
    decoder = _INTS if is_ints else _PAIRS
    data, end = (numbers, b",") if is_ints else (pairs, b"],")
    for _ in range(chance.randrange(3)):
        data = alter_bytes(data, (numbers, pairs), chance)
    with given(data=data):
        expected = _outcome(decoder.decode, data)
        assert _outcome(SlicedList(decoder, end).decode, data) == expected
        if is_ints and all(0 <= each < 2**31 for each in expected or ()):
            packed = _outcome(IdList().decode, data)
            assert (None if packed is None else unpack_ids(packed)) == expected


def _outcome(read: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return read(data)
    except BAD_JSON:
        return None


@_register
def nesting_at_the_limit(chance: random.Random) -> None:
    """What could just be read at its depth must not be too deep for anything done with it later.

    The interpreter's limit is lowered, so that every depth around it can be tried.
    """
    golden = chance.choice(GENERATES + CHATS + COMPLETIONS)
    begin, end = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"type":', b"}")))
    body = put_anywhere(golden, b"%b", chance)
    usual = sys.getrecursionlimit()
    for depth in range(10, 60):
        deep = body.replace(b"%b", begin * depth + b"1" + end * depth)
        sys.setrecursionlimit(len(inspect.stack(0)) + 60)
        try:
            with given(golden=golden, body=body, depth=depth):
                attempt(openai.parse_chat, deep, may=ClientError)
                attempt(openai.parse_completion, deep, may=ClientError)
                attempt(sglang.parse_generate, deep, may=ClientError)
        finally:
            sys.setrecursionlimit(usual)


# -- the embedded worker -----------------------------------------------------------------------

_VOCABULARY_SIZE: Final = 256
_SAMPLES: Final = 1000
"""More samples than this are valid for a worker and too many to plan here."""


@_register
def embedded_generate(chance: random.Random) -> None:
    """The same bodies as the embedded worker reads them."""
    body = altered_json(GENERATES, chance)
    with given(body=body):
        value = _outcome(msgspec.json.decode, body)
        _planned(value, chance)


@_register
def embedded_openai(chance: random.Random) -> None:
    """OpenAI's bodies as the embedded worker reads them."""
    body = altered_json(CHATS + COMPLETIONS, chance)
    with given(body=body):
        value = _outcome(msgspec.json.decode, body)
        if not isinstance(value, Mapping):
            return
        for native in (
            attempt(chat_body, value, [1, 2], may=ClientError),
            attempt(completion_body, value, may=ClientError),
        ):
            if native is not None:
                _planned(native, chance)


@_register
def sampling_params(chance: random.Random) -> None:
    """One ``sampling_params`` object of every key."""
    golden = (
        b'{"max_new_tokens":5,"min_new_tokens":0,"temperature":0.5,"top_p":0.5,"top_k":3,'
        b'"min_p":0.1,"frequency_penalty":1,"presence_penalty":-1,"repetition_penalty":1.5,'
        b'"logit_bias":{"5":1,"6":-2.5},"stop":["a","b"],"stop_regex":["a+","[bc]"],'
        b'"stop_token_ids":[2,3,null],"ignore_eos":true,"skip_special_tokens":false,'
        b'"no_stop_trim":true,"n":2,"sampling_seed":7,"custom_params":{},"regex":null}'
    )
    body = altered_json((golden,), chance)
    with given(body=body):
        value = _outcome(msgspec.json.decode, body)
        if isinstance(value, Mapping):
            _attempt_as_worker(parse_sampling_params, value)


def _attempt_as_worker(parse: Callable[..., T], value: Any) -> T | None:
    with warnings.catch_warnings():
        # What Python thinks of a client's regular expression is nobody's error.
        warnings.simplefilter("ignore", FutureWarning)
        return attempt(parse, value, vocabulary_size=_VOCABULARY_SIZE, may=ClientError)


def _planned(value: Any, chance: random.Random) -> None:
    call = _attempt_as_worker(parse_as_worker, value)
    if call is None or call.n * len(call.prompts) > _SAMPLES:
        return
    ids: list[Sequence[int]] = [
        [1, 2] if isinstance(prompt.content, str) else prompt.content for prompt in call.prompts
    ]
    planned = attempt(
        plan,
        call,
        ids,
        context_length=chance.choice((3, 500)),
        vocabulary_size=_VOCABULARY_SIZE,
        fresh=lambda: "r",
        seed=1,
        may=ClientError,
    )
    assert planned is None or len(planned) == call.n * len(call.prompts)


# -- tokens ------------------------------------------------------------------------------------


@_register
def detokenizer(chance: random.Random) -> None:
    """Any ids, in pieces of any size: the text is that of all at once, up to a stop string."""
    vocabulary = chance.choice((VOCABULARY, RUNS))
    some = (0, 1, 2, 3, 4, 97, 98, 130, 131, 195, 169, 256, 257, 258, 259, 260, -1, 2**31, 2**40)
    ids = [chance.choice(some) for _ in range(chance.randrange(30))]
    stop = tuple(
        chance.choice(("a", "ab", "é", "\ufffd", "b b", "<e>")) for _ in range(chance.randrange(3))
    )
    skip, at_start = chance.random() < 0.5, chance.random() < 0.5
    cuts = sorted(chance.randrange(len(ids) + 1) for _ in range(chance.randrange(6)))
    with given(ids=ids, stop=stop, skip=skip, at_start=at_start, cuts=cuts):
        found = []
        for places in ([], cuts):
            told = IncrementalDetokenizer(
                vocabulary, skip_special=skip, stop=stop, at_start=at_start
            )
            for a, b in zip([0, *places], [*places, len(ids)], strict=True):
                told.push(ids[a:b])
            told.finish()
            found.append((told.text, told.stopped, told.stop_at))
        assert found[0] == found[1]
        if found[0][1] is None:
            assert found[0][0] == vocabulary.decode(ids, skip_special=skip, at_start=at_start)
