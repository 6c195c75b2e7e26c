"""Every decoder of ``slime_core``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.fuzzing import answer_targets, request_targets
from tests.fuzzing.targets import Target

__all__ = ["TARGETS"]

TARGETS: Final[Mapping[str, Target]] = {**answer_targets.TARGETS, **request_targets.TARGETS}
