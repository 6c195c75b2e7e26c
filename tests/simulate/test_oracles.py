"""Each rule accepts a small story that is true, and rejects its broken twin.

The good story is played by the core itself with a worker of a few lines; every twin is made by
falsifying one thing in what somebody noted, so that the rules stay honest without any harness.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import structs

from slime_core.decide import Limits, plan_retrieval
from slime_core.engine import Sampler, float32, parse_sampling_params, uniform
from slime_core.errors import ClientError
from slime_core.health import Condition, Event, Health
from slime_core.segments import Outcome
from slime_core.state import RouterState
from slime_core.trajectory import trajectory
from slime_core.transitions import (
    CallCaptured,
    CallLost,
    CallOpened,
    Retrieved,
    SegmentsGone,
    SlotsGiven,
    SlotsTaken,
    Transition,
    WorkerHealth,
)
from slime_core.types import (
    CallId,
    Encoding,
    PackedIds,
    WorkerUrl,
    pack_ids,
    pack_logprobs,
    unpack_ids,
)
from slime_core.versions import VersionRun
from tests.core.capture import Driver, Opened
from tests.fleet_support import joined
from tests.simulate import tokens as vocabularies
from tests.simulate.oracles import judge
from tests.simulate.story import (
    Ask,
    Committed,
    Delivered,
    Ending,
    Exchange,
    Got,
    Kind,
    Sampled,
    Story,
)
from tests.simulate.tokens import Tokens
from tests.simulate.watch import Violation, Watch

_URL = WorkerUrl("http://w")
_LIMITS = Limits()


class _Knobs:
    history = "exact"

    def limits(self) -> Limits:
        return _LIMITS


@dataclass
class Tale:
    """A run of one agent at a time, told step by step. It is the :class:`oracles.Run`."""

    tokens: Tokens = field(default_factory=lambda: vocabularies.of("bytes"))
    story: Story = field(default_factory=Story)
    knobs: _Knobs = field(default_factory=_Knobs)
    version: str = "1"

    def __post_init__(self) -> None:
        self.driver = Driver(self.tokens.tokenizer)
        self.watch = Watch(self.story, _LIMITS, self.driver.facts, every=16)
        self.sampler = Sampler(self.tokens.language, end_ids=self.tokens.end_ids)
        self.commit(*joined(_URL))

    @property
    def state(self) -> RouterState:
        return self.driver.state

    def journal_state(self) -> RouterState:
        return RouterState(one_text_root=not self.tokens.tokenizer.prefix_ids)

    def commit(self, *facts: Transition) -> None:
        for fact in facts:
            self.driver.apply(fact)
            self._note()

    def _note(self) -> None:
        """Enter what the driver has applied since into the story."""
        for fact in self.driver.journal[len(self.story.journal) :]:
            self.story.journal.append(Committed(at=self.story.tick(), now=0.0, fact=fact))
            self.watch(fact, self.state)

    # -- one exchange --------------------------------------------------------------------

    def ask(self, text: str, **more: Any) -> tuple[Exchange, Opened]:
        """A client sends text; its call is opened, encoded and sent."""
        kind, session = more.pop("kind", Kind.ROOT), more.pop("session", None)
        body = {"text": text, "sampling_params": {"max_new_tokens": 8}} | more.pop("body", {})
        ask = Ask(path="/generate", body=body, kind=kind, text=text, session=session, **more)
        exchange = Exchange(
            number=len(self.story.exchanges), agent="a", ask=ask, asked_at=self.story.tick()
        )
        self.story.exchanges.append(exchange)
        call = f"c{exchange.number}"
        opened = self.driver.open_text(call, text, session=session, parent_call=ask.parent)
        self.driver.keep(opened)
        self._note()
        self.commit(SlotsTaken(worker=_URL, calls=(opened.call,)))
        found = opened.found
        flags = ("cut",) * found.cut + ("parent_ambiguous",) * found.ambiguous
        exchange.status = 200
        exchange.headers = {"x-slime-call-id": call, "x-slime-flags": ",".join(flags)}
        return exchange, opened

    def sample(self, opened: Opened, count: int, *, seed: int = 1) -> Sampled:
        """The worker samples so many tokens."""
        held = b""
        if opened.found.parent is not None:
            key = self.state.forest.ids.key(opened.found.parent.id_node)
            held = key[: opened.found.token_start * 4]
        raw = {"max_new_tokens": count, "temperature": 0.9}
        sampled = Sampled(
            rid=opened.call,
            worker=_URL,
            arrived_at=self.story.tick(),
            prompt_ids=tuple(unpack_ids(held + opened.prompt_ids)),
            params=raw,
            seed=seed,
        )
        params = parse_sampling_params(raw, vocabulary_size=len(self.tokens.vocabulary))
        for place in range(count):
            version = self.version if place < count // 2 else str(int(self.version) + 1)
            context = [*sampled.prompt_ids, *sampled.ids]
            chance = uniform(seed, place)
            token, shape = self.sampler.sample(context, params, sampled.ids, version, chance)
            sampled.ids.append(token)
            sampled.logprobs.append(float32(shape.logprob(token)))
            sampled.versions.append(version)
        sampled.text = self.tokens.vocabulary.decode(sampled.ids, skip_special=True, at_start=False)
        sampled.finish = {"type": "length", "length": count}
        item = {
            "text": sampled.text,
            "output_ids": sampled.ids,
            "meta_info": {
                "id": sampled.rid,
                "completion_tokens": count,
                "finish_reason": sampled.finish,
                "output_token_logprobs": [],
            },
        }
        sampled.wire += json.dumps(item).encode()
        sampled.told, sampled.told_finish = count, sampled.finish
        self.story.sampled.append(sampled)
        return sampled

    def capture(self, opened: Opened, sampled: Sampled, **changes: Any) -> None:
        """What was sampled is kept, and the slot given back."""
        names = sampled.versions
        runs = [VersionRun(name, at, at + 1) for at, name in enumerate(names)]
        fact = self.driver.captured(
            opened, sampled.ids, sampled.text, logprobs=sampled.logprobs, runs=_joined(runs)
        )
        answer = {"finish_reason": json.dumps(sampled.finish).encode()} | changes
        fact = structs.replace(fact, answer=structs.replace(fact.answer, **answer))
        self.commit(fact, SlotsGiven(worker=_URL, calls=(opened.call,)))

    def show(self, exchange: Exchange, sampled: Sampled) -> None:
        """The client receives it all."""
        exchange.body += sampled.wire.replace(b', "output_token_logprobs": []', b"")
        exchange.samples = [
            Got(
                text=sampled.text,
                ids=list(sampled.ids),
                finish=sampled.finish,
                told_at=self.story.tick(),
            )
        ]
        exchange.last_byte_at = self.story.tick()
        exchange.ending = Ending.COMPLETE

    def turn(self, text: str, count: int = 6, **more: Any) -> Exchange:
        """A whole exchange."""
        seed = more.pop("seed", 1)
        exchange, opened = self.ask(text, **more)
        sampled = self.sample(opened, count, seed=seed)
        self.capture(opened, sampled)
        self.show(exchange, sampled)
        return exchange

    def lose(self, text: str, reason: str = "corrupt") -> Exchange:
        """An exchange whose answer cannot be kept."""
        exchange, opened = self.ask(text)
        sampled = self.sample(opened, 3)
        self.commit(
            CallLost(call=opened.call, reason=reason, sampled=True),
            SlotsGiven(worker=_URL, calls=(opened.call,)),
        )
        exchange.headers["x-slime-captured"] = "false"
        self.show(exchange, sampled)
        return exchange

    # -- retrieval -----------------------------------------------------------------------

    def retrieve(self, call: str) -> Delivered:
        """A trainer asks for a call."""
        segment = self.state.forest.calls[CallId(call)]
        return self._delivered(f"/trajectories/{call}", {}, trajectory(self.state.forest, segment))

    def retrieve_text(self, text: str) -> Delivered:
        """A trainer asks for a text, and is told, or told why not."""
        self.driver.tell_all()
        self._note()
        try:
            plan = plan_retrieval(self.state, self.driver.facts, text, None)
        except ClientError as error:
            return self._refused("/retrieve_from_text", {"text": text}, error.status, error.code)
        rest = plan.rest
        tail = pack_ids(self.tokens.encode(rest, encoding=Encoding.RENDERED, first=False))
        found = plan.result(self.state.forest, tail)
        more = {"response": text, "id": plan.call}
        return self._delivered("/retrieve_from_text", {"text": text}, found, more, plan.delivered)

    def text_of(self, call: str) -> str:
        """Prompt and answer of a call."""
        place = int(call[1:])
        prompt = self.story.exchanges[place].ask.text
        return (prompt or "") + next(s.text for s in self.story.sampled if s.rid == call)

    def _delivered(
        self,
        path: str,
        asked: dict[str, Any],
        found: Any,
        more: dict[str, Any] | None = None,
        fact: Retrieved | None = None,
    ) -> Delivered:
        body = {
            "tokens": unpack_ids(found.ids),
            "loss_mask": list(found.mask),
            "rollout_logp": found.logprobs.tolist(),
            "generation_versions": found.versions.tolist(),
            "weight_versions": [
                {"version": run.version, "start": run.start, "end": run.end}
                for run in found.version_runs
            ],
            "token_length": len(found),
            "loss_mask_length": len(found.mask),
            "cut": found.cut,
            "id": path.rpartition("/")[2],
        } | (more or {})
        one = Delivered(
            at=self.story.tick(), now=0.0, path=path, asked=asked, status=200, body=body
        )
        self.story.delivered.append(one)
        self.commit(fact or Retrieved(call=CallId(str(body["id"]))))
        return one

    def refused(self, call: str, status: int, code: str) -> None:
        """A trainer asks for a call and is refused."""
        self._refused(f"/trajectories/{call}", {}, status, code)

    def _refused(self, path: str, asked: dict[str, Any], status: int, code: str) -> Delivered:
        one = Delivered(
            at=self.story.tick(),
            now=0.0,
            path=path,
            asked=asked,
            status=status,
            body={"error": {"code": code}},
        )
        self.story.delivered.append(one)
        return one


def _joined(runs: list[VersionRun]) -> tuple[VersionRun, ...]:
    joined: list[VersionRun] = []
    for run in runs:
        if joined and joined[-1].version == run.version:
            run = VersionRun(run.version, joined.pop().start, run.end)
        joined.append(run)
    return tuple(joined)


def shown(tale: Tale, exchange: Exchange) -> str:
    """All the text that the client of this exchange holds."""
    assert exchange.ask.text is not None
    return exchange.ask.text + exchange.samples[0].text


def good() -> Tale:
    """Two turns, a group of two, a cut, an answer that was lost, and retrievals of all."""
    tale = Tale()
    first = tale.turn("The quick", session="s")
    held = shown(tale, first)
    tale.turn(
        held + " and more", kind=Kind.APPEND, after=0, appended=" and more", session="s", seed=2
    )
    leaving = first.samples[0].text[:-1]
    tale.turn("The quick" + leaving + "?!", kind=Kind.CUT, after=0, session="s", seed=3)
    group = [tale.ask("no", session=name) for name in ("x", "y")]
    answers = [tale.sample(opened, 4, seed=9) for _, opened in group]
    for (exchange, opened), sampled in zip(group, answers, strict=True):
        tale.capture(opened, sampled)
        tale.show(exchange, sampled)
    tale.lose("gone")
    for call in ("c0", "c1", "c2", "c3", "c4"):
        tale.retrieve(call)
    tale.retrieve_text(held + " and others")
    tale.refused("c5", 410, "corrupt")
    return tale


def rules(tale: Tale) -> set[str]:
    """The rules that a tale breaks."""
    return {one.rule for one in judge(tale)}


def test_a_true_story_breaks_no_rule() -> None:
    assert judge(good()) == []


@pytest.mark.parametrize("name", vocabularies.NAMES)
def test_a_true_story_breaks_no_rule_in_any_vocabulary(name: str) -> None:
    tale = Tale(tokens=vocabularies.of(name))
    first = tale.turn("你好 <|im_end|> b", count=9)
    second = tale.turn(shown(tale, first) + " a<|im_end|>\nb", kind=Kind.APPEND, after=0, seed=5)
    tale.retrieve_text(shown(tale, second))
    assert judge(tale) == []


# -- falsified stories -------------------------------------------------------------------


def _body(tale: Tale, place: int) -> dict[str, Any]:
    return tale.story.delivered[place].body


def _shift_mask(tale: Tale) -> None:
    mask = _body(tale, 1)["loss_mask"]
    mask[:] = mask[1:] + mask[:1]


def _shift_logprobs(tale: Tale) -> None:
    values = _body(tale, 0)["rollout_logp"]
    values[:] = values[-1:] + values[:-1]


def _other_id(tale: Tale) -> None:
    _body(tale, 0)["tokens"][-1] += 1


def _one_version(tale: Tale) -> None:
    body = _body(tale, 0)
    start = len(body["tokens"]) - 6
    body["generation_versions"][start:] = [2] * 6
    body["weight_versions"] = [{"version": "2", "start": start, "end": start + 6}]


def _short_column(tale: Tale) -> None:
    _body(tale, 0)["rollout_logp"].pop()


def _not_cut(tale: Tale) -> None:
    _body(tale, 2)["cut"] = False


def _all_zero(tale: Tale) -> None:
    body = _body(tale, 0)
    size = len(body["tokens"])
    body["loss_mask"][:] = [0] * size
    body["rollout_logp"][:] = [0.0] * size
    body["generation_versions"][:] = [-1] * size
    body["weight_versions"] = []


def _forged_version(tale: Tale) -> None:
    _body(tale, 0)["weight_versions"][0]["version"] = "forged"


def _logprobs_of_the_twin(tale: Tale) -> None:
    twin = next(one for one in tale.story.sampled if one.rid == "c4")
    body = _body(tale, 3)
    own = tale.story.sampled[3]
    own.ids, twin.ids = list(own.ids), list(own.ids)
    body["rollout_logp"][-4:] = [value - 1 for value in twin.logprobs]


def _encoded_tail_differs(tale: Tale) -> None:
    _body(tale, 5)["response"] = _body(tale, 5)["response"][:-1] + "z"


def _told_first(tale: Tale) -> None:
    tale.story.exchanges[0].samples[0].told_at = 1


def _last_byte_first(tale: Tale) -> None:
    tale.story.exchanges[0].last_byte_at = 1


def _not_said(tale: Tale) -> None:
    del tale.story.exchanges[5].headers["x-slime-captured"]


def _said_for_nothing(tale: Tale) -> None:
    tale.story.exchanges[0].headers["x-slime-captured"] = "false"


def _forgotten(tale: Tale) -> None:
    tale.story.delivered.pop()
    tale.refused("c5", 404, "unknown_or_evicted")


def _refused_though_kept(tale: Tale) -> None:
    tale.refused("c0", 410, "evicted")


def _other_session(tale: Tale) -> None:
    ask = tale.story.exchanges[0].ask
    tale.story.exchanges[0].ask = dataclasses.replace(ask, session="t")


def _same_call_twice(tale: Tale) -> None:
    tale.story.exchanges[4].headers["x-slime-call-id"] = "c3"


def _never_ended(tale: Tale) -> None:
    tale.story.exchanges[0].ending = Ending.OPEN


def _complained(tale: Tale) -> None:
    tale.story.complaints.append("a task did not end")


def _other_event(tale: Tale) -> None:
    tale.story.exchanges[0].body[:] = tale.story.exchanges[0].body.replace(b'"length"', b'"stop"')


def _read_ahead(tale: Tale) -> None:
    first = tale.story.exchanges[0]
    first.ask = dataclasses.replace(first.ask, stream=True)
    tale.story.read_ahead[first.number] = 9000, 400


def _clean_and_short(tale: Tale) -> None:
    got = tale.story.exchanges[0].samples[0]
    got.text = got.text[:-1]


def _other_text(tale: Tale) -> None:
    tale.story.exchanges[0].samples[0].text = "never"


def _sent_twice(tale: Tale) -> None:
    tale.story.sampled.append(tale.story.sampled[0])


def _more_than_told(tale: Tale) -> None:
    tale.story.sampled[0].told -= 1


def _never_finished(tale: Tale) -> None:
    tale.story.sampled[0].told_finish = None


def _spelled_anew(sampled: Sampled, first: Sampled) -> None:
    """Another id where ``first`` sampled its first one."""
    ids = list(sampled.prompt_ids)
    ids[len(first.prompt_ids)] += 1
    sampled.prompt_ids = tuple(ids)


def _history_encoded_again(tale: Tale) -> None:
    _spelled_anew(tale.story.sampled[1], tale.story.sampled[0])


def _cut_encoded_again(tale: Tale) -> None:
    _spelled_anew(tale.story.sampled[2], tale.story.sampled[0])


def _cut_not_flagged(tale: Tale) -> None:
    tale.story.exchanges[2].headers["x-slime-flags"] = ""


def _untrue_logprob(tale: Tale) -> None:
    tale.story.sampled[0].logprobs[0] -= 1


def _never_sampled(tale: Tale) -> None:
    del tale.story.sampled[0]


def _partial_called_complete(tale: Tale) -> None:
    tale.story.sampled[0].ids.append(1)
    tale.story.sampled[0].logprobs.append(-1.0)
    tale.story.sampled[0].versions.append("1")


def _counted_wrong(tale: Tale) -> None:
    tale.state.counters.calls_lost += 1


def _state_of_its_own(tale: Tale) -> None:
    tale.driver.apply(CallOpened(call=CallId("secret"), parent=None))


def _opened_for_ever(tale: Tale) -> None:
    tale.commit(CallOpened(call=CallId("secret"), parent=None))


def _slot_for_ever(tale: Tale) -> None:
    tale.commit(SlotsTaken(worker=_URL, calls=(CallId("secret"),)))


def _work_for_the_unfit(tale: Tale) -> None:
    taken = SlotsTaken(worker=_URL, calls=(CallId("late"),))
    sick = Health(condition=Condition.QUARANTINED)
    tale.commit(WorkerHealth(worker=_URL, health=sick, event=Event.UNREACHABLE), taken)
    tale.commit(SlotsGiven(worker=_URL, calls=taken.calls))


def _went_for_nothing(tale: Tale) -> None:
    exchange, opened = tale.ask("young")
    sampled = tale.sample(opened, 2)
    tale.capture(opened, sampled)
    tale.show(exchange, sampled)
    number = tale.state.forest.calls[CallId("c6")].number
    tale.commit(SegmentsGone(segments=(number,), reason="evicted", unretrieved=1))


def _lost_as_if_nothing(tale: Tale) -> None:
    for place, entry in enumerate(tale.story.journal):
        if isinstance(entry.fact, CallLost):
            fact = structs.replace(entry.fact, sampled=False, reason="client_gone")
            tale.story.journal[place] = dataclasses.replace(entry, fact=fact)


_TWINS: list[tuple[Callable[[Tale], None], str]] = [
    (_shift_mask, "2 mask, logprobs, versions"),
    (_shift_logprobs, "2 mask, logprobs, versions"),
    (_one_version, "2 mask, logprobs, versions"),
    (_not_cut, "2 mask, logprobs, versions"),
    (_all_zero, "2 mask, logprobs, versions"),
    (_logprobs_of_the_twin, "2 mask, logprobs, versions"),
    (_encoded_tail_differs, "2 mask, logprobs, versions"),
    (_other_id, "1 exact delivery"),
    (_short_column, "1 exact delivery"),
    (_more_than_told, "1 exact capture"),
    (_never_finished, "1 exact capture"),
    (_never_sampled, "1 exact capture"),
    (_partial_called_complete, "1 exact capture"),
    (_history_encoded_again, "1 exact prompt"),
    (_history_encoded_again, "3 history is extended"),
    (_cut_encoded_again, "4 cuts"),
    (_cut_not_flagged, "4 cuts"),
    (_opened_for_ever, "7 calls end once"),
    (_lost_as_if_nothing, "7 losses are counted"),
    (_counted_wrong, "7 counters"),
    (_forgotten, "7 a word for what is gone"),
    (_refused_though_kept, "7 a word for what is gone"),
    (_not_said, "7 not captured is said"),
    (_said_for_nothing, "7 not captured is said"),
    (_told_first, "8 commit before telling"),
    (_last_byte_first, "8 commit before telling"),
    (_other_session, "9 sessions"),
    (_same_call_twice, "9 sessions"),
    (_forged_version, "9 nothing forged"),
    (_opened_for_ever, "10 quiescence"),
    (_slot_for_ever, "10 quiescence"),
    (_work_for_the_unfit, "unfit workers"),
    (_sent_twice, "10 no second attempt"),
    (_went_for_nothing, "eviction"),
    (_state_of_its_own, "11 replay"),
    (_other_event, "client bytes"),
    (_read_ahead, "bounded buffers"),
    (_clean_and_short, "client text"),
    (_other_text, "client text"),
    (_never_ended, "liveness"),
    (_complained, "liveness"),
    (_untrue_logprob, "the world's own logprobs"),
]


@pytest.mark.parametrize(("falsify", "rule"), _TWINS)
def test_the_broken_twin_of_a_true_story_is_rejected(
    falsify: Callable[[Tale], None], rule: str
) -> None:
    tale = good()
    falsify(tale)
    assert rule in rules(tale)


# -- stories of chance -------------------------------------------------------------------

_WORDS = (
    "a",
    "ab",
    " c",
    "<|im_end|>",
    "\n",
    "好",
    "🙂",
    "é",
    "The quick",
    "<|im_end",
    " 0.5",
    "#!",
)


def wander(tale: Tale, chance: random.Random, steps: int) -> None:
    """Agents that begin, append, cut, repeat and sample in groups, many at once."""
    done: list[tuple[Exchange, Sampled]] = []
    running: list[tuple[Exchange, Opened, Sampled]] = []
    for step in range(steps):
        if running and chance.random() < 0.45:
            exchange, opened, sampled = running.pop(chance.randrange(len(running)))
            tale.capture(opened, sampled)
            tale.show(exchange, sampled)
            done.append((exchange, sampled))
            if chance.random() < 0.3:
                tale.retrieve(opened.call)
            continue
        text, more = _next(tale, done, chance)
        exchange, opened = tale.ask(text, **more)
        count = chance.randint(1, 9)
        running.append((exchange, opened, tale.sample(opened, count, seed=step % 5)))
        if chance.random() < 0.2:
            tale.version = str(step + 2)
    for exchange, opened, sampled in running:
        tale.capture(opened, sampled)
        tale.show(exchange, sampled)
    for call in list(tale.state.forest.calls):
        told = tale.retrieve(call)
        ask = next(one.ask for one in tale.story.exchanges if one.calls == (call,))
        assert told.body["id"] == call
        if chance.random() < 0.5 and ask.text is not None:
            tale.retrieve_text(tale.text_of(call) + chance.choice(("", "a", "<|im_end|>\n")))


def _next(
    tale: Tale, done: list[tuple[Exchange, Sampled]], chance: random.Random
) -> tuple[str, dict[str, Any]]:
    words = "".join(chance.choices(_WORDS, k=chance.randint(1, 4)))
    if not done or chance.random() < 0.25:
        return chance.choice(("no", "yes", words)), {"session": chance.choice((None, "s", "t"))}
    exchange, sampled = chance.choice(done)
    before = (exchange.ask.text or "") + sampled.text
    more: dict[str, Any] = {"after": exchange.number, "session": exchange.ask.session}
    if chance.random() < 0.3:
        more["parent"] = exchange.calls[0]
    if chance.random() < 0.6:
        return before + words, more | {"kind": Kind.APPEND, "appended": words}
    kept = chance.randint(0, len(sampled.text))
    return (exchange.ask.text or "") + sampled.text[:kept] + words, more | {"kind": Kind.CUT}


@pytest.mark.parametrize("name", vocabularies.NAMES)
def test_true_stories_of_chance_break_no_rule(name: str) -> None:
    for seed in range(12):
        tale = Tale(tokens=vocabularies.of(name))
        wander(tale, random.Random(seed), steps=25)
        assert [f"seed {seed}: {one}" for one in judge(tale)] == []


# -- twins that need a story of their own ------------------------------------------------


def _play(twist: Callable[[Tale, CallCaptured], CallCaptured]) -> set[str]:
    """A tale in which every capture is changed before it is committed."""
    tale = Tale()
    own = tale.driver.captured

    def twisted(*args: Any, **more: Any) -> CallCaptured:
        return twist(tale, own(*args, **more))

    tale.driver.captured = twisted  # type: ignore[method-assign]
    tale.turn("The quick")
    return rules(tale)


def test_a_capture_with_shifted_logprobs_is_rejected() -> None:
    def shifted(tale: Tale, fact: CallCaptured) -> CallCaptured:
        values = tale.story.sampled[-1].logprobs
        packed = pack_logprobs(values[1:] + values[:1])
        return structs.replace(fact, answer=structs.replace(fact.answer, logprobs=packed))

    assert "1 exact capture" in _play(shifted)


def test_a_capture_with_the_version_of_the_finish_is_rejected() -> None:
    def last(tale: Tale, fact: CallCaptured) -> CallCaptured:
        end = fact.answer.runs[-1]
        runs = (VersionRun(end.version, 0, end.end),)
        return structs.replace(fact, answer=structs.replace(fact.answer, runs=runs))

    assert "1 exact capture" in _play(last)


def test_a_beginning_is_accepted_if_it_is_called_one() -> None:
    def beginning(tale: Tale, fact: CallCaptured) -> CallCaptured:
        values = tale.story.sampled[-1].logprobs[:2]
        answer = structs.replace(
            fact.answer,
            logprobs=pack_logprobs(values),
            runs=(VersionRun("1", 0, 2),),
            outcome=Outcome.PARTIAL,
        )
        ids = PackedIds(fact.answer_ids[:8])
        return structs.replace(fact, answer_ids=ids, answer=answer)

    tale_rules = _play(beginning)
    assert "1 exact capture" not in tale_rules
    assert "1 exact prompt" not in tale_rules


def test_two_calls_with_one_segment_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    tale = Tale()
    exchange, opened = tale.ask("no")
    sampled = tale.sample(opened, 2)
    tale.capture(opened, sampled)
    tale.show(exchange, sampled)
    segment = tale.state.forest.calls[CallId("c0")]
    monkeypatch.setattr(type(tale.state.forest), "capture", lambda *_: segment)
    _, opened = tale.ask("no")
    tale.capture(opened, tale.sample(opened, 2))
    assert "one segment per call" in rules(tale)


def test_an_answer_of_equal_twins_must_be_called_ambiguous() -> None:
    tale = Tale()
    twins = [tale.turn("no"), tale.turn("no", body={"v": 1})]
    tale.turn(shown(tale, twins[0]) + " x", kind=Kind.APPEND, after=0, seed=4)
    assert judge(tale) == []
    tale.story.exchanges[2].headers["x-slime-flags"] = ""
    assert "3 history is extended" in rules(tale)


def test_a_doubled_joint_is_rejected() -> None:
    tale = Tale()
    end = next(iter(tale.tokens.end_ids))
    exchange, opened = tale.ask("hello")
    sampled = tale.sample(opened, 3)
    sampled.ids[-1] = end
    sampled.finish = {"type": "stop", "matched": end}
    sampled.text = tale.tokens.vocabulary.decode(sampled.ids, skip_special=True, at_start=False)
    tale.capture(opened, sampled, endings=())
    tale.show(exchange, sampled)
    tale.turn(shown(tale, exchange) + "<|im_end|>\nnext", kind=Kind.APPEND, after=0, seed=4)
    assert "2 mask, logprobs, versions" in rules(tale)


def test_violations_read_as_rule_and_message() -> None:
    assert str(Violation("1", "so")) == "1: so"
