"""All that surrounds the router in one run: workers, links, agents, and what befalls them.

A world knows neither harness. It makes everything from the knobs; whoever runs it carries requests
and pieces about, tells the time, and performs the timeline's actions when they are due.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from tests.simulate import templates, tokens
from tests.simulate.agents import cast
from tests.simulate.chance import derive
from tests.simulate.control.errands import ERRAND_KINDS, draw_errands
from tests.simulate.faults import FaultKind, FaultRates
from tests.simulate.knobs import Knobs
from tests.simulate.operator import ACTION_KINDS, LINK_KINDS, Conditions, Operator, draw
from tests.simulate.story import Story
from tests.simulate.workers.worker import SimWorker

__all__ = ["World", "chatty_of", "governed_of", "knobs_of"]


def knobs_of(seed: int, *, quick: bool = True) -> Knobs:
    """The knobs of a seed, with every kind of fault, action and link condition to draw from."""
    return Knobs.draw(
        seed,
        quick=quick,
        fault_kinds=[kind.value for kind in FaultKind],
        action_kinds=ACTION_KINDS,
        link_kinds=LINK_KINDS,
        errand_kinds=ERRAND_KINDS,
    )


_GROUPS: Final = 2
"""In these runs groups are sampled in peace, and say the same more often."""


def chatty_of(seed: int) -> Knobs:
    """The knobs of a seed in which everybody chats, calls tools, branches and goes on."""
    knobs = knobs_of(seed)
    if seed % len(templates.NAMES) == _GROUPS:
        quiet: dict[str, Any] = {
            "faults": (),
            "links": (),
            "leave": 0.0,
            "cut": 0.0,
            "endings": 0.0,
            "slow": 0.0,
        }
        knobs = replace(knobs, **quiet, edit=0.1, session_share=0.0)
        more: dict[str, Any] = {"scripts": 0.95, "group_share": 1.0, "n_share": 0.9, "respell": 0.3}
    else:
        more = {"scripts": 0.9 if seed % 2 else 0.5, "group_share": 0.5, "n_share": 0.3}
        more |= {"respell": 0.7, "session_share": 0.6}
    return replace(
        knobs,
        chat_share=1.0,
        ids_share=0.0,
        tools_share=1.0,
        template=templates.NAMES[seed % len(templates.NAMES)],
        agents=min(knobs.agents, 4),
        turns=max(knobs.turns, 4),
        group=3,
        branch=max(knobs.branch, 0.3),
        continues=0.2,
        edit=min(knobs.edit, 0.3),
        cut=min(knobs.cut, 0.2),
        answer_tokens=max(knobs.answer_tokens, 8),
        context_length=32768,
        reuse_tokens=10_000 if seed % 3 else 0,
        retrieve=0.3 if seed % 3 else 0.9,
        s_per_token=0.001,
        history="exact",
        **more,
    )


def governed_of(seed: int) -> Knobs:
    """The knobs of a seed in which much is asked through the router of a fleet that is small."""
    knobs = knobs_of(seed)
    errands = Knobs.draw(seed + 1000, errand_kinds=ERRAND_KINDS).errands
    return replace(
        knobs,
        errands=errands or tuple((kind, 1.0) for kind in ERRAND_KINDS),
        faults=knobs.faults if seed % 4 == 0 else (),
        links=knobs.links if seed % 4 == 1 else (),
        actions=knobs.actions if seed % 4 == 2 else (),
        agents=min(max(knobs.agents, 2), 4),
        turns=4,
        group=1,
        vandals=0,
        nasty=0.0,
        slow=0.0,
        scripts=0.0,
        s_per_token=0.05,
        think_s=0.5,
        heal_s=3.0,
        chunk_bytes=65536,
    )


class World:
    """Everything but the router, as the knobs say."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs: Final = knobs
        self.story: Final = Story()
        self.tokens: Final = tokens.of(knobs.tokenizer, knobs.template)
        urls = [f"http://w{number}:30000" for number in range(knobs.workers)]
        self.workers: Final = {url: self._worker(url) for url in urls}
        self.conditions: Final = {url: Conditions() for url in urls}
        self.agents: Final = cast(knobs, self.tokens, self.story.exchanges)
        self.operator: Final = Operator(
            self.workers,
            self.conditions,
            story=self.story,
            timeline=draw(
                knobs.seed,
                urls=urls,
                until_s=knobs.heal_s,
                actions=knobs.actions,
                links=knobs.links,
            ),
        )

        self.errands: Final = draw_errands(
            knobs.seed, urls=urls, until_s=knobs.heal_s, rates=knobs.errands
        )
        for url, worker in self.workers.items():
            worker.desk.on_version = partial(self.operator.learn, url)

    def _worker(self, url: str) -> SimWorker:
        knobs = self.knobs
        rates = {FaultKind(kind): rate for kind, rate in knobs.faults}
        return SimWorker(
            url,
            tokens=self.tokens,
            story=self.story,
            chance=derive(knobs.seed, "worker", url),
            options=knobs.engine_options(),
            faults=FaultRates(rates, probes=derive(knobs.seed, "probes").random() ** 3),
            incremental=knobs.incremental,
            scripts=knobs.scripts,
            seed=derive(knobs.seed, "samples", url).getrandbits(32),
        )
