"""The router's own HTTP/1.1 client for requests to workers: a pool, and nothing more.

Two rules for those who use it: leave a response early to abort it at the worker, and bound the
waits for its body with cancel scopes. Everything a worker or the network does wrong arrives as
:class:`UpstreamError`.
"""

from slime_trio.byte_stream import ByteStream, TcpStream, TrioStream
from slime_trio.upstream.answering import GivenAnswer, WorkerAnswer
from slime_trio.upstream.connect import Connect, tcp_connect
from slime_trio.upstream.end_watch import EndWatch, Watch
from slime_trio.upstream.exchange import Exchange
from slime_trio.upstream.failures import FAILURES, STREAM_FAILURES, FailureCode, UpstreamError
from slime_trio.upstream.origin import Origin, parse_origin
from slime_trio.upstream.pins import Pins, UnpinnedError
from slime_trio.upstream.pool import Pool, PoolStats
from slime_trio.upstream.response import Response

__all__ = [
    "FAILURES",
    "STREAM_FAILURES",
    "ByteStream",
    "Connect",
    "EndWatch",
    "Exchange",
    "FailureCode",
    "GivenAnswer",
    "Origin",
    "Pins",
    "Pool",
    "PoolStats",
    "Response",
    "TcpStream",
    "TrioStream",
    "UnpinnedError",
    "UpstreamError",
    "Watch",
    "WorkerAnswer",
    "parse_origin",
    "tcp_connect",
]
