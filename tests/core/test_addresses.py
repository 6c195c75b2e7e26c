"""Who may register which address as a worker: the rules, and the tricks to get round them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.addresses import (
    Caller,
    Patterns,
    canonical,
    judge,
    literal,
    never,
    parse_patterns,
)
from slime_core.errors import ClientError

ADMIN = Caller(address="203.0.113.7", is_direct=True, is_admin=True)
LOCAL = Caller(address="127.0.0.1", is_direct=True)
REMOTE = Caller(address="10.0.0.5", is_direct=True)
PROXIED = Caller(address=None, is_direct=False)
NOBODY_MORE = Patterns()

NEVER = [
    "0.0.0.0", "0.1.2.3", "169.254.0.1", "169.254.169.254", "169.254.170.2", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "fe80::1", "febf::1", "fec0::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254",
    "fd00:42::42", "::ffff:10.0.0.5", "::10.0.0.5", "::ffff:0:a00:5", "64:ff9b::a00:5",
    "64:ff9b:1::a00:5", "2001::1", "2002:a00:5::1",
]  # fmt: skip
ORDINARY = ["10.0.0.9", "192.168.1.1", "203.0.113.9", "127.0.0.1", "::1", "2a00::9", "fd12::9"]


def code(host: str, addresses: list[str], caller: Caller, allowed: Patterns = NOBODY_MORE) -> str:
    with pytest.raises(ClientError) as caught:
        judge(host, addresses, caller, allowed)
    assert caught.value.param == "url"
    return caught.value.code


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_refused_whoever_asks(address: str) -> None:
    own = Caller(address=address, is_direct=True)
    for caller in (ADMIN, LOCAL, own, REMOTE):
        assert code(address, [address], caller, parse_patterns(["*"])) == "worker_never_allowed"


@pytest.mark.parametrize("address", NEVER)
def test_a_name_for_an_address_that_is_never_registered_is_refused(address: str) -> None:
    for caller in (ADMIN, LOCAL):
        assert code("gpu.lan", ["10.0.0.5", address], caller) == "worker_never_allowed"
    assert code("gpu.lan", ["10.0.0.5", address], REMOTE) == "worker_not_allowed"


@pytest.mark.parametrize("host", ["metadata", "Metadata.Google.Internal", "metadata.goog.",
                                  "instance-data", "metadata.azure.internal"])  # fmt: skip
def test_a_metadata_service_is_refused_by_name_before_it_is_looked_up(host: str) -> None:
    assert never(host, []) is not None
    assert code(host, [], ADMIN, parse_patterns(["*"])) == "worker_never_allowed"


@pytest.mark.parametrize("address", ORDINARY)
def test_whoever_may_register_any_address_registers_an_ordinary_one(address: str) -> None:
    for caller in (ADMIN, LOCAL, Caller(address="::1", is_direct=True)):
        assert judge(address, [address], caller, NOBODY_MORE) == (address,)


@pytest.mark.parametrize("address", ORDINARY)
def test_others_register_their_own_address_only(address: str) -> None:
    assert code(address, [address], REMOTE) == "worker_not_allowed"
    assert judge("10.0.0.5", ["10.0.0.5"], REMOTE, NOBODY_MORE) == ("10.0.0.5",)


def test_a_name_passes_with_the_callers_own_address_alone() -> None:
    found = ["fd12::9", "10.0.0.5", "10.0.0.6"]
    assert judge("me.lan", found, REMOTE, NOBODY_MORE) == ("10.0.0.5",)


def test_behind_a_proxy_nobody_is_local() -> None:
    caller = Caller(address="127.0.0.1", is_direct=False)
    assert code("10.0.0.9", ["10.0.0.9"], caller) == "worker_not_allowed"


def test_a_caller_whose_address_is_unknown_registers_nothing() -> None:
    for address in ORDINARY:
        assert code(address, [address], PROXIED) == "worker_not_allowed"


@pytest.mark.parametrize("caller", [REMOTE, PROXIED])
def test_a_refusal_names_the_settings_that_would_allow_it(caller: Caller) -> None:
    with pytest.raises(ClientError) as caught:
        judge("gpu.lan", ["10.0.0.9"], caller, NOBODY_MORE)
    assert caught.value.status == 403
    assert "--allow-worker gpu.lan" in caught.value.message
    assert "--admin-key" in caught.value.message
    assert ("--trusted-proxy" in caught.value.message) == (caller is PROXIED)
    assert "10.0.0.9" not in caught.value.message


def test_only_who_may_register_anything_learns_that_a_name_is_unknown() -> None:
    assert code("gone.lan", [], ADMIN) == "worker_address"
    assert code("gone.lan", [], REMOTE) == "worker_not_allowed"


@pytest.mark.parametrize(
    ("pattern", "host", "address"),
    [
        ("10.0.0.0/8", "10.0.0.9", "10.0.0.9"),
        ("10.0.0.9", "10.0.0.9", "10.0.0.9"),
        ("10.0.0.0/8", "gpu.lan", "10.0.0.9"),
        ("fd12::/16", "fd12::9", "fd12::9"),
        ("*.lan", "a.b.lan", "192.168.1.1"),
        ("GPU-*.Lan.", "gpu-7.lan", "192.168.1.1"),
        ("gpu.lan", "GPU.lan.", "192.168.1.1"),
        ("*", "gpu.lan", "192.168.1.1"),
        ("*", "192.168.1.1", "192.168.1.1"),
    ],
)
def test_the_operator_widens_it(pattern: str, host: str, address: str) -> None:
    assert judge(host, [address], PROXIED, parse_patterns([pattern])) == (address,)


@pytest.mark.parametrize(
    ("pattern", "host", "address"),
    [
        ("10.0.0.0/8", "gpu.lan", "11.0.0.9"),
        ("*.lan", "gpu.lan.example", "192.168.1.1"),
        ("*.lan", "lan", "192.168.1.1"),
        ("gpu-*.lan", "gpu.lan", "192.168.1.1"),
        ("a*b*b.lan", "ab.lan", "192.168.1.1"),
        ("::/0", "10.0.0.9", "10.0.0.9"),
    ],
)
def test_and_no_further_than_written(pattern: str, host: str, address: str) -> None:
    assert code(host, [address], PROXIED, parse_patterns([pattern])) == "worker_not_allowed"


@pytest.mark.parametrize("word", ["10.*", "10.0.*.*", "1*", "a b", "", "http://x", "[::1]", "a/b",
                                  "-x", "10.0.0.0/33", "::1/200", "x..", "10.0.0"])  # fmt: skip
def test_a_pattern_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_patterns([word])


@pytest.mark.parametrize(
    "host",
    ["0x7f.1", "017700000001", "2130706433", "127.1", "0177.0.0.1", "0x7f000001", "127.0.0.1.",
     "10.0.0.256", "1.2.3.4.5", "gpu.0x10", "gpu.123", "00.0.0.1", "0X7F.0.0.1"],
)  # fmt: skip
def test_a_number_that_is_no_plain_address_is_refused(host: str) -> None:
    with pytest.raises(ClientError, match="four decimal numbers"):
        literal(host)


@pytest.mark.parametrize("host", ["gpu.lan", "localhost", "1password.com", "a.b.c9", "x0x1"])
def test_a_name_is_left_to_be_looked_up(host: str) -> None:
    assert literal(host) is None


def test_an_address_has_one_spelling() -> None:
    assert literal("10.0.0.5") == "10.0.0.5"
    assert literal("2A00:0::09") == "2a00::9"
    assert canonical("::ffff:10.0.0.5") == "10.0.0.5"
    assert canonical("fe80::1%eth0") == "fe80::1"
    assert canonical("unix") is None


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.ip_addresses(v=4))
def test_without_leave_only_the_own_address_ever_passes(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, own: ipaddress.IPv4Address
) -> None:
    caller = Caller(address=str(own), is_direct=not own.is_loopback)
    try:
        passed = judge("name.lan", [str(address), str(own)], caller, NOBODY_MORE)
    except ClientError:
        return
    assert passed == tuple(one for one in (str(address), str(own)) if one == str(own))


@given(st.ip_addresses(v=4))
def test_no_embedding_of_an_address_of_four_passes(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    for base in ("::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::"):
        outer = str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) + number))
        assert never(outer, [outer]) is not None
    sixtofour = str(ipaddress.IPv6Address((0x2002 << 112) + (number << 80)))
    assert never(sixtofour, [sixtofour]) is not None
