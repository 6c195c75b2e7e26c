"""The pool over memory streams, in virtual time: reuse, the keep-alive race, failures, limits."""

from __future__ import annotations

import ssl

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from slime_trio.upstream import (
    FAILURES,
    ByteStream,
    FailureCode,
    Origin,
    Pool,
    UpstreamError,
)
from tests.server.upstream_support import HTTP_OK, URL, Peer, Workers, answer


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


async def serve_ok(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(HTTP_OK)


async def get(pool: Pool, *, head_timeout_s: float | None = None) -> bytes:
    async with pool.request("GET", URL, b"/", head_timeout_s=head_timeout_s) as response:
        return await response.read()


async def failure_of(pool: Pool, *, head_timeout_s: float | None = None) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await get(pool, head_timeout_s=head_timeout_s)
    return caught.value


# What a request and a response are.


async def test_a_request_arrives_with_prefix_headers_and_body(nursery: trio.Nursery) -> None:
    seen = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(HTTP_OK)

    pool = Pool(connect=Workers(nursery, script))
    headers = [(b"x-a", b"1")]
    async with pool.request("POST", URL + "/v/", b"/generate?b", headers, b"body") as response:
        await response.read()
    assert seen == [
        (
            b"POST /v/generate?b HTTP/1.1\r\nhost: worker:30000\r\nx-a: 1\r\ncontent-length: 4",
            b"body",
        )
    ]


async def test_a_response_shows_its_head_as_it_came(nursery: trio.Nursery) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"hm", status=b"418 I'm a teapot", extra=b"X-A: Bc\r\nx-a: d\r\n"))

    pool = Pool(connect=Workers(nursery, script))
    async with pool.request(b"GET", URL, b"/") as response:
        assert (response.status, response.reason) == (418, b"I'm a teapot")
        assert response.headers == ((b"content-length", b"2"), (b"x-a", b"Bc"), (b"x-a", b"d"))
        assert response.header(b"x-a") == b"Bc"
        assert response.header(b"x-b") is None
        assert response.content_length == 2


async def test_the_body_is_delivered_as_it_arrives(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for word in (b"one", b"two"):
            await trio.sleep(1)
            await peer.send(b"3\r\n%b\r\n" % word)
        await trio.sleep(1)
        await peer.send(b"0\r\n\r\n")

    pool = Pool(connect=Workers(nursery, script))
    start = trio.current_time()
    async with pool.request("GET", URL, b"/") as response:
        pieces = [(trio.current_time() - start, piece) async for piece in response.iter_bytes()]
    assert pieces == [(1, b"one"), (2, b"two")]
    assert trio.current_time() - start == 3


async def test_the_end_of_a_body_may_be_asked_for_again(nursery: trio.Nursery) -> None:
    pool = Pool(connect=Workers(nursery, serve_ok))
    async with pool.request("GET", URL, b"/") as response:
        pieces = [await response.receive_some() for _ in range(3)]
    assert pieces == [b"ok", b"", b""]


async def test_a_large_body_arrives_whole(nursery: trio.Nursery) -> None:
    bodies = []

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert request is not None
        bodies.append(request[1])
        await peer.send(HTTP_OK)

    pool = Pool(connect=Workers(nursery, script))
    body = bytes(range(256)) * 4096
    async with pool.request("POST", URL, b"/", (), body) as response:
        await response.read()
    assert bodies == [body]


async def test_head_has_no_body_and_its_connection_is_not_kept(nursery: trio.Nursery) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await peer.request()

    pool = Pool(connect=Workers(nursery, script))
    async with pool.request("HEAD", URL, b"/") as response:
        assert response.content_length == 5
        assert await response.read() == b""
    assert repr(pool) == "<Pool idle=0 in_use=0 opened=1>"


# Reuse.


async def test_one_connection_serves_many_requests_in_turn(nursery: trio.Nursery) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers)
    for _ in range(10):
        assert await get(pool) == b"ok"
    assert workers.connected == 1
    assert pool.stats().reused == 9
    assert repr(pool) == "<Pool idle=1 in_use=0 opened=1>"


async def test_requests_at_once_have_a_connection_each(nursery: trio.Nursery) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers)
    async with pool.request("GET", URL, b"/"), pool.request("GET", URL, b"/"):
        assert repr(pool) == "<Pool idle=0 in_use=2 opened=2>"
    assert repr(pool) == "<Pool idle=2 in_use=0 opened=2>"


async def test_workers_do_not_share_connections(nursery: trio.Nursery) -> None:
    pool = Pool(connect=Workers(nursery, serve_ok))
    await get(pool)
    async with pool.request("GET", "http://other:1", b"/") as response:
        await response.read()
    assert (pool.idle(URL), pool.idle("http://other:1"), pool.idle("http://third")) == (1, 1, 0)


async def test_idle_connections_beyond_the_bound_are_closed(nursery: trio.Nursery) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers, max_idle_per_origin=2)
    async with (
        pool.request("GET", URL, b"/"),
        pool.request("GET", URL, b"/"),
        pool.request("GET", URL, b"/"),
    ):
        assert len(workers.open) == 3
    assert repr(pool) == "<Pool idle=2 in_use=0 opened=3>"
    assert len(workers.open) == 2


async def test_a_connection_too_long_idle_is_replaced_unseen(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers, idle_timeout_s=4)
    await get(pool)
    await trio.sleep(3.9)
    await get(pool)
    await trio.sleep(4)
    await get(pool)
    assert (workers.connected, workers.open) == (2, {1})
    assert pool.stats().retried == 0


async def test_expire_closes_what_nobody_asks_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers, idle_timeout_s=4)
    await get(pool)
    await trio.sleep(4)
    pool.expire()
    assert workers.open == set()
    assert repr(pool) == "<Pool idle=0 in_use=0 opened=1>"


@pytest.mark.parametrize(
    "wire",
    [
        answer(b"ok", extra=b"connection: close\r\n"),
        HTTP_OK.replace(b"1.1", b"1.0"),
        HTTP_OK + b"more",
        HTTP_OK + HTTP_OK,
    ],
)
async def test_a_connection_that_may_not_be_kept_is_closed(
    nursery: trio.Nursery, wire: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        await peer.request()

    workers = Workers(nursery, script)
    pool = Pool(connect=workers)
    assert await get(pool) == b"ok"
    assert (pool.idle(URL), workers.open) == (0, set())


async def test_leaving_a_body_unread_closes_at_once(nursery: trio.Nursery) -> None:
    hung_up = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab")
        assert await peer.request() is None
        hung_up.set()

    pool = Pool(connect=Workers(nursery, script))
    async with pool.request("GET", URL, b"/") as response:
        assert await response.receive_some() == b"ab"
    assert repr(pool) == "<Pool idle=0 in_use=0 opened=1>"
    await hung_up.wait()


async def test_an_exception_in_the_block_closes_the_connection(nursery: trio.Nursery) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers)

    async def fail_after_reading() -> None:
        async with pool.request("GET", URL, b"/") as response:
            await response.read()
            raise LookupError

    with pytest.raises(LookupError):
        await fail_after_reading()
    assert (pool.idle(URL), workers.open) == (0, set())


async def test_a_forgotten_workers_connections_are_closed(nursery: trio.Nursery) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers)
    async with pool.request("GET", URL, b"/") as response:
        await get(pool)
        pool.forget(URL)
        assert workers.open == {0}
        await response.read()
    assert workers.open == set()
    assert await get(pool) == b"ok"


async def test_a_closed_pool_keeps_nothing_and_takes_nothing(nursery: trio.Nursery) -> None:
    workers = Workers(nursery, serve_ok)
    pool = Pool(connect=workers)
    async with pool.request("GET", URL, b"/") as response:
        await get(pool)
        await pool.aclose()
        await response.read()
    assert workers.open == set()
    assert repr(pool) == "<Pool closed idle=0 in_use=0 opened=2>"
    with pytest.raises(trio.ClosedResourceError):
        pool.request("GET", URL, b"/")


# The keep-alive race.


async def test_a_reused_connection_that_ends_without_a_byte_is_replaced_once(
    nursery: trio.Nursery,
) -> None:
    requests = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(HTTP_OK)
        if peer.number:  # the first connection ends after its first answer
            requests.append(await peer.request())

    workers = Workers(nursery, script)
    pool = Pool(connect=workers)
    await get(pool)
    await trio.testing.wait_all_tasks_blocked()
    async with pool.request("POST", URL, b"/", (), b"again") as response:
        assert await response.read() == b"ok"
    assert workers.connected == 2
    assert pool.stats().retried == 1
    assert [body for request in requests if request for body in request[1:]] == [b"", b"again"]


async def test_the_replacement_is_never_replaced(nursery: trio.Nursery) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(HTTP_OK)
            await peer.request()

    workers = Workers(nursery, script)
    pool = Pool(connect=workers)
    await get(pool)
    error = await failure_of(pool)
    assert (error.code, error.first_byte_sent) == ("connection_lost", False)
    assert workers.connected == 2
    assert workers.open == set()


async def test_the_replacement_is_fresh_even_if_others_are_idle(nursery: trio.Nursery) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HTTP_OK)
        if peer.number == 2:
            await peer.request()

    workers = Workers(nursery, script)
    pool = Pool(connect=workers)
    async with pool.request("GET", URL, b"/"), pool.request("GET", URL, b"/"):
        pass
    await trio.testing.wait_all_tasks_blocked()
    assert await get(pool) == b"ok"
    assert workers.connected == 3


async def test_a_fresh_connection_that_ends_without_a_byte_is_not_replaced(
    nursery: trio.Nursery,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    workers = Workers(nursery, script)
    error = await failure_of(Pool(connect=workers))
    assert (error.code, workers.connected) == ("connection_lost", 1)


async def test_nothing_is_sent_again_after_a_byte_came_back(nursery: trio.Nursery) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HTTP_OK)
        await peer.request()
        await peer.send(b"H")

    workers = Workers(nursery, script)
    pool = Pool(connect=workers)
    await get(pool)
    error = await failure_of(pool)
    assert (error.code, error.first_byte_sent) == ("connection_lost", True)
    assert workers.connected == 1


async def test_garbage_on_a_reused_connection_is_no_reason_to_try_again(
    nursery: trio.Nursery,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HTTP_OK)
        await peer.request()
        await peer.send(b"?")

    workers = Workers(nursery, script)
    pool = Pool(connect=workers)
    await get(pool)
    assert (await failure_of(pool)).code == "bad_response_framing"
    assert workers.connected == 1


# Failures.


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", "connection_lost"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
            "connection_lost",
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n?",
            "bad_response_framing",
        ),
    ],
)
async def test_a_body_that_breaks_off_gives_what_it_had_and_never_a_clean_end(
    nursery: trio.Nursery, wire: bytes, code: FailureCode
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)

    pool = Pool(connect=Workers(nursery, script))
    async with pool.request("GET", URL, b"/") as response:
        assert await response.receive_some() == b"ok"
        for _ in range(3):
            with pytest.raises(UpstreamError) as caught:
                await response.receive_some()
            assert (caught.value.code, caught.value.first_byte_sent) == (code, True)
    assert repr(pool) == "<Pool idle=0 in_use=0 opened=1>"


async def test_a_body_until_close_that_is_reset_has_no_clean_end(nursery: trio.Nursery) -> None:
    class Reset:
        """A stream that reports a reset once, and a plain end ever after, as sockets do."""

        def __init__(self) -> None:
            self.reads = [b"HTTP/1.1 200 OK\r\n\r\nok", ConnectionResetError(), b""]

        async def send_all(self, data: bytes) -> None:
            pass

        async def receive_some(self, max_bytes: int) -> bytes:
            read = self.reads.pop(0)
            if isinstance(read, Exception):
                raise read
            assert isinstance(read, bytes)
            return read

        def is_stale(self) -> bool:
            return False

        def socket_number(self) -> int:
            return -1

        def close(self) -> None:
            pass

    async def connect(origin: Origin, tls: ssl.SSLContext | None) -> Reset:
        return Reset()

    async with Pool(connect=connect).request("GET", URL, b"/") as response:
        assert await response.receive_some() == b"ok"
        for _ in range(3):
            with pytest.raises(UpstreamError):
                await response.receive_some()


async def test_an_answer_before_the_request_was_read_is_still_heard(
    nursery: trio.Nursery,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(answer(b"too large", status=b"413 Content Too Large"))

    workers = Workers(nursery, script)

    async def connect(origin: Origin, tls: ssl.SSLContext | None) -> ByteStream:
        stream = await workers(origin, tls)
        await trio.testing.wait_all_tasks_blocked()  # it has spoken and hung up by now
        return stream

    pool = Pool(connect=connect)
    async with pool.request("POST", URL, b"/", (), bytes(10**6)) as response:
        assert response.status == 413
        assert await response.read() == b"too large"
    assert repr(pool) == "<Pool idle=0 in_use=0 opened=1>"


async def test_a_head_over_the_limit_is_refused(nursery: trio.Nursery) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"", extra=b"x: %b\r\n" % (b"y" * 1000)))

    pool = Pool(connect=Workers(nursery, script), max_head_bytes=1000)
    assert (await failure_of(pool)).code == "response_too_large"


@pytest.mark.parametrize(
    "wire",
    [answer(b"12345"), b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n"],
)
async def test_read_is_bounded(nursery: trio.Nursery, wire: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        await peer.request()

    pool = Pool(connect=Workers(nursery, script))
    with pytest.raises(UpstreamError) as caught:
        async with pool.request("GET", URL, b"/") as response:
            await response.read(max_bytes=4)
    assert caught.value.code == "response_too_large"


async def test_read_may_fill_its_bound(nursery: trio.Nursery) -> None:
    pool = Pool(connect=Workers(nursery, serve_ok))
    async with pool.request("GET", URL, b"/") as response:
        assert await response.read(max_bytes=2) == b"ok"


@pytest.mark.parametrize("cause", [ConnectionRefusedError(), trio.BrokenResourceError()])
async def test_a_worker_that_cannot_be_reached(nursery: trio.Nursery, cause: Exception) -> None:
    workers = Workers(nursery, serve_ok)
    workers.fail_with = cause
    error = await failure_of(Pool(connect=workers))
    assert (error.code, error.status) == ("connect_failed", 502)
    assert error.__cause__ is cause


async def test_a_worker_that_does_not_accept(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    workers = Workers(nursery, serve_ok)
    workers.connect_delay_s = 60
    start = trio.current_time()
    error = await failure_of(Pool(connect=workers, connect_timeout_s=7))
    assert (error.code, error.status) == ("connect_timeout", 504)
    assert trio.current_time() - start == 7


async def test_a_head_timeout_while_connecting_is_named_so(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    workers = Workers(nursery, serve_ok)
    workers.connect_delay_s = 60
    start = trio.current_time()
    error = await failure_of(Pool(connect=workers), head_timeout_s=3)
    assert error.code == "connect_timeout"
    assert trio.current_time() - start == 3


async def test_a_worker_that_does_not_answer(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await trio.sleep(60)

    workers = Workers(nursery, script)
    start = trio.current_time()
    error = await failure_of(Pool(connect=workers), head_timeout_s=5)
    assert (error.code, error.status, error.first_byte_sent) == ("worker_timeout", 504, False)
    assert trio.current_time() - start == 5
    assert workers.open == set()


async def test_a_worker_that_stops_within_its_head(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 ")
        await trio.sleep(60)

    error = await failure_of(Pool(connect=Workers(nursery, script)), head_timeout_s=5)
    assert (error.code, error.first_byte_sent) == ("worker_timeout", True)


async def test_both_tries_share_one_head_timeout(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(HTTP_OK)
            await peer.request()
            await trio.sleep(3)
        else:
            await trio.sleep(60)

    workers = Workers(nursery, script)
    pool = Pool(connect=workers)
    await get(pool)
    start = trio.current_time()
    assert (await failure_of(pool, head_timeout_s=5)).code == "worker_timeout"
    assert (trio.current_time() - start, workers.connected) == (5, 2)


async def test_the_head_timeout_does_not_bound_the_body(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await trio.sleep(1000)
        await peer.send(b"ok")

    assert await get(Pool(connect=Workers(nursery, script)), head_timeout_s=5) == b"ok"


@pytest.mark.parametrize("code", FAILURES)
def test_no_message_names_a_worker(code: FailureCode) -> None:
    error = UpstreamError(code, worker_url=URL)
    assert error.code == code
    assert "://" not in error.message
    assert "30000" not in error.message
    assert error.worker_url == URL


@pytest.mark.parametrize(
    ("url", "target"), [("w:1", b"/"), (URL, b"x"), (URL + "/p", b"x"), (URL, b"/\r\n")]
)
def test_a_request_that_cannot_be_sent_is_the_callers_error(url: str, target: bytes) -> None:
    with pytest.raises(ValueError, match=r"worker URL|target"):
        Pool().request("GET", url, target)
