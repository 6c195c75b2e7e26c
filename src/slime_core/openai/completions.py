"""``POST /v1/completions``: prompts as text or token ids, and the ``/generate`` body they become.

Token-array prompts are the token-exact way in for clients that hold ids themselves.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from slime_core.errors import ClientError, InvariantError
from slime_core.long_lists import WriteIds, encode_ids
from slime_core.openai.chat import check_context
from slime_core.openai.params import (
    Request,
    check_ids,
    parse_common,
    refuse,
    sampling_params,
)
from slime_core.sglang import IdsPrompt, TextPrompt, compose_generate
from slime_core.strict_json import decode_field, is_null, parse_object
from slime_core.types import PackedIds, token_count

__all__ = ["CompletionRequest", "completions_body", "parse_completion"]

_DEFAULT_MAX_TOKENS: Final = 16

_Ids = list[Annotated[int, Meta(ge=0, le=2**31 - 1)]]
_TEXT: Final = msgspec.json.Decoder(str)
_TEXTS: Final = msgspec.json.Decoder(tuple[str, ...])
_IDS: Final = msgspec.json.Decoder(_Ids)
_LISTS: Final = msgspec.json.Decoder(list[_Ids])
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_BOOL: Final = msgspec.json.Decoder(bool)
_LOGPROBS: Final = msgspec.json.Decoder(Annotated[int, Meta(ge=0, le=5)])
_BEST_OF: Final = msgspec.json.Decoder(int)

_REFUSED: Final = {"suffix": "is not supported: this model does not insert"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(Request):
    """One completion request; choice ``i`` belongs to prompt ``i // n``."""

    prompts: tuple[TextPrompt | IdsPrompt, ...]
    batch: bool
    """Several prompts came, or one in the list form."""
    echo: bool
    """The answer's text begins with the prompt's."""
    logprobs: int | None
    """How many alternatives to show; ``None`` shows no logprobs."""

    @property
    def scores_prompts(self) -> bool:
        """The logprobs of the prompts are shown too."""
        return self.echo and self.logprobs is not None

    @property
    def samples(self) -> int:
        """How many choices there will be."""
        return len(self.prompts) * self.n

    @property
    def array(self) -> bool:
        """Whether the worker answers with an array."""
        return self.batch or self.n > 1


def parse_completion(body: bytes, *, vocabulary_size: int | None = None) -> CompletionRequest:
    """The request in ``body``. Raises :class:`ClientError`, which names the field at fault."""
    fields = {name: raw for name, raw in parse_object(body).items() if not is_null(raw)}
    refuse(fields, _REFUSED)
    common = parse_common(
        fields, vocabulary_size=vocabulary_size, default_max_tokens=_DEFAULT_MAX_TOKENS
    )
    prompts, batch = _prompts(fields.get("prompt"), vocabulary_size)
    echo = "echo" in fields and decode_field(_BOOL, fields["echo"], "echo")
    logprobs = _logprobs(fields)
    _check_best_of(fields, common.n)
    return CompletionRequest(
        common=common, prompts=prompts, batch=batch, echo=echo, logprobs=logprobs
    )


def completions_body(
    request: CompletionRequest,
    *,
    input_ids: Sequence[PackedIds],
    rids: str | Sequence[str],
    context_length: int | None,
    write_ids: WriteIds = encode_ids,
) -> bytes:
    """The body of ``POST /generate`` with every prompt as ids.

    Raises :class:`ClientError` where a prompt fills the context.
    """
    if len(input_ids) != len(request.prompts):
        raise InvariantError("ids replace every prompt")
    params = [_params(request, ids, context_length) for ids in input_ids]
    return compose_generate(
        input_ids=input_ids if request.batch else input_ids[0],
        sampling=params if request.batch else params[0],
        rid=rids,
        stream=request.stream,
        top_logprobs=request.logprobs or 0,
        prompt_logprobs=request.scores_prompts,
        others=request.common.forwarded,
        write_ids=write_ids,
    )


def _params(
    request: CompletionRequest, ids: PackedIds, context_length: int | None
) -> dict[str, bytes | Raw]:
    check_context(token_count(ids), context_length, param="prompt")
    return sampling_params(
        request.common,
        prompt_tokens=token_count(ids),
        context_length=context_length,
    )


def _prompts(
    raw: Raw | None, vocabulary_size: int | None
) -> tuple[tuple[TextPrompt | IdsPrompt, ...], bool]:
    """The prompts. The first element tells text, ids and lists of ids apart."""
    if raw is None:
        raise ClientError(
            "Missing required parameter: 'prompt'.",
            code="missing_required_parameter",
            param="prompt",
        )
    if bytes(memoryview(raw)[:1]) != b"[":
        text = decode_field(_TEXT, raw, "prompt")
        return (_text(text, "prompt"),), False
    elements = decode_field(_RAWS, raw, "prompt")
    if not elements:
        raise ClientError("'prompt' must not be empty.", code="empty_array", param="prompt")
    first = bytes(memoryview(elements[0])[:1])
    if first == b'"':
        texts = decode_field(_TEXTS, raw, "prompt")
        return tuple(_text(text, f"prompt[{i}]") for i, text in enumerate(texts)), True
    if first == b"[":
        lists = decode_field(_LISTS, raw, "prompt")
        return tuple(
            _ids(ids, vocabulary_size, f"prompt[{i}]") for i, ids in enumerate(lists)
        ), True
    return (_ids(decode_field(_IDS, raw, "prompt"), vocabulary_size, "prompt"),), False


def _text(text: str, param: str) -> TextPrompt:
    if not text:
        raise ClientError(f"'{param}' must not be empty.", param=param)
    return TextPrompt(text=text)


def _ids(ids: list[int], vocabulary_size: int | None, param: str) -> IdsPrompt:
    packed = PackedIds(array("I", ids).tobytes())
    check_ids(packed, vocabulary_size=vocabulary_size, param=param)
    return IdsPrompt(ids=packed)


def _logprobs(fields: Mapping[str, Raw]) -> int | None:
    if "logprobs" not in fields:
        return None
    logprobs: Any = decode_field(_LOGPROBS, fields["logprobs"], "logprobs")
    return int(logprobs)


def _check_best_of(fields: Mapping[str, Raw], n: int) -> None:
    if "best_of" in fields and decode_field(_BEST_OF, fields["best_of"], "best_of") not in {1, n}:
        raise ClientError(
            "'best_of' is supported only where it selects nothing: 1, or the value of 'n'.",
            code="unsupported_value",
            param="best_of",
        )
