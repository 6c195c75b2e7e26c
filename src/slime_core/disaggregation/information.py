"""What all workers of both kinds tell of themselves, as one answer.

The shape is that of SGLang's own load balancer for pairs: benchmarks read ``internal_states``
there as they would of one worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from slime_core.strict_json import FieldTypeError, decode_typed

__all__ = ["merge_server_info"]

_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_NO_STATE: Final = {"last_gen_throughput": 0.0, "avg_spec_accept_length": None}
"""Where no decode worker tells its state: readers take the first without looking."""


def merge_server_info(prefill: Sequence[bytes], decode: Sequence[bytes]) -> dict[str, Any]:
    """``/get_server_info`` of the workers of each side that told theirs, made one.

    ``internal_states`` are the decode workers' in a row; ``prefill`` and ``decode`` hold every
    answer as its worker wrote it. What is no JSON object is left out.
    """
    states: list[Raw] = []
    for answer in decode:
        states += _states(answer)
    return {
        "internal_states": states or [_NO_STATE],
        "prefill": [Raw(answer) for answer in prefill if _fields(answer) is not None],
        "decode": [Raw(answer) for answer in decode if _fields(answer) is not None],
    }


def _fields(answer: bytes) -> dict[str, Raw] | None:
    try:
        return decode_typed(_FIELDS, answer)
    except FieldTypeError:
        return None


def _states(answer: bytes) -> list[Raw]:
    told = (_fields(answer) or {}).get("internal_states")
    if told is None:
        return []
    try:
        return decode_typed(_RAWS, told)
    except FieldTypeError:
        return []
