"""Workers' URLs: which ones are understood, and what is said about the others."""

from __future__ import annotations

import pytest

from slime_trio.upstream import Origin, parse_origin


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        (
            "http://localhost:30000",
            Origin(scheme="http", host="localhost", port=30000),
            "localhost:30000",
        ),
        ("http://10.0.0.3", Origin(scheme="http", host="10.0.0.3", port=80), "10.0.0.3"),
        ("https://w.example/", Origin(scheme="https", host="w.example", port=443), "w.example"),
        ("https://w:80", Origin(scheme="https", host="w", port=80), "w:80"),
        ("HTTP://Gpu_1:80/", Origin(scheme="http", host="gpu_1", port=80), "gpu_1"),
        ("http://[::1]:8000", Origin(scheme="http", host="::1", port=8000), "[::1]:8000"),
        ("http://[FE80::0:1]", Origin(scheme="http", host="fe80::1", port=80), "[fe80::1]"),
        (
            "http://w:1/a/b-c/",
            Origin(scheme="http", host="w", port=1, path_prefix="/a/b-c"),
            "w:1",
        ),
    ],
)
def test_a_url_is_taken_apart(url: str, origin: Origin, authority: str) -> None:
    assert parse_origin(url) == origin
    assert parse_origin(url).authority == authority


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "must start with http"),
        ("localhost:30000", "must start with http"),
        ("grpc://w:1", "must start with http"),
        ("http://", "names no host"),
        ("http://:80", "names no host"),
        ("http:///path", "names no host"),
        ("http://w:", "names no port"),
        ("http://w:0", "1 to 65535"),
        ("http://w:65536", "1 to 65535"),
        ("http://w:http", "1 to 65535"),
        ("http://-w", "no host name"),
        ("http://w,v", "no host name"),
        ("http://[::1", "no IPv6 address"),
        ("http://[::g]:1", "no IPv6 address"),
        ("http://[fe80::1%eth0]:1", "without a zone"),
        ("http://w/?a", "query or a fragment"),
        ("http://w#", "query or a fragment"),
        ("http://w/a b", "white space"),
        ("http://w\r\n", "white space"),
        ("http://wörker", "outside ASCII"),
        ('http://w/"', "must be escaped"),
    ],
)
def test_another_url_is_refused_with_the_reason(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_origin(url)


def test_credentials_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="user name") as caught:
        parse_origin("http://me:secret@w")
    assert "secret" not in str(caught.value)


def test_an_origin_as_text_is_a_url_of_itself() -> None:
    origin = parse_origin("https://[::1]:8000/a/")
    assert str(origin) == "https://[::1]:8000/a"
    assert parse_origin(str(origin)) == origin
