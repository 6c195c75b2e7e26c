"""Chat and text completions as SGLang serves them: bodies to ``/generate``'s form and back.

Only names change here. A chat body becomes a native body over the rendered prompt's ids, the
native answers become choices. Everything SGLang adds to OpenAI's API (``input_ids``,
``return_meta_info``, ``sglext`` …) is worded as ``sglang`` 0.5.23 words it. No reasoning or
tool-call parser runs: what the model wrote is the content, as in SGLang without those options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from slime_core.engine.refusals import framework_error

__all__ = [
    "chat_answer",
    "chat_body",
    "completion_answer",
    "completion_body",
    "completion_choice",
    "logprob_content",
    "usage",
]

_SHARED: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "stop_regex": "stop_regex",
    "min_tokens": "min_new_tokens",
    "n": "n",
    "seed": "sampling_seed",
    "no_stop_trim": "no_stop_trim",
    "ignore_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
    "custom_params": "custom_params",
}
_COMPLETION_TOKENS: Final = 16

_Bytes = Callable[[int], bytes]


def chat_body(body: Mapping[str, Any], prompt_ids: Sequence[int]) -> dict[str, Any]:
    """The native body of a chat request. Raises :class:`~.refusals.Refusal`."""
    limit = body.get("max_completion_tokens")
    sampling = _sampling(body) | {
        "max_new_tokens": body.get("max_tokens") if limit is None else limit
    }
    if body.get("tools"):
        sampling["skip_special_tokens"] = False
    wanted = body.get("logprobs") is True
    top = body.get("top_logprobs") or 0
    if top and not wanted:
        raise framework_error("top_logprobs needs logprobs to be true")
    refused = [
        key
        for key in ("return_prompt_token_ids", "return_token_ids", "return_meta_info")
        if body.get(key) and body.get("stream")
    ]
    if refused:
        raise framework_error(f"{refused[0]} is not supported with stream=true")
    return _native(body, sampling) | {
        "input_ids": list(prompt_ids),
        "return_logprob": wanted,
        "top_logprobs_num": top,
    }


def completion_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The native body of a text completion. Raises :class:`~.refusals.Refusal`."""
    prompt = body.get("prompt")
    first = prompt[0] if isinstance(prompt, list) and prompt else prompt
    if not isinstance(first, (str, int, list)):
        raise framework_error("prompt must be a string, a list of strings, or token ids")
    top = body.get("logprobs")
    limit = body.get("max_tokens", _COMPLETION_TOKENS)
    return _native(body, _sampling(body) | {"max_new_tokens": limit}) | {
        "text" if isinstance(first, str) else "input_ids": prompt,
        "return_logprob": top is not None and top is not False,
        "top_logprobs_num": top if isinstance(top, int) and not isinstance(top, bool) else 0,
    }


def _native(body: Mapping[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    native: dict[str, Any] = {
        "sampling_params": sampling,
        "stream": body.get("stream") is True,
        "return_prompt_token_ids": True,
        "return_text_in_logprobs": True,
        "return_routed_experts": body.get("return_routed_experts") is True,
        "routed_experts_start_len": body.get("routed_experts_start_len", 0),
    }
    named = ("rid", "bootstrap_host", "bootstrap_port", "bootstrap_room")
    return native | {key: body[key] for key in named if body.get(key) is not None}


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    return {native: body[key] for key, native in _SHARED.items() if body.get(key) is not None}


def usage(answers: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """Token counts; every prompt counts once, however many samples it has."""
    metas = [answer["meta_info"] for answer in answers]
    prompt = sum(meta.get("prompt_tokens", 0) for meta in metas[::n])
    completion = sum(meta["completion_tokens"] for meta in metas)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(meta.get("cached_tokens", 0) for meta in metas[::n])
        },
        "reasoning_tokens": 0,
    }


def chat_answer(
    body: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    *,
    model: str,
    created: int,
    bytes_of: _Bytes,
) -> dict[str, Any]:
    """A ``chat.completion`` of native answers; its id is the first choice's request id."""
    first = answers[0]["meta_info"]
    answer: dict[str, Any] = {
        "id": first["id"],
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            _chat_choice(body, index, native, bytes_of) for index, native in enumerate(answers)
        ],
        "usage": usage(answers, len(answers)),
        "metadata": {
            "weight_version": first["weight_version"],
            "weight_versions": first["weight_versions"],
        },
    }
    extension = _sglext(body, first, answers[0])
    return answer | ({"sglext": extension} if extension else {})


def _sglext(
    body: Mapping[str, Any], meta: Mapping[str, Any], answer: Mapping[str, Any]
) -> dict[str, Any]:
    extension: dict[str, Any] = {}
    if "routed_experts" in meta and not body.get("return_meta_info"):
        extension["routed_experts"] = meta["routed_experts"]
    if body.get("return_input_ids_in_sglext"):
        extension["input_ids"] = answer["prompt_token_ids"]
    if body.get("return_output_ids_in_sglext"):
        extension["output_ids"] = answer["output_ids"]
    return extension


def _chat_choice(
    body: Mapping[str, Any], index: int, native: Mapping[str, Any], bytes_of: _Bytes
) -> dict[str, Any]:
    meta = native["meta_info"]
    logprobs = (
        {"content": logprob_content(meta, 0, bytes_of)} if body.get("logprobs") is True else None
    )
    choice: dict[str, Any] = {
        "index": index,
        "message": {
            "role": "assistant",
            "content": native["text"],
            "reasoning_content": None,
            "tool_calls": None,
        },
        "logprobs": logprobs,
        "finish_reason": meta["finish_reason"]["type"],
        "matched_stop": meta["finish_reason"].get("matched"),
    }
    if body.get("return_prompt_token_ids"):
        choice["prompt_token_ids"] = native["prompt_token_ids"]
    if body.get("return_token_ids"):
        choice["prompt_token_ids"] = native["prompt_token_ids"]
        choice["response_token_ids"] = native["output_ids"]
    if body.get("return_meta_info"):
        choice["meta_info"] = meta
    return choice


def logprob_content(meta: Mapping[str, Any], start: int, bytes_of: _Bytes) -> list[dict[str, Any]]:
    """OpenAI's per-token logprobs from the native triples, from output position ``start`` on."""
    triples = meta["output_token_logprobs"][start:]
    tops = meta.get("output_top_logprobs", [None] * len(meta["output_token_logprobs"]))[start:]
    return [
        _entry(triple, bytes_of)
        | {"top_logprobs": [_entry(rival, bytes_of) for rival in top or ()]}
        for triple, top in zip(triples, tops, strict=True)
    ]


def _entry(triple: Sequence[Any], bytes_of: _Bytes) -> dict[str, Any]:
    logprob, token, text = triple
    return {"token": text, "bytes": list(bytes_of(token)), "logprob": logprob}


def completion_choice(
    body: Mapping[str, Any], index: int, native: Mapping[str, Any], *, n: int
) -> dict[str, Any]:
    """One choice of a ``text_completion`` from a native answer (whole, or a delta)."""
    meta = native["meta_info"]
    finish = meta["finish_reason"] or {}
    choice: dict[str, Any] = {
        "index": index,
        "text": native["text"],
        "logprobs": _completion_logprobs(meta) if "output_token_logprobs" in meta else None,
        "finish_reason": finish.get("type"),
        "matched_stop": finish.get("matched"),
    }
    if body.get("return_token_ids"):
        choice["token_ids"] = native["output_ids"]
        choice["prompt_token_ids"] = native["prompt_token_ids"]
    if body.get("echo") and isinstance(body.get("prompt"), (str, list)):
        prompt = body["prompt"] if isinstance(body["prompt"], str) else body["prompt"][index // n]
        choice["text"] = (prompt if isinstance(prompt, str) else "") + choice["text"]
    return choice


def _completion_logprobs(meta: Mapping[str, Any]) -> dict[str, Any]:
    triples = meta["output_token_logprobs"]
    tops = meta.get("output_top_logprobs") or [None] * len(triples)
    return {
        "tokens": [text for _, _, text in triples],
        "token_logprobs": [logprob for logprob, _, _ in triples],
        "top_logprobs": [
            {text: logprob for logprob, _, text in top or ()}
            for top in tops or [None] * len(triples)
        ],
        "text_offset": [-1] * len(triples),
    }


def completion_answer(
    body: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    *,
    model: str,
    created: int,
    n: int,
) -> dict[str, Any]:
    """A ``text_completion`` of native answers, prompt-major."""
    first = answers[0]["meta_info"]
    return {
        "id": first["id"],
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [
            completion_choice(body, index, native, n=n) for index, native in enumerate(answers)
        ],
        "usage": usage(answers, n),
        "metadata": {"weight_version": first["weight_version"]},
    }
