"""The pure core of Slime Router: state, decisions and framing, without I/O.

Nothing in this package awaits, reads a clock, draws random numbers, logs or touches the
system: time, ids and random numbers are arguments. ``tests/core/test_purity.py`` enforces it.

These names are what a simulation or another shell needs: a :class:`RouterState` that changes by
:meth:`RouterState.apply` only, the transitions it takes, and the decisions that read it. The
dialects are :mod:`slime_core.sglang` and :mod:`slime_core.openai`, server-sent events
:mod:`slime_core.sse`, the embedded worker's engine :mod:`slime_core.engine`.
"""

from slime_core.alignment import hidden_endings
from slime_core.boundaries import HardTokens
from slime_core.calls import Calls, wish_of
from slime_core.capture import Prompt, conclude, prompt_of_ids, prompt_of_text
from slime_core.decide import (
    Limits,
    Retrieval,
    Untold,
    choose_worker,
    find_call,
    next_gone,
    next_untold,
    plan_retrieval,
    tell,
)
from slime_core.errors import (
    ClientError,
    InvariantError,
    SlimeError,
    WorkerError,
    as_openai,
    as_sglang,
)
from slime_core.lookup import IdsFound, TextFound, TokenizerFacts, Wish, find_ids, find_text
from slime_core.policy import (
    POLICIES,
    Placement,
    Policy,
    consistent_hashing,
    least_in_flight,
    power_of_two,
    random_worker,
    round_robin,
)
from slime_core.segments import Answer, Outcome, Segment
from slime_core.state import RouterState
from slime_core.trajectory import Trajectory, count_other_answers
from slime_core.transitions import (
    CallCaptured,
    CallLost,
    CallOpened,
    Lookup,
    PromptKept,
    PromptTold,
    Retrieved,
    SegmentsGone,
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionSeen,
    WorkerAdded,
    WorkerFitness,
    WorkerRemoved,
)
from slime_core.types import (
    CallId,
    Encoding,
    Origin,
    PackedIds,
    WorkerUrl,
    pack_ids,
    pack_logprobs,
    token_count,
    unpack_ids,
    unpack_logprobs,
)
from slime_core.versions import NOT_SAMPLED, UNNUMBERED, VersionRun
from slime_core.vocabulary import AddedToken, Vocabulary, from_tokenizer_json

__all__ = [
    "NOT_SAMPLED",
    "POLICIES",
    "UNNUMBERED",
    "AddedToken",
    "Answer",
    "CallCaptured",
    "CallId",
    "CallLost",
    "CallOpened",
    "Calls",
    "ClientError",
    "Encoding",
    "HardTokens",
    "IdsFound",
    "InvariantError",
    "Limits",
    "Lookup",
    "Origin",
    "Outcome",
    "PackedIds",
    "Placement",
    "Policy",
    "Prompt",
    "PromptKept",
    "PromptTold",
    "Retrieval",
    "Retrieved",
    "RouterState",
    "Segment",
    "SegmentsGone",
    "SlimeError",
    "SlotsGiven",
    "SlotsTaken",
    "TextFound",
    "TokenizerFacts",
    "Trajectory",
    "Transition",
    "Untold",
    "VersionRun",
    "VersionSeen",
    "Vocabulary",
    "Wish",
    "WorkerAdded",
    "WorkerError",
    "WorkerFitness",
    "WorkerRemoved",
    "WorkerUrl",
    "as_openai",
    "as_sglang",
    "choose_worker",
    "conclude",
    "consistent_hashing",
    "count_other_answers",
    "find_call",
    "find_ids",
    "find_text",
    "from_tokenizer_json",
    "hidden_endings",
    "least_in_flight",
    "next_gone",
    "next_untold",
    "pack_ids",
    "pack_logprobs",
    "plan_retrieval",
    "power_of_two",
    "prompt_of_ids",
    "prompt_of_text",
    "random_worker",
    "round_robin",
    "tell",
    "token_count",
    "unpack_ids",
    "unpack_logprobs",
    "wish_of",
]
