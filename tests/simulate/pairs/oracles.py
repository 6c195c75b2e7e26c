"""The rules of a run with pairs: those of every run, and what two workers owe each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.simulate.oracles import Violation, judge
from tests.simulate.run import Run
from tests.simulate.story import Sampled, Story

__all__ = ["judge_pairs"]

_LEFT_OUT: Final = frozenset({"10 no second attempt", "10 targets"})
"""Rules for one worker a call. What a decode worker gave before its prefill worker failed is thrown
away and sampled anew, and nobody has seen it ("client bytes" judges that); and a target names one
worker, so that the other is not bound."""

_Key = tuple[int | None, int]


def judge_pairs(run: Run) -> list[Violation]:
    """Every violation."""
    found = [one for one in judge(run) if one.rule not in _LEFT_OUT]
    return found + [Violation("pairs", message) for message in _problems(run.story)]


def _problems(story: Story) -> Iterator[str]:
    """What decode went on from is what prefill computed, for the same request."""
    firsts: dict[_Key, list[Sampled]] = {}
    for one in story.prefilled:
        firsts.setdefault((one.exchange, one.place), []).append(one)
        if len(one.ids) > 1:
            yield f"{one.worker} sampled {len(one.ids)} tokens of {one.rid}"
    for whole in story.sampled:
        if not whole.ids:
            continue
        sides = firsts.get((whole.exchange, whole.place), [])
        if not any(one.ids[:1] == whole.ids[:1] for one in sides):
            yield f"{whole.worker} sampled {whole.ids} of {whole.rid} from nobody's prompt"
        if any(one.prompt_ids != whole.prompt_ids for one in sides):
            yield f"the two workers of {whole.rid} got different prompts"
