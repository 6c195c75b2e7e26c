"""SGLang's dialect: the only place that knows the names of its fields (SGLang 0.5.23)."""

from slime_core.sglang.answer import (
    Answer,
    FinishReason,
    parse_answer,
)
from slime_core.sglang.asked import Asked
from slime_core.sglang.compose import SAMPLING_KEYS, compose_generate
from slime_core.sglang.errors import (
    abort_error,
    overflow_message,
    passed_error,
    worker_error,
)
from slime_core.sglang.info import (
    ModelInfo,
    Tokenized,
    WorkerLoads,
    encode_tokenize,
    parse_loads,
    parse_model_info,
    parse_tokenize,
)
from slime_core.sglang.renaming import Restorer, rename_request, shown_names
from slime_core.sglang.request import (
    EmbedsPrompt,
    GenerateRequest,
    IdsPrompt,
    Prompt,
    TextPrompt,
    encode_generate,
    parse_generate,
)
from slime_core.sglang.stream import StreamAssembler
from slime_core.sglang.stream_step import Mode, StreamStep
from slime_core.sglang.strip import strip_logprobs

__all__ = [
    "SAMPLING_KEYS",
    "Answer",
    "Asked",
    "EmbedsPrompt",
    "FinishReason",
    "GenerateRequest",
    "IdsPrompt",
    "Mode",
    "ModelInfo",
    "Prompt",
    "Restorer",
    "StreamAssembler",
    "StreamStep",
    "TextPrompt",
    "Tokenized",
    "WorkerLoads",
    "abort_error",
    "compose_generate",
    "encode_generate",
    "encode_tokenize",
    "overflow_message",
    "parse_answer",
    "parse_generate",
    "parse_loads",
    "parse_model_info",
    "parse_tokenize",
    "passed_error",
    "rename_request",
    "shown_names",
    "strip_logprobs",
    "worker_error",
]
