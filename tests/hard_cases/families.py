"""Marks for tests that concern only some of the families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.hard_cases.writing import FORMS, Form

__all__ = [
    "CALLING_TWICE",
    "MARKING_CALLS",
    "RENDERING_ALIKE",
    "SPEAKING_BESIDE_CALLS",
    "THINKING",
]


def _families(concerned: Callable[[Form], bool]) -> pytest.MarkDecorator:
    names = [name for name, form in FORMS.items() if concerned(form)]
    return pytest.mark.parametrize("model", names, indirect=True, scope="package")


THINKING: Final = _families(lambda form: form.thinks)
"""Those that reason before they answer."""
CALLING_TWICE: Final = _families(lambda form: form.several_calls)
"""Those that make several calls in a turn."""
SPEAKING_BESIDE_CALLS: Final = _families(lambda form: form.content_beside_calls)
"""Those with content in a turn that calls."""
MARKING_CALLS: Final = _families(lambda form: form.marks_calls)
"""Those with tokens around their calls."""
RENDERING_ALIKE: Final = _families(lambda form: form.renders_alike)
"""Those whose template writes an old turn of a tool loop as it was sampled."""
