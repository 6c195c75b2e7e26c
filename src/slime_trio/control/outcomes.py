"""What came of asking workers: one outcome each, and the answer made of all of them.

Bodies of workers are embedded verbatim: a number keeps its digits (``-1e-07`` stays so), an object
the order of its keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from slime_core.strict_json import BAD_JSON
from slime_core.types import WorkerUrl

__all__ = ["Failure", "Outcome", "Target", "answer_of", "status_of"]

Failure = Literal["upstream_error", "upstream_unreachable", "timeout"]

_LIFTED_BYTES: Final = 64 * 1024
_NO_ANSWER: Final[Mapping[Failure, int]] = {"upstream_unreachable": 503, "timeout": 504}


@dataclass(frozen=True, slots=True)
class Target:
    """A worker that is asked."""

    id: str
    url: WorkerUrl


class _Told(msgspec.Struct):
    """What SGLang's control endpoints say of themselves."""

    success: bool | None = None
    message: str | None = None


_TOLD: Final = msgspec.json.Decoder(_Told)
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One worker's answer, or why there is none.

    ``status`` is the worker's own, or 503 or 504 where there is no answer; ``failure`` then says
    why, and may say it beside an answer as well. ``applied``: the worker refused, and yet did what
    was asked (see :mod:`slime_trio.control.weights`).
    """

    target: Target
    status: int
    latency_ms: int = 0
    content_type: str = ""
    body: bytes = b""
    failure: Failure | None = None
    words: str = ""
    applied: bool = False

    @staticmethod
    def without_answer(target: Target, failure: Failure, words: str, latency_ms: int) -> Outcome:
        """The worker did not answer."""
        status = _NO_ANSWER.get(failure, 502)
        return Outcome(
            target=target, status=status, failure=failure, words=words, latency_ms=latency_ms
        )

    @property
    def is_answered(self) -> bool:
        """Whether the worker itself said something."""
        return not self.words

    @property
    def told(self) -> _Told:
        """``success`` and ``message`` of its JSON, as far as it has them."""
        if "json" in self.content_type:
            try:
                return _TOLD.decode(self.body)
            except BAD_JSON:
                pass
        return _Told()

    @property
    def succeeded(self) -> bool:
        """Whether the worker did it, and says so with its status and, if it has one, its word."""
        if self.applied:
            return True
        return self.is_answered and 200 <= self.status < 300 and self.told.success is not False

    @property
    def message(self) -> str:
        """Its own words, short."""
        if not self.is_answered:
            return self.words
        text = self.told.message
        if text is None:
            text = self.body.decode("utf-8", "replace").strip()
        return text[:500]

    @property
    def embedded(self) -> Any:
        """The body for an answer: JSON verbatim, text as a string, nothing as ``None``."""
        if not self.body:
            return None
        if "json" in self.content_type:
            try:
                str(self.body, "utf-8")
                return _RAW.decode(self.body)
            except BAD_JSON:
                pass
        return self.body.decode("utf-8", "replace")

    @property
    def fields(self) -> dict[str, msgspec.Raw]:
        """The fields of a JSON object of moderate size; none of anything else."""
        if "json" not in self.content_type or len(self.body) > _LIFTED_BYTES:
            return {}
        try:
            return _OBJECT.decode(self.body)
        except BAD_JSON:
            return {}

    def shown(self) -> dict[str, Any]:
        """The worker's entry, as its own answer or under ``results``."""
        shown: dict[str, Any] = {
            "worker_id": self.target.id,
            "url": self.target.url,
            "status": self.status,
            "latency_ms": self.latency_ms,
            "body": self.embedded,
        }
        return shown | ({"applied": True} if self.applied else {})

    def shown_failed(self) -> dict[str, Any]:
        """The worker's entry under ``failed``."""
        shown: dict[str, Any] = {
            "worker_id": self.target.id,
            "url": self.target.url,
            "status": self.status,
            "error": self.failure or "upstream_error",
            "message": self.message,
        }
        return shown | ({"body": self.embedded} if self.is_answered else {})


def status_of(outcomes: Sequence[Outcome]) -> int:
    """200 if all succeeded, 207 if some did, 502 if none."""
    succeeded = sum(one.succeeded for one in outcomes)
    if succeeded == len(outcomes):
        return 200
    return 207 if succeeded else 502


def answer_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The answer to who asked all of them, ready to be encoded by ``msgspec``.

    What all workers say alike stands at the top as well, where clients of a single worker look.
    """
    good = [one for one in outcomes if one.succeeded]
    bad = [one for one in outcomes if not one.succeeded]
    own: dict[str, Any] = {
        "success": not bad,
        "message": _message(good, bad),
        "results": {one.target.id: one.shown() for one in good},
        "failed": [one.shown_failed() for one in bad],
        "total": len(outcomes),
        "succeeded": len(good),
    }
    return {**_said_alike(good), **own}


def _message(good: Sequence[Outcome], bad: Sequence[Outcome]) -> str:
    if bad:
        return f"{len(bad)} of {len(good) + len(bad)} workers failed: {bad[0].message}"
    unflushed = sum(one.applied for one in good)
    if unflushed:
        return (
            f"done by all {len(good)} workers; {unflushed} of them could not flush the cache: "
            f"{next(one.message for one in good if one.applied)}"
        )
    messages = {_words(one) for one in good}
    if len(messages) == 1 and (message := messages.pop()):
        return message
    return f"done by all {len(good)} workers" if good else "there was nobody to ask"


def _words(one: Outcome) -> str:
    """What a worker that succeeded says of it: JSON without a message is its data."""
    return "" if "json" in one.content_type and one.told.message is None else one.message


def _said_alike(good: Sequence[Outcome]) -> dict[str, msgspec.Raw]:
    """The fields that have the same value, byte for byte, in every answer."""
    if not good:
        return {}
    first, *others = (one.fields for one in good)
    return {
        key: value
        for key, value in first.items()
        if all(bytes(other.get(key, b"")) == bytes(value) for other in others)
    }
