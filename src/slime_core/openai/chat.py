"""``POST /v1/chat/completions``: the request, and the ``/generate`` body it becomes.

All 37 parameters of OpenAI's specification 2.3.0 are supported, ignored or refused by name; the
extensions are those that SGLang users send through ``extra_body``. Other fields are ignored, as
vLLM and SGLang do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from slime_core.errors import ClientError
from slime_core.long_lists import IdList, WriteIds, encode_ids
from slime_core.openai.call_schema import call_schema
from slime_core.openai.messages import Message, parse_messages
from slime_core.openai.params import (
    OWN_CHOICES,
    SAMPLING,
    Common,
    Request,
    check_ids,
    own_options,
    parse_common,
    refuse,
    required,
    sampling_params,
)
from slime_core.openai.tools import Tool, choose_tools, parse_json_schema, parse_tools
from slime_core.sglang import compose_generate, overflow_message
from slime_core.strict_json import decode_field, is_null, parse_object
from slime_core.types import PackedIds, token_count

__all__ = ["ChatRequest", "check_context", "generate_body", "parse_chat"]

_BOOL: Final = msgspec.json.Decoder(bool)
_RAW: Final = msgspec.json.Decoder(Raw)
_TOP: Final = msgspec.json.Decoder(Annotated[int, Meta(ge=0, le=20)])
_LIMIT: Final = SAMPLING["max_tokens"]
_IDS: Final = IdList()
_KWARGS: Final = msgspec.json.Decoder(dict[str, Any])
_EFFORT: Final = msgspec.json.Decoder(str)
_MODALITIES: Final = msgspec.json.Decoder(list[str])
_METADATA: Final = msgspec.json.Decoder(
    Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
        Meta(max_length=16),
    ]
)
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_REFUSED: Final = {
    "audio": "is not supported: this model writes text only",
    "web_search_options": "is not supported: this router does not search the web",
    "moderation": "is not supported",
    "functions": "is deprecated and not supported; use 'tools'",
    "function_call": "is deprecated and not supported; use 'tool_choice'",
}
# Those that nothing reads are accepted, but only as what they are.
_FLAGS: Final = (
    "logprobs",
    "parallel_tool_calls",
    "continue_final_message",
    "return_meta_info",
    "separate_reasoning",
    "stream_reasoning",
    "store",
)
_TRUE_BY_DEFAULT: Final = ("parallel_tool_calls", "separate_reasoning", "stream_reasoning")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Request):
    """One chat completion request."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    """What the model gets to see."""
    calls_tools: bool
    """Whether it may call any of them; if not, nothing is parsed as a call."""
    forced: bool
    """It must: :attr:`json_schema` then makes its answer an array of calls."""
    parallel_tool_calls: bool
    """Several calls may come in one answer."""
    separate_reasoning: bool
    """Reasoning is told apart from content."""
    stream_reasoning: bool
    """A stream tells it as it comes, and not in one piece."""
    template_kwargs: Mapping[str, Any]
    """Arguments for the template: those derived from the reasoning parameters, then the client's.
    """
    continue_final_message: bool
    input_ids: PackedIds | None
    """Replaces rendering: the prompt, exactly."""
    json_schema: str | None
    """What the whole answer must be."""
    history: str | None
    """``exact`` or ``template``: what of the turns before the prompt keeps, if the client says."""
    logprobs: bool
    top_logprobs: int
    metadata: Raw | None
    """Echoed in the answer."""
    return_meta_info: bool

    @property
    def constrained(self) -> bool:
        """A grammar constrains the answer, which must not begin before reasoning has ended."""
        return self.json_schema is not None or bool({"regex", "ebnf"} & self.common.sampling.keys())

    @property
    def prompt_param(self) -> str:
        """The field that an overlong prompt came from."""
        return "messages" if self.input_ids is None else "input_ids"


def parse_chat(body: bytes, *, vocabulary_size: int | None = None) -> ChatRequest:
    """The request in ``body``. Raises :class:`ClientError`, which names the field at fault.

    ``vocabulary_size`` bounds the ids a client names.
    """
    fields = {name: raw for name, raw in parse_object(body).items() if not is_null(raw)}
    refuse(fields, _REFUSED)
    messages = parse_messages(required(_RAW, fields, "messages"))
    common = _common(fields, vocabulary_size)
    flags, own = _flags(fields), own_options(fields, others=OWN_CHOICES)
    _check_accepted(fields)
    if flags["continue_final_message"] and messages[-1]["role"] != "assistant":
        raise ClientError(
            "'continue_final_message' needs an assistant's message to continue.",
            param="continue_final_message",
        )
    choice = choose_tools(fields.get("tool_choice"), parse_tools(fields.get("tools")))
    return ChatRequest(
        common=common,
        messages=messages,
        tools=choice.tools,
        calls_tools=choice.calls,
        forced=bool(choice.forced),
        parallel_tool_calls=flags["parallel_tool_calls"],
        separate_reasoning=flags["separate_reasoning"],
        stream_reasoning=flags["stream_reasoning"],
        template_kwargs=_template_kwargs(fields),
        continue_final_message=flags["continue_final_message"],
        input_ids=_input_ids(fields, vocabulary_size),
        json_schema=_json_schema(fields, choice.forced, parallel=flags["parallel_tool_calls"]),
        history=own.get("history"),
        logprobs=flags["logprobs"],
        top_logprobs=_top_logprobs(fields, flags["logprobs"]),
        metadata=fields.get("metadata"),
        return_meta_info=flags["return_meta_info"],
    )


def generate_body(
    chat: ChatRequest,
    *,
    input_ids: PackedIds,
    rid: str,
    context_length: int | None,
    require_reasoning: bool = False,
    write_ids: WriteIds = encode_ids,
) -> bytes:
    """The body of ``POST /generate`` for this request with its prompt as ids.

    ``require_reasoning``: a constraint begins behind the block of reasoning that the prompt opened,
    which only workers understand that were started with a reasoning parser. Raises
    :class:`ClientError` where the prompt fills the context.
    """
    prompt_tokens = token_count(input_ids)
    check_context(prompt_tokens, context_length, param=chat.prompt_param)
    sampling = sampling_params(
        chat.common,
        prompt_tokens=prompt_tokens,
        context_length=context_length,
    )
    # What the worker decodes is read by nobody but those who ask for its own words: parsers look
    # for special tokens.
    sampling["skip_special_tokens"] = b"false"
    if chat.json_schema is not None:
        sampling["json_schema"] = msgspec.json.encode(chat.json_schema)
    others: dict[str, bytes | Raw] = dict(chat.common.forwarded)
    if require_reasoning and chat.constrained:
        others["require_reasoning"] = b"true"
    return compose_generate(
        input_ids=input_ids,
        sampling=sampling,
        rid=rid,
        stream=chat.stream,
        top_logprobs=chat.top_logprobs,
        others=others,
        write_ids=write_ids,
    )


def check_context(prompt_tokens: int, context_length: int | None, *, param: str) -> None:
    """Raises :class:`ClientError` for a prompt that leaves no room for an answer."""
    if context_length is None or prompt_tokens < context_length:
        return
    raise ClientError(
        f"{overflow_message(context_length)} However, your prompt has {prompt_tokens} tokens. "
        "Please reduce its length.",
        code="context_length_exceeded",
        param=param,
    )


def _flags(fields: Mapping[str, Raw]) -> dict[str, bool]:
    return {
        name: decode_field(_BOOL, fields[name], name)
        if name in fields
        else name in _TRUE_BY_DEFAULT
        for name in _FLAGS
    }


def _common(fields: Mapping[str, Raw], vocabulary_size: int | None) -> Common:
    common = parse_common(
        fields, vocabulary_size=vocabulary_size, default_max_tokens=None, own_choices=OWN_CHOICES
    )
    if "max_completion_tokens" not in fields:
        return common
    limit = decode_field(_LIMIT, fields["max_completion_tokens"], "max_completion_tokens")
    return dataclasses.replace(common, max_tokens=limit)


def _check_accepted(fields: Mapping[str, Raw]) -> None:
    """What is accepted without effect, but only as OpenAI allows it."""
    if "metadata" in fields:
        decode_field(_METADATA, fields["metadata"], "metadata")
    if "modalities" in fields:
        modalities = decode_field(_MODALITIES, fields["modalities"], "modalities")
        if modalities != ["text"]:
            raise ClientError(
                "Invalid value for 'modalities': this model writes ['text'] only.",
                code="unsupported_value",
                param="modalities",
            )


def _top_logprobs(fields: Mapping[str, Raw], logprobs: bool) -> int:
    if "top_logprobs" not in fields:
        return 0
    if not logprobs:
        raise ClientError(
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
        )
    top: int = decode_field(_TOP, fields["top_logprobs"], "top_logprobs")
    return top


def _input_ids(fields: Mapping[str, Raw], vocabulary_size: int | None) -> PackedIds | None:
    if "input_ids" not in fields:
        return None
    packed = decode_field(_IDS, fields["input_ids"], "input_ids")
    check_ids(packed, vocabulary_size=vocabulary_size, param="input_ids")
    return packed


def _json_schema(
    fields: Mapping[str, Raw], forced: Sequence[Tool], *, parallel: bool
) -> str | None:
    """The schema of the answer. Forced calls need the one constraint that there can be."""
    schema = parse_json_schema(fields.get("response_format"))
    constraints = [name for name in ("regex", "ebnf") if name in fields]
    if forced and (constraints or schema is not None):
        other = "response_format" if schema is not None else constraints[0]
        raise ClientError(
            f"A 'tool_choice' that forces a call cannot be combined with '{other}': both would "
            "constrain the whole answer.",
            param="tool_choice",
        )
    if forced:
        return call_schema(forced, parallel=parallel)
    if len(constraints) + (schema is not None) > 1:
        raise ClientError(
            "Only one of 'response_format', 'regex' and 'ebnf' can constrain the output.",
            param="response_format" if schema is not None else constraints[1],
        )
    return schema


def _template_kwargs(fields: Mapping[str, Raw]) -> dict[str, Any]:
    kwargs = _reasoning(fields)
    if "chat_template_kwargs" in fields:
        given = decode_field(_KWARGS, fields["chat_template_kwargs"], "chat_template_kwargs")
        if "chat_template" in given:
            raise ClientError(
                "A chat template is code; this router renders its own only.",
                code="unsupported_value",
                param="chat_template_kwargs.chat_template",
            )
        kwargs |= given
    return kwargs


def _reasoning(fields: Mapping[str, Raw]) -> dict[str, Any]:
    """Template arguments from the reasoning parameters, under the names that templates use."""
    options: dict[str, Any] = {}
    if "reasoning" in fields:
        options = decode_field(_KWARGS, fields["reasoning"], "reasoning")
    effort, enabled = options.get("effort"), options.get("enabled")
    if "reasoning_effort" in fields:
        effort = decode_field(_EFFORT, fields["reasoning_effort"], "reasoning_effort")
    if "thinking" in fields:
        enabled = decode_field(_BOOL, fields["thinking"], "thinking")
    if effort is not None and effort not in _EFFORTS:
        raise ClientError(
            f"Invalid value: {effort!r}. Supported values are: {', '.join(map(repr, _EFFORTS))}.",
            param="reasoning_effort" if "reasoning_effort" in fields else "reasoning.effort",
        )
    if enabled is None and effort is not None:
        enabled = effort != "none"
    kwargs: dict[str, Any] = {}
    if enabled is not None:
        kwargs |= {"enable_thinking": bool(enabled), "thinking": bool(enabled)}
    return kwargs if effort is None else {**kwargs, "reasoning_effort": effort}
