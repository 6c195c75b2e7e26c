"""What workers sampled, against what the router says of it: every token has one fate.

The ledger takes the workers' own records, those of killed ones too. A record is settled by asking
the router for the call of that name: it gives the very ids, logprobs and versions, or a word for
why it has none. A record that neither explains is a token lost in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from slime_core.engine import Record

__all__ = ["Ledger"]

_AGAIN: Final = "sampled again by another worker"


@dataclass(slots=True)
class Ledger:
    """Records by the name of their call, until they are settled; and the sums of what was."""

    open: dict[str, list[Record]] = field(default_factory=dict)
    fates: Counter[str] = field(default_factory=Counter)
    """Sampled tokens by what became of them."""
    calls: Counter[str] = field(default_factory=Counter)
    """Records by the same words."""
    faults: list[str] = field(default_factory=list)
    """What must not be; the soak has failed if there is one."""
    sampled: int = 0
    settled: set[str] = field(default_factory=set)

    def take(self, records: Iterable[Record]) -> None:
        """Enter what a worker sampled."""
        for record in records:
            self.sampled += len(record.output_ids)
            if record.rid in self.settled:
                # Its call was given up on here, and another worker has answered it meanwhile.
                self._note(_AGAIN, len(record.output_ids))
            else:
                self.open.setdefault(record.rid, []).append(record)

    def knows(self, call: str) -> bool:
        """Whether an unsettled record has this name."""
        return call in self.open

    def delivered(self, call: str, fate: str, told: dict[str, Any], start: int, end: int) -> None:
        """The router gave tokens ``start`` to ``end`` of a trajectory as sampled by ``call``."""
        records = self._settle(call)
        given = (
            told["tokens"][start:end],
            told["rollout_logp"][start:end],
            told["generation_versions"][start:end],
        )
        found = next((one for one in records if _holds(one, *given)), None)
        if found is None:
            words = f"{end - start} tokens of {len(records)} records"
            self.faults.append(f"{call}: not what a worker sampled ({words})")
            return
        if set(told["loss_mask"][start:end]) - {1}:
            self.faults.append(f"{call}: sampled tokens that are masked")
        self._note(fate, end - start)
        behind = len(found.output_ids) - (end - start)
        if behind and told["id"] == call and told["outcome"] == "complete":
            self.faults.append(f"{call}: called complete, and {behind} tokens are missing")
        if behind:
            self._note("sampled behind the last that came of a broken answer", behind, calls=0)
        for other in records:
            if other is not found:
                self._note(_AGAIN, len(other.output_ids))

    def lost(self, call: str, word: str) -> None:
        """The router has nothing of ``call``, and says why in a word."""
        for record in self._settle(call):
            self._note(f"lost: {word}", len(record.output_ids))
            if word == "complete" and record.output_ids:
                self.faults.append(f"{call}: called complete, and all its tokens are missing")

    def silent(self) -> None:
        """What is still open now was lost in silence."""
        for call, records in self.open.items():
            tokens = sum(len(record.output_ids) for record in records)
            self.faults.append(f"{call}: {tokens} tokens of which the router says nothing")
            self._note("LOST IN SILENCE", tokens)
        self.open.clear()

    def _settle(self, call: str) -> list[Record]:
        self.settled.add(call)
        return self.open.pop(call, [])

    def _note(self, fate: str, tokens: int, *, calls: int = 1) -> None:
        self.fates[fate] += tokens
        self.calls[fate] += calls


def _holds(record: Record, ids: list[int], logprobs: list[float], versions: list[int]) -> bool:
    """Whether these are the first tokens of the record, with their logprobs and versions."""
    count = len(ids)
    return (
        list(record.output_ids[:count]) == ids
        and list(record.logprobs[:count]) == logprobs
        and [int(version) for version in record.versions[:count]] == versions
    )
