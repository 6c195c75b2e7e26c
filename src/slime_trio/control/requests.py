"""A control call as it arrived, and what of it is the router's own.

``worker``, ``selector``, ``mode``, ``drain_timeout_s`` and ``lease_s`` in the query are said to the
router; the rest of the query, and the body but for ``lease_s``, are said to the workers.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote_plus

import msgspec

from slime_core.errors import ClientError
from slime_core.strict_json import decode_field, is_null, parse_object
from slime_trio.exchange import Headers

__all__ = [
    "DEFAULT_LEASE_S",
    "ControlCall",
    "bool_in",
    "engine_path",
    "object_of",
    "seconds_in",
    "text_in",
    "with_fields",
]

DEFAULT_LEASE_S: Final = 600.0
_LONGEST_LEASE_S: Final = 86_400.0
_DEFAULT_DRAIN_S: Final = 600.0
_MODES: Final = ("hold", "drain", "none")
_OWN: Final = frozenset({"worker", "selector", "mode", "drain_timeout_s", "lease_s"})
_SEGMENT: Final = re.compile(r"[^\x00-\x20\x7f\\]+")

_TEXT: Final = msgspec.json.Decoder(str)
_BOOL: Final = msgspec.json.Decoder(bool)
_NUMBER: Final = msgspec.json.Decoder(float)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlCall:
    """``path`` without its slash; ``query`` as it came; ``headers`` fit to be sent to a worker."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes

    @property
    def workers(self) -> list[str]:
        """The workers that it names, by id or URL."""
        return [value for name, value in self._parameters() if name == "worker"]

    @property
    def selector(self) -> str | None:
        """Which workers it means, in words."""
        return self._parameter("selector")

    def mode(self, default: str) -> str:
        """What a call that excludes dispatches does to them. Raises :class:`ClientError`."""
        mode = self._parameter("mode") or default
        if mode not in _MODES:
            raise ClientError(f"mode must be one of {', '.join(_MODES)}", param="mode")
        return mode

    @property
    def drain_timeout_s(self) -> float:
        """How long it waits for calls in flight. Raises :class:`ClientError`."""
        given = self._parameter("drain_timeout_s")
        return _seconds(given, "drain_timeout_s", _DEFAULT_DRAIN_S, math.inf)

    def lease_s(self, fields: Mapping[str, msgspec.Raw]) -> float:
        """How long its pause holds: query, else body. Raises :class:`ClientError`."""
        given = self._parameter("lease_s")
        if given is None and "lease_s" in fields and not is_null(fields["lease_s"]):
            given = str(decode_field(_NUMBER, fields["lease_s"], "lease_s"))
        return _seconds(given, "lease_s", DEFAULT_LEASE_S, _LONGEST_LEASE_S)

    @property
    def passed_query(self) -> bytes:
        """The query without what is the router's own, otherwise as it came."""
        kept = [
            part
            for part in self.query.split(b"&")
            if unquote_plus(part.partition(b"=")[0].decode("latin-1")) not in _OWN
        ]
        return b"&".join(kept)

    def _parameter(self, name: str) -> str | None:
        return next((value for key, value in self._parameters() if key == name), None)

    def _parameters(self) -> list[tuple[str, str]]:
        try:
            return parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)
        except ValueError:
            raise ClientError("the query has too many parameters", code="invalid_query") from None


def seconds_in(fields: Mapping[str, msgspec.Raw], name: str, default: float) -> float:
    """A number of seconds among ``fields``. Raises :class:`ClientError`."""
    if name not in fields or is_null(fields[name]):
        return default
    return _seconds(str(decode_field(_NUMBER, fields[name], name)), name, default, math.inf)


def _seconds(given: str | None, name: str, default: float, most: float) -> float:
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value <= most or value == math.inf:
        limit = "" if most == math.inf else f" up to {most:g}"
        raise ClientError(f"{name} must be a number of seconds{limit}", param=name)
    return value


def engine_path(path: str) -> str:
    """A worker's path below ``/engine/``, in its normal form and ready to be sent.

    ``path`` is decoded. Raises :class:`ClientError` for one that means another place, or none.
    """
    parts = path.strip("/").split("/")
    plain = all(part not in ("", ".", "..") and _SEGMENT.fullmatch(part) for part in parts)
    if not plain or posixpath.normpath(path.strip("/")) != path.strip("/"):
        raise ClientError(
            "the worker's path must be written plainly: no empty, `.` or `..` segments, blanks or "
            "backslashes",
            param="path",
            code="invalid_path",
        )
    return quote("/".join(parts), safe="/:@!$&'()*+,;=-._~")


def object_of(body: bytes) -> dict[str, msgspec.Raw]:
    """A body as fields; nothing counts as ``{}``. Raises :class:`ClientError`."""
    return parse_object(body) if body.strip() else {}


def with_fields(fields: Mapping[str, msgspec.Raw]) -> bytes:
    """A body of these fields, their values byte for byte as they came."""
    return msgspec.json.encode(fields)


def text_in(fields: Mapping[str, msgspec.Raw], name: str) -> str | None:
    """A string among ``fields``, if it is there. Raises :class:`ClientError`."""
    if name not in fields or is_null(fields[name]):
        return None
    return decode_field(_TEXT, fields[name], name)


def bool_in(fields: Mapping[str, msgspec.Raw], name: str, default: bool) -> bool:
    """A truth value among ``fields``. Raises :class:`ClientError`."""
    if name not in fields or is_null(fields[name]):
        return default
    return decode_field(_BOOL, fields[name], name)
