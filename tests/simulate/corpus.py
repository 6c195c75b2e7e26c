"""The seeds that run with every change, and those that once found something.

``CORE`` and ``SHELL`` are fixed: a change is judged by the same runs as the one before it. A seed
that found a bug is added to ``FOUND`` as the knobs that shrinking left, with what it had found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["CHATTY", "CORE", "FOUND", "GOVERNED", "SEEDS", "SHELL", "UNDER_HYPERCORN", "Found"]

CORE: Final[Sequence[int]] = range(230)
SHELL: Final[Sequence[int]] = (*range(70), 95, 106, 115, 153, 162, 182, 205, 221, 413)
"""The last ones are there for faults that are rare."""
SEEDS: Final = {"core": CORE, "shell": SHELL}
UNDER_HYPERCORN: Final[Sequence[int]] = (1, 10, 11, 14, 15, 35, 62, 153)
"""Of the shell, with its connections served by Hypercorn: between them these agents stream, leave,
read slowly, end their sides, send in pieces and send what must be refused."""
CHATTY: Final[Sequence[int]] = (*range(12), 15)
"""Of the core, with everybody chatting: :func:`tests.simulate.world.chatty_of`."""

GOVERNED: Final[Sequence[int]] = (14, 20, 23, 19, 17, 2, 3, 7, 12, 24)
"""Of the shell, with much asked through the router: :func:`tests.simulate.world.governed_of`."""


class Found(NamedTuple):
    """A regression. ``settings`` as ``--quiet-knobs --set …`` takes them."""

    what: str
    harness: str
    seed: int
    settings: tuple[str, ...]


FOUND: Final[tuple[Found, ...]] = (
    Found(
        "a stream broken off after an update had the last version throughout",
        "core",
        101,
        (
            "faults=error_event:0.1",
            "actions=update:2.0",
            "agents=2",
            "workers=3",
            "turns=4",
            "group=4",
            "group_share=0.4",
            "n_share=0.8",
            "stream_share=0.7",
            "parent_share=0.5",
            "nasty=1.0",
            "endings=0.3",
            "incremental=True",
            "escape_json=True",
            "answer_tokens=20",
            "s_per_token=0.05",
            "max_running=1",
            "context_length=96",
            "heal_s=4.66",
        ),
    ),
    Found(
        "version spans that contradict the tokens were overruled by a guess",
        "core",
        54,
        (
            "faults=wrong_spans:0.3",
            "agents=2",
            "turns=3",
        ),
    ),
    Found(
        "an answer under another call's id was captured",
        "core",
        106,
        (
            "faults=other_rid:0.3",
            "turns=5",
            "branch=0.4",
            "upload=0.04",
            "retrieve=0.15",
            "nasty=0.5",
            "endings=0.7",
            "escape_json=True",
            "prompt_words=6",
            "answer_tokens=4",
            "data_bytes=20000",
            "epochs=1",
            "connect_timeout_s=1.0",
            "heal_s=3.73",
        ),
    ),
    Found(
        "a special token that was shown was kept when left midway",
        "core",
        41,
        (
            "agents=5",
            "workers=2",
            "turns=5",
            "branch=0.2",
            "cut=0.4",
            "leave=0.2",
            "n_share=0.12",
            "stream_share=0.7",
            "parent_share=0.5",
            "nasty=0.25",
            "endings=0.7",
            "policy=consistent-hashing",
            "prompt_words=1",
            "answer_tokens=4",
            "think_s=0.05",
            "read_pause_s=0.01",
            "delay_s=0.1",
            "chunk_bytes=1000",
            "heal_s=5.84",
        ),
    ),
    Found(
        "a broken answer was gone on from though no token was shown whole",
        "core",
        221,
        (
            "faults=truncated:0.3",
            "agents=3",
            "workers=2",
            "turns=5",
            "group=2",
            "twice=0.15",
            "group_share=0.4",
            "stream_share=0.7",
            "nasty=0.5",
            "endings=0.15",
            "policy=power-of-two",
            "heal_s=4.56",
        ),
    ),
    Found(
        "a bound in time left a connection that never answered again",
        "shell",
        11,
        (
            "actions=flush:2.0,clock_jump:3.0",
            "links=partition:1.0,trickle:2.0",
            "trainers=1",
            "turns=2",
        ),
    ),
)
