"""The table of hard cases, and the mark for tests that show one.

The numbers are those of the survey of exact token capture that the project was designed against.
Most cases are shown in this package, by tests that carry ``@row(number)``; what other tests show
already is listed in :data:`ELSEWHERE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["CASES", "row"]

T = TypeVar("T", bound=Callable[..., object])

CASES: Final[dict[int, str]] = {
    1: "merges across the boundary of a turn",
    2: "the same text in other ids",
    3: "characters in pieces",
    4: "special tokens in what users and tools say",
    5: "sampled text that spells a special token",
    6: "a stop token that is not the eos token, and may open the next turn",
    7: "a turn that the length limit cut",
    8: "the separator behind the end of a turn",
    9: "a template that trims",
    10: "arguments of calls written anew",
    11: "reasoning that the client or the template drops",
    12: "ids of calls changed or lost",
    13: "content as null, nothing or parts",
    14: "one prompt sampled many times",
    15: "two samples of the same ids",
    16: "retries of SDKs",
    17: "a client that leaves in mid-stream",
    18: "a reply lost after its commit",
    19: "several choices",
    20: "calls in parallel, results in any order",
    21: "history compacted or edited",
    22: "sub-agents at the same time in one session",
    23: "replies in another order than requests",
    24: "a system text that changes every turn",
    25: "auxiliary calls",
    26: "stop strings, and text shorter than its ids",
    27: "skipped special tokens that a parser needs",
    28: "prefill",
    29: "one answer under several weights",
    30: "updates around the time of an answer",
    31: "a worker that comes back with old weights",
    32: "updates that abort everything",
    33: "which logprobs they are",
    34: "writes after the end of a session",
    35: "placeholders of images",
    36: "a beginning of text that is added again",
    37: "limits absent or beyond the context",
    38: "ids, logprobs and versions from a client",
    39: "hostile JSON",
    40: "idle connections that a worker closed",
    41: "a router that stops between dispatch and record",
    42: "a record that cannot be written",
    43: "small deviations of real clients",
    44: "no reward, and rollouts that failed",
}


def row(number: int) -> Callable[[T], T]:
    """Mark a test as one that shows the case of that number."""
    if number not in CASES:
        raise ValueError(f"there is no case {number}")

    def mark(test: T) -> T:
        return test

    return mark
