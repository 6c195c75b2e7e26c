"""What a worker did, as it goes into the story."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slime_core.engine import Abort, Emission, Span, finish_json
from tests.simulate.story import Sampled

__all__ = ["params_of", "queue_full", "write_down"]


def params_of(body: dict[str, Any], prompt: int) -> dict[str, Any]:
    """The sampling parameters of one prompt, as they came."""
    params = body.get("sampling_params") or {}
    found: dict[str, Any] = params[prompt] if isinstance(params, list) else params
    return found


def write_down(sampled: Sampled, emission: Emission, spans: Sequence[Span]) -> None:
    """Adds an emission to the truth. ``spans``: the versions of all that was sampled so far."""
    for score in emission.tokens:
        sampled.ids.append(score.token)
        sampled.logprobs.append(score.logprob or 0.0)
    if emission.finish is None and len(emission.tokens) == 1:
        sampled.versions.append(emission.version)
    else:
        # Tokens were held back because a stop string might have begun: any may be older.
        every = [span.version for span in spans for _ in range(span.start, span.end)]
        sampled.versions[:] = every[: len(sampled.ids)]
    if emission.text:
        sampled.text += emission.text
    if emission.finish is not None:
        sampled.finish = finish_json(emission.finish)


def queue_full(rid: str, version: str) -> Emission:
    """What the engine says when its queue is full."""
    full = Abort(message="The request queue is full.", status=503, kind="503")
    return Emission(rid=rid, tokens=(), text="", version=version, cached_tokens=0, finish=full)
