"""The pool on real sockets: what memory streams cannot show."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from slime_trio.upstream import Pool, TcpStream, TrioStream, UpstreamError, parse_origin
from slime_trio.upstream.connect import tcp_connect
from tests.server.upstream_support import HTTP_OK, Peer, answer

Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def worker(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A listening worker whose connections run ``script``; gives its URL."""
    numbers = iter(range(10**6))

    async def handle(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, tls, server_side=True) if tls else stream
        try:
            await script(Peer(secured, next(numbers)))
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(secured)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def echo(peer: Peer) -> None:
    while (request := await peer.request()) is not None:
        await peer.send(answer(request[1]))


async def post(pool: Pool, url: str, body: bytes) -> bytes:
    async with pool.request("POST", url, b"/", (), body) as response:
        return await response.read()


async def test_a_hundred_requests_at_once_and_again() -> None:
    async with worker(echo) as url:
        pool = Pool()
        answers: dict[int, bytes] = {}

        async def one(number: int) -> None:
            answers[number] = await post(pool, url, b"%d" % number)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(one, number)
            assert answers == {number: b"%d" % number for number in range(100)}
        stats = pool.stats()
        assert stats.in_use == 0
        assert stats.reused > 0
        assert stats.opened + stats.reused == 200
        await pool.aclose()


async def test_megabytes_both_ways() -> None:
    body = bytes(range(256)) * 20_000
    async with worker(echo) as url:
        pool = Pool()
        assert await post(pool, url, body) == body
        assert await post(pool, url, body[1:]) == body[1:]
        assert pool.stats().opened == 1
        await pool.aclose()


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\r\n"])
async def test_an_idle_connection_that_ended_is_seen_before_it_is_used(
    last_words: bytes,
) -> None:
    is_idle = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HTTP_OK)
        if peer.number == 0:
            await is_idle.wait()
            await peer.send(last_words)

    async with worker(script) as url:
        pool = Pool()
        assert await post(pool, url, b"a") == b"ok"
        assert pool.idle(url) == 1
        is_idle.set()
        await wait_all_tasks_blocked(0.05)  # loopback delivers once both ends had their turn
        assert await post(pool, url, b"b") == b"ok"
        stats = pool.stats()
        assert (stats.opened, stats.reused, stats.retried) == (2, 0, 0)
        await pool.aclose()


async def test_bytes_that_nobody_asked_for_on_an_idle_connection_make_it_stale() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = TcpStream(ours)
        assert not stream.is_stale()
        theirs.send(b"x")
        assert stream.is_stale()
        stream.close()


async def test_a_reset_connection_is_stale() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    stream = await tcp_connect(parse_origin(f"http://127.0.0.1:{port}"), None)
    accepted, _ = listener.accept()
    listener.close()
    await stream.send_all(b"unread")
    accepted.close()  # with unread bytes: a reset
    await trio.sleep(0.05)
    assert stream.is_stale()
    stream.close()
    stream.close()


async def test_a_trio_socket_stream_is_tested_at_its_socket() -> None:
    ours, theirs = socket.socketpair()
    stream = TrioStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    assert not stream.is_stale()
    theirs.close()
    assert stream.is_stale()
    stream.close()


async def test_nagles_algorithm_is_off() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    stream = TcpStream(ours)
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not ours.getblocking()
    stream.close()
    listener.close()


async def test_a_refused_connection_is_a_worker_that_cannot_be_reached() -> None:
    with socket.socket() as unlistened:
        unlistened.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unlistened.getsockname()[1]}"
        with pytest.raises(UpstreamError) as caught:
            await post(Pool(), url, b"")
    assert caught.value.code == "connect_failed"
    assert caught.value.worker_url == url


async def test_who_is_cancelled_while_connecting_is_told_by_one_exception() -> None:
    seen: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, trio.CancelScope() as scope:
        origin = parse_origin(f"http://127.0.0.1:{listener.getsockname()[1]}")
        scope.cancel()
        try:
            await tcp_connect(origin, None)
        except BaseException as error:
            seen.append(error)
            raise
    assert [type(error) for error in seen] == [trio.Cancelled]


async def test_an_answer_to_half_a_request_is_heard_although_the_worker_hung_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(1000)
        await peer.send(answer(b"too large", status=b"413 Content Too Large"))

    async with worker(script) as url:
        pool = Pool()
        body = bytes(50_000_000)
        async with pool.request("POST", url, b"/", (), body) as response:
            assert response.status == 413
            assert await response.read() == b"too large"
        assert repr(pool) == "<Pool idle=0 in_use=0 opened=1>"


async def test_leaving_a_stream_early_reaches_the_worker_at_once() -> None:
    hung_up = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        assert await peer.request() is None
        hung_up.set()

    async with worker(script) as url:
        async with Pool().request("GET", url, b"/") as response:
            assert await response.receive_some() == b"a"
        with trio.fail_after(5):
            await hung_up.wait()


async def test_a_fast_worker_lets_other_tasks_run() -> None:
    ours, theirs = socket.socketpair()
    theirs.send(bytes(1000))
    stream = TcpStream(ours)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(100):
            assert len(await stream.receive_some(10)) == 10
        nursery.cancel_scope.cancel()
    stream.close()
    theirs.close()
    assert turns > 40


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_https_verifies_reuses_and_sees_the_end(tmp_path: Path) -> None:
    await trio.run_process(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", "key", "-out", "cert", "-subj", "/CN=w"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    may_hang_up = trio.Event()

    async def twice(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            await peer.send(HTTP_OK)
        await may_hang_up.wait()

    async with worker(twice, tls=server) as url:
        with pytest.raises(UpstreamError, match="could not be reached"):
            await post(Pool(), url, b"not trusted")
        pool = Pool(tls=lambda: ssl.create_default_context(cafile=tmp_path / "cert"))
        for _ in range(2):
            assert await post(pool, url, b"a") == b"ok"
        assert (pool.stats().opened, pool.stats().reused) == (1, 1)
        assert pool.idle(url) == 1
        may_hang_up.set()
        await wait_all_tasks_blocked(0.05)
        assert await post(pool, url, b"b") == b"ok"
        assert (pool.stats().opened, pool.stats().retried) == (2, 0)
        await pool.aclose()
