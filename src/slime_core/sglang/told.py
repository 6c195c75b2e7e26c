"""What a worker's ``meta_info`` says, by type, and short answers that say nothing else.

Reading a small answer field by field costs several times what one typed pass over it does. The pass
knows every field that SGLang 0.5.23 documents as a mere number beside those that are understood. An
answer that holds anything more (routed experts and other extras, an engine's new field, a value of
another type) is none that it reads: then the fields are looked at one by one, which also says what
is wrong with one.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from slime_core.sglang.frame import ABSENT
from slime_core.sglang.tokens import Triple
from slime_core.strict_json import BAD_JSON

__all__ = ["PlainAnswer", "Span", "Told", "read_plain"]


class Span(msgspec.Struct, frozen=True, gc=False):
    """One of ``weight_versions``."""

    version: str | int
    start: int
    end: int


class Told(msgspec.Struct, gc=False):
    """What is understood of ``meta_info``; ``finish_reason`` and the top logprobs as raw JSON."""

    id: str | None = None
    finish_reason: Raw = ABSENT
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    weight_version: str | int | None = None
    weight_versions: list[Span] | None = None
    output_top_logprobs: Raw = ABSENT


class _PlainMeta(Told, gc=False, forbid_unknown_fields=True):
    output_token_logprobs: list[Triple] | None = None
    # Only there because logprobs were asked for, whatever they are.
    input_token_logprobs: Raw = ABSENT
    input_top_logprobs: Raw = ABSENT
    input_token_ids_logprobs: Raw = ABSENT
    output_token_ids_logprobs: Raw = ABSENT
    output_token_logprobs_length: Raw = ABSENT
    # Telemetry, whatever it is.
    e2e_latency: Raw = ABSENT
    cached_tokens_details: Raw = ABSENT
    spec_accept_rate: Raw = ABSENT
    spec_accept_length: Raw = ABSENT
    spec_verify_ct: Raw = ABSENT
    spec_num_correct_drafts: Raw = ABSENT
    spec_num_proposed_drafts: Raw = ABSENT
    # Telemetry as long as these are numbers.
    num_retractions: float | None = None
    response_sent_to_client_ts: float | None = None
    request_received_ts: float | None = None
    request_finished_ts: float | None = None
    first_token_latency: float | None = None
    queue_time: float | None = None
    decode_throughput: float | None = None
    dp_rank: float | None = None
    image_tokens: float | None = None
    audio_tokens: float | None = None
    video_tokens: float | None = None


class PlainAnswer(msgspec.Struct, gc=False):
    """One answer whose ``meta_info`` holds nothing that is kept as an extra."""

    meta_info: _PlainMeta
    text: str | None = None
    output_ids: list[int] | None = None


_PLAIN: Final = msgspec.json.Decoder(PlainAnswer)


def read_plain(body: bytes) -> PlainAnswer | None:
    """The answer, or ``None`` where it is not plain, or none at all."""
    try:
        return _PLAIN.decode(body)
    except BAD_JSON:
        return None
