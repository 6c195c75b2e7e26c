"""Chat as data: canonical messages, turns, templates that are extended by proof."""

from .bridge import Bridge, Delta
from .rendering import Render, Rendered

__all__ = ["Bridge", "Delta", "Render", "Rendered"]
