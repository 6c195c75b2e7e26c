"""Two answers to one request made one: what the prefill worker knows of the prompt, and the rest.

The decode worker's answer is the answer. It lacks what only prefill computed: logprobs of prompt
tokens (its lists are empty) and, of routed experts and the indexer's choices, the rows of the
prompt (its own are not to be relied on). What is asked for is put in, element by element:

* ``input_token_logprobs``, ``input_top_logprobs``, ``input_token_ids_logprobs``: prefill's list,
  then decode's;
* ``routed_experts``, ``indexer_topk``: prefill's bytes, then decode's from that offset on. Both
  start at ``routed_experts_start_len`` and hold rows of one size, so the offset fits.

They stand in ``meta_info`` (native answers, choices of chats) or in ``sglext``. Everything else
keeps its bytes; numbers are never read. An answer that was aborted may lack its part.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, TypeGuard

import msgspec
from msgspec import Raw

from slime_core.disaggregation.bootstrap import Wanted
from slime_core.disaggregation.splicing import set_elements, set_fields
from slime_core.errors import WorkerError
from slime_core.sglang.errors import read_json
from slime_core.strict_json import FieldTypeError, decode_typed, is_null

__all__ = [
    "PLACES",
    "Abort",
    "Details",
    "Endings",
    "details_of",
    "endings",
    "merge_answers",
    "merge_details",
    "wanted_in",
]

Details = dict[str, Raw]
"""The fields of one ``meta_info`` or ``sglext``."""

PLACES: Final[tuple[str, ...]] = ("meta_info", "sglext")
"""Where an answer holds what is merged."""

_LISTS: Final = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_BLANKS: Final = b" \t\r\n"
_Buffers = bytes | list[bytes | None]
_BUFFERS: Final[msgspec.json.Decoder[_Buffers]] = msgspec.json.Decoder(bytes | list[bytes | None])


def merge_answers(decode: bytes, prefill: bytes, wanted: Wanted) -> bytes:
    """The decode worker's whole answer (object or array) with the prefill worker's part.

    Raises :class:`WorkerError` if they do not fit together.
    """
    if not wanted.anything:
        return decode
    if not _is_array(decode):
        return _merge_item(decode, prefill, wanted)
    own = read_json(_RAWS, decode, "the decode worker's answers")
    theirs = read_json(_RAWS, prefill, "the prefill worker's answers")
    return set_elements(decode, own, _merge_each(own, theirs, wanted))


def _merge_each(own: list[Raw], theirs: list[Raw], wanted: Wanted) -> list[bytes]:
    if len(own) != len(theirs):
        raise WorkerError(
            f"The prefill worker gave {len(theirs)} answers where the decode worker gave "
            f"{len(own)}.",
            code="prefill_error",
        )
    pairs = zip(own, theirs, strict=True)
    return [_merge_item(bytes(mine), bytes(other), wanted) for mine, other in pairs]


def _merge_item(decode: bytes, prefill: bytes, wanted: Wanted) -> bytes:
    fields = read_json(_FIELDS, decode, "the decode worker's answer")
    theirs = read_json(_FIELDS, prefill, "the prefill worker's answer")
    lenient = bool(endings(decode).aborts or endings(prefill).aborts)
    changes = {}
    for place in PLACES:
        if _is_object(fields.get(place)):
            changes[place] = merge_details(
                bytes(fields[place]), _object(theirs.get(place)), wanted, lenient=lenient
            )
    if "choices" in fields and "choices" in theirs:
        own = read_json(_RAWS, fields["choices"], "choices")
        other = read_json(_RAWS, theirs["choices"], "choices")
        changes["choices"] = set_elements(
            bytes(fields["choices"]), own, _merge_each(own, other, wanted)
        )
    return set_fields(decode, fields, changes)


def merge_details(own: bytes, theirs: Details, wanted: Wanted, *, lenient: bool) -> bytes:
    """One ``meta_info`` or ``sglext``. ``lenient``: what prefill lacks is left as it is.

    Raises :class:`WorkerError` for a part that prefill lacks otherwise, or that is malformed.
    """
    fields = read_json(_FIELDS, own, "the decode worker's meta_info")
    changes = {}
    for name in wanted_in(fields, wanted):
        if name not in theirs or is_null(theirs[name]):
            if lenient:
                continue
            raise WorkerError(f"The prefill worker gave no {name}.", code="prefill_error")
        merge = _joined_lists if name in _LISTS else _joined_buffers
        changes[name] = merge(fields[name], theirs[name], name)
    return set_fields(own, fields, changes)


def wanted_in(details: Details, wanted: Wanted) -> list[str]:
    """What of ``details`` is to be merged."""
    names = list(_LISTS) if wanted.logprobs else []
    names += ["routed_experts"] if wanted.routed_experts else []
    names += ["indexer_topk"] if wanted.indexer_topk else []
    return [name for name in names if name in details and not is_null(details[name])]


def details_of(item: bytes | Raw, place: str) -> Details:
    """The fields of an answer's or an event's ``meta_info`` or ``sglext``; empty if it has none.

    Raises :class:`WorkerError` for what is no JSON object.
    """
    return _object(read_json(_FIELDS, item, "the worker's answer").get(place))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """A sample that was aborted. ``status``: of a failure that the worker words as an abort."""

    id: str | None
    status: int | None
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """How an answer, or an event, says that its samples ended."""

    samples: int
    """How many have ended; in an event that does not end its sample, none."""
    aborts: tuple[Abort, ...]


class _Meta(msgspec.Struct, gc=False):
    id: Any = None
    finish_reason: Any = None


class _Sample(msgspec.Struct, gc=False):
    meta_info: _Meta | None = None
    finish_reason: Any = None
    choices: list[_Sample] | None = None


_SAMPLES: Final = msgspec.json.Decoder(list[_Sample])
_SAMPLE: Final = msgspec.json.Decoder(_Sample)


def endings(answer: bytes) -> Endings:
    """How the samples of a whole answer, or of one event, ended. What cannot be read has none."""
    try:
        if _is_array(answer):
            samples = decode_typed(_SAMPLES, answer)
        else:
            one = decode_typed(_SAMPLE, answer)
            samples = [one] if one.choices is None else one.choices
    except FieldTypeError:
        samples = []
    ended = [sample for sample in samples if _reason(sample)]
    found = [abort for abort in map(_abort, ended) if abort is not None]
    return Endings(samples=len(ended), aborts=tuple(found))


def _reason(sample: _Sample) -> Any:
    """Native answers word it as an object, OpenAI's choices as a word; chats may have both."""
    return (sample.meta_info or _Meta()).finish_reason or sample.finish_reason


def _abort(sample: _Sample) -> Abort | None:
    reason = _reason(sample)
    told = reason if isinstance(reason, dict) else {"type": reason}
    if told.get("type") != "abort":
        return None
    name = (sample.meta_info or _Meta()).id
    status, message = told.get("status_code"), told.get("message")
    return Abort(
        id=name if isinstance(name, str) else None,
        status=status if isinstance(status, int) else None,
        message=message if isinstance(message, str) else "Aborted",
    )


def _joined_lists(own: Raw, theirs: Raw, name: str) -> bytes:
    first, last = bytes(theirs), bytes(own)
    if not (_is_array(first) and _is_array(last)):
        raise WorkerError(f"A worker sent {name} that is no list.", code="prefill_error")
    if not last[1:-1].strip(_BLANKS):
        return first
    if not first[1:-1].strip(_BLANKS):
        return last
    return first[:-1] + b"," + last[1:]


def _joined_buffers(own: Raw, theirs: Raw, name: str) -> bytes:
    """Base64, or a list of it with one entry per sample."""
    try:
        last, first = decode_typed(_BUFFERS, own), decode_typed(_BUFFERS, theirs)
    except FieldTypeError:
        raise WorkerError(
            f"A worker sent {name} that is no base64.", code="prefill_error"
        ) from None
    if isinstance(last, bytes) and isinstance(first, bytes):
        return msgspec.json.encode(first + last[len(first) :])
    if not isinstance(last, list) or not isinstance(first, list) or len(last) != len(first):
        raise WorkerError(f"The two workers' {name} do not fit together.", code="prefill_error")
    pairs = zip(first, last, strict=True)
    both = [None if one is None or two is None else one + two[len(one) :] for one, two in pairs]
    return msgspec.json.encode(both)


def _is_array(data: bytes) -> bool:
    return data[:64].lstrip(_BLANKS)[:1] == b"["


def _is_object(raw: Raw | None) -> TypeGuard[Raw]:
    return raw is not None and bytes(memoryview(raw)[:1]) == b"{"


def _object(raw: Raw | None) -> Details:
    return read_json(_FIELDS, raw, "meta_info") if _is_object(raw) else {}
