"""SGLang's dialect: the only place that knows the names of its fields (SGLang 0.5.23)."""

from slime_core.sglang.answer import (
    Answer,
    FinishReason,
    VersionSpan,
    parse_answer,
)
from slime_core.sglang.asked import Asked
from slime_core.sglang.compose import ONE_SAMPLE, SAMPLING_KEYS, compose_generate
from slime_core.sglang.errors import abort_error, overflow_message, worker_error
from slime_core.sglang.info import (
    Load,
    ModelInfo,
    Tokenized,
    encode_tokenize,
    parse_loads,
    parse_max_model_len,
    parse_model_info,
    parse_tokenize,
    parse_weight_update,
)
from slime_core.sglang.request import (
    EmbedsPrompt,
    GenerateRequest,
    IdsPrompt,
    Prompt,
    Sampling,
    TextPrompt,
    encode_generate,
    parse_generate,
)
from slime_core.sglang.stream import Mode, StreamAssembler, StreamStep
from slime_core.sglang.strip import strip_logprobs

__all__ = [
    "ONE_SAMPLE",
    "SAMPLING_KEYS",
    "Answer",
    "Asked",
    "EmbedsPrompt",
    "FinishReason",
    "GenerateRequest",
    "IdsPrompt",
    "Load",
    "Mode",
    "ModelInfo",
    "Prompt",
    "Sampling",
    "StreamAssembler",
    "StreamStep",
    "TextPrompt",
    "Tokenized",
    "VersionSpan",
    "abort_error",
    "compose_generate",
    "encode_generate",
    "encode_tokenize",
    "overflow_message",
    "parse_answer",
    "parse_generate",
    "parse_loads",
    "parse_max_model_len",
    "parse_model_info",
    "parse_tokenize",
    "parse_weight_update",
    "strip_logprobs",
    "worker_error",
]
