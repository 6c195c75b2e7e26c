"""What must have happened somewhere in a corpus: an oracle that is never challenged proves nothing.

Marks are words of two parts, ``family:name``. World and harnesses set what they know of, the watch
and the oracles add what only they see; here is the list of what must not stay empty.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, get_args

from slime_core.segments import Outcome
from slime_core.transitions import Transition
from tests.simulate.control.core import CORE_KINDS
from tests.simulate.control.errands import ERRAND_KINDS
from tests.simulate.faults import FaultKind
from tests.simulate.operator import ACTION_KINDS, LINK_KINDS
from tests.simulate.story import Ending, Kind

__all__ = ["missing", "needed", "table"]

_ONLY_SHELL: Final = frozenset({"fault:bad_framing", "fault:no_http"})
"""What a harness without HTTP cannot tell from a broken connection."""

_ELSEWHERE: Final = frozenset({"transition:WorkerLogprobs", "transition:WorkerMismatch"})
"""What no worker of these worlds gives cause for; the tests of tending do."""

_ENDINGS: Final = tuple(f"ending:{one.value}" for one in Ending if one is not Ending.OPEN)
_FLAGS: Final = (
    "flag:branch",
    "flag:cut",
    "flag:parent_ambiguous",
    "flag:history_collected",
    "flag:history_corrupt",
    "flag:history_evicted",
)
_OUTCOMES: Final = tuple(f"outcome:{one.value}" for one in Outcome)
_LOSSES: Final = (
    "lost:client_gone",
    "lost:connect_failed",
    "lost:connect_timeout",
    "lost:connection_lost",
    "lost:corrupt",
    "lost:no_answer",
    "lost:refused",
)
_GONE: Final = ("gone:collected", "gone:evicted", "gone:unretrieved")
_DELIVERED: Final = (
    "delivered:200",
    "delivered:400",
    "delivered:404",
    "delivered:409",
    "delivered:410",
)
_ERRORS: Final = ("error:no_fit_workers",)
_SITUATIONS: Final = (
    "checked:ambiguous turns",
    "checked:ambiguous twins",
    "checked:answer continued",
    "checked:branch said",
    "checked:captured what a lie left true",
    "checked:content that spells control",
    "checked:conversation extended",
    "checked:conversation rendered",
    "checked:cut",
    "checked:history extended",
    "checked:joint",
    "checked:missing history",
    "checked:order of commits",
    "checked:partial answer",
    "checked:prefixes",
    "checked:reasoning",
    "checked:several versions in an answer",
    "checked:stale workers",
    "checked:stream",
    "checked:text of a trajectory",
    "checked:tool calls",
    "checked:trial",
    "checked:x-smg-target-worker said",
    "checked:x-smg-version-policy said",
)
"""What the rules met: each would otherwise hold for want of a case."""
_HEALTH: Final = (
    "health:quarantined by call_failed",
    "health:quarantined by unreachable",
    "health:ready by probe_passed",
    "health:trial by answered",
    "health:trial by probe_passed",
)
_HABITS: Final = (
    "habit:/generate",
    "habit:/v1/chat/completions",
    "habit:/v1/completions",
    "habit:streams",
    "habit:asks for several samples",
    "habit:sends unlike prompts",
    "habit:sends what must be refused",
    "habit:names a session",
    "habit:names a parent",
    "habit:reads slowly",
    "habit:ends its side",
    "habit:uploads in pieces",
    "habit:leaves after a time",
    "habit:leaves after pieces",
)
_ONLY_CHATTY: Final = ("checked:twins told apart", "checked:deeper by text")
"""What needs runs of the core in which everybody chats."""
_OF_THE_SHELL: Final = (
    "checked:answer shared",
    "checked:reader that holds up",
    "checked:sample",
    "checked:session ended",
    "fault:idle_closed",
    "transition:SessionCollected",
    "transition:SessionEnded",
    "transition:SessionFreed",
    "transition:SessionOpened",
    "transition:SessionSealed",
)
"""What needs connections."""
_OF_THE_CONTROL: Final = (
    *(f"control:{kind}" for kind in ERRAND_KINDS),
    "control:200",
    "control:202",
    "control:207",
    "control:404",
    "control:502",
    "control:left",
    "checked:abort of what waits",
    "checked:aborted before it began",
    "checked:aborted in the router",
    "checked:caller left in a pause",
    "checked:drained",
    "checked:fan-out told",
    "checked:label",
    "checked:work beside a pause",
)
"""What is asked through the router, how that ended, and what its rules met."""


def needed(harness: str) -> list[str]:
    """Every mark that a corpus of this harness must show."""
    facts = [kind.__name__ for kind in get_args(Transition)]
    marks = [f"transition:{name}" for name in facts if not name.startswith("Session")]
    marks += [f"fault:{kind.value}" for kind in FaultKind]
    marks += [f"operator:{kind}" for kind in (*ACTION_KINDS, *LINK_KINDS)]
    marks += [f"kind:{kind.value}" for kind in Kind]
    marks += [*_ENDINGS, *_FLAGS, *_OUTCOMES, *_LOSSES, *_GONE, *_DELIVERED, *_ERRORS, *_SITUATIONS]
    marks += [*_HEALTH, *_HABITS]
    marks = [mark for mark in marks if mark not in _ELSEWHERE]
    if harness == "core":
        marks += [f"control:{kind}" for kind in CORE_KINDS]
        return [mark for mark in (*marks, *_ONLY_CHATTY) if mark not in _ONLY_SHELL]
    return [*marks, *_OF_THE_SHELL, *_OF_THE_CONTROL]


def missing(total: Counter[str], harness: str) -> list[str]:
    """The marks that did not occur, in the order of the list."""
    return [mark for mark in needed(harness) if not total[mark]]


def table(total: Counter[str]) -> str:
    """How often each mark occurred, a family to a paragraph."""
    wide = max((len(f"{count:,}") for count in total.values()), default=0)
    lines: list[str] = []
    family = ""
    for mark in sorted(total):
        name, _, rest = mark.partition(":")
        if name != family:
            lines += ["", name] if lines else [name]
            family = name
        lines.append(f"  {total[mark]:>{wide},}  {rest}")
    return "\n".join(lines)
