"""Answers of the router's own paths."""

from __future__ import annotations

from typing import Any

import msgspec
from quart import Response

__all__ = ["json_bytes", "json_response"]


def json_response(body: Any, status: int = 200) -> Response:
    """``body`` as JSON."""
    return json_bytes(msgspec.json.encode(body), status)


def json_bytes(body: bytes, status: int = 200) -> Response:
    """JSON that is made already."""
    return Response(body, status, content_type="application/json")
