"""How requests are sent, beside what they say: connections, headers, forged fields."""

from __future__ import annotations

import json
import random
from typing import Any, Final

from tests.simulate.knobs import Knobs
from tests.simulate.story import Ask, Conduct

__all__ = ["FORGED_FIELDS", "FORGED_HEADERS", "draw_conduct", "retry_headers", "spelled"]

FORGED_FIELDS: Final[tuple[dict[str, Any], ...]] = (
    {"output_ids": [1, 2, 3]},
    {"loss_mask": [1, 1, 1, 1]},
    {"weight_version": "999"},
    {"rollout_logp": [-0.5, -0.5], "generation_versions": [999, 999]},
    {"meta_info": {"weight_version": "999", "output_token_logprobs": [[-0.1, 1, None]]}},
)
FORGED_HEADERS: Final = (
    ("x-slime-call-id", "f" * 32),
    ("x-slime-captured", "false"),
    ("x-slime-flags", "history_evicted"),
    ("x-slime-weight-version", "999"),
)


def draw_conduct(knobs: Knobs, chance: random.Random, *, stays: bool = False) -> Conduct:
    """How the agent behaves while it is answered. ``stays``: it does not leave this time."""
    leaves = chance.random() < knobs.leave and not stays
    by_time = chance.random() < 0.5
    after_s = round(chance.choice((0.0, 0.002, 0.02, 0.1, 0.5)) * chance.uniform(0.5, 1.5), 4)
    after_pieces = chance.choice((0, 1, 1, 2, 3, 5))
    pause_s = knobs.read_pause_s if chance.random() < knobs.slow else 0.0
    half_closes = chance.random() < knobs.half_close
    pieces = chance.choice((2, 3, 8))
    return Conduct(
        leave_after_s=after_s if leaves and by_time else None,
        leave_after_pieces=after_pieces if leaves and not by_time else None,
        read_pause_s=pause_s,
        half_close=half_closes and not stays,
        upload_pieces=pieces if chance.random() < knobs.upload else 1,
    )


def retry_headers(ask: Ask, attempt: int, chance: random.Random) -> tuple[tuple[str, str], ...]:
    """The headers of a request that is sent again, as SDKs and gateways mark it, or not."""
    kept = tuple(pair for pair in ask.headers if pair[0] != "x-stainless-retry-count")
    marks = (
        (),
        (("x-stainless-retry-count", str(attempt)),),
        (("x-stainless-retry-count", str(attempt)), ("x-stainless-lang", "python")),
    )
    return (*kept, *chance.choice(marks))


def spelled(body: dict[str, Any], *, escape: bool) -> bytes:
    """The body in JSON: all but ASCII escaped and with blanks, or UTF-8 and none."""
    if escape:
        return json.dumps(body, ensure_ascii=True).encode()
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
