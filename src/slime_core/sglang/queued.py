"""The answer to a generation that was aborted before it was sent to any worker.

It is what a worker answers that aborts a request in its own queue (SGLang 0.5.23: HTTP 200,
``finish_reason`` ``abort``, "Abort in waiting queue", no counts of the prompt), so that a client
need not know which queue it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from slime_core import sse

__all__ = ["aborted_in_queue"]

_MESSAGE: Final = "Abort in waiting queue"


def aborted_in_queue(ids: Sequence[str], *, array: bool, stream: bool) -> bytes:
    """The body of the answer: an item for each id, as an ``array`` or alone, or as a ``stream``."""
    items = [_item(rid) for rid in ids]
    if not stream:
        return msgspec.json.encode(items if array else items[0])
    if array:
        items = [{**item, "index": index} for index, item in enumerate(items)]
    return b"".join(sse.encode(msgspec.json.encode(item)) for item in items) + sse.DONE


def _item(rid: str) -> dict[str, Any]:
    return {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "id": rid,
            "finish_reason": {"type": "abort", "message": _MESSAGE},
            "completion_tokens": 0,
            "output_token_logprobs": [],
        },
    }
