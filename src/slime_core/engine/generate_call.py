"""The body of ``POST /generate``, read as SGLang 0.5.23 reads it, and what it asks the engine.

Two steps, because tokenising lies between them: :func:`parse_generate` checks the body's form and
broadcasts its scalars over the batch; :func:`plan` takes the prompts' ids and makes one
:class:`~.generation.Generation` per sample, prompt-major. Unknown top-level keys are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from slime_core.engine.bootstrap_fields import room_of, rooms_of
from slime_core.engine.chance import derived_seed
from slime_core.engine.generation import Generation, Room
from slime_core.engine.refusals import framework_error, manager_error
from slime_core.engine.sampling_params import SamplingParams, parse_sampling_params
from slime_core.engine.transfers import Role

__all__ = ["GenerateCall", "Prompt", "parse_generate", "plan"]

_FLAGS = (
    "stream",
    "return_text_in_logprobs",
    "return_prompt_token_ids",
    "return_routed_experts",
    "return_indexer_topk",
    "log_metrics",
    "no_logs",
    "background",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt of the batch, with the options that hold for it. ``rid`` ``None``: any."""

    content: str | tuple[int, ...]
    rid: str | None
    params: SamplingParams
    return_logprob: bool
    logprob_start_len: int
    top_logprobs_num: int
    token_ids_logprob: tuple[int, ...] | None
    room: Room | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """A checked body. ``many``: the answer is an array, and stream chunks carry ``index``."""

    prompts: tuple[Prompt, ...]
    many: bool
    stream: bool
    return_text_in_logprobs: bool
    return_prompt_token_ids: bool
    return_routed_experts: bool
    routed_experts_start_len: int

    @property
    def n(self) -> int:
        """Samples per prompt; the same for all."""
        return self.prompts[0].params.n


def parse_generate(body: object, *, vocabulary_size: int) -> GenerateCall:
    """Checks a decoded body. Raises :class:`~.refusals.Refusal` (400)."""
    if not isinstance(body, Mapping):
        raise framework_error("the body must be a JSON object")
    flags = {key: _flag(body, key) for key in _FLAGS}
    prompts, batch = _prompts(body, vocabulary_size)
    start = body.get("routed_experts_start_len", 0)
    if not _is_integer(start):
        raise framework_error("routed_experts_start_len must be an integer")
    return GenerateCall(
        prompts=prompts,
        many=batch or prompts[0].params.n > 1,
        stream=flags["stream"],
        return_text_in_logprobs=flags["return_text_in_logprobs"],
        return_prompt_token_ids=flags["return_prompt_token_ids"],
        return_routed_experts=flags["return_routed_experts"],
        routed_experts_start_len=start,
    )


def _prompts(body: Mapping[str, Any], vocabulary_size: int) -> tuple[tuple[Prompt, ...], bool]:
    """The prompts, each with the options that hold for it, and whether they came as a batch."""
    contents, batch = _contents(body)
    count = len(contents)
    columns = zip(
        contents,
        _rids(body.get("rid"), count, batch),
        _params(body.get("sampling_params"), count, batch, vocabulary_size),
        _column(body, "return_logprob", False, count, batch, lambda v: isinstance(v, bool)),
        _column(body, "logprob_start_len", -1, count, batch, _is_integer),
        _column(body, "top_logprobs_num", 0, count, batch, _is_integer),
        _watched(body.get("token_ids_logprob"), count, batch),
        rooms_of(body, count, batch),
        strict=True,
    )
    prompts = tuple(
        Prompt(
            content=content,
            rid=rid,
            params=params,
            return_logprob=wanted,
            logprob_start_len=start,
            top_logprobs_num=top,
            token_ids_logprob=watched,
            room=room,
        )
        for content, rid, params, wanted, start, top, watched, room in columns
    )
    if len({prompt.params.n for prompt in prompts}) > 1:
        raise manager_error("The parallel_sample_num should be the same for all samples")
    return prompts, batch


def plan(
    call: GenerateCall,
    ids: Sequence[Sequence[int]],
    *,
    context_length: int,
    vocabulary_size: int,
    fresh: Callable[[], str],
    seed: int,
    role: Role = Role.REGULAR,
) -> tuple[Generation, ...]:
    """One generation per sample: p0s0, p0s1, …, p1s0, …

    ``ids``: every prompt's token ids. ``fresh`` makes request ids. ``seed`` differs from call to
    call; a request's own ``sampling_seed`` takes its place, and then the samples of one prompt
    differ by their number. With ``n > 1`` each sample gets a fresh id (SGLang's rule: the caller's
    names nothing then). Raises :class:`~.refusals.Refusal` where a prompt does not fit, or names no
    room though the worker's ``role`` is one half of a pair.
    """
    planned: list[Generation] = []
    for place, (prompt, prompt_ids) in enumerate(zip(call.prompts, ids, strict=True)):
        _check_length(prompt, prompt_ids, context_length)
        if max(prompt_ids) >= vocabulary_size or min(prompt_ids) < 0:
            raise manager_error(f"The input_ids have an id outside 0 … {vocabulary_size - 1}")
        start = call.routed_experts_start_len
        if call.return_routed_experts and not 0 <= start <= len(prompt_ids):
            raise manager_error(
                f"routed_experts_start_len must be in [0, {len(prompt_ids)}], got {start}"
            )
        own = prompt.params.seed
        root = derived_seed(seed, str(place)) if own is None else own
        for sample in range(call.n):
            planned.append(
                Generation(
                    rid=prompt.rid if prompt.rid is not None and call.n == 1 else fresh(),
                    prompt_ids=tuple(prompt_ids),
                    params=prompt.params,
                    seed=derived_seed(root, str(sample)) if sample else root,
                    prompt_scores_from=_scores_from(prompt),
                    top=prompt.top_logprobs_num if prompt.return_logprob else 0,
                    watched=(prompt.token_ids_logprob or ()) if prompt.return_logprob else (),
                    room=room_of(prompt.room, sample, role),
                )
            )
    return tuple(planned)


def _scores_from(prompt: Prompt) -> int | None:
    wanted = prompt.return_logprob and prompt.logprob_start_len >= 0
    return prompt.logprob_start_len if wanted else None


def _check_length(prompt: Prompt, ids: Sequence[int], context_length: int) -> None:
    if not ids:
        raise manager_error("input_ids cannot be empty.")
    if len(ids) >= context_length:
        raise manager_error(
            f"The input ({len(ids)} tokens) is longer than the model's context length "
            f"({context_length} tokens)."
        )
    asked = prompt.params.max_new_tokens
    if asked is not None and len(ids) + asked > context_length:
        raise manager_error(
            f"Requested token count exceeds the model's maximum context length of "
            f"{context_length} tokens. You requested a total of {len(ids) + asked} tokens: "
            f"{len(ids)} tokens from the input messages and {asked} tokens for the completion."
        )
    if prompt.return_logprob and prompt.logprob_start_len > len(ids):
        raise manager_error(
            f"logprob_start_len {prompt.logprob_start_len} is higher than the number of input "
            f"tokens {len(ids)}"
        )


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise framework_error(f"{key} must be a boolean")
    return value


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _contents(body: Mapping[str, Any]) -> tuple[list[str | tuple[int, ...]], bool]:
    """The prompts and whether they came as a batch."""
    text, ids = body.get("text"), body.get("input_ids")
    if text is None and ids is None:
        raise manager_error("Either text, input_ids or input_embeds should be provided.")
    texts: list[str] = [text] if isinstance(text, str) else text or []
    if not _is_list_of(texts, str):
        raise framework_error("text must be a string or a list of strings")
    if ids is None:
        if not texts:
            raise manager_error("text cannot be an empty list.")
        return list(texts), not isinstance(text, str)
    if ids == []:
        raise manager_error("input_ids cannot be empty.")
    batch = isinstance(ids, list) and isinstance(ids[0], list)
    rows = ids if batch else [ids]
    if not isinstance(ids, list) or not all(_is_list_of(row, int) for row in rows):
        raise framework_error("input_ids must be a list of integers or a list of such lists")
    if text is not None and len(texts) != len(rows):
        raise manager_error("text and input_ids must have the same batch size.")
    return [tuple(row) for row in rows], batch


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, kind) and not isinstance(item, bool) for item in value
    )


def _rids(rid: object, count: int, batch: bool) -> list[str | None]:
    if rid is None:
        return [None] * count
    if isinstance(rid, str):
        return [f"{rid}_{place}" for place in range(count)] if batch else [rid]
    if not _is_list_of(rid, str) or not isinstance(rid, list):
        raise framework_error("rid must be a string or a list of strings")
    if not batch or len(rid) != count:
        raise manager_error("The rids should be a list with the length of the batch.")
    if len(set(rid)) != count:
        raise manager_error(f"Duplicate request IDs detected within the request: {rid}")
    return list(rid)


def _params(raw: object, count: int, batch: bool, vocabulary_size: int) -> list[SamplingParams]:
    if raw is None:
        raw = {}
    if isinstance(raw, Mapping):
        return [parse_sampling_params(raw, vocabulary_size=vocabulary_size)] * count
    if not isinstance(raw, list) or not all(isinstance(item, Mapping) for item in raw):
        raise framework_error("sampling_params must be an object or a list of objects")
    if not batch or len(raw) != count:
        raise manager_error("The sampling_params should have the length of the batch.")
    return [parse_sampling_params(item, vocabulary_size=vocabulary_size) for item in raw]


def _column(
    body: Mapping[str, Any],
    key: str,
    default: Any,
    count: int,
    batch: bool,
    fits: Callable[[object], bool],
) -> list[Any]:
    value = body.get(key)
    if value is None:
        return [default] * count
    if fits(value):
        return [value] * count
    if not isinstance(value, list) or not all(fits(item) for item in value):
        raise framework_error(f"{key} has the wrong type")
    if not batch or len(value) != count:
        raise manager_error(f"{key} should be a list with the length of the batch.")
    return value


def _watched(value: object, count: int, batch: bool) -> list[tuple[int, ...] | None]:
    if value is None or value == []:
        return [None] * count
    if isinstance(value, list) and _is_list_of(value, int):
        return [tuple(value)] * count
    if not isinstance(value, list) or not all(_is_list_of(row, int) for row in value):
        raise framework_error("token_ids_logprob must be a list of integers or of such lists")
    if not batch or len(value) != count:
        raise manager_error("token_ids_logprob should have the length of the batch.")
    return [tuple(row) for row in value]
