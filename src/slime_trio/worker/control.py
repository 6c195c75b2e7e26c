"""Control endpoints: abort, pause and continue, flush, weights, faults, records."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import trio
from quart import Response, request

from slime_core.engine import PauseMode, Record, finish_json, framework_error, plain_error
from slime_trio.worker.faults import parse_fault
from slime_trio.worker.native import body_of_request
from slime_trio.worker.replies import json_reply
from slime_trio.worker.service import Worker

__all__ = [
    "abort_request",
    "body_object",
    "continue_generation",
    "faults",
    "field_of",
    "flush_cache",
    "pause_generation",
    "records",
    "swap",
    "update_weight_version",
    "update_weights_from_disk",
]


async def body_object(*, empty: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The request's JSON object; ``empty`` where a request may come without a body."""
    if empty is not None and not await request.get_data():
        return empty
    body = await body_of_request()
    if not isinstance(body, Mapping):
        raise framework_error("the body must be a JSON object")
    return body


def field_of(body: Mapping[str, Any], key: str, kind: Any, default: Any) -> Any:
    """A field of this type. Raises ``Refusal`` for another."""
    value = body.get(key, default)
    if not isinstance(value, kind):
        raise framework_error(f"{key} must be of type {getattr(kind, '__name__', kind)}")
    return value


async def abort_request(worker: Worker) -> Response:
    body = await body_object()
    rid = field_of(body, "rid", str, "")
    worker.engine.abort(rid, everything=field_of(body, "abort_all", bool, False))
    worker.host.poke()
    return Response(b"", 200)


async def pause_generation(worker: Worker) -> Response:
    body = await body_object()
    mode = field_of(body, "mode", str, "abort")
    if mode not in {known.value for known in PauseMode}:
        raise framework_error(f"there is no pause mode {mode!r}")
    worker.engine.pause(PauseMode(mode))
    worker.host.poke()
    if mode == "abort":
        await worker.host.wait_idle()
    return json_reply({"message": "Generation paused successfully.", "status": "ok"})


async def continue_generation(worker: Worker) -> Response:
    await body_object()
    worker.engine.resume()
    worker.host.poke()
    return json_reply({"message": "Generation continued successfully.", "status": "ok"})


async def flush_cache(worker: Worker) -> Response:
    try:
        timeout = float(request.args.get("timeout", "0"))
    except ValueError:
        raise framework_error("timeout must be a number of seconds") from None
    done = worker.engine.flush()
    if not done and timeout > 0:
        with trio.move_on_after(timeout):
            await worker.host.wait_idle()
            done = worker.engine.flush()
    if done:
        return Response("Cache flushed.\n", 200, content_type="text/plain; charset=utf-8")
    text = "Flush cache failed: requests are running or waiting.\n"
    return Response(text, 400, content_type="text/plain; charset=utf-8")


async def update_weight_version(worker: Worker) -> Response:
    body = await body_object()
    version = body.get("new_version")
    if not isinstance(version, str):
        raise framework_error("new_version is required and must be a string")
    if field_of(body, "abort_all_requests", bool, True):
        worker.engine.abort(everything=True)
    worker.engine.update_version(version)
    worker.host.poke()
    message = f"Weight version updated to {version}"
    return json_reply({"success": True, "message": message, "new_version": version})


async def update_weights_from_disk(worker: Worker) -> Response:
    """At once while paused; otherwise after the requests in flight, with new ones held.

    Any ``model_path`` will do: what is loaded is the weight version, if one is named.
    """
    body = await body_object()
    path = body.get("model_path")
    if not isinstance(path, str):
        raise framework_error("model_path is required and must be a string")
    version = body.get("weight_version")
    if version is not None and not isinstance(version, str):
        raise framework_error("weight_version must be a string")
    if field_of(body, "abort_all_requests", bool, False):
        worker.engine.abort(everything=True)
        worker.host.poke()
    flush = field_of(body, "flush_cache", bool, True)
    async with worker.updating:
        flushed = await swap(worker, version, flush=flush)
    worker.served_name = path
    success = flushed or not flush
    message = (
        "Succeeded to update model weights."
        if success
        else "The weights were updated, but the cache could not be flushed: requests are running."
    )
    answer = {"success": success, "message": message, "num_paused_requests": 0}
    return json_reply(answer, 200 if success else 400)


async def swap(worker: Worker, version: str | None, *, flush: bool) -> bool:
    """Changes the version; whether the cache was flushed (if asked) before anything new began."""
    worker.engine.hold()
    try:
        if worker.engine.paused is None:
            await worker.host.wait_idle()
        if version is not None:
            worker.engine.update_version(version)
        return worker.engine.flush() if flush else False
    finally:
        worker.engine.release()
        worker.host.poke()


async def faults(worker: Worker) -> Response:
    """``GET`` shows the faults in force, ``POST {"faults": [...]}`` replaces them."""
    if request.method == "POST":
        body = await body_object()
        try:
            chosen = [parse_fault(text) for text in field_of(body, "faults", list, [])]
        except (argparse.ArgumentTypeError, AttributeError) as error:
            raise plain_error(str(error)) from None
        worker.faults.replace(chosen)
    return json_reply({"faults": worker.faults.spelt()})


async def records(worker: Worker) -> Response:
    """What was sampled, oldest first; ``?rid=`` keeps one request's, ``DELETE`` forgets all."""
    if request.method == "DELETE":
        worker.engine.records.clear()
    rid = request.args.get("rid")
    kept = [record for record in worker.engine.records if rid in (None, record.rid)]
    return json_reply({"records": [_record_json(record) for record in kept]})


def _record_json(record: Record) -> dict[str, Any]:
    return {
        "rid": record.rid,
        "prompt_ids": record.prompt_ids,
        "output_ids": record.output_ids,
        "logprobs": record.logprobs,
        "weight_versions": record.versions,
        "text": record.text,
        "finish_reason": finish_json(record.finish),
        "seed": record.seed,
        "cached_tokens": record.cached_tokens,
        "scripted": record.scripted,
    }
