"""``sampling_params`` of SGLang's native API: the complete list of keys, checked as SGLang does.

An unknown key is refused, since a misspelt ``max_tokens`` that were ignored would cost somebody a
night. ``null`` means the default. Ranges and defaults are those of SGLang 0.5.23; the features that
an n-gram model cannot offer (grammars, beams) are refused by name instead of being ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from slime_core.engine.refusals import manager_error, plain_error

__all__ = ["TOP_K_ALL", "SamplingParams", "parse_sampling_params"]

TOP_K_ALL: Final = 1 << 30
_GREEDY_BELOW: Final = 1e-6
_STOPS_MAX: Final = 32
_REGEX_CHARACTERS_MAX: Final = 256
_NEUTRAL: Final = frozenset({"spaces_between_special_tokens", "stream_interval", "custom_params"})
_UNSUPPORTED: Final = (
    "json_schema", "regex", "ebnf", "structural_tag", "beam_width", "watermark", "choice",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample, normalised: ``temperature`` 0 has become 1 with ``top_k`` 1.

    ``max_new_tokens`` ``None``: up to the context limit. ``stop_token_ids`` ascending;
    ``logit_bias`` as (id, bias) pairs, ascending. ``seed`` ``None``: the worker chooses.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = TOP_K_ALL
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_regex: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int = 1
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, whatever the chance."""
        return self.top_k == 1

    @property
    def cuts(self) -> bool:
        """Whether unlikely tokens are left out."""
        return self.top_k < TOP_K_ALL or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def penalised(self) -> bool:
        """Whether generated tokens change the chances of the next."""
        return bool(
            self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1.0
        )

    @property
    def shape(self) -> tuple[float, int, float, float]:
        """Everything that bends a distribution apart from single ids."""
        return (self.temperature, self.top_k, self.top_p, self.min_p)


def parse_sampling_params(raw: Mapping[str, Any], *, vocabulary_size: int) -> SamplingParams:
    """Checks one ``sampling_params`` object. Raises :class:`~.refusals.Refusal` (400)."""
    for key in raw:
        if key not in _KEYS:
            raise plain_error(f"Unexpected keyword argument '{key}'")
    for key in _UNSUPPORTED:
        if raw.get(key):
            raise manager_error(
                f"{key} is not supported: this worker has no grammar or beam search"
            )
    given = {key: value for key, value in raw.items() if value is not None}
    temperature, top_k = _number(given, "temperature", 1.0), _integer(given, "top_k", -1)
    if not math.isfinite(temperature) or temperature < 0:
        raise manager_error(f"temperature must be a non-negative finite number, got {temperature}.")
    if temperature < _GREEDY_BELOW:
        temperature, top_k = 1.0, 1
    params = SamplingParams(
        max_new_tokens=_limit(raw),
        min_new_tokens=_integer(given, "min_new_tokens", 0),
        temperature=temperature,
        top_p=_number(given, "top_p", 1.0),
        top_k=TOP_K_ALL if top_k == -1 else top_k,
        min_p=_number(given, "min_p", 0.0),
        frequency_penalty=_number(given, "frequency_penalty", 0.0),
        presence_penalty=_number(given, "presence_penalty", 0.0),
        repetition_penalty=_number(given, "repetition_penalty", 1.0),
        logit_bias=_logit_bias(given.get("logit_bias", {}), vocabulary_size),
        stop=_strings(given, "stop"),
        stop_regex=_patterns(given),
        stop_token_ids=_token_ids(given.get("stop_token_ids", ())),
        ignore_eos=_flag(given, "ignore_eos", False),
        skip_special_tokens=_flag(given, "skip_special_tokens", True),
        no_stop_trim=_flag(given, "no_stop_trim", False),
        n=_integer(given, "n", 1),
        seed=_integer(given, "sampling_seed", 0) if "sampling_seed" in given else None,
    )
    _check_ranges(params)
    return params


_KEYS: Final = (
    frozenset(SamplingParams.__dataclass_fields__) - {"seed"}
    | {"sampling_seed", *_UNSUPPORTED}
    | _NEUTRAL
)


def _check_ranges(params: SamplingParams) -> None:
    limit = params.max_new_tokens
    for holds, message in (
        (0.0 < params.top_p <= 1.0, f"top_p must be in (0, 1], got {params.top_p}."),
        (0.0 <= params.min_p <= 1.0, f"min_p must be in [0, 1], got {params.min_p}."),
        (params.top_k >= 1, f"top_k must be -1 (disable) or at least 1, got {params.top_k}."),
        (-2.0 <= params.frequency_penalty <= 2.0, "frequency_penalty must be in [-2, 2], got "
         f"{params.frequency_penalty}."),
        (-2.0 <= params.presence_penalty <= 2.0, "presence_penalty must be in [-2, 2], got "
         f"{params.presence_penalty}."),
        (0.0 < params.repetition_penalty <= 2.0, "repetition_penalty must be in (0, 2], got "
         f"{params.repetition_penalty}."),
        (limit is None or limit >= 0, f"max_new_tokens must be at least 0, got {limit}."),
        (params.min_new_tokens >= 0 and (limit is None or params.min_new_tokens <= limit),
         f"min_new_tokens must be in [0, max_new_tokens({limit})], got {params.min_new_tokens}."),
        (params.n >= 1, f"n must be at least 1, got {params.n}."),
    ):  # fmt: skip
        if not holds:
            raise manager_error(message)


def _limit(raw: Mapping[str, Any]) -> int | None:
    return None if raw.get("max_new_tokens", 128) is None else _integer(raw, "max_new_tokens", 128)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(given: Mapping[str, Any], key: str, default: int) -> int:
    value = given.get(key, default)
    if not _is_integer(value):
        raise plain_error(f"{key} must be an integer, got {value!r}")
    return value


def _number(given: Mapping[str, Any], key: str, default: float) -> float:
    value = given.get(key, default)
    if not _is_integer(value) and not isinstance(value, float):
        raise plain_error(f"{key} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise plain_error(f"{key} is too large for a number") from None


def _flag(given: Mapping[str, Any], key: str, default: bool) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise plain_error(f"{key} must be a boolean, got {value!r}")
    return value


def _strings(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = given.get(key, ())
    strings = (value,) if isinstance(value, str) else tuple(value) if _is_list(value) else None
    if strings is None or not all(isinstance(text, str) for text in strings):
        raise plain_error(f"{key} must be a string or a list of strings")
    if len(strings) > _STOPS_MAX:
        raise manager_error(f"{key} may hold at most {_STOPS_MAX} strings, got {len(strings)}")
    return tuple(text for text in strings if text)


def _is_list(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, (list, tuple))


def _patterns(given: Mapping[str, Any]) -> tuple[str, ...]:
    patterns = _strings(given, "stop_regex")
    for pattern in patterns:
        if len(pattern) > _REGEX_CHARACTERS_MAX:
            raise manager_error(f"a stop_regex is longer than {_REGEX_CHARACTERS_MAX} characters")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise manager_error(f"stop_regex {pattern!r} cannot be read: {error}") from None
    return patterns


def _token_ids(value: object) -> tuple[int, ...]:
    if not _is_list(value):
        raise plain_error("stop_token_ids must be a list of integers")
    ids = [token for token in value if token is not None]
    if not all(_is_integer(token) for token in ids):
        raise plain_error("stop_token_ids must be a list of integers")
    return tuple(sorted(set(ids)))


def _logit_bias(value: object, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise plain_error("logit_bias must be an object of token ids and numbers")
    pairs: dict[int, float] = {}
    for key, bias in value.items():
        if not re.fullmatch(r"[0-9]{1,9}", str(key)) or int(key) >= vocabulary_size:
            raise manager_error(
                f"logit_bias must has keys in [0, {vocabulary_size - 1}], got {key}."
            )
        pairs[int(key)] = _number({"logit_bias": bias}, "logit_bias", 0.0)
    return tuple(sorted(pairs.items()))
