"""What takes long before a router can serve: its tokenizer, and most of the program itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from slime_trio.config import ConfigurationError, Settings
from slime_trio.tokenizer import Checkpoint, CheckpointError, load_checkpoint

if TYPE_CHECKING:
    from quart_trio import QuartTrio

__all__ = ["load", "read_checkpoint"]


def load(settings: Settings, say: Callable[[str], None]) -> Callable[[], QuartTrio]:
    """See :data:`slime_trio.starting.Load`. Raises :class:`ConfigurationError`."""
    # A checkpoint that cannot be used is told before all else is imported.
    say("the tokenizer")
    checkpoint = read_checkpoint(settings)
    say("the program")
    from slime_trio.app import create_app

    return partial(create_app, settings, checkpoint=checkpoint)


def read_checkpoint(settings: Settings) -> Checkpoint | None:
    """The checkpoint that ``settings`` name; ``None`` where capture is off. Blocks, for a second.

    Raises :class:`ConfigurationError`.
    """
    if not settings.capture:
        return None
    if settings.hf_checkpoint is None:
        raise ConfigurationError(
            "--hf-checkpoint is missing: name the directory with the workers' tokenizer.json "
            "(or start with --capture off to pass requests through without capturing them)"
        )
    try:
        return load_checkpoint(settings.hf_checkpoint)
    except CheckpointError as error:
        raise ConfigurationError(f"--hf-checkpoint: {error}") from error
