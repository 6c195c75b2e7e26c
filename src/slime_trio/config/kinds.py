"""How the words of a setting are read: each turns a word into a value, or raises ``ValueError``."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slime_core.addresses import parse_patterns
from slime_core.policies import POLICIES
from slime_trio.upstream import parse_origin

__all__ = [
    "ENVIRONMENT_PREFIX",
    "Option",
    "Prefill",
    "at_least",
    "network",
    "policy",
    "port",
    "prefills",
    "seconds",
    "seconds_or_none",
    "secret",
    "truth",
    "worker",
    "worker_pattern",
]

ENVIRONMENT_PREFIX: Final = "SLIME_ROUTER_"
_LEAST_SECRET: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How one setting is spelled. ``kind`` turns a word into a value.

    ``gather`` takes all words of a ``repeatable`` option at once, where one value may span several.
    What is ``secret`` is shown nowhere, not in an error either.
    """

    name: str
    flags: tuple[str, ...]
    kind: Callable[[str], Any]
    help: str
    repeatable: bool = False
    choices: tuple[str, ...] | None = None
    gather: Callable[[Sequence[str]], tuple[Any, ...]] | None = None
    secret: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prefill worker; ``bootstrap_port`` ``None``: the worker's own default."""

    url: str
    bootstrap_port: int | None = None


def truth(word: str) -> bool:
    """A switch, in any of the usual words."""
    values = {"1": True, "true": True, "yes": True, "on": True}
    values |= {"0": False, "false": False, "no": False, "off": False}
    if word.strip().lower() not in values:
        raise ValueError("expected on or off")
    return values[word.strip().lower()]


def at_least(least: int) -> Callable[[str], int]:
    """The kind of whole numbers from ``least`` on."""

    def number(word: str) -> int:
        value = int(word)
        if value < least:
            raise ValueError(f"expected at least {least}")
        return value

    return number


def seconds(word: str) -> float:
    """A time that must be there and end."""
    value = float(word)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive number of seconds")
    return value


def seconds_or_none(word: str) -> float:
    """0 stands for no limit."""
    value = float(word)
    if not 0 <= value < float("inf"):
        raise ValueError("expected a number of seconds, or 0 for no limit")
    return value


def port(word: str) -> int:
    """A port to listen on; 0: whichever is free."""
    value = int(word)
    if not 0 <= value <= 65535:
        raise ValueError("expected 0 to 65535")
    return value


def worker(word: str) -> str:
    """A worker's URL, exactly as it was written."""
    parse_origin(word)
    return word


def policy(word: str) -> str:
    """A policy's name, in either spelling (``cache_aware``), or the dotted path of one's own."""
    name = word.replace("_", "-")
    if name in POLICIES:
        return name
    module, _, attribute = word.replace(":", ".").rpartition(".")
    if not module or not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(f"expected one of {', '.join(POLICIES)}, or a dotted path")
    return word


def network(word: str) -> str:
    """An address or a network."""
    ipaddress.ip_network(word, strict=False)
    return word


def worker_pattern(word: str) -> str:
    """A host, pattern, address or network of ``--allow-worker``."""
    parse_patterns([word])
    return word


def secret(word: str) -> str:
    """A key. No error repeats it."""
    if len(word) < _LEAST_SECRET or not word.isascii() or not word.isprintable() or " " in word:
        raise ValueError(f"expected {_LEAST_SECRET} or more printable characters without blanks")
    return word


def prefills(words: Sequence[str]) -> tuple[Prefill, ...]:
    """``URL [PORT|none]``, repeated: a port belongs to the URL before it."""
    found: list[Prefill] = []
    for word in words:
        if word.isascii() and word.isdigit():
            if not found or found[-1].bootstrap_port is not None:
                raise ValueError("a bootstrap port stands behind a prefill worker's URL")
            found[-1] = Prefill(found[-1].url, port(word))
        elif word.lower() != "none":
            found.append(Prefill(worker(word)))
        elif not found:
            raise ValueError("a bootstrap port stands behind a prefill worker's URL")
    return tuple(found)
