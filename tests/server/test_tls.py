"""TLS and mutual TLS, towards clients and towards workers, with certificates made for the test."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trustme

from slime_trio.config import ConfigurationError, Settings
from slime_trio.limits.exposure import exposure
from slime_trio.tls import WorkerTls, server_context
from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    FakeWorker,
    Raw,
    Served,
    answer_item,
    json_answer,
    router_with,
)

REACHED = {"max_new_tokens": 1}


@dataclass(frozen=True, slots=True)
class Papers:
    """An authority, a certificate of its for this machine and one for a client, as files."""

    authority: trustme.CA
    ca: str
    cert: str
    key: str
    client: str
    """A client's certificate and key in one file."""

    def server_context(self, *, demanding: bool = False) -> ssl.SSLContext:
        """For a server; ``demanding`` a certificate of its clients."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key)
        if demanding:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self, *, shown: bool = False) -> ssl.SSLContext:
        """For a client; ``shown``: with a certificate of its own."""
        context = ssl.create_default_context(cafile=self.ca)
        if shown:
            context.load_cert_chain(self.client)
        return context


def _papers(directory: Path) -> Papers:
    directory.mkdir()
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "gpu.test")
    files = {name: directory / name for name in ("ca", "cert", "key", "client")}
    authority.cert_pem.write_to_path(files["ca"])
    server.cert_chain_pems[0].write_to_path(files["cert"])
    server.private_key_pem.write_to_path(files["key"])
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(files["client"])
    return Papers(authority, *(str(path) for path in files.values()))


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return _papers(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return _papers(tmp_path_factory.mktemp("tls") / "theirs")


# -- towards clients ---------------------------------------------------------------------------


def _https(served: Served, context: ssl.SSLContext) -> httpx.AsyncClient:
    url = f"https://127.0.0.1:{served.port}"
    return httpx.AsyncClient(base_url=url, verify=context, trust_env=False)


async def test_the_router_is_served_over_tls(papers: Papers) -> None:
    async with (
        router_with(tls_cert=papers.cert, tls_key=papers.key) as served,
        _https(served, papers.client_context()) as client,
    ):
        assert (await client.get("/health")).text == "OK"
        assert (await client.get("/health")).http_version == "HTTP/1.1"


async def test_who_speaks_no_tls_is_not_served(papers: Papers) -> None:
    async with router_with(tls_cert=papers.cert, tls_key=papers.key) as served:
        with pytest.raises(httpx.TransportError):
            await served.client.get("/health")


@pytest.mark.parametrize("who", ["nobody", "stranger", "ours"])
async def test_clients_must_show_a_certificate_of_our_authority(
    who: str, papers: Papers, strangers: Papers
) -> None:
    context = papers.client_context(shown=who == "ours")
    if who == "stranger":
        context.load_cert_chain(strangers.client)
    asked: dict[str, Any] = {
        "tls_cert": papers.cert,
        "tls_key": papers.key,
        "tls_client_ca": papers.ca,
    }
    async with router_with(**asked) as served, _https(served, context) as client:
        if who == "ours":
            assert (await client.get("/health")).text == "OK"
        else:
            with pytest.raises(httpx.TransportError):
                await client.get("/health")


@BOTH_LISTENERS
@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\n", b"408")],
)
async def test_the_limits_hold_within_tls(sent: bytes, status: bytes, papers: Papers) -> None:
    own: dict[str, Any] = {"tls_cert": papers.cert, "tls_key": papers.key, "header_timeout_s": 0.3}
    async with router_with(**own) as served:
        plain = await trio.open_tcp_stream("127.0.0.1", served.port)
        context = papers.client_context()
        async with trio.SSLStream(
            plain, context, server_hostname="127.0.0.1", https_compatible=True
        ) as stream:
            await stream.send_all(sent)
            client = Raw(stream)  # type: ignore[arg-type]
            assert (await client.rest()).startswith(b"HTTP/1.1 %b " % status)


@BOTH_LISTENERS
async def test_a_handshake_that_never_ends_is_given_up(papers: Papers) -> None:
    own: dict[str, Any] = {"tls_cert": papers.cert, "tls_key": papers.key, "header_timeout_s": 0.2}
    async with (
        router_with(**own) as served,
        await trio.open_tcp_stream("127.0.0.1", served.port) as stream,
    ):
        with trio.fail_after(5):
            assert await stream.receive_some() == b""


def test_nothing_older_than_1_2_is_spoken(papers: Papers) -> None:
    context = server_context(Settings(tls_cert=papers.cert, tls_key=papers.key))
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    for settings in (Settings(), Settings(worker_ca=papers.ca)):
        towards = WorkerTls(settings)()
        assert towards.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert towards.check_hostname
        assert towards.verify_mode is ssl.CERT_REQUIRED


# -- towards workers ---------------------------------------------------------------------------


@asynccontextmanager
async def _worker(context: ssl.SSLContext, host: str = "127.0.0.1") -> AsyncIterator[FakeWorker]:
    fake = FakeWorker(json_answer(answer_item([5], "a")))

    async def serve(stream: Any) -> None:
        with suppress(ssl.SSLError):
            await fake.serve(stream)

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(
            functools.partial(
                trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1", https_compatible=True
            )
        )
        port = listener.transport_listener.socket.getsockname()[1]
        fake.url = f"https://{host}:{port}"
        yield fake
        nursery.cancel_scope.cancel()


async def _answer_of(served: Served, worker: FakeWorker) -> int:
    """The status of a generation once the worker was added, and was contacted or was not."""
    (await served.client.post("/add_worker", params={"url": worker.url})).raise_for_status()
    return (await served.generate(text="x", sampling_params=REACHED)).status_code


async def test_requests_and_probes_reach_a_worker_over_tls(papers: Papers) -> None:
    async with (
        _worker(papers.server_context()) as worker,
        router_with(worker_ca=papers.ca) as served,
    ):
        assert await _answer_of(served, worker) == 200
        assert worker.arrived[0].target == "/generate"


async def test_a_worker_that_demands_a_certificate_gets_ours(papers: Papers) -> None:
    async with (
        _worker(papers.server_context(demanding=True)) as worker,
        router_with(worker_ca=papers.ca, worker_cert=papers.client) as served,
    ):
        assert await _answer_of(served, worker) == 200


@pytest.mark.parametrize("which", ["no certificate", "another authority", "the system's"])
async def test_a_worker_that_is_not_to_be_trusted_gets_nothing(
    which: str, papers: Papers, strangers: Papers
) -> None:
    authority = {"another authority": strangers.ca, "the system's": None}.get(which, papers.ca)
    async with (
        _worker(papers.server_context(demanding=which == "no certificate")) as worker,
        router_with(worker_ca=authority, queue_timeout_s=0.2) as served,
    ):
        assert await _answer_of(served, worker) in (502, 503)
        assert not worker.arrived


class _Names(trio.abc.HostnameResolver):
    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port or 0))]

    async def getnameinfo(self, sockaddr: Any, flags: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(("host", "status"), [("gpu.test", {200}), ("other.test", {502, 503})])
async def test_the_name_is_checked_and_not_the_address_it_was_pinned_to(
    host: str, status: set[int], papers: Papers
) -> None:
    trio.socket.set_custom_hostname_resolver(_Names())
    async with (
        _worker(papers.server_context(), host) as worker,
        router_with(worker_ca=papers.ca, queue_timeout_s=0.2) as served,
    ):
        assert await _answer_of(served, worker) in status
        assert bool(worker.arrived) == (200 in status)


# -- what is said at start ---------------------------------------------------------------------


def _start(settings: Settings) -> None:
    server_context(settings)
    WorkerTls(settings)


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"tls_cert": "missing"}, "--tls-cert: "),
        ({"tls_cert": "cert", "tls_key": "missing"}, "--tls-key: "),
        ({"tls_cert": "cert", "tls_key": "cert"}, "--tls-cert, --tls-key: "),
        ({"tls_cert": "cert"}, "--tls-cert, --tls-key: "),
        ({"tls_key": "key"}, "--tls-key is of no use without --tls-cert"),
        ({"tls_client_ca": "ca"}, "--tls-client-ca is of no use without --tls-cert"),
        ({"tls_cert": "cert", "tls_key": "key", "tls_client_ca": "key"}, "--tls-client-ca: "),
        ({"worker_ca": "missing"}, "--worker-ca: "),
        ({"worker_ca": "key"}, "--worker-ca: "),
        ({"worker_cert": "missing"}, "--worker-cert: "),
        ({"worker_cert": "cert"}, "--worker-cert, --worker-key: "),
        ({"worker_cert": "cert", "worker_key": "theirs"}, "--worker-cert, --worker-key: "),
        ({"worker_key": "key"}, "--worker-key is of no use without --worker-cert"),
    ],
)
def test_what_cannot_work_is_said_at_start_with_its_flag(
    fields: dict[str, str], flag: str, papers: Papers, strangers: Papers
) -> None:
    paths = {"cert": papers.cert, "key": papers.key, "ca": papers.ca, "theirs": strangers.key}
    chosen = {name: paths.get(word, "/nowhere/at/all") for name, word in fields.items()}
    with pytest.raises(ConfigurationError) as caught:
        _start(Settings(**chosen))  # type: ignore[arg-type]
    assert str(caught.value).startswith(flag)


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        (Settings(), {"--api-key", "--admin-key"}),
        (Settings(host="::"), {"--api-key", "--admin-key"}),
        (Settings(admin_key="a" * 8), {"--api-key"}),
        (Settings(api_key=("a" * 8,)), None),
        (Settings(host="127.0.0.1"), None),
        (Settings(host="::1"), None),
        (Settings(host="localhost"), None),
        (Settings(tls_client_ca="ca", tls_cert="cert"), None),
    ],
)
def test_an_open_router_is_warned_of_in_one_line(
    settings: Settings, flags: set[str] | None
) -> None:
    said = exposure(settings)
    assert (said is None) == (flags is None)
    if said is not None:
        assert "\n" not in said
        assert {flag for flag in ("--api-key", "--admin-key") if flag in said} == flags


async def test_the_command_says_so_when_it_starts() -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLIME_ROUTER_")}
    words = ["-m", "slime_trio", "--capture", "off", "--host", "0.0.0.0", "--port", "0"]
    process = await trio.lowlevel.open_process(
        [sys.executable, *words], stderr=subprocess.PIPE, env=clean
    )
    assert process.stderr is not None
    said = b""
    try:
        with trio.fail_after(30):
            while said.count(b"\n") < 2:
                said += await process.stderr.receive_some()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()
    assert b"\nslime-router: warning: whoever reaches 0.0.0.0 can " in said
