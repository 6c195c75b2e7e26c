"""The demonstration's one error."""

__all__ = ["DemoFailure"]


class DemoFailure(Exception):
    """A server did not do as asked; the message is one line that says what."""
