"""What requests and answers look like, as JSON Schema: the components of the OpenAPI document.

Requests name what the router itself reads; workers understand more, so most objects stay open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from slime_core.errors import ClientError, as_openai

__all__ = ["SCHEMAS", "ref"]

Schema = Mapping[str, Any]


def ref(name: str) -> dict[str, Any]:
    """A reference to the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": "object", "properties": properties}
    return shape | ({"required": list(required)} if required else {})


def _list_of(items: Schema, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _either(*kinds: Schema) -> dict[str, Any]:
    return {"anyOf": list(kinds)}


_TEXT: Final = {"type": "string"}
_SOME_TEXT: Final = {"type": "string", "minLength": 1}
_TRUTH: Final = {"type": "boolean"}
_NUMBER: Final = {"type": "number"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_WHOLE: Final = {"type": "integer"}
_NULL: Final = {"type": "null"}
_ANY_OBJECT: Final = {"type": "object"}
_IDS: Final = _list_of({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, minItems=1)
_MAYBE_TEXT: Final = _either(_TEXT, _NULL)
_STOP: Final = _either(_TEXT, _list_of(_TEXT), _NULL)

_SAMPLING: Final = _object(
    max_new_tokens={"type": "integer", "minimum": 0, "maximum": 16},
    temperature={"type": "number", "minimum": 0, "maximum": 2},
    top_p={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    top_k={"type": "integer", "minimum": -1},
    n={"type": "integer", "minimum": 1, "maximum": 4},
    stop=_STOP,
    stop_token_ids=_either(_IDS, _NULL),
    ignore_eos=_TRUTH,
)

_PART: Final = _object(("type", "text"), type={"const": "text"}, text=_TEXT)
_CONTENT: Final = _either(_TEXT, _list_of(_PART, minItems=1))
_CALL: Final = _object(
    ("id", "type", "function"),
    id=_SOME_TEXT,
    type={"const": "function"},
    function=_object(("name", "arguments"), name=_SOME_TEXT, arguments=_TEXT),
)

_MESSAGE: Final = _either(
    _object(("role", "content"), role={"enum": ["system", "developer", "user"]}, content=_CONTENT),
    _object(
        ("role", "content"),
        role={"const": "assistant"},
        content=_CONTENT,
        reasoning_content=_MAYBE_TEXT,
    ),
    _object(
        ("role", "tool_calls"),
        role={"const": "assistant"},
        content=_either(_CONTENT, _NULL),
        tool_calls=_list_of(_CALL, minItems=1),
    ),
    _object(
        ("role", "content", "tool_call_id"),
        role={"const": "tool"},
        content=_CONTENT,
        tool_call_id=_SOME_TEXT,
    ),
)

_TOOL: Final = _object(
    ("type", "function"),
    type={"const": "function"},
    function=_object(("name",), name=_SOME_TEXT, description=_TEXT, parameters=_ANY_OBJECT),
)

_COMMON: Final[dict[str, Schema]] = {
    "model": _TEXT,
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 16},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 4},
    "seed": _either(_WHOLE, _NULL),
    "stop": _STOP,
    "stream": _TRUTH,
    "stream_options": _either(_object(include_usage=_TRUTH), _NULL),
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "user": _TEXT,
}

_TRAJECTORY: Final = _object(
    ("tokens", "response", "loss_mask", "rollout_logp", "token_length", "loss_mask_length"),
    tokens=_list_of(_WHOLE),
    response=_TEXT,
    loss_mask=_list_of({"enum": [0, 1]}),
    rollout_logp=_list_of(_either(_NUMBER, _NULL)),
    generation_versions=_list_of(_WHOLE),
    weight_versions=_list_of(_object(version=_MAYBE_TEXT, start=_COUNT, end=_COUNT)),
    token_length=_COUNT,
    loss_mask_length=_COUNT,
    matched_length=_COUNT,
    ambiguous=_COUNT,
)

_WORKER: Final = _object(
    ("url",),
    url={"type": "string", "minLength": 1, "pattern": "^https?://"},
    worker_type={"enum": ["regular", "prefill", "decode"]},
    bootstrap_port={"type": "integer", "minimum": 1, "maximum": 65535},
    api_key={"type": "string", "pattern": "^[!-~]{1,4096}$"},
    model_id={"type": "string", "maxLength": 1024},
    priority={"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    cost={"type": "number", "minimum": 0},
    labels={"type": "object", "additionalProperties": {"type": "string", "maxLength": 1024}},
    disable_health_check=_TRUTH,
)

_CHANGE: Final = {
    "type": "object",
    "properties": {
        name: shape
        for name, shape in _WORKER["properties"].items()
        if name not in ("url", "worker_type", "bootstrap_port")
    },
}

_SAMPLES: Final = _object(
    per={"enum": ["branch", "call"]},
    policy={"enum": ["latest_retry", "latest_sibling", "keep_all"]},
    include=_list_of({"enum": ["partial", "aborted"]}),
    max_seq_len=_either({"type": "integer", "minimum": 1}, _NULL),
    reward=_either(_NUMBER, _NULL),
    rewards={"type": "object", "additionalProperties": _either(_NUMBER, _NULL)},
    metadata=_either(_ANY_OBJECT, _NULL),
    calls={"type": "object", "additionalProperties": _ANY_OBJECT},
    seal=_TRUTH,
    format=_either({"enum": ["json", "safetensors"]}, _NULL),
) | {"additionalProperties": False}

_ERROR: Final = _object(
    ("error",),
    error=_object(
        tuple(as_openai(ClientError(""))["error"]),
        message=_TEXT,
        type=_TEXT,
        param=_MAYBE_TEXT,
        code=_MAYBE_TEXT,
    ),
)

SCHEMAS: Final[Mapping[str, Schema]] = {
    "GenerateRequest": {
        **_object(
            text=_either(_SOME_TEXT, _list_of(_SOME_TEXT, minItems=1, maxItems=4)),
            input_ids=_either(_IDS, _list_of(_IDS, minItems=1, maxItems=4)),
            sampling_params=_SAMPLING,
            stream=_TRUTH,
            return_logprob=_TRUTH,
            rid=_MAYBE_TEXT,
        ),
        "oneOf": [{"required": ["text"]}, {"required": ["input_ids"]}],
    },
    "ChatRequest": _object(
        ("model", "messages"),
        messages=_list_of(_MESSAGE, minItems=1),
        tools=_either(_list_of(_TOOL, minItems=1), _NULL),
        logprobs=_either(_TRUTH, _NULL),
        top_logprobs=_either({"type": "integer", "minimum": 0, "maximum": 20}, _NULL),
        max_completion_tokens={"type": "integer", "minimum": 1, "maximum": 16},
        **_COMMON,
    ),
    "CompletionRequest": _object(
        ("model", "prompt"),
        prompt=_either(_SOME_TEXT, _list_of(_SOME_TEXT, minItems=1, maxItems=4), _IDS),
        echo=_TRUTH,
        logprobs=_either({"type": "integer", "minimum": 0, "maximum": 5}, _NULL),
        **_COMMON,
    ),
    "RetrieveText": _object(("text",), text=_TEXT, id=_MAYBE_TEXT),
    "RetrieveMessages": _object(
        ("messages",),
        messages=_list_of(_MESSAGE),
        tools=_either(_list_of(_TOOL), _NULL),
        add_generation_prompt=_TRUTH,
        chat_template_kwargs=_either(_ANY_OBJECT, _NULL),
        id=_MAYBE_TEXT,
    ),
    "NewSession": _object(metadata=_ANY_OBJECT),
    "SessionKey": _object(
        ("session_id", "session_key", "path"), session_id=_TEXT, session_key=_TEXT, path=_TEXT
    ),
    "Sessions": _object(("sessions",), sessions=_list_of(_ANY_OBJECT), next=_either(_WHOLE, _NULL)),
    "SamplesRequest": _SAMPLES,
    "Trajectory": _TRAJECTORY,
    "WorkerUrl": _object(("url",), url=_WORKER["properties"]["url"]),
    "WorkerRegistration": _WORKER,
    "WorkerChange": _CHANGE,
    "WorkerUrls": _object(("urls",), urls=_list_of(_TEXT)),
    "Object": _ANY_OBJECT,
    "Text": _TEXT,
    "Error": _ERROR,
}
"""Every schema by its name."""
