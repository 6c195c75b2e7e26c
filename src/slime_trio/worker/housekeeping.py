"""The rest of SGLang's control endpoints: memory, adapters, sessions, profiling, metrics."""

from __future__ import annotations

from typing import Any, Final

from quart import Response

from slime_core.engine import Refusal, Wording, framework_error
from slime_trio.worker.control import body_object, field_of
from slime_trio.worker.replies import json_reply, refusal_reply
from slime_trio.worker.service import Worker

__all__ = [
    "close_session",
    "load_lora_adapter",
    "metrics",
    "open_session",
    "pd_role_switch",
    "release_memory_occupation",
    "resume_memory_occupation",
    "said",
    "set_internal_state",
    "slow_down",
    "unload_lora_adapter",
]

_TAGS: Final = ("weights", "kv_cache", "cuda_graph")
_TEXT: Final = "text/plain; charset=utf-8"


def said(words: str) -> Any:
    """A handler that does nothing but say so."""

    async def handler(_worker: Worker) -> Response:
        return Response(words, 200, content_type=_TEXT)

    return handler


async def release_memory_occupation(worker: Worker) -> Response:
    """SGLang dies of this while anything runs; here it is refused."""
    tags = _tags_in(await body_object(empty={}))
    if not worker.engine.idle:
        words = "release_memory_occupation should be called only when the engine is idle"
        return refusal_reply(Refusal(words, wording=Wording.FRAMEWORK, status=500))
    worker.released.update(tags)
    if "kv_cache" in tags:
        worker.engine.flush()
    return json_reply(None)


async def resume_memory_occupation(worker: Worker) -> Response:
    worker.released.difference_update(_tags_in(await body_object(empty={})))
    return json_reply(None)


def _tags_in(body: Any) -> list[str]:
    tags = field_of(body, "tags", list | None, None) or list(_TAGS)
    if any(tag not in _TAGS for tag in tags):
        raise framework_error(f"tags must be among {', '.join(_TAGS)}")
    return tags


async def load_lora_adapter(worker: Worker) -> Response:
    body = await body_object()
    name = field_of(body, "lora_name", str, "")
    is_new = bool(name) and name not in worker.adapters
    if is_new:
        worker.adapters[name] = field_of(body, "lora_path", str, "")
    return _adapters(worker, is_new, "loaded" if is_new else "no name, or loaded already")


async def unload_lora_adapter(worker: Worker) -> Response:
    name = field_of(await body_object(), "lora_name", str, "")
    is_known = worker.adapters.pop(name, None) is not None
    return _adapters(worker, is_known, "unloaded" if is_known else "not loaded")


def _adapters(worker: Worker, success: bool, message: str) -> Response:
    told = {"success": success, "message": message, "loaded_adapters": worker.adapters}
    return json_reply(told, 200 if success else 400)


async def open_session(worker: Worker) -> Response:
    """Keeps the id only: generations do not go on in it."""
    name = field_of(await body_object(), "session_id", str | None, None) or worker.fresh()
    if name in worker.sessions:
        return refusal_reply(framework_error(f"session {name} is open already"))
    worker.sessions.add(name)
    return json_reply(name)


async def close_session(worker: Worker) -> Response:
    worker.sessions.discard(field_of(await body_object(), "session_id", str, ""))
    return Response(b"", 200)


async def slow_down(_worker: Worker) -> Response:
    await body_object(empty={})
    return json_reply({"success": True, "message": "this worker is as fast as it was started"})


async def set_internal_state(_worker: Worker) -> Response:
    return json_reply({"updated": True, "server_args": dict(await body_object())})


async def pd_role_switch(worker: Worker) -> Response:
    """An embedded worker keeps the role it was started with, and nothing is lost by asking."""
    new = field_of(await body_object(), "new_role", str, "")
    old = worker.options.role.value
    told = {
        "success": new == old,
        "message": "it has that role" if new == old else "it keeps the role it was started with",
        "old_role": old,
        "new_role": old,
        "safe_to_restore": True,
    }
    return json_reply(told, 200 if new == old else 400)


async def metrics(worker: Worker) -> Response:
    """A few of SGLang's metrics in Prometheus' text format."""
    load = worker.engine.load
    rows = (
        ("sglang:num_running_reqs", "The number of running requests.", load.running),
        ("sglang:num_queue_reqs", "The number of requests in the waiting queue.", load.waiting),
        ("sglang:num_used_tokens", "The number of used tokens.", load.used_tokens),
    )
    label = f'{{model_name="{worker.served_name}"}}'
    lines = []
    for name, words, value in rows:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} gauge", f"{name}{label} {value}.0"]
    return Response("\n".join([*lines, ""]), 200, content_type="text/plain; version=0.0.4")
