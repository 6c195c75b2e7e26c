"""All that a seed decides at large, as one value with a name for every number in it.

The default of every field is its quiet value: ``Knobs(seed=7)`` is a run of one worker, one agent
and one turn in which nothing goes wrong. The order of the fields is the order in which a failing
run is made smaller: what strikes from outside first, then the cast, then what it does, then sizes.

Each field is drawn from a generator of its own name, so that a new knob, or another kind of fault,
leaves all others as they were. Faults, actions and links are drawn on two levels: which kinds are
live in this run, and then each kind's own measure. A run in which a thing never happens reaches
states that an average mixture never sees (Groce et al., "Swarm Testing", 2012).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_type_hints

from slime_core.decide import Limits
from slime_core.engine import EngineOptions
from slime_core.health import HealthLimits
from slime_core.policies import POLICIES
from tests import listeners
from tests.simulate import templates, tokens
from tests.simulate.chance import derive
from tests.simulate.knob_words import Names, Rates, read, written

__all__ = ["Knobs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """See the module. Times in virtual seconds; probabilities per request unless said."""

    seed: int
    faults: Annotated[Rates, "worker faults, each with its probability per request"] = ()
    actions: Annotated[Rates, "operator actions, each with how often"] = ()
    links: Annotated[Rates, "bad conditions of links, each with how often"] = ()
    errands: Annotated[Rates, "what is asked through the router, each with how often"] = ()

    absent: Annotated[Names, "agents that were cast and do nothing"] = ()
    trainers: Annotated[int, "agents that only retrieve, while others run"] = 0
    vandals: Annotated[int, "agents whose requests must be refused"] = 0
    agents: Annotated[int, "agents with conversations"] = 1
    workers: Annotated[int, "workers"] = 1
    turns: Annotated[int, "turns of a conversation, at most"] = 1
    group: Annotated[int, "samples of a group, at most"] = 1

    branch: Annotated[float, "several continuations of one answer, per turn"] = 0.0
    cut: Annotated[float, "an answer is left midway, per turn"] = 0.0
    edit: Annotated[float, "history is echoed altered, compacted or dropped, per turn"] = 0.0
    retry: Annotated[float, "a request that failed is sent again"] = 0.0
    twice: Annotated[float, "a request is sent again while it runs"] = 0.0
    leave: Annotated[float, "the agent closes its connection"] = 0.0
    slow: Annotated[float, "the agent reads slowly"] = 0.0
    half_close: Annotated[float, "the agent ends its sending side"] = 0.0
    upload: Annotated[float, "the request is sent in pieces"] = 0.0
    respell: Annotated[float, "chat agents that echo history in their own spelling"] = 0.0
    continues: Annotated[float, "an answer is to be gone on with, per turn of a chat"] = 0.0
    forge: Annotated[float, "fields and headers that only the router may set"] = 0.0
    wrong_parent: Annotated[float, "parent_id is unknown, or somebody else's"] = 0.0
    retrieve: Annotated[float, "an agent retrieves what it got, per turn"] = 0.0

    chat_share: Annotated[float, "agents that chat"] = 0.0
    completions_share: Annotated[float, "agents that use /v1/completions"] = 0.0
    ids_share: Annotated[float, "agents that send ids"] = 0.0
    group_share: Annotated[float, "agents that begin with a group"] = 0.0
    n_share: Annotated[float, "groups that are one request with n > 1"] = 0.0
    batch_share: Annotated[float, "groups, and their turns, that are one request with a list"] = 0.0
    stream_share: Annotated[float, "requests that stream"] = 0.0
    session_share: Annotated[float, "agents that name a session"] = 0.0
    parent_share: Annotated[float, "requests that name their parent"] = 0.0
    wish_share: Annotated[float, "requests that ask for weights"] = 0.0
    target_share: Annotated[float, "requests that name their worker"] = 0.0
    logprob_share: Annotated[float, "requests that ask for logprobs"] = 0.0
    rid_share: Annotated[float, "requests that name their own rid, now and then one of before"] = (
        0.0
    )
    tools_share: Annotated[float, "chat agents with tools"] = 0.0
    scripts: Annotated[float, "answers in which thoughts and calls are said on purpose"] = 0.0
    nasty: Annotated[float, "words that are hard on tokenizers, per word"] = 0.0
    endings: Annotated[float, "requests with stop strings, stop tokens and the like"] = 0.0

    tokenizer: Annotated[str, "vocabulary"] = "bytes"
    template: Annotated[str, "chat template"] = tokens.QUIET_TEMPLATE
    history: Annotated[str, "what becomes of history that the template writes anew"] = "exact"
    policy: Annotated[str, "how calls are dealt to workers"] = "round-robin"
    affinity: Annotated[bool, "calls of a session stay with their worker"] = True
    incremental: Annotated[bool, "workers stream what is new instead of all so far"] = False
    escape_json: Annotated[bool, "agents escape all but ASCII in JSON"] = False

    prompt_words: Annotated[int, "words that a turn adds, at most"] = 3
    answer_tokens: Annotated[int, "tokens of an answer, at most"] = 6
    think_s: Annotated[float, "pause between turns, at most"] = 0.0
    read_pause_s: Annotated[float, "pause of a slow reader"] = 0.1

    s_per_token: Annotated[float, "a worker's time for a token"] = 0.01
    prefill_tokens_per_s: Annotated[float, "a worker's rate of reading prompts; 0: no time"] = 0.0
    prefix_cache_tokens: Annotated[int, "a worker's prefix cache"] = 200_000
    max_running: Annotated[int, "a worker's requests at a time"] = 256
    queue_max: Annotated[int, "a worker's waiting requests; 0: no limit"] = 0
    context_length: Annotated[int, "a worker's context"] = 32768

    reuse_tokens: Annotated[int, "tokens that the router keeps for reuse only"] = 10_000
    data_bytes: Annotated[int, "bytes of answers that nobody retrieved yet"] = 4096 * 2**20
    epochs: Annotated[int, "versions of the weights that anything may go unused"] = 5
    poll_interval_s: Annotated[float, "the router asks workers that often"] = 10.0
    connect_timeout_s: Annotated[float, "the router's patience with connecting"] = 10.0
    failure_threshold: Annotated[int, "failures in a row that end in quarantine"] = 3
    quarantine_s: Annotated[float, "the longest quarantine"] = 30.0
    max_staleness: Annotated[int, "versions that a worker may lag behind"] = 0
    grace_s: Annotated[float, "how long workers with old weights wait for newer ones"] = 60.0
    client_stall_s: Annotated[float, "the router's patience with clients that do not read"] = 60.0

    delay_s: Annotated[float, "a link's delay, at most"] = 0.0
    chunk_bytes: Annotated[int, "bytes that a link carries in one piece, at most"] = 65536
    heal_s: Annotated[float, "when faults end"] = 5.0
    liveness_s: Annotated[float, "how long everything may take from then on"] = 7200.0
    listener: Annotated[str, "of the shell: who accepts connections"] = listeners.LISTENERS[0]

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        quick: bool = True,
        fault_kinds: Sequence[str] = (),
        action_kinds: Sequence[str] = (),
        link_kinds: Sequence[str] = (),
        errand_kinds: Sequence[str] = (),
    ) -> Knobs:
        """The knobs of a seed. ``quick`` runs make some dozens of requests, others hundreds.

        The kinds are names that only their owners understand.
        """
        values: dict[str, Any] = {
            name: draw(derive(seed, "knob", name)) for name, draw in _DRAWS.items()
        }
        calm = derive(seed, "knob", "calm").random() < 0.15
        values["faults"] = () if calm else _rates(seed, "fault", fault_kinds, _FAULT_RATE)
        values["actions"] = () if calm else _rates(seed, "action", action_kinds, _COUNT)
        values["links"] = () if calm else _rates(seed, "link", link_kinds, _COUNT)
        values["errands"] = () if calm else _rates(seed, "errand", errand_kinds, _COUNT)
        if values["chunk_bytes"] < 1000:
            # Whoever reads a few bytes at a time, with long pauses, would still read next week.
            values["read_pause_s"] = min(values["read_pause_s"], 1.0)
        if not values["chat_share"]:
            # What only chats are made of would say nothing, and change what others do.
            values |= {"template": tokens.QUIET_TEMPLATE, "scripts": 0.0}
        if not quick:
            values["agents"] *= 4
            values["turns"] *= 2
        while values["agents"] * values["turns"] * (1 + values["group"]) > (80 if quick else 800):
            largest = max(("agents", "turns", "group"), key=values.__getitem__)
            values[largest] -= 1
        return cls(seed=seed, **values)

    def with_settings(self, settings: Sequence[str]) -> Knobs:
        """These knobs with some set by hand: ``agents=1``, ``faults=cut_stream:0.5,refuse:0.1``.

        Raises ``ValueError`` that names the setting.
        """
        changed: dict[str, Any] = {}
        for setting in settings:
            name, equals, word = setting.partition("=")
            if not equals or name not in _TYPES:
                raise ValueError(
                    f"{setting!r}: expected NAME=VALUE with one of {', '.join(_TYPES)}"
                )
            try:
                changed[name] = read(word, _TYPES[name])
            except ValueError as error:
                raise ValueError(f"{setting!r}: {error}") from None
            _check_choice(name, changed[name])
        return dataclasses.replace(self, **changed)

    def settings(self) -> list[str]:
        """What :meth:`with_settings` must be given to turn quiet knobs into these."""
        return [f"{name}={written(getattr(self, name))}" for name in self._loud()]

    def table(self) -> str:
        """Lines of name, value and meaning; a star where the value is not the quiet one."""
        loud = set(self._loud())
        rows = [("seed", str(self.seed), " ", "decides everything else")]
        for field in dataclasses.fields(self)[1:]:
            mark = "*" if field.name in loud else " "
            word = written(getattr(self, field.name)) or "-"
            rows.append((field.name, word, mark, _MEANINGS[field.name]))
        wide = max(len(word) for _, word, _, _ in rows if len(word) <= 24)
        return "\n".join(
            f"{mark} {name:<20} {word:<{wide}}  {why}" for name, word, mark, why in rows
        )

    def quieter(self) -> Iterator[Knobs]:
        """Simpler knobs, the boldest first; of the quietest there are none.

        Whoever takes any of them, again and again, comes to an end: each is nearer to quiet in
        the fields that differ, and farther in none.
        """
        loud = [name for name in self._loud() if name != "absent"]
        for part in (loud, *(_loud_of(loud, names) for names in _PARTS)):
            if len(part) > 1:
                yield self._with({name: _QUIET[name] for name in part})
        for name in loud:
            for value in _nearer(getattr(self, name), _QUIET[name]):
                yield self._with({name: value})
        present = [name for name in self.cast_names() if name not in self.absent]
        for name in present if len(present) > 1 else ():
            yield dataclasses.replace(self, absent=(*self.absent, name))

    def _with(self, values: dict[str, Any]) -> Knobs:
        """These knobs with others' values; of the absent, those who would be there."""
        knobs = dataclasses.replace(self, **values)
        absent = tuple(name for name in self.absent if name in knobs.cast_names())
        if len(absent) == len(knobs.cast_names()):
            absent = ()
        return dataclasses.replace(knobs, absent=absent)

    def cast_names(self) -> list[str]:
        """The names of all agents of a run, whether absent or not."""
        sorts = {"agent": self.agents, "trainer": self.trainers, "vandal": self.vandals}
        return [f"{sort}{place}" for sort, count in sorts.items() for place in range(count)]

    def engine_options(self) -> EngineOptions:
        """What a worker's hardware is like."""
        return EngineOptions(
            context_length=self.context_length,
            max_running_requests=self.max_running,
            queue_max=self.queue_max,
            s_per_token=self.s_per_token,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            prefix_cache_tokens=self.prefix_cache_tokens,
        )

    def limits(self) -> Limits:
        """How much the router keeps."""
        return Limits(
            reuse_tokens=self.reuse_tokens, data_bytes=self.data_bytes, epochs=self.epochs
        )

    def health_limits(self) -> HealthLimits:
        """When the router gives a worker up, and for how long."""
        return HealthLimits(
            failure_threshold=self.failure_threshold, quarantine_s=self.quarantine_s
        )

    @property
    def recovery_s(self) -> float:
        """How long a fleet that is healed may take until all of it works again: the longest
        quarantine, first a probe that hangs on in vain; then the grace; and some polls."""
        return 2 * self.quarantine_s + self.grace_s + 2 * self.poll_interval_s + 60.0

    def _loud(self) -> list[str]:
        return [name for name in _TYPES if getattr(self, name) != _QUIET[name]]


_TYPES: Final[dict[str, Any]] = {
    name: kind for name, kind in get_type_hints(Knobs).items() if name != "seed"
}
_MEANINGS: Final[dict[str, str]] = {
    name: kind.__metadata__[0]
    for name, kind in get_type_hints(Knobs, include_extras=True).items()
    if name != "seed"
}
_QUIET: Final[dict[str, Any]] = {
    field.name: field.default for field in dataclasses.fields(Knobs) if field.name != "seed"
}
_PARTS: Final = (
    ("faults", "actions", "links", "errands"),
    ("trainers", "vandals"),
    ("branch", "cut", "edit", "respell", "continues"),
    ("retry", "twice", "leave", "slow", "half_close", "upload"),
    ("forge", "wrong_parent", "retrieve"),
    tuple(name for name in _TYPES if name.endswith("_share")),
    ("s_per_token", "prefill_tokens_per_s", "prefix_cache_tokens", "max_running", "queue_max"),
    ("reuse_tokens", "data_bytes", "epochs", "poll_interval_s", "connect_timeout_s"),
    ("failure_threshold", "quarantine_s", "max_staleness", "grace_s", "affinity"),
    ("think_s", "read_pause_s", "delay_s", "chunk_bytes", "client_stall_s"),
)
"""What is worth leaving out together."""


def _loud_of(loud: list[str], names: Sequence[str]) -> list[str]:
    return [name for name in loud if name in names]


_SMALL: Final = 16
"""So near to quiet it is worth going on by ones."""


def _nearer(value: Any, quiet: Any) -> Iterator[Any]:
    """Values between, the quiet one first."""
    yield quiet
    if isinstance(value, tuple):
        if len(value) > 2:
            yield value[: len(value) // 2]
            yield value[len(value) // 2 :]
        if len(value) > 1:
            yield from (value[:at] + value[at + 1 :] for at in range(len(value)))
    elif isinstance(value, bool | str):
        return
    elif isinstance(value, int):
        near = (value + quiet) // 2 if value > quiet else -((-value - quiet) // 2)
        step = value - 1 if value > quiet else value + 1
        steps = (near, step) if abs(value - quiet) <= _SMALL else (near,)
        yield from dict.fromkeys(one for one in steps if one not in (quiet, value))
    elif abs(value - quiet) > 0.05 and (near := round((value + quiet) / 2, 2)) != value:
        yield near


_HISTORY: Final = ("exact", "template")
_CHOICES: Final = {
    "tokenizer": tokens.NAMES,
    "template": templates.NAMES,
    "history": _HISTORY,
    "policy": tuple(POLICIES),
    "listener": listeners.LISTENERS,
}


def _check_choice(name: str, value: Any) -> None:
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"{name}={value}: expected one of {', '.join(_CHOICES[name])}")


# How a seed decides

_Draw = Callable[[random.Random], Any]


def _rates(seed: int, sort: str, kinds: Sequence[str], draw: _Draw) -> Rates:
    density = derive(seed, "knob", sort, "density").choice(_DENSITIES[sort])
    live = []
    for kind in kinds:
        chance = derive(seed, "knob", sort, kind)
        if chance.random() < density:
            live.append((kind, draw(chance)))
    return tuple(live)


_DENSITIES: Final = {
    "fault": (0.04, 0.1, 0.2),
    "action": (0.05, 0.15, 0.3),
    "link": (0.05, 0.15, 0.4),
    "errand": (0.0, 0.0, 0.1),
}
"""How many of the kinds are live. There are dozens of faults: more would leave no answer whole."""


def _one_of(*values: Any) -> _Draw:
    return lambda chance: chance.choice(values)


def _between(least: int, most: int) -> _Draw:
    return lambda chance: chance.randint(least, most)


def _spread(least: float, most: float) -> _Draw:
    return lambda chance: round(chance.uniform(least, most), 2)


def _sometimes(live: float, draw: _Draw) -> Callable[[random.Random], float]:
    """0 in most runs; else as ``draw`` says."""
    return lambda chance: draw(chance) if chance.random() < live else 0.0


_SHARE: Final = _one_of(0.0, 0.0, 0.2, 0.5, 0.8, 1.0)
_FAULT_RATE: Final = _one_of(0.03, 0.1, 0.3)
_COUNT: Final = _one_of(1.0, 1.0, 2.0, 3.0)
_HABIT: Final = _sometimes(0.5, _one_of(0.1, 0.3, 0.6))

_DRAWS: Final[dict[str, _Draw]] = {
    "trainers": _one_of(0, 0, 1, 1, 2),
    "vandals": _one_of(0, 0, 0, 1),
    "agents": _between(1, 8),
    "workers": _one_of(1, 1, 2, 2, 3, 4),
    "turns": _between(2, 6),
    "group": _one_of(1, 2, 3, 4),
    **dict.fromkeys(("branch", "cut", "edit"), _sometimes(0.7, _one_of(0.2, 0.4, 0.7))),
    **dict.fromkeys(("forge", "retrieve", "upload", "twice"), _HABIT),
    **dict.fromkeys(("half_close", "wrong_parent"), _sometimes(0.3, _one_of(0.05, 0.2))),
    "respell": _one_of(0.0, 0.3, 0.7, 1.0),
    "continues": _sometimes(0.5, _one_of(0.1, 0.3)),
    "tools_share": _one_of(0.0, 0.5, 1.0, 1.0),
    "scripts": _one_of(0.0, 0.3, 0.6, 0.9),
    "rid_share": _sometimes(0.2, _one_of(0.1, 0.5)),
    "retry": _one_of(0.0, 0.5, 0.9),
    "leave": _sometimes(0.4, _one_of(0.05, 0.15, 0.4)),
    "slow": _sometimes(0.3, _one_of(0.1, 0.5)),
    **dict.fromkeys(("chat_share", "completions_share", "ids_share"), _one_of(0.0, 0.0, 0.2, 0.5)),
    "group_share": _SHARE,
    **dict.fromkeys(("n_share", "batch_share", "session_share"), _SHARE),
    **dict.fromkeys(("parent_share", "logprob_share"), _SHARE),
    "stream_share": _one_of(0.0, 0.3, 0.7, 1.0),
    "nasty": _one_of(0.0, 0.2, 0.5, 1.0),
    "endings": _one_of(0.0, 0.3, 0.7),
    "tokenizer": _one_of(*tokens.NAMES),
    "template": _one_of(*templates.NAMES, "thinks"),
    "history": _one_of("exact", "exact", "exact", "template"),
    "policy": _one_of(*POLICIES),
    "affinity": _one_of(True, True, False),
    "wish_share": _sometimes(0.4, _one_of(0.2, 0.6)),
    "target_share": _sometimes(0.3, _one_of(0.1, 0.4)),
    "incremental": _one_of(False, True),
    "escape_json": _one_of(False, True),
    "prompt_words": _between(1, 6),
    "answer_tokens": _between(1, 20),
    "think_s": _one_of(0.0, 0.05, 0.5, 2.0),
    "read_pause_s": _one_of(0.01, 0.1, 1.0, 8.0, 70.0),
    "s_per_token": _one_of(0.001, 0.01, 0.05),
    "prefill_tokens_per_s": _one_of(0.0, 0.0, 200.0, 5000.0),
    "prefix_cache_tokens": _one_of(0, 64, 1000, 200_000),
    "max_running": _one_of(1, 2, 8, 256),
    "queue_max": _one_of(0, 0, 0, 1, 4),
    "context_length": _one_of(32768, 32768, 32768, 256, 96),
    "reuse_tokens": _one_of(10_000, 10_000, 300, 40, 0),
    "data_bytes": _one_of(2**32, 2**32, 2**32, 20_000, 2_000),
    "epochs": _one_of(5, 5, 1, 0),
    "poll_interval_s": _one_of(10.0, 3.0, 1.0),
    "connect_timeout_s": _one_of(10.0, 1.0),
    "failure_threshold": _one_of(3, 3, 1),
    "quarantine_s": _one_of(30.0, 4.0, 1.0),
    "max_staleness": _one_of(0, 0, 0, 1, 2),
    "grace_s": _one_of(60.0, 5.0, 1.0, 0.5),
    "client_stall_s": _one_of(60.0, 5.0),
    "delay_s": _one_of(0.0, 0.0, 0.005, 0.1),
    "chunk_bytes": _one_of(65536, 65536, 1000, 100, 7),
    "heal_s": _spread(0.5, 10.0),
}
