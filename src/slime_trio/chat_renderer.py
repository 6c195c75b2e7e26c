"""The object of ``transformers`` that renders a checkpoint's chat template, and nothing else of it.

**The date is pinned.** Some templates write today's date into the first lines of every prompt.
It is taken once, when the template is loaded; otherwise every conversation that is under way at
midnight would change its beginning, and nothing captured before would match any more. A process
that runs for days goes on saying the day it started.
"""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from .tokenizer import CheckpointError

__all__ = ["first_line", "load_transformers", "make_renderer"]

_DIRECTIVES: Final = "aAbBcdHIjmMpSUwWxXyYzZfGuV"
"""What ``strftime`` knows; each also with the ``-`` that keeps glibc from padding."""


_IMPORTING: Final = threading.Lock()
"""``transformers`` imports its parts when they are first named, and two threads that name the same
one at once get an ``ImportError``: several workers in one process, say."""


def load_transformers(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The checkpoint as ``transformers`` sees it, without network, and warnings about it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with _IMPORTING:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # Without the last one it would stop and ask, on the terminal, whether to run code that a
    # checkpoint brings along.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        return AutoTokenizer.from_pretrained(str(path), **options), ()
    except Exception as first:  # a class that brings its own code, or wants files of its own
        try:
            loaded = PreTrainedTokenizerFast.from_pretrained(str(path), **options)
        except Exception as error:
            raise CheckpointError(f"unreadable checkpoint: {path}: {first_line(error)}") from error
        return loaded, (f"its tokenizer class is not used: {first_line(first)}",)


def make_renderer(template: Any, named: Mapping[str, Any], now: datetime.datetime) -> Any:
    """An object of ``transformers`` that renders, and holds no vocabulary (up to 250 MB)."""
    with _IMPORTING:
        from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    renderer = make(tokenizer_object=RawTokenizer(models.BPE()), **named)
    if isinstance(template, dict):
        template = {name: _pinned(source, now) for name, source in template.items()}
    elif template:
        template = _pinned(template, now)
    renderer.chat_template = template
    return renderer


def _pinned(source: str, now: datetime.datetime) -> str:
    """The template with a ``strftime_now`` of its own that knows one moment only.

    A macro, because ``transformers`` gives every template its own clock and turns functions that
    are passed as arguments into text. The line end after the macro is eaten with it
    (``trim_blocks``), so the template itself begins where it began, at the start of a line.
    """
    if "strftime_now" not in source:
        return source
    moment = {
        prefix + letter: now.strftime("%" + prefix + letter)
        for letter in _DIRECTIVES
        for prefix in ("", "-")
    }
    table = json.dumps({name: text for name, text in moment.items() if "%" not in text})
    return (
        "{% macro strftime_now(format) %}"
        f"{{% set moment = {table} %}}"
        "{% set parts = format.split('%') %}"
        "{{ parts[0] }}"
        "{% for part in parts[1:] %}"
        "{% set length = 2 if part[:1] == '-' else 1 %}"
        "{% if part[:length] not in moment %}"
        "{{ raise_exception('a date format that is not understood: ' ~ format) }}"
        "{% endif %}"
        "{{ moment[part[:length]] ~ part[length:] }}"
        "{% endfor %}"
        "{% endmacro %}\n" + source
    )


def first_line(error: Exception) -> str:
    """One line: the first of the error's message, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
