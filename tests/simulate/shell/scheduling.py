"""Trio's scheduler under a seed: the one place that touches its private names.

Trio shuffles the tasks that are ready, from a generator of its own, and has a switch (made for
Hypothesis) that takes the shuffle's order from that generator alone. With the switch on and the
generator seeded, a run is a function of its seed, in any process and under any hash seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from trio._core import _run

__all__ = ["seeded"]

_SWITCH: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"
_GENERATOR: Final = "_r"


@contextmanager
def seeded(chance: random.Random, *, internals: Any = _run) -> Iterator[None]:
    """Within it, ``trio.run`` schedules as ``chance`` decides; afterwards all is as before.

    ``internals`` is Trio's module with the names. Raises ``RuntimeError`` where they have moved.
    """
    generator = getattr(internals, _GENERATOR, None)
    if not hasattr(internals, _SWITCH) or not isinstance(generator, random.Random):
        raise RuntimeError(
            f"trio keeps its scheduler elsewhere now: {_SWITCH} and {_GENERATOR} were in "
            "trio._core._run when this was written; find what replaces them"
        )
    before, state = getattr(internals, _SWITCH), generator.getstate()
    setattr(internals, _SWITCH, True)
    generator.seed(chance.getrandbits(64))
    try:
        yield
    finally:
        setattr(internals, _SWITCH, before)
        generator.setstate(state)
