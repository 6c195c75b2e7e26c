"""The comparison: what a trajectory must be, from the workers' records alone.

This is the second opinion, so nothing of the router's capture is imported here. The rules are put
once more, in their simplest form: a trajectory is the last prompt as the worker received it and
the answer to it; each earlier answer must stand in that prompt, id by id, where its own prompt
ended; there, and only there, the mask is 1 and logprobs and versions are that call's; and the text
between two answers must be what the plain tokenizer makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "Expected",
    "Mismatch",
    "Record",
    "Said",
    "compare",
    "compare_answer",
    "compare_chat",
    "compare_logprobs",
    "compare_prompts",
    "expect",
    "record_from",
    "without_close",
]

_NOT_SAMPLED: Final = -1
_THINKS: Final = "<think>"
_HAS_THOUGHT: Final = "</think>"
_TOLERANCE: Final = 1e-6
"""Relative: records hold single precision, and two ways to one sum differ in the last bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a worker noted of one call."""

    rid: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[str, ...]
    text: str

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return self.prompt_ids + self.output_ids

    @property
    def sampled(self) -> slice:
        """Where the answer lies in ``ids``."""
        return slice(len(self.prompt_ids), len(self.prompt_ids) + len(self.output_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One turn as its client knows it: the text it added to what it had, and what came back.

    ``answer`` is text; of a chat its content, beside which ``reasoning`` was told. The ids are
    those of the prompt and the answer, if it sent or got them.
    """

    call: str
    added: str
    answer: str
    reasoning: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    output_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One thing that is not as it must be. ``place``: a token's index, where there is one."""

    call: str
    what: str
    place: int | None
    expected: object
    found: object

    def __str__(self) -> str:
        at = "" if self.place is None else f" at token {self.place}"
        return f"{self.call}: {self.what}{at}: expected {self.expected!r}, found {self.found!r}"


@dataclass(slots=True, kw_only=True)
class Expected:
    """A trajectory, column by column, all of one length. ``versions``: ``None`` if not sampled."""

    call: str
    tokens: list[int]
    mask: list[int]
    logprobs: list[float]
    versions: list[str | None]
    problems: list[Mismatch] = field(default_factory=list)


def record_from(value: Mapping[str, Any]) -> Record:
    """An entry of a worker's ``/slime_worker/records``."""
    return Record(
        rid=value["rid"],
        prompt_ids=tuple(value["prompt_ids"]),
        output_ids=tuple(value["output_ids"]),
        logprobs=tuple(value["logprobs"]),
        versions=tuple(value["weight_versions"]),
        text=value["text"],
    )


def expect(records: Sequence[Record]) -> Expected:
    """The trajectory that ends in the last of ``records``, the calls of one rollout in order.

    ``problems``: answers that are not in the last prompt where they must be.
    """
    last = records[-1]
    size = len(last.ids)
    expected = Expected(
        call=last.rid,
        tokens=list(last.ids),
        mask=[0] * size,
        logprobs=[0.0] * size,
        versions=[None] * size,
    )
    for record in records:
        end = record.sampled.stop
        if last.ids[:end] != record.ids:
            expected.problems += _different(
                last.rid, "history kept", record.ids, last.ids[:end], limit=1
            )
            continue
        expected.mask[record.sampled] = [1] * len(record.output_ids)
        expected.logprobs[record.sampled] = record.logprobs
        expected.versions[record.sampled] = record.versions
    return expected


def compare(expected: Expected, found: Mapping[str, Any]) -> list[Mismatch]:
    """A retrieved trajectory against the expected one: every id, mask, logprob and version."""
    call = expected.call
    numbers = [_NOT_SAMPLED if name is None else int(name) for name in expected.versions]
    mismatches = list(expected.problems)
    mismatches += _different(call, "id", expected.tokens, found["tokens"])
    mismatches += _different(call, "mask", expected.mask, found["loss_mask"])
    mismatches += _different(call, "logprob", expected.logprobs, found["rollout_logp"])
    mismatches += _different(call, "version", numbers, found["generation_versions"])
    names = _spread(found["weight_versions"], len(expected.tokens))
    mismatches += _different(call, "version's name", expected.versions, names)
    size = len(expected.tokens)
    whole = {"token_length": size, "loss_mask_length": size, "matched_length": size, "cut": False}
    mismatches += [
        _mismatch(call, name, None, value, found[name])
        for name, value in whole.items()
        if found[name] != value
    ]
    return mismatches


def compare_prompts(
    said: Sequence[Said], records: Sequence[Record], tokenizer: Any
) -> list[Mismatch]:
    """The unsampled runs of the last prompt: each the plain tokenizer's encoding of its text.

    ``tokenizer`` is a ``tokenizers.Tokenizer``. Where an answer ended with a special token, which
    the client was not shown, and its next text begins with it, that token is there already.
    """
    last, turn = records[-1], said[-1]
    start, added = 0, turn.added
    if len(records) > 1:
        before = records[-2]
        start = before.sampled.stop
        ending = before.output_ids[-1:]
        if not tokenizer.decode(ending, skip_special_tokens=True):
            added = added.removeprefix(tokenizer.decode(ending, skip_special_tokens=False))
    run = tokenizer.encode(added, add_special_tokens=start == 0).ids
    mismatches = _different(turn.call, "encoded prompt", run, last.prompt_ids[start:], at=start)
    if turn.prompt_ids is not None:
        mismatches += _different(turn.call, "id sent", turn.prompt_ids, last.prompt_ids)
    return mismatches


def compare_answer(said: Said, record: Record) -> list[Mismatch]:
    """What the client was given against what the worker noted."""
    mismatches = []
    if said.answer != record.text:
        mismatches.append(_mismatch(said.call, "answer's text", None, record.text, said.answer))
    if said.output_ids is not None:
        mismatches += _different(
            said.call,
            "answer's id",
            record.output_ids,
            said.output_ids,
            at=len(record.prompt_ids),
        )
    return mismatches


def compare_chat(said: Said, record: Record, tokenizer: Any) -> list[Mismatch]:
    """The message that a chat's client was given against what the worker sampled.

    Blanks around reasoning and content are not compared: chat takes them off.
    """
    visible = tokenizer.decode(record.output_ids, skip_special_tokens=True).strip()
    reasoning, content = "", visible
    if visible.startswith(_THINKS):
        reasoning, _, content = visible.removeprefix(_THINKS).partition(_HAS_THOUGHT)
    told = ((said.reasoning or "").strip(), said.answer.strip())
    meant = (reasoning.strip(), content.strip())
    return [] if told == meant else [_mismatch(said.call, "message", None, meant, told)]


def without_close(found: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A trajectory without what the template writes behind its last answer, none of it sampled."""
    if any(found["loss_mask"][size:]):
        return dict(found)
    columns = ("tokens", "loss_mask", "rollout_logp", "generation_versions")
    counts = ("token_length", "loss_mask_length", "matched_length")
    cut = {name: found[name][:size] for name in columns}
    return dict(found) | cut | {name: min(found[name], size) for name in counts}


def compare_logprobs(
    record: Record, probability: Callable[[Sequence[int], int, str], float]
) -> list[Mismatch]:
    """A worker's logprobs against the language model's probability of each sampled token.

    ``probability(context, token, version)`` is asked with the ids before each token. Only for
    answers drawn at temperature 1 from the whole distribution.
    """
    mismatches = []
    for place, logprob in enumerate(record.logprobs, len(record.prompt_ids)):
        version = record.versions[place - len(record.prompt_ids)]
        true = math.log(probability(record.ids[:place], record.ids[place], version))
        if not math.isclose(logprob, true, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            mismatches.append(_mismatch(record.rid, "model's logprob", place, true, logprob))
    return mismatches


def _spread(runs: Sequence[Mapping[str, Any]], size: int) -> list[str | None]:
    """The version's name of each token; positions in no run were not sampled."""
    names: list[str | None] = [None] * size
    for run in runs:
        for place in range(run["start"], min(run["end"], size)):
            names[place] = run["version"]
    return names


def _different(
    call: str,
    what: str,
    expected: Sequence[object],
    found: Sequence[object],
    *,
    at: int = 0,
    limit: int | None = None,
) -> list[Mismatch]:
    """Where two columns differ. ``at`` is the index of their first element."""
    if len(expected) != len(found):
        return [_mismatch(call, f"number of {what}s", None, len(expected), len(found))]
    return [_mismatch(call, what, at + i, a, b) for i, a, b in _pairs(expected, found)][:limit]


def _pairs(
    expected: Sequence[object], found: Sequence[object]
) -> Iterator[tuple[int, object, object]]:
    for index, (left, right) in enumerate(zip(expected, found, strict=True)):
        if left != right:
            yield index, left, right


def _mismatch(call: str, what: str, place: int | None, expected: object, found: object) -> Mismatch:
    return Mismatch(call=call, what=what, place=place, expected=expected, found=found)
