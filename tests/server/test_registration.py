"""Registrations before they are made: who asks, what a name means, and where it leads after."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from slime_core.addresses import Caller
from slime_core.errors import ClientError
from slime_trio.config import ConfigurationError, Settings, from_environment
from slime_trio.registration import caller, check
from slime_trio.registration_transport import PinnedTransport
from slime_trio.upstream import Pins, Pool, UnpinnedError, UpstreamError
from tests.server.harness import Arrived, fake_worker, http_response, router_with

ADMIN = Caller(address="10.0.0.5", is_direct=True, is_admin=True)


@dataclass
class Process:
    args: Settings
    pool: Pool


def process(*trusted: str, **settings: Any) -> Process:
    return Process(Settings(**settings), Pool(pins=Pins(trusted=trusted)))


class Names(trio.abc.HostnameResolver):
    """A name server that can be told to change its mind."""

    def __init__(self, **names: list[str] | None) -> None:
        self.names = {name.replace("_", "."): found for name, found in names.items()}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        found = self.names.get(name, [])
        if found is None:
            await trio.sleep_forever()
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 1))
            for one in found
        ]

    async def getnameinfo(self, sockaddr: Any, flags: Any) -> Any:
        raise NotImplementedError


def names(**known: list[str] | None) -> Names:
    resolver = Names(**known)
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


def scope(peer: str | None, **fields: str) -> Mapping[str, Any]:
    headers = [
        (name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in fields.items()
    ]
    return {"client": (peer, 5) if peer else None, "headers": headers}


# -- who asks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "address"),
    [("10.0.0.5", "10.0.0.5"), ("::ffff:10.0.0.5", "10.0.0.5"), ("fe80::1%eth0", "fe80::1"),
     (None, None), ("/run/socket", None)],
)  # fmt: skip
def test_without_a_proxy_the_peer_asks(peer: str | None, address: str | None) -> None:
    assert caller(scope(peer), Settings()) == Caller(address=address, is_direct=True)


@pytest.mark.parametrize(
    "field",
    ["x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "forwarded", "x_real_ip", "via",
     "origin", "sec_fetch_site"],
)  # fmt: skip
def test_whoever_comes_through_something_is_neither_local_nor_known(field: str) -> None:
    found = caller(scope("127.0.0.1", **{field: "10.0.0.5"}), Settings())
    assert (found.address, found.is_direct, found.is_local) == (None, False, False)


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({"x_forwarded_for": "10.0.0.5"}, "10.0.0.5"),
        ({"x_forwarded_for": "1.1.1.1, 10.0.0.5, 192.168.0.2"}, "10.0.0.5"),
        ({"x_forwarded_for": "10.0.0.5:4711"}, "10.0.0.5"),
        ({"x_forwarded_for": "[2a00::9]:4711"}, "2a00::9"),
        ({"x_forwarded_for": "unknown"}, None),
        ({"x_forwarded_for": "10.0.0.5, nonsense"}, None),
        ({"x_forwarded_for": ""}, None),
        ({"x_real_ip": "10.0.0.5"}, "10.0.0.5"),
        ({"forwarded": 'for=1.1.1.1, for="10.0.0.5:80";proto=http'}, "10.0.0.5"),
        ({"forwarded": 'by=x;for="[2a00::9]"'}, "2a00::9"),
        ({"x_forwarded_for": "10.0.0.5", "x_real_ip": "10.0.0.5"}, "10.0.0.5"),
        ({"x_forwarded_for": "10.0.0.5", "forwarded": "for=10.0.0.6"}, None),
        ({"x_forwarded_for": "192.168.0.3"}, None),
        ({"via": "1.1 proxy"}, None),
    ],
)
def test_a_trusted_proxy_is_believed(fields: dict[str, str], address: str | None) -> None:
    found = caller(scope("192.168.0.1", **fields), Settings(trusted_proxy=("192.168.0.0/24",)))
    assert found == Caller(address=address, is_direct=False)


def test_another_proxy_is_not_believed() -> None:
    settings = Settings(trusted_proxy=("192.168.0.0/24",))
    assert caller(scope("192.168.1.1", x_forwarded_for="10.0.0.5"), settings).address is None


def test_a_local_proxy_that_is_trusted_makes_nobody_local() -> None:
    settings = Settings(trusted_proxy=("127.0.0.0/8",))
    assert not caller(scope("127.0.0.1", x_forwarded_for="127.0.0.1"), settings).is_local


# -- what a name means -------------------------------------------------------------------------


async def test_a_name_is_looked_up_once_and_pinned() -> None:
    resolver = names(gpu_lan=["10.0.0.5", "10.0.0.6"])
    here = process()
    assert await check(here, "http://GPU.lan:1/v", ADMIN) == ("10.0.0.5", "10.0.0.6")
    resolver.names["gpu.lan"] = ["169.254.169.254"]
    assert here.pool.pins is not None
    assert here.pool.pins.addresses("gpu.lan", 1) == ("10.0.0.5", "10.0.0.6")
    assert len(resolver.asked) == 1


async def test_an_address_is_not_looked_up() -> None:
    resolver = names()
    assert await check(process(), "http://10.0.0.9:1", ADMIN) == ("10.0.0.9",)
    assert await check(process(), "http://[2a00::9]:1", ADMIN) == ("2a00::9",)
    assert not resolver.asked


async def test_a_metadata_service_is_not_even_looked_up() -> None:
    resolver = names()
    with pytest.raises(ClientError, match="metadata service"):
        await check(process(), "http://metadata.google.internal/", ADMIN)
    assert not resolver.asked


async def test_a_refused_name_is_not_pinned() -> None:
    names(gpu_lan=["169.254.169.254"])
    here = process()
    with pytest.raises(ClientError):
        await check(here, "http://gpu.lan:1", ADMIN)
    assert here.pool.pins is not None
    with pytest.raises(UnpinnedError):
        here.pool.pins.addresses("gpu.lan", 1)


async def test_another_spelling_of_an_address_behind_a_name_is_refused() -> None:
    names(gpu_lan=["::ffff:10.0.0.5"])
    with pytest.raises(ClientError, match="another spelling"):
        await check(process(), "http://gpu.lan:1", ADMIN)


async def test_a_name_server_that_never_answers_ends_the_look_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    names(gpu_lan=None)
    with pytest.raises(ClientError, match="cannot be resolved"):
        await check(process(), "http://gpu.lan:1", ADMIN)


@pytest.mark.parametrize(
    "url",
    ["ftp://10.0.0.5", "file:///etc/passwd", "gopher://10.0.0.5:70/", "unix:/run/x", "10.0.0.5:1",
     "http://u:p@10.0.0.5", "http://10.0.0.5@169.254.169.254", "http://10.0.0.5#@x", "http://",
     "http://10.0.0.5/?x", "http://10.0.0.5\\@x/", "http://10.0.0.5 .lan", "http://0x7f.1",
     "http://2130706433", "http://127.1", "http://ⓛocalhost", "//10.0.0.5", "http:/10.0.0.5",
     "http://[fe80::1%25eth0]", "http://10.0.0.5:0", "http://10.0.0.5:99999"],
)  # fmt: skip
async def test_a_url_with_a_trick_is_refused(url: str) -> None:
    resolver = names()
    with pytest.raises(ClientError) as caught:
        await check(process(), url, ADMIN)
    assert (caught.value.status, caught.value.param) == (400, "url")
    assert not resolver.asked


async def test_the_operators_patterns_hold() -> None:
    remote = Caller(address="10.0.0.5", is_direct=True)
    names(gpu_lan=["192.168.0.9"])
    here = process(allow_worker=("*.lan",))
    assert await check(here, "http://gpu.lan:1", remote) == ("192.168.0.9",)
    with pytest.raises(ClientError, match="--allow-worker"):
        await check(here, "http://192.168.0.9:1", remote)


def test_a_pattern_that_is_none_is_refused_at_start() -> None:
    with pytest.raises(ConfigurationError, match=r"SLIME_ROUTER_ALLOW_WORKER: '10\.\*'"):
        from_environment({"SLIME_ROUTER_ALLOW_WORKER": "10.*"})


# -- where a name leads ------------------------------------------------------------------------


async def _serve(stream: trio.SocketStream) -> None:
    got = b""
    while b"\r\n\r\n" not in got:
        got += await stream.receive_some(4096)
    host = next(line for line in got.split(b"\r\n") if line.lower().startswith(b"host:"))
    await stream.send_all(
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(host), host)
    )
    await stream.aclose()


@pytest.mark.parametrize("dead_first", [False, True])
async def test_requests_and_probes_go_to_the_pinned_address_with_the_name_in_the_head(
    nursery: trio.Nursery, dead_first: bool
) -> None:
    (listener, *_) = await nursery.start(_listening)
    port = listener.socket.getsockname()[1]
    resolver = names()
    pool = Pool(pins=Pins())
    assert pool.pins is not None
    url = f"http://gpu.lan:{port}"
    pool.pins.pin(url, ["127.0.0.9", "127.0.0.1"] if dead_first else ["127.0.0.1"])
    async with pool.request("GET", url, b"/x") as response:
        assert (await response.read()).lower() == f"host: gpu.lan:{port}".encode()
    async with httpx.AsyncClient(transport=PinnedTransport(pool.pins, tls=False)) as client:
        answer = await client.get(url + "/x")
    assert answer.text.lower() == f"host: gpu.lan:{port}"
    assert "gpu.lan" not in resolver.asked


async def _listening(*, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
    await trio.serve_tcp(_serve, 0, host="127.0.0.1", task_status=task_status)


async def test_a_name_that_nobody_registered_leads_nowhere() -> None:
    resolver = names(other_lan=["127.0.0.1"])
    pool = Pool(pins=Pins())
    with pytest.raises(UpstreamError, match="could not be reached"):
        async with pool.request("GET", "http://other.lan:1", b"/"):
            pass
    async with httpx.AsyncClient(transport=PinnedTransport(pool.pins, tls=False)) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://other.lan:1/")
    assert not resolver.asked


def test_the_operators_own_names_are_looked_up_whenever_they_are_needed() -> None:
    pins = Pins(trusted=["http://Gpu.lan:1", "http://other"])
    assert pins.addresses("gpu.lan", 1) == ()
    assert pins.addresses("other", 80) == ()
    with pytest.raises(UnpinnedError):
        pins.addresses("gpu.lan", 2)


def test_a_pin_lasts_as_long_as_one_worker_needs_it_and_a_while_longer() -> None:
    pins = Pins()
    pins.pin("http://gpu.lan:1/a", ["10.0.0.5"])
    pins.pin("http://gpu.lan:1/b", ["10.0.0.5"])
    pins.forget("http://gpu.lan:1/a")
    pins.forget("http://gpu.lan:1/b")
    pins.forget("http://gpu.lan:1/b")
    for number in range(1023):
        pins.pin(f"http://other-{number}", ["10.0.0.5"])
        pins.forget(f"http://other-{number}")
    assert pins.addresses("gpu.lan", 1) == ("10.0.0.5",)
    pins.pin("http://one-more", ["10.0.0.5"])
    pins.forget("http://one-more")
    with pytest.raises(UnpinnedError):
        pins.addresses("gpu.lan", 1)


# -- over HTTP ---------------------------------------------------------------------------------

_REGISTRATIONS = [("/add_worker", 200), ("/workers", 202)]


@pytest.mark.parametrize(("path", "status"), _REGISTRATIONS)
async def test_both_dialects_ask_the_same_rule(path: str, status: int) -> None:
    refused = [
        ({"x-forwarded-for": "10.0.0.5"}, "http://127.0.0.1:9", "worker_not_allowed"),
        ({"origin": "http://evil.example"}, "http://127.0.0.1:9", "worker_not_allowed"),
        ({}, "http://169.254.169.254/", "worker_never_allowed"),
        ({}, "http://[::ffff:7f00:1]:9", "worker_never_allowed"),
        ({}, "http://metadata.google.internal", "worker_never_allowed"),
        ({}, "http://127.1:9", "worker_address"),
    ]
    async with router_with(capture=False) as served:
        for headers, url, code in refused:
            answer = await served.client.post(path, json={"url": url}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) in {
                (400, code), (403, code)
            }  # fmt: skip
        assert not served.router.state.fleet.workers
        answer = await served.client.post(path, json={"url": "http://127.0.0.1:9"})
        assert answer.status_code == status


async def test_what_the_operator_allows_is_registered_through_any_proxy() -> None:
    async with router_with(capture=False, allow_worker=("127.0.0.0/8",)) as served:
        headers = {"x-forwarded-for": "10.0.0.5"}
        body = {"url": "http://127.0.0.1:9"}
        assert (await served.client.post("/workers", json=body, headers=headers)).is_success


async def test_neither_requests_nor_probes_follow_a_redirect() -> None:
    async def caught(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(b"{}")

    async with fake_worker(caught) as trap:

        async def redirect(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some(65536):
                    more = f"location: {trap.url}/caught\r\n"
                    await stream.send_all(http_response(b"", status="307 Go", more=more))

        async with trio.open_nursery() as nursery, router_with(queue_timeout_s=0.2) as served:
            serving = partial(trio.serve_tcp, redirect, 0, host="127.0.0.1")
            (listener, *_) = await nursery.start(serving)
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            await served.client.post("/add_worker", params={"url": url})
            await served.client.post("/workers", json={"url": url})
            await served.generate(text="x")
            await served.client.post("/flush_cache")
            await served.client.get("/thing", follow_redirects=False)
            assert not trap.arrived
            nursery.cancel_scope.cancel()
