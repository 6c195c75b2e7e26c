"""What a harness leaves behind."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from slime_core.lookup import TokenizerFacts
from slime_core.state import RouterState
from slime_core.versions import VersionOrder
from tests.simulate.knobs import Knobs
from tests.simulate.story import Story
from tests.simulate.tokens import Tokens
from tests.simulate.watch import Watch
from tests.simulate.world import World

__all__ = ["Run", "facts_of", "fresh_state", "trace_of"]


@dataclass(slots=True, kw_only=True)
class Run:
    """The world with its story, the router's state at the end, and who watched it."""

    knobs: Knobs
    world: World
    state: RouterState
    watch: Watch
    events: int = 0
    """Of the core: actions of the agenda, and transitions. Of the shell: transitions and reads."""
    digest: str = ""
    """One line that two runs share exactly if the same happened in both."""

    @property
    def story(self) -> Story:
        return self.world.story

    @property
    def tokens(self) -> Tokens:
        return self.world.tokens

    def journal_state(self) -> RouterState:
        """A fresh state, as the router began with."""
        return fresh_state(self.tokens, self.knobs)


def fresh_state(tokens: Tokens, knobs: Knobs) -> RouterState:
    """A state for this vocabulary and this fleet."""
    return RouterState(
        one_text_root=not tokens.tokenizer.adds_special_tokens,
        versions=VersionOrder(max_staleness=knobs.max_staleness),
    )


def facts_of(tokens: Tokens) -> TokenizerFacts:
    """What look-ups need of this vocabulary."""
    return TokenizerFacts(
        vocabulary=tokens.vocabulary,
        hard_tokens=tokens.tokenizer.hard_tokens,
        raw_prefix=len(tokens.tokenizer.prefix_ids),
    )


def trace_of(story: Story) -> str:
    """A digest of all that was seen of a run, and when."""
    trace = hashlib.sha256()
    for one in story.exchanges:
        seen = (one.number, one.agent, one.status, sorted(one.headers.items()), one.ending.value)
        times = (one.started_s, one.ended_s, one.asked_at, one.last_byte_at)
        trace.update(repr((seen, times, bytes(one.body))).encode())
    for sampled in story.sampled:
        trace.update(repr((sampled.rid, sampled.worker, bytes(sampled.wire))).encode())
    for fact in story.journal:
        trace.update(repr(fact).encode())
    for told in story.delivered:
        trace.update(json.dumps([told.at, told.now, told.path, told.status, told.body]).encode())
    trace.update(repr((story.complaints, sorted(story.marks.items()), story.ticks)).encode())
    return trace.hexdigest()
