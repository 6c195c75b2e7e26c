"""The checkpoint's chat template: messages to text, as ``transformers`` renders them.

Rendering goes through ``apply_chat_template``, so that the text is what the model was trained on.
It never tokenises: that is :mod:`slime_trio.tokenizer`'s work, on the one object whose settings
nobody changes.

**The date is pinned.** Some templates write today's date into the first lines of every prompt.
It is taken once, when the template is loaded; otherwise every conversation that is under way at
midnight would change its beginning, and nothing captured before would match any more. A process
that runs for days goes on saying the day it started.

A template is code that comes with the checkpoint, and runs in the sandbox of ``transformers``; a
client may give it arguments, never replace it.
"""

from __future__ import annotations

import datetime
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from slime_core.errors import ClientError
from slime_core.types import Encoding

from .chat_messages import TemplateTraits, normalise_messages, normalise_tools
from .tokenizer import PROBE_TEXT, CheckpointError, Tokenizer

__all__ = ["ChatTemplate", "load_chat_template"]

_MARK: Final = "qz7mark"
"""A word that no template writes by itself."""
_CALL_NAME: Final = "qz7call"
_TEMPLATE_ARGUMENTS: Final = frozenset({"documents"})
"""Parameters of ``apply_chat_template`` that are handed on to the template as they are."""
_DIRECTIVES: Final = "aAbBcdHIjmMpSUwWxXyYzZfGuV"
"""What ``strftime`` knows; each also with the ``-`` that keeps glibc from padding."""


class ChatTemplate:
    """Renders conversations. Made by :func:`load_chat_template` or :meth:`load`.

    ``traits`` is what the template was found to do; ``warnings`` are lines for the log about what
    a model will not get to see, or where the checkpoint's files disagree.
    """

    def __init__(self, renderer: Any, *, warnings: tuple[str, ...] = ()) -> None:
        self._renderer: Final = renderer
        self._reserved: Final = (
            frozenset(inspect.signature(renderer.apply_chat_template).parameters)
            - _TEMPLATE_ARGUMENTS
            - {"kwargs"}
        )
        self.exists: Final = bool(renderer.chat_template)
        """Whether the checkpoint has a template; without one every rendering is refused."""
        self.traits: Final = _probe(self._apply, renderer.chat_template) if self.exists else _NONE
        self.warnings: Final = (*warnings, *(_findings(self.traits) if self.exists else ()))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        tokenizer: Tokenizer | None = None,
        now: datetime.datetime | None = None,
    ) -> ChatTemplate:
        """The template of a checkpoint's directory. Blocks, for two seconds or more.

        ``tokenizer`` is compared with what ``transformers`` makes of the same files; where ids
        differ, ``tokenizer.json`` wins and the difference is a warning. ``now`` is the date that
        templates are told; the moment of loading by default.

        Raises :class:`CheckpointError` where ``transformers`` cannot read the directory.
        """
        if not Path(path).is_dir():
            raise CheckpointError(f"no such checkpoint: {path} is not a directory")
        loaded, warnings = _load(Path(path))
        if tokenizer is not None:
            warnings += _disagreements(loaded, tokenizer)
        return cls(_light(loaded, now or datetime.datetime.now()), warnings=warnings)

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text; special tokens stand in it as text too.

        Encode it as :attr:`Encoding.RENDERED`. Raises :class:`ClientError` for messages, tools or
        arguments that cannot be rendered, with the template's own words where it has some.
        """
        if not self.exists:
            raise ClientError("this checkpoint has no chat template", code="no_chat_template")
        arguments = self._arguments(chat_template_kwargs)
        plain = normalise_messages(messages, self.traits)
        definitions = normalise_tools(tools)
        try:
            return self._apply(
                plain, definitions, add_generation_prompt=add_generation_prompt, **arguments
            )
        except Exception as error:  # a template may raise anything, by intent or by accident
            raise ClientError(
                f"the chat template cannot render these messages: {_words(error)}",
                param="messages",
            ) from error

    def _arguments(self, given: Any) -> dict[str, Any]:
        """The client's template arguments, none of which may reach beyond the template."""
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise ClientError("must be an object", param="chat_template_kwargs")
        for name in given:
            if name in self._reserved or name == "messages":
                raise ClientError(
                    f"{name!r} is not an argument that a request may give to the chat template",
                    param=f"chat_template_kwargs.{name}",
                )
        return dict(given)

    def _apply(self, messages: Any, tools: Any = None, **arguments: Any) -> str:
        rendered = self._renderer.apply_chat_template(
            messages, tools=tools, tokenize=False, **arguments
        )
        if not isinstance(rendered, str):
            raise TypeError("the rendering is no text")
        return rendered


def load_chat_template(path: str | Path, *, tokenizer: Tokenizer | None = None) -> ChatTemplate:
    """:meth:`ChatTemplate.load`. Importing ``transformers`` alone takes over a second, so this is
    apart from :func:`slime_trio.tokenizer.load_checkpoint` and not needed for text or ids."""
    return ChatTemplate.load(path, tokenizer=tokenizer)


def _load(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The checkpoint as ``transformers`` sees it, without network, and warnings about it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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
            raise CheckpointError(f"unreadable checkpoint: {path}: {_words(error)}") from error
        return loaded, (f"its tokenizer class is not used: {_words(first)}",)


def _light(loaded: Any, now: datetime.datetime) -> Any:
    """An object that renders like ``loaded`` but holds no vocabulary (up to 250 MB)."""
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    renderer = make(tokenizer_object=RawTokenizer(models.BPE()), **loaded.special_tokens_map)
    template = loaded.chat_template
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


def _disagreements(loaded: Any, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Where ``transformers`` would encode otherwise than ``tokenizer.json`` says.

    It rebuilds parts of a tokenizer from the class that a configuration names, and then a foreign
    ``tokenizer.json`` silently gives other ids (5.23).
    """
    found = []
    for encoding, specials in ((Encoding.RAW, True), (Encoding.RENDERED, False)):
        ours = tokenizer.encode(PROBE_TEXT, encoding=encoding, first=True)
        theirs = loaded(PROBE_TEXT, add_special_tokens=specials)["input_ids"]
        if ours != theirs:
            found.append(
                f"transformers' {type(loaded).__name__} encodes {encoding.value} text otherwise "
                "than tokenizer.json, which is followed"
            )
    return tuple(found)


_NONE: Final = TemplateTraits(shows_tools=False, shows_tool_calls=False)
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": f"{_MARK}tool",
        "description": "looks something up",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    },
}


def _probe(apply: Any, source: Any) -> TemplateTraits:
    """What the template does, found out by rendering small conversations."""
    reads_clock = "strftime_now" in json.dumps(source)

    def shown(messages: list[dict[str, Any]], tools: Any = None) -> str:
        """The rendering if the mark is in it, else nothing."""
        try:
            rendered: str = apply(messages, tools)
        except Exception:
            return ""
        return rendered if _MARK in rendered else ""

    as_object = shown(_after_call({"key": _MARK}))
    as_text = shown(_after_call(json.dumps({"key": _MARK})))
    # Python's spelling of an object in the rendering: the template expected text.
    object_works = bool(as_object) and f"'{_MARK}'" not in as_object
    return TemplateTraits(
        arguments_as_text=bool(as_text) and not object_works,
        system_anywhere=bool(shown(_WITH_LATER_SYSTEM)),
        reasoning_field=next(
            (
                name
                for name in ("reasoning_content", "thinking")
                if shown(_after_call({"key": "value"}, **{name: _MARK}))
                or shown(_after_call('{"key": "value"}', **{name: _MARK}))
            ),
            None,
        ),
        shows_tools=bool(shown([{"role": "user", "content": "Hello"}], [_TOOL])),
        shows_tool_calls=bool(as_object or as_text),
        reads_clock=reads_clock,
    )


_WITH_LATER_SYSTEM: Final[list[dict[str, Any]]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "system", "content": _MARK},
    {"role": "user", "content": "And now?"},
]


def _after_call(arguments: Any, **fields: Any) -> list[dict[str, Any]]:
    """A conversation after a tool's answer; ``fields`` stand in the message that called it."""
    function = {"name": _CALL_NAME, "arguments": arguments}
    call = {"id": "call_000000001", "type": "function", "function": function}
    return [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "content": "", "tool_calls": [call], **fields},
        {"role": "tool", "tool_call_id": "call_000000001", "content": "found"},
    ]


def _findings(traits: TemplateTraits) -> tuple[str, ...]:
    """What a user of this template should know before trusting a rollout."""
    found = []
    if not traits.shows_tools:
        found.append("the chat template does not show tool definitions to the model")
    if not traits.shows_tool_calls:
        found.append("the chat template drops the tool calls of earlier turns")
    if traits.reads_clock:
        found.append("the chat template writes the date, which stays that of the start")
    return tuple(found)


def _words(error: Exception) -> str:
    """One line: the first of the error's message, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
