"""Whether a request that failed at one worker is tried at another, and after what time.

Only what has not begun to be answered may be: no byte has gone to the client, and none of an
answer has come. A worker that says that it is overloaded or that it is not itself at fault (429,
502, 503, 504), and one whose connection cannot be had or is lost, may be replaced by another. What
a worker says of the request (400 and the like), its own bugs (500) and an aborted generation are
answers, and nothing that another worker should say better.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BUSY", "delay_s", "is_busy"]

BUSY: Final = frozenset({429, 502, 503, 504})
"""Statuses of a worker's answer by which another worker may be tried."""

_LONGEST_S: Final = 10.0


def is_busy(status: int) -> bool:
    """Whether a worker's answer of this status asks to be replaced by another worker's."""
    return status in BUSY


def delay_s(failures: int, base_s: float, chance: float) -> float:
    """Seconds before the next try, after ``failures`` of them: ``base_s``, doubling, 10 at most.

    Between half of that and all of it, by ``chance`` in [0, 1): requests that failed together
    come back apart.
    """
    longest = min(_LONGEST_S, base_s * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + chance / 2)
