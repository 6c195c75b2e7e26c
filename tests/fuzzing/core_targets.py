"""The decoders of ``slime_core``: each target says which family of errors may leave it."""

from __future__ import annotations

import inspect
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pytest

from slime_core import openai, sglang, sse
from slime_core.detokenize import IncrementalDetokenizer
from slime_core.engine import parse_generate as parse_as_worker
from slime_core.engine import parse_sampling_params, plan
from slime_core.engine.openai_dialect import chat_body, completion_body
from slime_core.errors import ClientError, InvariantError, SlimeError, WorkerError, as_openai
from slime_core.long_lists import IdList, SlicedList
from slime_core.openai.logprobs import answer_logprobs
from slime_core.strict_json import BAD_JSON, FieldTypeError, decode_typed, parse_object
from slime_core.types import pack_ids, token_count, unpack_ids
from slime_core.versions import runs_problem
from slime_core.vocabulary import AddedToken, Vocabulary
from tests.fuzzing.mutate import alter_bytes, alter_json, pieces, put_anywhere, random_bytes
from tests.fuzzing.targets import Register, given

__all__ = ["ANSWERS", "CHATS", "COMPLETIONS", "GENERATES", "STREAMS", "TARGETS", "altered_json"]

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
_REFUSALS: Final = (
    b'{"error":"text"}',
    b'{"error":{"message":"The context length of (7) is","code":400}}',
    b'{"object":"error","message":"context length: 4096 tokens"}',
    b'{"detail":"Not Found"}',
    b"plain words",
)
_INFOS: Final = (
    b'{"model_path":"m","weight_version":"12","is_generation":true}',
    b'{"model_path":"m","weight_version":7}',
    b'{"tokens":[1,2,3],"count":3,"max_model_len":4096}',
)
_ASKED: Final[tuple[sglang.Asked, ...]] = tuple(
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
_CHATS: Final = tuple(
    openai.parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x"}]%b}' % more)
    for more in (
        b"",
        b',"logprobs":true,"top_logprobs":2,"return_meta_info":true,"return_token_ids":true',
        b',"n":2,"logprobs":true,"stream":true,"stream_options":{"include_usage":true}',
    )
)
_COMPLETIONS: Final = tuple(
    openai.parse_completion(b'{"model":"m","prompt":%b}' % more)
    for more in (b'"a"', b'["a","b"],"logprobs":2', b'"a","n":2,"logprobs":0,"echo":false')
)

VOCABULARY: Final = Vocabulary(
    [bytes([byte]) for byte in range(256)] + [b"ab", b"", "é".encode(), b"\xf0\x9f", None],
    {2: AddedToken(id=2, content="<e>", special=True)},
)
_RUNS: Final = Vocabulary(
    [b"a", b"<e>", b" b", *(bytes([byte]) for byte in range(128, 256)), None, b""],
    {1: AddedToken(id=1, content="<e>", special=True)},
    byte_fallback=frozenset(range(3, 131)),
    lead_spaces=1,
)

_register = Register()
TARGETS: Final = _register.targets


def altered_json(goldens: Sequence[bytes], chance: random.Random) -> bytes:
    """A golden with its values altered, or its bytes, or no golden at all."""
    golden = chance.choice(goldens)
    if chance.random() < 0.03:
        return random_bytes(chance)
    if chance.random() < 0.75:
        return alter_json(golden, goldens, chance)
    return alter_bytes(golden, goldens, chance)


def _attempt(
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
        _check_words(error)
        return None


def _check_words(error: SlimeError) -> None:
    assert not isinstance(error, InvariantError)
    assert 400 <= error.status <= 599
    msgspec.json.encode(as_openai(error))


def _assert_as_good_as(body: bytes, made: bytes) -> None:
    """What was made of a body may hold parts that are no JSON only if the body did."""
    try:
        msgspec.json.decode(made)
    except BAD_JSON:
        try:
            msgspec.json.decode(body)
        except BAD_JSON:
            return
        raise


# -- event streams -----------------------------------------------------------------------------


@_register
def sse_decoder(chance: random.Random) -> None:
    """Split differently: the same events, the same end. It never holds more than its limit."""
    data = chance.choice(STREAMS)
    for _ in range(chance.randrange(3)):
        data = alter_bytes(data, STREAMS, chance)
    limit = chance.choice((8, 40, 300, 2**20))
    ways = [[data] if data else [], pieces(data, chance), pieces(data, chance)]
    with given(data=data, limit=limit, ways=[[len(piece) for piece in way] for way in ways]):
        first, *others = [_events(way, limit) for way in ways]
        for other in others:
            assert other == first


def _events(way: Iterable[bytes], limit: int) -> tuple[list[sse.Event], str | None]:
    decoder = sse.Decoder(max_event_bytes=limit)
    events: list[sse.Event] = []
    try:
        for piece in way:
            events += decoder.receive(piece)
            assert len(decoder._buffer) <= limit + len(piece)
        decoder.close()
    except WorkerError as error:
        _assert_failed_for_good(decoder, error)
        return events, error.message
    return events, None


def _assert_failed_for_good(decoder: sse.Decoder, error: WorkerError) -> None:
    if "more than" not in error.message:
        return  # it only said that the stream must not end here
    for call in (lambda: decoder.receive(b"data: a\n\n"), decoder.close):
        with pytest.raises(WorkerError) as again:
            call()
        assert again.value.message == error.message


@_register
def worker_stream(chance: random.Random) -> None:
    """A worker's stream to steps: the same however it is split; then whatever is asked of it."""
    data = _altered_stream(chance)
    asked = chance.choice(_ASKED)
    ways = [[data] if data else [], pieces(data, chance)]
    with given(data=data, asked=asked.samples):
        first, other = (_steps(way, asked) for way in ways)
        assert other == first


def _altered_stream(chance: random.Random) -> bytes:
    """A stream with altered events, altered bytes, or its events in disorder."""
    stream = chance.choice(STREAMS)
    if chance.random() < 0.3:
        return alter_bytes(stream, STREAMS, chance)
    blocks = [block for block in stream.split(b"\n\n") if block]
    goldens = [block[6:] for block in blocks if block.startswith(b"data: {")]
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(blocks))
        if blocks[at].startswith(b"data: {") and chance.random() < 0.8:
            altered = alter_json(chance.choice(goldens), goldens, chance)
            blocks[at] = b"data: " + altered.replace(b"\n", b"\ndata: ")
        else:
            blocks.insert(chance.randrange(len(blocks) + 1), blocks.pop(at))
    return b"".join(block + b"\n\n" for block in blocks)


def _steps(way: Iterable[bytes], asked: sglang.Asked) -> tuple[Any, ...]:
    decoder, assembler = sse.Decoder(), sglang.StreamAssembler(asked)
    steps: list[Any] = []
    failure: str | None = None
    try:
        for piece in way:
            for event in decoder.receive(piece):
                steps += map(_told, assembler.receive(event))
        decoder.close()
    except WorkerError as error:
        failure = error.message
    partial = [
        _attempt(assembler.partial, index, may=WorkerError) for index in range(asked.samples)
    ]
    for answer in partial:
        if answer is not None:
            _check_answer(answer)
    return steps, failure, partial, assembler.mode, assembler.finished


def _told(step: sglang.StreamStep) -> tuple[Any, ...]:
    """A step without its error, which has no equality, but with the error's words."""
    error = step.error
    if error is not None:
        _check_words(error)
    words = None if error is None else (type(error), error.status, error.message)
    return (
        step.raw,
        step.sample,
        step.text,
        step.ids,
        step.logprobs,
        step.tokens,
        step.done,
        words,
    )


@_register
def framed_stream(chance: random.Random) -> None:
    """A worker's stream in OpenAI's words, as the relay frames it."""
    data = _altered_stream(chance)
    request: Any = chance.choice(_CHATS + _COMPLETIONS)
    named: openai.Named = {"id": "i", "created": 1, "model": "m", "vocabulary": VOCABULARY}
    is_chat = isinstance(request, openai.ChatRequest)
    framer: Any = (openai.ChunkFramer if is_chat else openai.TextChunkFramer)(request, **named)
    with given(data=data, request=request):
        framer.first()
        _attempt(_framed, data, framer, request, may=SlimeError)


def _framed(data: bytes, framer: openai.Framer, request: openai.Request) -> None:
    assembler = sglang.StreamAssembler(request)
    decoder = sse.Decoder()
    for event in decoder.receive(data):
        for step in assembler.receive(event):
            if not step.done:
                shown = framer.step(step)
                assert not shown or shown.endswith(b"\n\n")
    decoder.close()
    if assembler.finished:
        framer.done()


# -- a worker's whole answers ------------------------------------------------------------------


@_register
def worker_answer(chance: random.Random) -> None:
    """A whole answer: what is accepted has columns of one length, and can be shown."""
    body = altered_json(ANSWERS, chance)
    asked = chance.choice(_ASKED)
    with given(body=body, samples=asked.samples, array=asked.array):
        answers = _attempt(sglang.parse_answer, body, asked, may=WorkerError)
        if answers is None:
            return
        assert len(answers) == asked.samples
        for answer in answers:
            _check_answer(answer)
        shown = _attempt(sglang.strip_logprobs, body, asked, may=WorkerError)
        if shown is not None:
            _assert_as_good_as(body, shown)


def _check_answer(answer: sglang.Answer) -> None:
    count = token_count(answer.ids)
    if answer.problem is None:
        assert len(answer.logprobs) in (4 * count, 8 * count)
        assert answer.completion_tokens == count
    assert not answer.versions or runs_problem(answer.versions, count) is None


@_register
def shown_answer(chance: random.Random) -> None:
    """A whole answer in OpenAI's words."""
    body = altered_json(ANSWERS, chance)
    request: Any = chance.choice(_CHATS + _COMPLETIONS)
    with given(body=body, request=request):
        answers = _attempt(sglang.parse_answer, body, request, may=WorkerError)
        if answers is None:
            return
        common: dict[str, Any] = {"id": "i", "created": 1, "model": "m", "vocabulary": VOCABULARY}
        whole: Any = openai.text_completion
        if isinstance(request, openai.ChatRequest):
            whole, common["prompt_ids"] = openai.completion, pack_ids([1])
        made = _attempt(whole, request, answers=answers, prompt_tokens=1, may=SlimeError, **common)
        if made is not None:
            _assert_as_good_as(body, made)
        for answer in answers:
            _attempt(answer_logprobs, answer, VOCABULARY, top=2, skip_special=True, may=WorkerError)


@_register
def worker_refusal(chance: random.Random) -> None:
    """Any status and any body is somebody's error, never ours."""
    body = chance.choice(_REFUSALS)
    body = random_bytes(chance) if chance.random() < 0.1 else body
    if chance.random() < 0.7:
        jsons = _REFUSALS[:4]
        body = altered_json(jsons, chance)
    status = chance.choice((0, 1, 200, 302, 400, 404, 413, 422, 429, 500, 503, 599, 600, 2**70, -1))
    with given(body=body, status=status):
        _check_words(sglang.worker_error(status, body))
        _check_words(sglang.abort_error(body.decode("utf-8", "replace"), status))


@_register
def worker_information(chance: random.Random) -> None:
    """What a worker tells of itself."""
    body = altered_json(_INFOS, chance)
    with given(body=body):
        _attempt(sglang.parse_model_info, body, may=WorkerError)
        _attempt(sglang.parse_tokenize, body, may=WorkerError)


# -- clients' requests -------------------------------------------------------------------------


@_register
def generate_request(chance: random.Random) -> None:
    """A ``/generate`` body; what goes on to the worker means the same."""
    body = altered_json(GENERATES, chance)
    with given(body=body):
        request = _attempt(sglang.parse_generate, body, may=ClientError)
        if request is None:
            return
        texts = all(isinstance(prompt, sglang.TextPrompt) for prompt in request.prompts)
        ids = [pack_ids([1, 2]) for _ in request.prompts] if texts else None
        made = sglang.encode_generate(request, input_ids=ids, rids="r")
        _assert_as_good_as(body, made)
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
        chat = _attempt(openai.parse_chat, body, vocabulary_size=256, may=ClientError)
        if chat is None:
            return
        made = _attempt(
            openai.generate_body,
            chat,
            input_ids=pack_ids([1, 2]),
            rid="r",
            context_length=chance.choice((None, 2, 100)),
            may=ClientError,
        )
        if made is not None:
            _assert_as_good_as(body, made)


@_register
def completion_request(chance: random.Random) -> None:
    """A text completion's body, and the ``/generate`` body made of it."""
    body = altered_json(COMPLETIONS, chance)
    with given(body=body):
        request = _attempt(openai.parse_completion, body, vocabulary_size=256, may=ClientError)
        if request is None:
            return
        made = _attempt(
            openai.completions_body,
            request,
            input_ids=[pack_ids([1, 2]) for _ in request.prompts],
            rids="r",
            context_length=chance.choice((None, 2, 100)),
            may=ClientError,
        )
        if made is not None:
            _assert_as_good_as(body, made)


@_register
def any_object(chance: random.Random) -> None:
    """The first look at any body: an object of raw values, each of which is JSON or is refused."""
    body = altered_json(GENERATES + CHATS + COMPLETIONS, chance)
    with given(body=body):
        fields = _attempt(parse_object, body, may=ClientError)
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
                _attempt(openai.parse_chat, deep, may=ClientError)
                _attempt(openai.parse_completion, deep, may=ClientError)
                _attempt(sglang.parse_generate, deep, may=ClientError)
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
            _attempt(chat_body, value, [1, 2], may=ClientError),
            _attempt(completion_body, value, may=ClientError),
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
        return _attempt(parse, value, vocabulary_size=_VOCABULARY_SIZE, may=ClientError)


def _planned(value: Any, chance: random.Random) -> None:
    call = _attempt_as_worker(parse_as_worker, value)
    if call is None or call.n * len(call.prompts) > _SAMPLES:
        return
    ids: list[Sequence[int]] = [
        [1, 2] if isinstance(prompt.content, str) else prompt.content for prompt in call.prompts
    ]
    planned = _attempt(
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
    vocabulary = chance.choice((VOCABULARY, _RUNS))
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
