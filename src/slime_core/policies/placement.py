"""What a policy is, and what it may know of the call that it places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from msgspec import Struct

from slime_core.fleet import Worker, WorkerKind
from slime_core.types import NO_IDS, PackedIds, WorkerUrl
from slime_core.weights import ANY_VERSION, VersionWish

__all__ = ["Placement", "Policy", "reads_prefixes"]

_NOTHING: Final[Mapping[WorkerUrl, int]] = MappingProxyType({})


class Placement(Struct, frozen=True, kw_only=True):
    """What is known of a call that is to be placed.

    ``key``: the session or routing key that it belongs to, if any; with ``sticky`` it goes where
    the last call of that key went, if that worker can take it. ``chance``: a number in [0, 1),
    drawn anew for every call. ``prompt``: its token ids, and ``pages`` their digests
    (:func:`slime_core.prefixes.page_digests`), needed only where the policy reads prefixes.

    ``target``: the one worker that the client wants, by its place in the list of workers, its id or
    its URL. ``kind``: of worker. ``excluded``: workers that failed this very request. ``versions``:
    the weights that it may be answered with. ``now``: seconds.

    ``matched`` and ``typical_uncached`` are filled in for policies that read prefixes: the tokens
    of the prompt that each worker holds already, and what prompts usually bring anew.
    """

    key: str | None = None
    sticky: bool = True
    chance: float = 0.0
    prompt: PackedIds = NO_IDS
    pages: tuple[bytes, ...] = ()
    target: str | None = None
    kind: WorkerKind = WorkerKind.REGULAR
    excluded: frozenset[WorkerUrl] = frozenset()
    versions: VersionWish = ANY_VERSION
    now: float = 0.0
    matched: Mapping[WorkerUrl, int] = _NOTHING
    typical_uncached: int = 0


class Policy(Protocol):
    """Chooses one of ``workers`` for a call: a pure function.

    They are at least one, all fit, of the kind that is asked for and in the order of joining. Where
    a policy needs chance, that comes as :attr:`Placement.chance`. One that has an attribute
    ``reads_prefixes`` which is true gets :attr:`Placement.matched`; for one with ``reads_loads``
    the shell keeps ``Worker.reported`` fresh.
    """

    def __call__(self, workers: Sequence[Worker], placement: Placement, /) -> Worker:
        """The worker that gets the call."""


def reads_prefixes(policy: Policy) -> bool:
    """Whether a policy wants to know what the workers hold of a prompt."""
    return bool(getattr(policy, "reads_prefixes", False))
