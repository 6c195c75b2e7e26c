"""What a registration says of a worker: ``POST /workers`` and its later changes, read and checked.

The fields are those of the SGLang Model Gateway (0.3.2 and its successor). What this router has a
use for is used; ``priority``, ``cost`` and ``labels`` are kept and shown back. Fields of a known
name are checked, and unknown ones left alone without being kept: what they hold may be secret, and
nobody could tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from slime_core.errors import ClientError
from slime_core.fleet import WorkerKind
from slime_core.strict_json import decode_field, is_null, parse_object

__all__ = ["Details", "Enlistment", "parse_change", "parse_enlistment", "read_details"]

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
_Name = Annotated[str, msgspec.Meta(max_length=1024)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Labels = Annotated[dict[_Name, _Name], msgspec.Meta(max_length=64)]


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the router keeps of a registration besides the address and the kind.

    The state holds it as the JSON that :meth:`encoded` gives. ``None`` where a registration did
    not say: the router's own settings hold.
    """

    model_id: _Name | None = None
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] = 50
    cost: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    labels: _Labels = {}
    health_check_timeout_secs: _Seconds | None = None
    health_check_interval_secs: _Seconds | None = None
    health_success_threshold: _Count | None = None
    health_failure_threshold: _Count | None = None
    disable_health_check: bool = False
    max_connection_attempts: _Count | None = None

    def encoded(self) -> bytes:
        """As JSON, without what was not said; its keys always in the same order."""
        return msgspec.json.encode(self, order="deterministic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlistment:
    """A registration: ``url`` exactly as given. ``api_key`` is what the worker asks for."""

    url: str
    kind: WorkerKind = WorkerKind.REGULAR
    bootstrap_port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    details: Details = field(default_factory=Details)


_DETAILS: Final = msgspec.json.Decoder(Details)
_TYPES: Final[dict[str, Any]] = {
    "url": _Text,
    "worker_type": _Name,
    "bootstrap_port": Annotated[int, msgspec.Meta(ge=1, le=65_535)],
    # What a header field may hold (RFC 9110, 5.5), so that it can be sent.
    "api_key": Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,4096}$")],
    **{one.name: one.type for one in msgspec.structs.fields(Details)},
}
_DECODERS: Final = {name: msgspec.json.Decoder(kind) for name, kind in _TYPES.items()}
_FIXED: Final = ("url", "worker_type", "bootstrap_port")


def read_details(extras: bytes) -> Details:
    """What :meth:`Details.encoded` made. Raises ``ValueError`` for anything else."""
    return _DETAILS.decode(extras)


def parse_enlistment(body: bytes) -> Enlistment:
    """The body of ``POST /workers``. Raises ``ClientError`` (400) that names the field at fault."""
    given = _given(body)
    if "url" not in given:
        raise ClientError("url is required: the worker's base URL", param="url")
    return Enlistment(
        url=given["url"],
        kind=_kind(given.get("worker_type", "regular")),
        bootstrap_port=given.get("bootstrap_port"),
        api_key=given.get("api_key"),
        details=_details(Details(), given),
    )


def parse_change(body: bytes, known: Enlistment) -> Enlistment:
    """``known`` with the fields that the body of a ``PATCH`` names; ``null`` puts a default back.

    What the worker is cannot change while it serves: ``url``, ``worker_type`` and
    ``bootstrap_port`` may be repeated, and another value is refused. Raises ``ClientError`` (400).
    """
    nulls = {name for name, raw in parse_object(body).items() if is_null(raw)}
    given = _given(body)
    held = {
        "url": known.url,
        "worker_type": known.kind.value,
        "bootstrap_port": known.bootstrap_port,
    }
    for name in _FIXED:
        if name in given and given[name] != held[name]:
            raise ClientError(
                f"{name} cannot be changed; register the worker again to change it", param=name
            )
    defaults = {
        one.name: one.default if one.default is not msgspec.NODEFAULT else {}
        for one in msgspec.structs.fields(Details)
        if one.name in nulls
    }
    key = None if "api_key" in nulls else given.get("api_key", known.api_key)
    return Enlistment(
        url=known.url,
        kind=known.kind,
        bootstrap_port=known.bootstrap_port,
        api_key=key,
        details=_details(known.details, defaults | given),
    )


def _given(body: bytes) -> dict[str, Any]:
    """The known fields that have a value, checked."""
    return {
        name: decode_field(_DECODERS[name], raw, name)
        for name, raw in parse_object(body).items()
        if name in _DECODERS and not is_null(raw)
    }


def _kind(word: str) -> WorkerKind:
    try:
        return WorkerKind(word)
    except ValueError:
        known = ", ".join(kind.value for kind in WorkerKind)
        raise ClientError(
            f"worker_type {word!r} is not one of {known}", param="worker_type"
        ) from None


def _details(base: Details, given: dict[str, Any]) -> Details:
    names = {one.name for one in msgspec.structs.fields(Details)}
    said = {name: value for name, value in given.items() if name in names}
    return msgspec.structs.replace(base, **said)
