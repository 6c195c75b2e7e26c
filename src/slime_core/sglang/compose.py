"""A ``/generate`` request made from nothing, for clients that speak another dialect.

SGLang ignores unknown keys at the top level but refuses them inside ``sampling_params``, so what
goes in there is checked against the complete list of SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from slime_core.errors import InvariantError
from slime_core.long_lists import WriteIds, encode_ids
from slime_core.types import PackedIds

__all__ = ["SAMPLING_KEYS", "compose_generate"]

SAMPLING_KEYS: Final = frozenset(
    [
        "max_new_tokens",
        "temperature",
        "top_p",
        "min_p",
        "top_k",
        "stop",
        "stop_token_ids",
        "stop_regex",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "min_new_tokens",
        "n",
        "json_schema",
        "regex",
        "ebnf",
        "structural_tag",
        "ignore_eos",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "no_stop_trim",
        "stream_interval",
        "logit_bias",
        "sampling_seed",
        "custom_params",
        "beam_width",
        "watermark",
        "choice",
    ]
)


def compose_generate(
    *,
    input_ids: PackedIds | Sequence[PackedIds],
    sampling: Mapping[str, bytes | Raw] | Sequence[Mapping[str, bytes | Raw]],
    rid: str | Sequence[str],
    stream: bool,
    top_logprobs: int,
    others: Mapping[str, bytes | Raw],
    prompt_logprobs: bool = False,
    write_ids: WriteIds = encode_ids,
) -> bytes:
    """The body of ``POST /generate``; a sequence of ids is a batch.

    ``prompt_logprobs``: the prompts' tokens are scored too, for which a worker computes them anew.
    ``sampling`` and ``others`` (further top-level fields) hold raw JSON. Raises
    :class:`InvariantError` for a sampling parameter that no worker knows.
    """
    ids = (
        write_ids(input_ids)
        if isinstance(input_ids, bytes)
        else b"[" + b",".join(map(write_ids, input_ids)) + b"]"
    )
    fields: dict[str, bytes | Raw] = {
        "rid": msgspec.json.encode(rid),
        "input_ids": ids,
        "sampling_params": (
            _sampling(sampling)
            if isinstance(sampling, Mapping)
            else b"[" + b",".join(map(_sampling, sampling)) + b"]"
        ),
        "stream": b"true" if stream else b"false",
        "return_logprob": b"true",
        "top_logprobs_num": b"%d" % top_logprobs,
    }
    if prompt_logprobs:
        fields["logprob_start_len"] = b"0"
    return _object(fields | {name: raw for name, raw in others.items() if name not in fields})


def _sampling(params: Mapping[str, bytes | Raw]) -> bytes:
    unknown = params.keys() - SAMPLING_KEYS
    if unknown:
        raise InvariantError(f"no worker knows the sampling parameters {sorted(unknown)}")
    return _object(params)


def _object(fields: Mapping[str, bytes | Raw]) -> bytes:
    pieces = [msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in fields.items()]
    return b"{" + b",".join(pieces) + b"}"
