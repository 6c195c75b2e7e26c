"""Every decoder of the shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.fuzzing import edge_targets, listener_targets, relay_targets
from tests.fuzzing.targets import Target

__all__ = ["TARGETS"]

TARGETS: Final[Mapping[str, Target]] = {
    **edge_targets.TARGETS,
    **listener_targets.TARGETS,
    **relay_targets.TARGETS,
}
