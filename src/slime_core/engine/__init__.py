"""The pure engine of the embedded worker: a small language model of true probabilities behind
SGLang's scheduling, stopping and pausing rules. See :mod:`slime_core.engine.engine`.
"""

from slime_core.engine.answers import AnswerBuilder, ExpertShape
from slime_core.engine.chance import derived_seed, float32, fresh_id, uniform
from slime_core.engine.distribution import Distribution, Sampler
from slime_core.engine.engine import Engine
from slime_core.engine.generate_call import GenerateCall, Prompt, parse_generate, plan
from slime_core.engine.generation import (
    Abort,
    Emission,
    Finish,
    Generation,
    Handover,
    Length,
    PauseMode,
    Record,
    Room,
    RoomKey,
    Score,
    Span,
    Stop,
    finish_json,
)
from slime_core.engine.language_model import LanguageModel
from slime_core.engine.options import EngineOptions, Load
from slime_core.engine.refusals import (
    Refusal,
    Wording,
    framework_error,
    manager_error,
    plain_error,
)
from slime_core.engine.sampling_params import SamplingParams, parse_sampling_params
from slime_core.engine.script import Reply, Script, in_turn
from slime_core.engine.transfers import Role

__all__ = [
    "Abort",
    "AnswerBuilder",
    "Distribution",
    "Emission",
    "Engine",
    "EngineOptions",
    "ExpertShape",
    "Finish",
    "GenerateCall",
    "Generation",
    "Handover",
    "LanguageModel",
    "Length",
    "Load",
    "PauseMode",
    "Prompt",
    "Record",
    "Refusal",
    "Reply",
    "Role",
    "Room",
    "RoomKey",
    "Sampler",
    "SamplingParams",
    "Score",
    "Script",
    "Span",
    "Stop",
    "Wording",
    "derived_seed",
    "finish_json",
    "float32",
    "framework_error",
    "fresh_id",
    "in_turn",
    "manager_error",
    "parse_generate",
    "parse_sampling_params",
    "plain_error",
    "plan",
    "uniform",
]
