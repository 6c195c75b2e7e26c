"""Weight endpoints: sessions of updates, tensors, groups, names, checksums.

What is loaded is the weight version, if an update names one: another version is another
distribution. The tensors themselves are only counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from quart import Response

from slime_trio.worker.control import body_object, field_of, swap
from slime_trio.worker.replies import json_reply
from slime_trio.worker.service import Worker

__all__ = [
    "begin_weight_update",
    "destroy_weights_update_group",
    "end_weight_update",
    "get_weights_by_name",
    "init_weights_update_group",
    "update_weights_from_distributed",
    "update_weights_from_ipc",
    "update_weights_from_tensor",
    "weights_checker",
]

_SELECTORS: Final = ("all", "target", "draft")
_TRUNCATED: Final = 100


def _said(message: str, *, success: bool = True, **more: Any) -> Response:
    return json_reply({"success": success, "message": message} | more, 200 if success else 400)


async def begin_weight_update(worker: Worker) -> Response:
    """Opens a session of updates; from tensors and broadcasts they are taken in one only."""
    selector = field_of(await body_object(), "selector", str, "all")
    if selector not in _SELECTORS:
        return _said(f"there is no selector {selector!r}", success=False)
    if worker.is_updating:
        return _said("a weight update has begun already", success=False)
    worker.is_updating = True
    return _said("Weight update begun.")


async def end_weight_update(worker: Worker) -> Response:
    if not worker.is_updating:
        return _said("no weight update has begun", success=False)
    worker.is_updating = False
    return _said("Weight update ended.")


async def update_weights_from_tensor(worker: Worker) -> Response:
    body = await body_object()
    tensors = field_of(body, "serialized_named_tensors", list, [])
    if not tensors:
        return _said("serialized_named_tensors is empty", success=False)
    return await _updated_in_session(worker, body)


async def update_weights_from_distributed(worker: Worker) -> Response:
    body = await body_object()
    names, dtypes, shapes = (field_of(body, key, list, []) for key in ("names", "dtypes", "shapes"))
    if not len(names) == len(dtypes) == len(shapes):
        return _said("names, dtypes and shapes must have one length", success=False)
    group = field_of(body, "group_name", str, "weight_update_group")
    if group not in worker.groups:
        return _said(f"there is no group {group!r}", success=False)
    return await _updated_in_session(worker, body)


async def update_weights_from_ipc(worker: Worker) -> Response:
    body = await body_object()
    field_of(body, "zmq_handles", dict, {})
    return await _updated(worker, body)


async def _updated_in_session(worker: Worker, body: Mapping[str, Any]) -> Response:
    if not worker.is_updating:
        return _said("call begin_weight_update first", success=False)
    return await _updated(worker, body)


async def _updated(worker: Worker, body: Mapping[str, Any]) -> Response:
    version = field_of(body, "weight_version", str | None, None)
    if field_of(body, "abort_all_requests", bool, False):
        worker.engine.abort(everything=True)
        worker.host.poke()
    flush = field_of(body, "flush_cache", bool, True)
    async with worker.updating:
        flushed = await swap(worker, version, flush=flush)
    if flush and not flushed:
        return _said("Cache flush failed after updating weights", success=False)
    return _said("Succeeded to update parameter online.")


async def init_weights_update_group(worker: Worker) -> Response:
    body = await body_object()
    group = field_of(body, "group_name", str, "weight_update_group")
    if group in worker.groups:
        return _said(f"group {group!r} exists", success=False)
    worker.groups.add(group)
    return _said("Succeeded to initialize custom process group.")


async def destroy_weights_update_group(worker: Worker) -> Response:
    group = field_of(await body_object(), "group_name", str, "weight_update_group")
    if group not in worker.groups:
        return _said(f"there is no group {group!r}", success=False)
    worker.groups.discard(group)
    return _said("Succeeded to destroy custom process group.")


async def get_weights_by_name(worker: Worker) -> Response:
    """Numbers that are a function of the name and the weights in force."""
    body = await body_object(empty={})
    name = body.get("name")
    if not isinstance(name, str) or not name:
        return _said("name is required", success=False)
    count = min(field_of(body, "truncate_size", int, _TRUNCATED), _TRUNCATED)
    digest = hashlib.shake_128(f"{worker.engine.version}/{name}".encode()).digest(2 * count)
    pairs = zip(digest[::2], digest[1::2], strict=True)
    return json_reply([(high - 128) * 10.0 ** -(low % 9) for high, low in pairs])


async def weights_checker(worker: Worker) -> Response:
    action = field_of(await body_object(empty={}), "action", str, "checksum")
    if action != "checksum":
        return _said(f"there is no action {action!r}", success=False)
    checksum = hashlib.blake2b(worker.engine.version.encode(), digest_size=8).hexdigest()
    return _said("Success.", per_engine_checksum=checksum)
