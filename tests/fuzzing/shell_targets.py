"""The decoders of the shell: HTTP, configuration, checkpoints, and whole requests in memory."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import h11
import httpx
import msgspec
import structlog
import trio
from trio.testing import MockClock

from slime_core import sse
from slime_core.errors import ClientError, InvariantError, SlimeError, as_openai
from slime_core.types import WorkerUrl
from slime_trio import retrieval
from slime_trio.config import (
    OPTIONS,
    ConfigurationError,
    add_arguments,
    from_arguments,
    from_environment,
)
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import Inbound, Reply, for_client, for_worker
from slime_trio.router import Router
from slime_trio.tending import contact
from slime_trio.tokenizer import CheckpointError, Tokenizer, load_checkpoint
from slime_trio.upstream import parse_origin
from slime_trio.upstream.parser import Head, ResponseParser
from slime_trio.upstream.request_head import request_head
from tests.fuzzing.core_targets import (
    ANSWERS,
    CHATS,
    COMPLETIONS,
    GENERATES,
    STREAMS,
    altered_json,
)
from tests.fuzzing.mutate import alter_bytes, alter_json, pieces
from tests.fuzzing.targets import Register, given
from tests.server.harness import answer_item
from tests.server.relay_support import Sink, assert_at_rest, chunk, inbound, relay_router
from tests.server.upstream_support import URL, Peer, answer

__all__ = ["TARGETS", "TOKENIZERS"]

_register = Register()
TARGETS: Final = _register.targets

_RESPONSES: Final = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"a": true}',
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: b \t\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\ntrailer: x\r\n\r\n",
    b"HTTP/1.0 500 Internal Server Error\r\nserver: x\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\netag: \xe9\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nlocation: /x\r\nset-cookie: a=b\r\nset-cookie: c=d\r\n"
    b"content-length: 0\r\n\r\n",
)
_REQUESTS: Final = (
    b"POST /generate?a=b HTTP/1.1\r\nHost: x\r\nX-Session-ID: s\r\ncontent-type: a/b\r\n"
    b"Connection: keep-alive, x-drop\r\nx-drop: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"GET http://host/v1/models/a%20b HTTP/1.1\r\nhost: x\r\naccept: */*\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    b"DELETE //x/../y;z?q#f HTTP/1.0\r\n\r\n",
)
_ORIGINS: Final = (
    b"http://worker:30000",
    b"https://user@host.example/prefix/",
    b"http://[::1]:8000/a%20b",
    b"http://xn--bcher-kva.example:80",
    b"http://10.0.0.1:65536?q#f",
)


# -- HTTP --------------------------------------------------------------------------------------


@_register
def http_response(chance: random.Random) -> None:
    """A response: the same head, body and fault however it is split; never an exception."""
    data = chance.choice(_RESPONSES) + chance.choice((b"", b"\r\n", chance.choice(_RESPONSES)))
    for _ in range(chance.randrange(3)):
        data = alter_bytes(data, _RESPONSES, chance)
    is_head = chance.random() < 0.2
    with given(data=data, is_head=is_head):
        ways = [[data] if data else [], pieces(data, chance), pieces(data, chance)]
        first, *others = [_parsed(way, is_head=is_head) for way in ways]
        for other in others:
            assert other == first
        if isinstance(first[0], Head):
            _check_head_can_be_passed_on(first[0])


def _parsed(way: Iterable[bytes], *, is_head: bool) -> tuple[Any, ...]:
    parser = ResponseParser(max_head_bytes=2**16)
    parser.start(is_head_request=is_head)
    body = b""
    for piece in way:
        if not parser.is_complete:  # a connection reads no further then
            parser.feed(piece)
            body += parser.take()
    was_complete, fault = parser.is_complete, parser.fault
    parser.feed_eof()
    return parser.head, body, fault, was_complete, parser.fault, parser.is_complete


def _check_head_can_be_passed_on(head: Head) -> None:
    """What a worker may send, the listener's own library must take."""
    headers = for_client(head.headers, same_body=True)
    h11.Response(status_code=head.status, headers=headers)


@_register
def http_response_bounds(chance: random.Random) -> None:
    """Whatever brings no body has a bound, in heads, trailers and extensions."""
    golden = chance.choice(_RESPONSES)
    begun = golden[: chance.randrange(1, len(golden))]
    junk = chance.choice((b"a", b"a: b\r\n", b" ", b"0", b"\r\n", b"5;x", b"H")) * 1500
    parser = ResponseParser(max_head_bytes=500)
    with given(begun=begun, junk=junk[:9]):
        for piece in pieces(begun, chance):
            parser.feed(piece)
        parser.take()
        brought = 0
        for piece in pieces(junk, chance):
            parser.feed(piece)
            brought += len(parser.take())
        assert parser.fault is not None or parser.is_complete or brought
        # One field that came in one read may be over, and then it was refused.
        assert parser._head_bytes <= 500 or parser.fault is not None


@_register
def http_request(chance: random.Random) -> None:
    """What the server's library lets in can be written for a worker, or is refused by name."""
    data = alter_bytes(chance.choice(_REQUESTS), _REQUESTS, chance)
    with given(data=data):
        arrived = _arrived(data)
        if arrived is None:
            return
        headers = [(bytes(name).lower(), bytes(value)) for name, value in arrived.headers]
        message = Inbound(
            method=arrived.method.decode(),
            path="/",
            target=b"/",
            headers=headers,
            body=b"",
        )
        for readable in (True, False):
            fields = for_worker(message.headers, readable=readable)
            request_head(b"POST", b"worker", b"/generate", fields, 5)
        assert message.session is None or isinstance(message.session, str)


def _arrived(data: bytes) -> h11.Request | None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    with suppress(h11.RemoteProtocolError):
        event = connection.next_event()
        return event if isinstance(event, h11.Request) else None
    return None


@_register
def worker_url(chance: random.Random) -> None:
    """A worker's URL: an origin that can be written again, or ``ValueError``."""
    url = alter_bytes(chance.choice(_ORIGINS), _ORIGINS, chance).decode("latin-1")
    with given(url=url):
        try:
            origin = parse_origin(url)
        except ValueError:
            return
        assert parse_origin(str(origin)) == origin
        request_head(b"GET", origin.authority.encode("ascii"), b"/x", [], 0)


# -- configuration -----------------------------------------------------------------------------

_WORDS: Final = (
    *("", "0", "1", "-1", "on", "off", "nan", "inf", "1e999", "9" * 5000, "1.5", "٣", "x", "a b"),
    *("http://w:1", "http://w:1,http://v:2", "http://[", "\udcff", "\0", "least-in-flight", "a..b"),
)


@_register
def configuration(chance: random.Random) -> None:
    """Any words in the environment and on the command line: settings, or one line that says why."""
    named = chance.sample(OPTIONS, chance.randrange(4))
    environ = {option.variable: chance.choice(_WORDS) for option in named}
    if chance.random() < 0.1:
        environ["SLIME_ROUTER_" + chance.choice(("", "X", "PORT_"))] = "1"
    words = [
        word
        for option in chance.sample(OPTIONS, chance.randrange(3))
        for word in (chance.choice(option.flags), chance.choice(_WORDS))
    ]
    with given(environ=environ, words=words):
        parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
        add_arguments(parser)
        try:
            namespace = parser.parse_known_args(words)[0]
        except argparse.ArgumentError:
            namespace = None
        with suppress(ConfigurationError):
            from_environment(environ)
        with suppress(ConfigurationError):
            from_arguments(namespace, environ)


# -- checkpoints -------------------------------------------------------------------------------

TOKENIZERS: Final = (
    b'{"version":"1.0","added_tokens":[{"id":5,"content":"<e>","single_word":false,"lstrip":false,'
    b'"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":'
    b'"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"post_processor":'
    b'null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":'
    b'true},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"\xc4\xa0":3},'
    b'"merges":["a b"]}}',
    b'{"version":"1.0","added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":'
    b'"Prepend","prepend":"\xe2\x96\x81"},{"type":"Replace","pattern":{"String":" "},"content":'
    b'"\xe2\x96\x81"}]},"pre_tokenizer":null,"post_processor":{"type":"TemplateProcessing","single":'
    b'[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],'
    b'"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},"decoder":{"type":'
    b'"Sequence","decoders":[{"type":"Replace","pattern":{"String":"\xe2\x96\x81"},"content":" "},'
    b'{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},'
    b'"model":{"type":"BPE","unk_token":"<u>","byte_fallback":true,"vocab":{"<u>":0,"<s>":1,'
    b'"<0x41>":2,"\xe2\x96\x81":3,"a":4},"merges":[]}}',
    b'{"added_tokens":[],"decoder":{"type":"Metaspace","replacement":"\xe2\x96\x81","prepend_scheme":'
    b'"first","split":true},"pre_tokenizer":{"type":"Metaspace","replacement":"\xe2\x96\x81",'
    b'"prepend_scheme":"first","split":true},"model":{"type":"Unigram","unk_id":0,"vocab":'
    b'[["<u>",0.0],["\xe2\x96\x81",-1.5],["a",-2.0]],"byte_fallback":false}}',
)
_CONFIGS: Final = {
    "config.json": (
        b'{"eos_token_id":[2,5],"max_position_embeddings":4096}',
        b'{"text_config":{"eos_token_id":5,"max_position_embeddings":4096}}',
    ),
    "generation_config.json": (b'{"eos_token_id":5}', b'{"eos_token_id":[5,null]}'),
    "tokenizer_config.json": (b'{"eos_token":"<e>"}', b'{"eos_token":{"content":"<e>"}}'),
}


@_register
def tokenizer_json(chance: random.Random) -> None:
    """A hostile ``tokenizer.json``: a tokenizer that encodes, or ``CheckpointError``."""
    data = alter_json(chance.choice(TOKENIZERS), TOKENIZERS, chance)
    if _has_large_numbers(data):
        return
    with given(data=data), suppress(CheckpointError):
        Tokenizer(data)


def _has_large_numbers(data: bytes) -> bool:
    """Ids in the millions make tables of millions, in every library."""
    try:
        found = json.loads(data, parse_int=lambda word: 10**9 if len(word) > 6 else int(word))
    except (ValueError, RecursionError):
        return False
    return b"0" * 9 in json.dumps(found).encode()


@_register
def checkpoint_files(chance: random.Random) -> None:
    """Hostile files beside a sound ``tokenizer.json``."""
    name = chance.choice(sorted(_CONFIGS))
    data = altered_json(_CONFIGS[name], chance)
    with given(name=name, data=data), tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        (directory / "tokenizer.json").write_bytes(TOKENIZERS[0])
        (directory / name).write_bytes(data)
        with suppress(CheckpointError):
            load_checkpoint(directory)


# -- whole requests ----------------------------------------------------------------------------

_PATHS: Final[tuple[tuple[str, Callable[[Router, Inbound, Reply], Awaitable[None]], Any], ...]] = (
    ("/generate", generate, GENERATES),
    ("/v1/chat/completions", chat_completions, CHATS),
    ("/v1/completions", completions, COMPLETIONS),
)


def _run(work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    trio.run(partial(work, *arguments), clock=MockClock(autojump_threshold=0))


@_register
def client_body(chance: random.Random) -> None:
    """A whole request with an altered body: an answer or a named error, and nothing left behind."""
    path, serve, goldens = chance.choice(_PATHS)
    body = altered_json(goldens, chance)
    whole = answer(json.dumps(answer_item([5, 6], "ab")).encode())
    with given(path=path, body=body):
        _run(_ask, serve, inbound(path, body), [whole])


@_register
def worker_bytes(chance: random.Random) -> None:
    """A whole request whose worker answers altered bytes, split anywhere."""
    path, serve, _ = chance.choice(_PATHS)
    body = chance.choice(_BODIES[path])
    sent = _answered(b'"stream":true' in body, chance)
    with given(path=path, body=body, sent=sent):
        _run(_ask, serve, inbound(path, body), sent)


_BODIES: Final = {
    "/generate": (
        b'{"text":"Hello"}',
        b'{"text":"Hello","stream":true}',
        b'{"text":["a","b"]}',
        b'{"input_ids":[5,6],"sampling_params":{"n":2},"stream":true,"return_logprob":true}',
    ),
    "/v1/chat/completions": (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"logprobs":true,'
        b'"top_logprobs":2,"return_meta_info":true}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"logprobs":true}',
    ),
    "/v1/completions": (
        b'{"model":"m","prompt":"x","logprobs":2}',
        b'{"model":"m","prompt":"x","n":2,"stream":true,"stream_options":{"include_usage":true}}',
    ),
}


def _answered(stream: bool, chance: random.Random) -> list[bytes]:
    if stream != (chance.random() < 0.05):
        data = alter_bytes(chance.choice(STREAMS), STREAMS, chance)
        kind, parts = b"text/event-stream", list(map(chunk, pieces(data, chance)))
        if chance.random() < 0.5:
            events = [block + b"\n\n" for block in chance.choice(STREAMS).split(b"\n\n") if block]
            at = chance.randrange(len(events))
            if events[at].startswith(b"data: {"):
                altered = altered_json([events[at][6:].strip()], chance)
                events[at] = b"data: " + altered.replace(b"\n", b"\ndata: ") + b"\n\n"
            parts = list(map(chunk, events))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        sent = [head, *parts, b"0\r\n\r\n"]
    else:
        status = chance.choice((b"200 OK",) * 9 + (b"400 Bad", b"503 No"))
        sent = [answer(altered_json(ANSWERS, chance), status=status)]
    if chance.random() < 0.15:
        return pieces(alter_bytes(b"".join(sent), _RESPONSES, chance), chance)
    return sent


async def _ask(
    serve: Callable[[Router, Inbound, Reply], Awaitable[None]],
    request: Inbound,
    sent: list[bytes],
) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            for piece in sent:
                await peer.send(piece)
            return  # which closes the connection

    async with relay_router(script) as (router, journal):
        sink = Sink()
        try:
            await serve(router, request, sink)
        except InvariantError:
            raise
        except SlimeError as error:
            # A refusal passes through as it comes, and may be cut off as it comes.
            assert not sink.started or sink.status != 200
            msgspec.json.encode(as_openai(error))
        assert_at_rest(router, [journal])
        if sink.status == 200 and request.path.startswith("/v1/"):
            _check_openai(b"".join(sink.got))
        for call in list(router.state.forest.calls):
            json.loads(await retrieval.by_call(router, call))


def _check_openai(body: bytes) -> None:
    """Whatever the worker sent: a client of this dialect gets JSON, whole or in events."""
    if not body.startswith(b"data: "):
        json.loads(body)
        return
    decoder = sse.Decoder()
    for event in decoder.receive(body):
        assert event.data == b"[DONE]" or json.loads(event.data)
    decoder.close()


_RETRIEVALS: Final = (
    b'{"text":"Helloab","id":"%032x"}' % 0,
    b'{"text":"Hello","id":null}',
    b'{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":"assistant",'
    b'"content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":'
    b'{"a":1}}}]},{"role":"tool","tool_call_id":"c","content":"ok"}],"tools":[{"type":"function",'
    b'"function":{"name":"f","parameters":{}}}],"add_generation_prompt":true,'
    b'"chat_template_kwargs":{"a":1},"id":"x"}',
)


@_register
def retrieval_body(chance: random.Random) -> None:
    """Retrieval by text, by messages and by name, after a call was captured."""
    bodies = [altered_json(_RETRIEVALS, chance) for _ in range(8)]
    with given(bodies=bodies):
        _run(_retrieve, bodies)


async def _retrieve(bodies: list[bytes]) -> None:
    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(answer(json.dumps(answer_item([5, 6], "ab")).encode()))

    async with relay_router(script) as (router, journal):
        await generate(router, inbound("/generate", {"text": "Hello"}), Sink())
        for body in bodies:
            for retrieve in (retrieval.by_text, retrieval.by_messages):
                with given(body=body), suppress(ClientError):
                    json.loads(await retrieve(router, body))
            with suppress(ClientError):
                await retrieval.by_call(router, body[:40].decode("latin-1"))
        assert_at_rest(router, [journal])


_TOLD: Final = (
    b'{"model_path":"m","weight_version":"12"}',
    b'{"tokens":[1,2,3],"count":3,"max_model_len":4096}',
)


@_register
def first_contact(chance: random.Random) -> None:
    """A worker that tells nonsense of itself is unfit or not, and never the router's problem."""
    bodies = [altered_json(_TOLD, chance) for _ in range(2)]
    statuses = [chance.choice((200, 200, 200, 404, 500)) for _ in range(2)]
    with given(bodies=bodies, statuses=statuses):
        _run(_contact, bodies, statuses)


async def _contact(bodies: list[bytes], statuses: list[int]) -> None:
    def told(request: httpx.Request) -> httpx.Response:
        which = int(request.url.path == "/tokenize")
        return httpx.Response(statuses[which], content=bodies[which])

    async def nobody(peer: Peer) -> None:
        await peer.close()

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(told)) as client,
        relay_router(nobody) as (router, journal),
    ):
        with structlog.testing.capture_logs():
            await contact(router, client, WorkerUrl(URL))
        assert_at_rest(router, [journal])
        assert router.context_length is None or isinstance(router.context_length, int)
