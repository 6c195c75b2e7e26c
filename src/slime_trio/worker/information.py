"""Health, information and tokenising endpoints."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any, Final

import trio
from quart import Response

from slime_core.engine import framework_error
from slime_trio.worker.native import body_of_request
from slime_trio.worker.replies import json_reply
from slime_trio.worker.service import Worker

__all__ = [
    "detokenize",
    "health",
    "loads",
    "model_card",
    "model_info",
    "models",
    "ping",
    "ready",
    "server_info",
    "tokenize",
]

VERSION: Final = "0.5.23"
"""The version of SGLang whose API this worker speaks."""

_PATIENCE: Final = 20
"""A paused worker takes this many times as long to say that it is not healthy."""


async def health(worker: Worker) -> Response:
    """As slow as asked: a real worker runs a token first, and gives up late while paused."""
    paused = worker.engine.paused is not None
    await trio.sleep(worker.options.health_s * (_PATIENCE if paused else 1))
    return Response(b"", 503 if paused else 200)


async def ready(worker: Worker) -> Response:
    return Response(b"", 503 if worker.engine.paused is not None else 200)


async def ping(_worker: Worker) -> Response:
    return Response(b"", 200)


async def model_info(worker: Worker) -> Response:
    checkpoint = str(worker.options.hf_checkpoint)
    return json_reply(
        {
            "model_path": checkpoint,
            "served_model_name": worker.served_name,
            "tokenizer_path": checkpoint,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": worker.engine.version,
            "load_format": "auto",
            "reasoning_parser": None,
            "tool_call_parser": None,
            "disaggregation_mode": worker.options.role.value,
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": "ngram",
            "architectures": ["NgramForCausalLM"],
        }
    )


async def server_info(worker: Worker) -> Response:
    options = worker.options
    return json_reply(
        {
            "model_path": str(options.hf_checkpoint),
            "tokenizer_path": str(options.hf_checkpoint),
            "served_model_name": worker.served_name,
            "weight_version": worker.engine.version,
            "context_length": options.context_length,
            "max_running_requests": options.max_running_requests,
            "incremental_streaming_output": options.incremental_streaming_output,
            "enable_return_routed_experts": options.experts is not None,
            "random_seed": worker.seed,
            "tp_size": 1,
            "dp_size": 1,
            "pp_size": 1,
            "disaggregation_mode": options.role.value,
            "disaggregation_bootstrap_port": worker.bootstrap_port or options.bootstrap_port,
            "startup_time": worker.started_at,
            "kv_events": None,
            "internal_states": [
                {
                    "effective_max_running_requests_per_dp": options.max_running_requests,
                    "last_gen_throughput": 0.0,
                }
            ],
            "version": VERSION,
            "frontend": "slime-router worker",
        }
    )


async def loads(worker: Worker) -> Response:
    load, options = worker.engine.load, worker.options
    capacity = options.max_running_requests * options.context_length
    now = time.time()
    return json_reply(
        {
            "timestamp": datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(),
            "version": VERSION,
            "accelerator": "none",
            "num_accelerators": 0,
            "loads": [
                {
                    "timestamp": now,
                    "dp_rank": 0,
                    "num_running_reqs": load.running,
                    "num_waiting_reqs": load.waiting,
                    "num_waiting_uncached_tokens": load.waiting_uncached_tokens,
                    "num_used_tokens": load.used_tokens,
                    "num_total_tokens": load.used_tokens + load.waiting_uncached_tokens,
                    "num_active_tokens": load.used_tokens,
                    "max_total_num_tokens": capacity,
                    "max_running_requests": options.max_running_requests,
                    "token_usage": load.used_tokens / capacity,
                    "gen_throughput": 0.0,
                    "cache_hit_rate": 0.0,
                    "utilization": load.running / options.max_running_requests,
                }
            ],
        }
    )


def _card(worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.served_name,
        "object": "model",
        "created": int(worker.started_at),
        "owned_by": "sglang",
        "root": worker.served_name,
        "parent": None,
        "max_model_len": worker.options.context_length,
    }


async def models(worker: Worker) -> Response:
    return json_reply({"object": "list", "data": [_card(worker)]})


async def model_card(worker: Worker, name: str) -> Response:
    if name.strip("/") == worker.served_name.strip("/"):
        return json_reply(_card(worker))
    error = {
        "message": f"The model '{name}' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    return json_reply({"error": error}, 404)


async def tokenize(worker: Worker) -> Response:
    """``{prompt | messages, add_special_tokens, tools, chat_template_kwargs}`` to ids.

    A list of prompts gives lists, as in SGLang.
    """
    body = await body_of_request()
    if not isinstance(body, Mapping):
        raise framework_error("the body must be a JSON object")
    special = body.get("add_special_tokens", True) is not False
    prompt = body.get("prompt")
    tokens: list[Any]
    count: int | list[int]
    if isinstance(prompt, str):
        tokens = worker.model.encode(prompt, add_special_tokens=special)
        count = len(tokens)
    elif isinstance(prompt, list) and all(isinstance(text, str) for text in prompt):
        tokens = [worker.model.encode(text, add_special_tokens=special) for text in prompt]
        count = [len(row) for row in tokens]
    elif isinstance(body.get("messages"), list):
        rendered = (await worker.template()).render(
            body["messages"],
            tools=body.get("tools"),
            add_generation_prompt=body.get("add_generation_prompt", True) is not False,
            chat_template_kwargs=body.get("chat_template_kwargs"),
        )
        tokens = worker.model.encode(rendered, add_special_tokens=False)
        count = len(tokens)
    else:
        raise framework_error("prompt must be a string or a list of strings, or messages a list")
    limit = worker.options.context_length
    return json_reply({"tokens": tokens, "count": count, "max_model_len": limit})


async def detokenize(worker: Worker) -> Response:
    """``{tokens, skip_special_tokens}`` to text; a list of lists gives a list of texts."""
    body = await body_of_request()
    tokens = body.get("tokens") if isinstance(body, Mapping) else None
    if not isinstance(tokens, list):
        raise framework_error("tokens must be a list of integers")
    skip = body.get("skip_special_tokens", True) is not False
    nested = bool(tokens) and isinstance(tokens[0], list)
    rows = tokens if nested else [tokens]
    if not all(isinstance(row, list) for row in rows) or not all(
        isinstance(token, int) and token >= 0 for row in rows for token in row
    ):
        raise framework_error("tokens must be a list of integers")
    texts = [worker.model.vocabulary.decode(row, skip_special=skip) for row in rows]
    return json_reply({"text": texts if nested else texts[0]})
