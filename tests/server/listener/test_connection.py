"""One connection, over streams in memory and in virtual time, before an application of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, lockstep_stream_pair, wait_all_tasks_blocked

from tests.server.listener.support import (
    DATE,
    Client,
    answer_of,
    body_of,
    echo,
    opened,
    request,
)


async def _refused(client: Client) -> tuple[int, str]:
    """The status and code of the next answer, behind which the connection must end."""
    status, fields, body = await client.answer()
    assert fields[b"connection"] == b"close"
    assert await client.rest() == b""
    return status, json.loads(body)["error"]["code"]


async def _echoed(client: Client) -> tuple[str, str]:
    status, fields, body = await client.answer()
    assert (status, fields[b"date"]) == (200, DATE)
    assert b"connection" not in fields
    told = json.loads(body)
    return told["path"], told["body"]


# -- requests in a row ---------------------------------------------------------------------------


async def test_a_connection_serves_one_request_after_the_other(autojump_clock: MockClock) -> None:
    async with opened(echo) as door:
        client = door.connect()
        for body in (b"a", b"", b"b" * 300_000):
            await client.send(request("/x", method="POST", body=body))
            assert await _echoed(client) == ("/x", body.decode())


async def test_requests_that_are_sent_ahead_are_answered_in_their_order(
    autojump_clock: MockClock,
) -> None:
    async with opened(echo) as door:
        client = door.connect()
        sent = [request(f"/{place}", method="POST", body=b"x" * place) for place in range(20)]
        await client.send(b"".join(sent))
        for place in range(20):
            assert await _echoed(client) == (f"/{place}", "x" * place)


async def test_requests_are_read_however_they_are_cut(autojump_clock: MockClock) -> None:
    chunked = (
        b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    async with opened(echo) as door:
        client = door.connect()
        for byte in request("/a", method="POST", body=b"xyz") + chunked + request("/b"):
            await client.send(bytes([byte]))
        expected = [("/a", "xyz"), ("/c", "abc"), ("/b", "")]
        assert [await _echoed(client) for _ in expected] == expected


async def test_whoever_sends_many_ahead_keeps_nobody_waiting(autojump_clock: MockClock) -> None:
    served: list[str] = []

    async def at_once(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await answer_of(send, b"")

    async with opened(at_once) as door:
        greedy, other = door.connect(), door.connect()
        await greedy.send(request("/greedy") * 50)
        await other.send(request("/other"))
        await other.answer()
        assert served.count("/greedy") < 50


async def test_what_is_sent_ahead_is_not_read_without_end(autojump_clock: MockClock) -> None:
    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        await receive()

    async with opened(wait) as door:
        ours, theirs = lockstep_stream_pair()
        door.nursery.start_soon(door.listener.serve_stream, theirs)
        with trio.move_on_after(10) as patience:
            for _ in range(100):
                await ours.send_all(request() * 1000)
        assert patience.cancelled_caught


@pytest.mark.parametrize("asked", ["connection: close\r\n", ""])
async def test_a_connection_ends_where_its_client_wants_it(
    autojump_clock: MockClock, asked: str
) -> None:
    version = b"HTTP/1.1" if asked else b"HTTP/1.0"
    async with opened(echo) as door:
        client = door.connect()
        await client.send(request("/x", more=asked).replace(b"HTTP/1.1", version))
        _, fields, _ = await client.answer()
        assert fields[b"connection"] == b"close"
        assert await client.rest() == b""


# -- waits ---------------------------------------------------------------------------------------


async def test_an_idle_connection_ends_after_its_time(autojump_clock: MockClock) -> None:
    async with opened(echo) as door:
        client = door.connect()
        await trio.sleep(70)
        await client.send(request("/x"))
        await client.answer()
        began = trio.current_time()
        assert await client.rest() == b""
        assert trio.current_time() - began == pytest.approx(75)


async def test_a_head_has_one_deadline_from_its_first_byte_on(autojump_clock: MockClock) -> None:
    async with opened(echo, header_timeout_s=3.0) as door, trio.open_nursery() as nursery:
        client = door.connect()
        await trio.sleep(20)

        async def drip() -> None:
            await client.send(b"GET / HTTP/1.1\r\nx: ")
            while True:
                await trio.sleep(1)
                await client.send(b"a")

        nursery.start_soon(drip)
        began = trio.current_time()
        status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert trio.current_time() - began == pytest.approx(3)
        nursery.cancel_scope.cancel()


async def test_a_body_may_take_long_but_not_pause_long(autojump_clock: MockClock) -> None:
    async with opened(echo, body_timeout_s=5.0) as door:
        client = door.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        for _ in range(6):
            await trio.sleep(4)
            await client.send(b"a")
        began = trio.current_time()
        assert await _refused(client) == (408, "request_timeout")
        assert trio.current_time() - began == pytest.approx(5, abs=2.1)


async def test_an_answer_may_take_longer_than_everything(autojump_clock: MockClock) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(10_000)
        await answer_of(send, b"done")

    async with opened(slow) as door:
        client = door.connect()
        await client.send(request())
        assert (await client.answer())[2] == b"done"


async def test_the_deadlines_of_others_are_kept_while_one_is_busy(
    autojump_clock: MockClock,
) -> None:
    async with opened(echo, header_timeout_s=2.0) as door:
        idle, slow = door.connect(), door.connect()
        await trio.sleep(1)
        await slow.send(b"GET")
        assert await _refused(slow) == (408, "request_timeout")
        # What lingers for its client ends later.
        assert 3 <= trio.current_time() <= 5.1
        await idle.rest()
        assert trio.current_time() == pytest.approx(75)


async def test_a_client_that_takes_nothing_is_given_up(autojump_clock: MockClock) -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    ended = trio.Event()
    async with opened(stream, client_stall_s=7.0) as door:
        ours, theirs = lockstep_stream_pair()
        door.nursery.start_soon(door.listener.serve_stream, theirs)
        await ours.send_all(request())
        with trio.fail_after(10):
            await ended.wait()
        assert trio.current_time() == pytest.approx(7)


# -- clients that leave --------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
async def test_an_application_is_told_that_its_client_has_left(
    autojump_clock: MockClock, whole: bool
) -> None:
    told: list[str] = []

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        asked.set()
        told.append((await receive())["type"])
        ended.set()

    asked, ended = trio.Event(), trio.Event()
    async with opened(wait) as door:
        client = door.connect()
        await client.send(request(method="POST", body=b"x"))
        await asked.wait()
        await (client.stream.aclose() if whole else client.stream.send_eof())
        with trio.fail_after(1):
            await ended.wait()
    assert told == ["http.disconnect"]


@pytest.mark.parametrize("sent", [b"GET / HT", request(method="POST", body=b"xy")[:-1]])
async def test_half_a_request_is_refused_when_no_more_comes(
    autojump_clock: MockClock, sent: bytes
) -> None:
    async with opened(echo) as door:
        client = door.connect()
        await client.send(sent)
        await client.stream.send_eof()
        assert await _refused(client) == (400, "malformed_request")


async def test_an_answer_that_breaks_off_has_no_end(autojump_clock: MockClock) -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})

    async with opened(half) as door:
        client = door.connect()
        await client.send(request())
        assert (await client.rest()).endswith(b"\r\n\r\n2\r\nab\r\n")


@pytest.mark.parametrize("begun", [False, True])
async def test_trouble_in_one_request_is_its_own(autojump_clock: MockClock, begun: bool) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            await answer_of(send, b"fine")
            return
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("a bug")

    with capture_logs() as said:
        async with opened(broken) as door:
            first, second = door.connect(), door.connect()
            await first.send(request("/broken"))
            got = await first.rest()
            assert got.startswith(b"HTTP/1.1 200 " if begun else b"HTTP/1.1 500 ")
            await second.send(request())
            assert (await second.answer())[2] == b"fine"
    (line,) = said
    assert (line["event"], line["task"]) == ("internal error", "application")
    assert line["exc_info"]


async def test_an_answer_of_another_length_than_announced_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    async def short(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"abc"})

    async with opened(short) as door:
        client = door.connect()
        await client.send(request() * 2)
        assert (await client.rest()).count(b"HTTP/1.1") <= 1


# -- bodies --------------------------------------------------------------------------------------


async def test_a_body_is_invited_when_it_is_wanted_and_once(autojump_clock: MockClock) -> None:
    async with opened(echo) as door:
        client = door.connect()
        expect = "expect: 100-continue\r\ncontent-length: 2\r\n"
        await client.send(request("/x", method="POST", more=expect))
        status, fields, _ = await client.answer()
        assert (status, fields[b"date"]) == (100, DATE)
        for byte in b"ab":
            await client.send(bytes([byte]))
        assert await _echoed(client) == ("/x", "ab")


async def test_a_body_that_is_there_already_is_not_invited(autojump_clock: MockClock) -> None:
    async with opened(echo) as door:
        client = door.connect()
        await client.send(request("/x", method="POST", body=b"ab", more="expect: 100-continue\r\n"))
        assert await _echoed(client) == ("/x", "ab")


async def test_a_body_is_not_invited_once_its_answer_has_begun(autojump_clock: MockClock) -> None:
    async def hasty(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await receive()
        await send({"type": "http.response.body", "body": b"ok"})

    async with opened(hasty) as door:
        client = door.connect()
        expect = "expect: 100-continue\r\ncontent-length: 2\r\n"
        await client.send(request("/x", method="POST", more=expect))
        assert (await client.rest()).endswith(b"ok")
        assert trio.current_time() < 5


async def test_a_body_that_came_is_waited_for_no_more(autojump_clock: MockClock) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await trio.sleep(1000)
        await answer_of(send, b"ok")

    async with opened(slow) as door:
        client = door.connect()
        await client.send(request(method="POST", more="content-length: 2\r\n"))
        await trio.sleep(1)
        await client.send(b"ab")
        assert (await client.answer())[2] == b"ok"


@pytest.mark.parametrize("steps", range(6))
async def test_an_answer_does_not_cut_into_the_invitation_of_a_body(
    autojump_clock: MockClock, steps: int
) -> None:
    async def torn(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await answer_of(send, b"no")
            nursery.cancel_scope.cancel()

    async with opened(torn) as door:
        client = door.connect()
        expect = "expect: 100-continue\r\ncontent-length: 2\r\n"
        await client.send(request("/x", method="POST", more=expect))
        wire = await client.rest()
        assert wire.endswith(b"no")
        assert wire.count(b"HTTP/1.1 ") == wire.count(b"\r\n\r\n")


async def test_names_of_fields_may_come_in_capitals(autojump_clock: MockClock) -> None:
    async def loud(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"Content-Length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"ok"})

    async with opened(loud) as door:
        client = door.connect()
        await client.send(request())
        _, fields, body = await client.answer()
        assert (fields[b"content-length"], body) == (b"2", b"ok")


async def _deaf(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads no body."""
    await answer_of(send, b"no")


async def test_a_body_that_nobody_read_is_in_nobodys_way(autojump_clock: MockClock) -> None:
    async with opened(_deaf) as door:
        client = door.connect()
        for _ in range(2):
            await client.send(request(method="POST", body=b"small"))
            assert (await client.answer())[2] == b"no"


async def test_a_body_that_nobody_reads_ends_the_connection_behind_the_answer(
    autojump_clock: MockClock,
) -> None:
    async with opened(_deaf) as door:
        client = door.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\nxx")
        assert (await client.answer())[2] == b"no"
        assert await client.rest() == b""
        # It lingers: what the client goes on sending meets nobody's reset.
        await client.send(b"y" * 1000)


async def test_a_body_gets_no_larger_than_it_may(autojump_clock: MockClock) -> None:
    async with opened(echo, max_body_mb=1) as door:
        client = door.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"100001\r\n" + b"x" * 0x100001)
            assert await _refused(client) == (413, "body_too_large")


# -- the end of the server -----------------------------------------------------------------------


async def test_a_stop_ends_idle_connections_at_once_and_others_with_their_answer(
    autojump_clock: MockClock,
) -> None:
    async def wait(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await go.wait()
        await answer_of(send, b"late")

    asked, go = trio.Event(), trio.Event()
    async with opened(wait) as door:
        idle, begun, busy = (door.connect() for _ in range(3))
        await begun.send(b"GET / HTTP/1.1\r\n")
        await busy.send(request() * 2)
        await asked.wait()
        began = trio.current_time()
        door.listener.stop()
        assert await idle.rest() == await begun.rest() == b""
        assert trio.current_time() - began == pytest.approx(0)
        go.set()
        assert (await busy.answer())[2] == b"late"
        assert await busy.rest() == b""
        late = door.connect()
        assert await late.rest() == b""


async def test_a_connection_too_many_is_told_so(autojump_clock: MockClock) -> None:
    async with opened(echo, max_connections=1) as door:
        first = door.connect()
        await first.send(request("/x"))
        await first.answer()
        second = door.connect()
        status, _, body = await second.answer()
        assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")
        assert await second.rest() == b""
        await first.stream.aclose()
        await wait_all_tasks_blocked()
        third = door.connect()
        await third.send(request("/x"))
        assert await _echoed(third) == ("/x", "")


# -- what the application sees -------------------------------------------------------------------


async def test_the_scope_says_everything_that_asgi_wants(autojump_clock: MockClock) -> None:
    seen: list[Any] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await answer_of(send, b"")

    async with opened(look) as door:
        client = door.connect()
        await client.send(request("/a%20b/%C3%A9?q=%20", more="X-Y:  Z \r\n"))
        await client.answer()
    (scope,) = seen
    assert scope == {
        "type": "http",
        "http_version": "1.1",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": "GET",
        "scheme": "http",
        "path": "/a b/é",
        "raw_path": b"/a%20b/%C3%A9",
        "query_string": b"q=%20",
        "root_path": "",
        "headers": [(b"host", b"x"), (b"x-y", b"Z")],
        "client": None,
        "server": None,
        "state": {},
        "extensions": {},
    }


async def test_head_and_what_has_no_content_have_no_body(autojump_clock: MockClock) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = 204 if scope["path"] == "/empty" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"not to be sent"})

    async with opened(app) as door:
        client = door.connect()
        await client.send(request(method="HEAD") + request("/empty") + request())
        assert b"not to be sent" not in await client.until(b"\r\n\r\n")
        assert (await client.answer())[0] == 204
        assert (await client.answer())[2] == b"not to be sent"


async def test_a_head_leaves_at_once_where_a_stream_takes_its_time(
    autojump_clock: MockClock,
) -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await trio.sleep(50)
        await send({"type": "http.response.body", "body": b"x"})

    async with opened(stream) as door:
        client = door.connect()
        await client.send(request())
        await client.until(b"\r\n\r\n")
        assert trio.current_time() == pytest.approx(0)
