"""The words of a refusal, whichever server speaks them."""

from __future__ import annotations

import msgspec

from slime_core.errors import ClientError, as_sglang
from slime_trio.limits.head import Refusal

__all__ = ["refusal_body"]


def refusal_body(refusal: Refusal) -> bytes:
    """The body of the answer, worded as all other errors of this server."""
    error = ClientError(refusal.message, status=refusal.status, code=refusal.code)
    return msgspec.json.encode(as_sglang(error))
