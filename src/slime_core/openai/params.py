"""Request parameters that chat completions and completions share.

Every parameter has one decoder, so a wrong type, a value out of range and its ``param`` path all
come from one table. An explicit ``null`` counts as absent for every optional parameter: OpenAI
allows it and SDKs send it. Limits are those of OpenAI's published specification 2.3.0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from slime_core.errors import ClientError
from slime_core.strict_json import decode_field
from slime_core.types import PackedIds, token_count

__all__ = [
    "FORWARDED",
    "OWN_CHOICES",
    "SAMPLING",
    "Common",
    "Request",
    "StreamOptions",
    "check_ids",
    "own_options",
    "parse_common",
    "refuse",
    "required",
    "sampling_params",
]

_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class StreamOptions(msgspec.Struct, frozen=True):
    """``stream_options``; obfuscation is never applied."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


# Parameters that end up in sampling_params, by OpenAI's name or the extension's.
SAMPLING: Final = {
    "temperature": _decoder(Annotated[float, Meta(ge=0, le=2)]),
    "top_p": _decoder(Annotated[float, Meta(ge=0, le=1)]),
    "n": _decoder(Annotated[int, Meta(ge=1, le=128)]),
    "presence_penalty": _decoder(_Penalty),
    "frequency_penalty": _decoder(_Penalty),
    "seed": _decoder(Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]),
    "logit_bias": _decoder(dict[str, Annotated[float, Meta(ge=-100, le=100)]]),
    "stop": _decoder(str | Annotated[tuple[str, ...], Meta(max_length=4)]),
    "max_tokens": _decoder(Annotated[int, Meta(ge=1)]),
    "top_k": _decoder(Annotated[int, Meta(ge=-1)]),
    "min_p": _decoder(Annotated[float, Meta(ge=0, le=1)]),
    "repetition_penalty": _decoder(Annotated[float, Meta(ge=0, le=2)]),
    "stop_token_ids": _decoder(tuple[Annotated[int, Meta(ge=0)], ...]),
    "stop_regex": _decoder(str | tuple[str, ...]),
    "ignore_eos": _decoder(bool),
    "no_stop_trim": _decoder(bool),
    "skip_special_tokens": _decoder(bool),
    "regex": _decoder(str),
    "ebnf": _decoder(str),
    "custom_params": _decoder(Any),
    "min_tokens": _decoder(Annotated[int, Meta(ge=0)]),
}

# Extensions that go to the top level of /generate as they came; their judge is the worker.
FORWARDED: Final = frozenset(
    [
        "lora_path",
        "session_id",
        "session_params",
        "priority",
        "extra_key",
        "cache_salt",
        "custom_logit_processor",
        "return_routed_experts",
        "routed_experts_start_len",
    ]
)

_STREAM: Final = {
    "stream": _decoder(bool),
    "stream_options": _decoder(StreamOptions),
    "rid": _decoder(str),
    "return_token_ids": _decoder(bool),
    "return_prompt_token_ids": _decoder(bool),
}

_MODEL: Final = _decoder(str)
_OWN: Final = _decoder(dict[str, Raw])
_OWN_VALUE: Final = _decoder(str | None)

OWN_CHOICES: Final = {
    "history": ("exact", "template"),
}
"""Values of this router's own options."""

# Sent with every request: what is left out is filled in by each worker's own preferences.
_DEFAULTS: Final[dict[str, bytes]] = {
    "temperature": b"1.0",
    "top_p": b"1.0",
    "top_k": b"-1",
    "min_p": b"0.0",
    "frequency_penalty": b"0.0",
    "presence_penalty": b"0.0",
    "repetition_penalty": b"1.0",
    "min_new_tokens": b"0",
    "n": b"1",
    "ignore_eos": b"false",
    "no_stop_trim": b"false",
    "skip_special_tokens": b"true",
}
_RENAMED: Final = {"seed": "sampling_seed", "min_tokens": "min_new_tokens"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What every text-generating request of this dialect says."""

    model: str
    """Any name; it is echoed."""
    n: int
    stream: bool
    include_usage: bool
    max_tokens: int | None
    """The client's limit of new tokens, if it set one."""
    stop: tuple[str, ...]
    """Strings that end the answer."""
    stop_regex: bool
    """Expressions may end it too."""
    no_stop_trim: bool
    """What ended the answer stays in its text."""
    skip_special_tokens: bool
    """Special tokens are left out of the text shown."""
    rid: str | None
    return_token_ids: bool
    return_prompt_token_ids: bool
    sampling: Mapping[str, bytes | Raw]
    """SGLang's ``sampling_params`` but for ``max_new_tokens`` and ``n``, as raw JSON."""
    forwarded: Mapping[str, Raw]
    """Extensions for the top level of ``/generate``."""
    parent_id: str | None
    """The call that this one extends, where several could be meant."""

    @property
    def session(self) -> bool:
        """A worker's session continues: the prompt is not all that stands before the answer."""
        return bool(self.forwarded.keys() & {"session_id", "session_params"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of this dialect with one prompt and ``n`` choices.

    It says of its answer what :class:`~slime_core.sglang.Asked` wants to know: one upstream
    request with a sample for each choice.
    """

    common: Common

    @property
    def model(self) -> str:
        """The name to echo."""
        return self.common.model

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream."""
        return self.common.stream

    @property
    def n(self) -> int:
        """How many choices per prompt."""
        return self.common.n

    @property
    def samples(self) -> int:
        """How many choices there will be."""
        return self.common.n

    @property
    def array(self) -> bool:
        """Whether the worker answers with an array."""
        return self.common.n > 1

    def shows_logprobs(self, sample: int) -> bool:
        """True: the worker's own bytes never reach a client of this dialect."""
        return 0 <= sample < self.samples


def parse_common(
    fields: Mapping[str, Raw],
    *,
    vocabulary_size: int | None,
    default_max_tokens: int | None,
    own_choices: Collection[str] = (),
) -> Common:
    """The shared parameters of ``fields``, from which nulls are gone.

    ``own_choices`` are this router's own options that the caller reads itself. Raises
    :class:`ClientError` for the first one at fault.
    """
    read = {
        name: decode_field(decoder, fields[name], name)
        for name, decoder in (SAMPLING | _STREAM).items()
        if name in fields
    }
    _check_logit_bias(read.get("logit_bias", {}), vocabulary_size)
    own = own_options(fields, others=own_choices)
    stream = read.get("stream", False)
    options = read.get("stream_options")
    if options is not None and not stream:
        raise ClientError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    return Common(
        model=required(_MODEL, fields, "model"),
        n=read.get("n", 1),
        stream=stream,
        include_usage=bool(options and options.include_usage),
        max_tokens=read.get("max_tokens", default_max_tokens),
        stop=_stops(read.get("stop", ())),
        stop_regex=bool(read.get("stop_regex")),
        no_stop_trim=read.get("no_stop_trim", False),
        skip_special_tokens=read.get("skip_special_tokens", True),
        rid=read.get("rid"),
        return_token_ids=read.get("return_token_ids", False),
        return_prompt_token_ids=read.get("return_prompt_token_ids", False),
        sampling=_sampling(fields, read),
        forwarded={name: fields[name] for name in fields if name in FORWARDED},
        parent_id=own.get("parent_id"),
    )


def own_options(fields: Mapping[str, Raw], *, others: Collection[str] = ()) -> dict[str, str]:
    """This router's own options, one object ``slime``: ``parent_id``, and of ``others`` any.

    Raises :class:`ClientError`, also for an option that there is not: they are nobody else's.
    """
    if "slime" not in fields:
        return {}
    own: dict[str, str] = {}
    for name, raw in decode_field(_OWN, fields["slime"], "slime").items():
        path = f"slime.{name}"
        if name != "parent_id" and name not in others:
            raise ClientError(f"Unknown parameter: '{path}'.", code="unknown_parameter", param=path)
        value = decode_field(_OWN_VALUE, raw, path)
        choices = OWN_CHOICES.get(name, (value,))
        if value is not None and value not in choices:
            raise ClientError(
                f"Invalid value: {value!r}. Supported values are: {', '.join(map(repr, choices))}.",
                param=path,
            )
        if value is not None:
            own[name] = value
    return own


def sampling_params(
    common: Common, *, prompt_tokens: int, context_length: int | None
) -> dict[str, bytes | Raw]:
    """SGLang's ``sampling_params`` for a prompt of that many tokens, which leaves room.

    ``max_new_tokens`` is always said: left out, it would be 128, and ``null`` means up to the end
    of the context. A limit beyond that end would be refused, so it is cut to the room left.
    """
    limit = common.max_tokens
    if limit is not None and context_length is not None:
        limit = min(limit, context_length - prompt_tokens)
    params = dict(common.sampling)
    params["n"] = b"%d" % common.n
    params["max_new_tokens"] = b"null" if limit is None else b"%d" % limit
    return params


def required(decoder: msgspec.json.Decoder[Any], fields: Mapping[str, Raw], name: str) -> Any:
    """A parameter that must be there. Raises :class:`ClientError`."""
    if name not in fields:
        raise ClientError(
            f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name
        )
    return decode_field(decoder, fields[name], name)


def refuse(fields: Mapping[str, Raw], reasons: Mapping[str, str]) -> None:
    """Raises :class:`ClientError` for the first parameter of ``reasons`` that is present."""
    for name in fields:
        if name in reasons:
            raise ClientError(
                f"Unsupported parameter: '{name}' {reasons[name]}.",
                code="unsupported_parameter",
                param=name,
            )


def check_ids(ids: PackedIds, *, vocabulary_size: int | None, param: str) -> None:
    """Raises :class:`ClientError` for an id outside the vocabulary, and for no ids at all."""
    if not token_count(ids):
        raise ClientError(f"'{param}' must not be empty.", code="empty_array", param=param)
    if vocabulary_size is None:
        return
    view = memoryview(ids).cast("I")
    largest = max(view)
    if largest >= vocabulary_size:
        place = view.tolist().index(largest)
        raise ClientError(
            f"Token id {largest} at {param}[{place}] is outside the vocabulary of "
            f"{vocabulary_size} tokens.",
            param=param,
        )


def _sampling(fields: Mapping[str, Raw], read: Mapping[str, Any]) -> dict[str, bytes | Raw]:
    params: dict[str, bytes | Raw] = dict(_DEFAULTS)
    for name in SAMPLING:
        if name in fields and name not in {"max_tokens", "n", "stop"}:
            params[_RENAMED.get(name, name)] = fields[name]
    stops = _stops(read.get("stop", ()))
    if stops:
        params["stop"] = msgspec.json.encode(stops)
    if read.get("top_p") == 0:
        # Legal for OpenAI, outside SGLang's range; the most probable token alone is what it means.
        params["top_p"], params["top_k"] = b"1.0", b"1"
    elif read.get("top_k") == 0:
        params["top_k"] = b"-1"
    return params


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The strings of ``stop``; an empty one, which stands in every text, is none."""
    return tuple(text for text in ((stop,) if isinstance(stop, str) else stop) if text)


def _check_logit_bias(bias: Mapping[str, float], vocabulary_size: int | None) -> None:
    for token in bias:
        known = token.isascii() and token.isdigit() and len(token) <= 10
        if not known or (vocabulary_size is not None and int(token) >= vocabulary_size):
            raise ClientError(
                f"Invalid key in 'logit_bias': {token!r} is not a token id of this model.",
                param="logit_bias",
            )
