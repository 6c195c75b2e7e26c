"""HTTP, worker URLs, configuration and checkpoints, as the shell reads them."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import h11

from slime_trio.config import (
    OPTIONS,
    ConfigurationError,
    add_arguments,
    from_arguments,
    from_environment,
)
from slime_trio.exchange import Inbound, for_client, for_worker
from slime_trio.tokenizer import CheckpointError, Tokenizer, load_checkpoint
from slime_trio.upstream import parse_origin
from slime_trio.upstream.parser import Head, ResponseParser
from slime_trio.upstream.request_head import request_head
from tests.fuzzing.goldens import (
    altered_json,
)
from tests.fuzzing.mutate import alter_bytes, alter_json, pieces
from tests.fuzzing.targets import Register, given

__all__ = ["RESPONSES", "TARGETS", "TOKENIZERS"]

_register = Register()
TARGETS: Final = _register.targets

RESPONSES: Final = (
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
    data = chance.choice(RESPONSES) + chance.choice((b"", b"\r\n", chance.choice(RESPONSES)))
    for _ in range(chance.randrange(3)):
        data = alter_bytes(data, RESPONSES, chance)
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
    golden = chance.choice(RESPONSES)
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
