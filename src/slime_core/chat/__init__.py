"""Chat as data: canonical messages, turns, templates that are extended by proof."""

__all__: list[str] = []
