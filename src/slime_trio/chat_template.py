"""The checkpoint's chat template: messages to text, as ``transformers`` renders them.

Rendering goes through ``apply_chat_template``, so that the text is what the model was trained on.
It never tokenises: that is :mod:`slime_trio.tokenizer`'s work, on the one object whose settings
nobody changes.

A template is code that comes with the checkpoint, and runs in the sandbox of ``transformers``; a
client may give it arguments, never replace it.
"""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from slime_core.chat.bridge import Bridge, Delta
from slime_core.chat.marking import Marking, strings_of
from slime_core.chat.probe import opens_reasoning, probe_template
from slime_core.chat.rendering import Message, Rendered
from slime_core.chat.spellings import Spellings
from slime_core.chat.stubs import absent_word
from slime_core.chat.traits import TemplateTraits, probe_traits
from slime_core.chat.turn_close import probe_turns
from slime_core.errors import ClientError
from slime_core.types import Encoding

from .chat_messages import normalise_messages, normalise_tools
from .chat_renderer import first_line, load_transformers, make_renderer
from .tokenizer import PROBE_TEXT, CheckpointError, Tokenizer

__all__ = ["ChatTemplate", "SpecialTokens", "load_chat_template"]

SpecialTokens = Literal["plain", "control"]
"""What special-token text in a message becomes."""

_TEMPLATE_ARGUMENTS: Final = frozenset({"documents"})
"""Parameters of ``apply_chat_template`` that are handed on to the template as they are."""


class ChatTemplate:
    """Renders conversations. Made by :func:`load_chat_template` or :meth:`load`.

    ``added`` are the contents of the vocabulary's added tokens, each with its id; ``end_of_text``
    are those that end a text, ``strip_right`` those that take the blanks behind them along.
    ``special_tokens`` says what becomes of such text in messages: ``plain`` marks it as text,
    ``control`` leaves it to be a control token.

    ``traits`` is what the template was found to do; ``warnings`` are lines for the log about what
    a model will not get to see, or where the checkpoint's files disagree.
    """

    def __init__(
        self,
        renderer: Any,
        *,
        added: Mapping[str, int] | None = None,
        end_of_text: Collection[str] = (),
        strip_right: Collection[str] = (),
        special_tokens: SpecialTokens = "plain",
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._renderer: Final = renderer
        self._reserved: Final = (
            frozenset(inspect.signature(renderer.apply_chat_template).parameters)
            - _TEMPLATE_ARGUMENTS
            - {"kwargs"}
        )
        self.exists: Final = bool(renderer.chat_template)
        """Whether the checkpoint has a template; without one every rendering is refused."""
        self.traits: Final = (
            probe_traits(self._apply, renderer.chat_template) if self.exists else _NONE
        )
        ids = added or {}
        spellings = Spellings(ids)
        self._marking: Marking | None = None
        marks = probe_turns(self.rendered, spellings, end_of_text)
        self._turn_markers: Final = Spellings(marks.markers)
        if special_tokens == "plain":
            self._marking = Marking(added=spellings, turns=self._turn_markers)
        self.turn_ends: Final = frozenset(ids[text] for text in marks.ends)
        """Ids of the tokens that end an assistant's turn."""
        self.bridge: Final = Bridge(
            self.rendered, added=spellings, turn_ends=marks.ends, strip_right=strip_right
        )
        self.report: Final = (
            probe_template(self._apply, self.rendered, self.bridge, traits=self.traits, marks=marks)
            if self.exists
            else None
        )
        """What the template does; ``None`` where there is none."""
        self.warnings: Final = (*warnings, *(self.report.findings() if self.report else ()))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        tokenizer: Tokenizer | None = None,
        now: datetime.datetime | None = None,
        special_tokens: SpecialTokens = "plain",
    ) -> ChatTemplate:
        """The template of a checkpoint's directory. Blocks, for two seconds or more.

        ``tokenizer`` is compared with what ``transformers`` makes of the same files; where ids
        differ, ``tokenizer.json`` wins and the difference is a warning. ``now`` is the date that
        templates are told; the moment of loading by default.

        Raises :class:`CheckpointError` where ``transformers`` cannot read the directory.
        """
        if not Path(path).is_dir():
            raise CheckpointError(f"no such checkpoint: {path} is not a directory")
        loaded, warnings = load_transformers(Path(path))
        if tokenizer is not None:
            warnings += _disagreements(loaded, tokenizer)
            tokens = tokenizer.vocabulary.added.values()
            added = {token.content: token.id for token in tokens}
            ends = [token.content for token in tokens if token.id in tokenizer.eos_ids]
            strip_right = [token.content for token in tokens if token.rstrip]
        else:
            added = {str(token): id for id, token in loaded.added_tokens_decoder.items()}
            ends = [loaded.eos_token] if loaded.eos_token else []
            strip_right = [str(t) for t in loaded.added_tokens_decoder.values() if t.rstrip]
        return cls(
            make_renderer(
                loaded.chat_template, loaded.special_tokens_map, now or datetime.datetime.now()
            ),
            added=added,
            end_of_text=ends,
            strip_right=strip_right,
            special_tokens=special_tokens,
            warnings=warnings,
        )

    @classmethod
    def of_source(
        cls,
        source: str,
        *,
        named: Mapping[str, str] | None = None,
        added: Mapping[str, int] | None = None,
        end_of_text: Collection[str] = (),
        now: datetime.datetime | None = None,
        special_tokens: SpecialTokens = "plain",
    ) -> ChatTemplate:
        """A template by its source, without a checkpoint. Importing ``transformers`` blocks.

        ``named`` are the tokens that templates know by name (``bos_token``, ``eos_token``).
        """
        return cls(
            make_renderer(source, named or {}, now or datetime.datetime.now()),
            added=added,
            end_of_text=end_of_text,
            special_tokens=special_tokens,
        )

    @property
    def source(self) -> str:
        """The template's code; of several named ones, all of them."""
        code = self._renderer.chat_template
        return "".join(code.values()) if isinstance(code, dict) else code or ""

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """:meth:`rendered` without what it says about special tokens in content."""
        return self.rendered(
            messages,
            tools=tools,
            arguments=chat_template_kwargs,
            add_generation_prompt=add_generation_prompt,
        ).text

    def rendered(
        self,
        messages: Any,
        *,
        tools: Any = None,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> Rendered:
        """The conversation as text; special tokens stand in it as text too.

        Encode it as :attr:`Encoding.RENDERED`, its ``plain`` ranges as plain text. With
        ``continue_final`` the last message, an assistant's, is left open.

        Raises :class:`ClientError` for messages, tools or arguments that cannot be rendered, with
        the template's own words where it has some.
        """
        if not self.exists:
            raise ClientError("this checkpoint has no chat template", code="no_chat_template")
        allowed = self._arguments(arguments)
        plain = normalise_messages(messages, self.traits)
        definitions = normalise_tools(tools)
        if continue_final:
            return self._left_open(plain, definitions, allowed)
        settings = {**allowed, "add_generation_prompt": add_generation_prompt}
        return self._whole(plain, definitions, settings)

    def _whole(
        self, messages: list[dict[str, Any]], tools: Any, arguments: Mapping[str, Any]
    ) -> Rendered:
        try:
            if self._marking is None:
                return Rendered(text=self._apply(messages, tools, **arguments))
            marked = self._marking.mark(messages, tools, arguments)
            text = self._apply(marked.messages, marked.tools, **marked.arguments)
            return self._marking.read(text, marked.marker)
        except ClientError:
            raise
        except Exception as error:  # a template may raise anything, by intent or by accident
            raise ClientError(
                f"the chat template cannot render these messages: {first_line(error)}",
                param="messages",
            ) from error

    def _left_open(
        self, messages: list[dict[str, Any]], tools: Any, arguments: Mapping[str, Any]
    ) -> Rendered:
        """The rendering up to the end of the last message's content.

        A word behind the content shows where that is; a template that trims or rewrites the
        content gives a text that the client did not ask to be continued.
        """
        last = messages[-1]
        if last["role"] != "assistant" or last.get("tool_calls"):
            raise _cannot_continue("the last message must be an assistant's, without tool calls")
        content: str = last["content"]
        word = absent_word([*strings_of(messages), *strings_of(tools), *strings_of(arguments)])
        opened = [*messages[:-1], {**last, "content": content + word}]
        whole = self._whole(opened, tools, {**arguments, "add_generation_prompt": False})
        end = whole.text.rfind(word)
        if end < 0 or not whole.text.endswith(content, 0, end):
            raise _cannot_continue("this model's chat template changes the last message")
        return whole.before(end)

    def delta(
        self,
        history: Sequence[Message],
        appended: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> Delta | None:
        """What ``appended`` adds to a held history: :meth:`Bridge.delta`."""
        return self.bridge.delta(
            history,
            appended,
            tools=tools,
            arguments=arguments,
            add_generation_prompt=add_generation_prompt,
            continue_final=continue_final,
        )

    def starts_in_reasoning(self, prompt: str) -> bool:
        """Whether a rendered prompt, or its end, has begun the answer's reasoning."""
        return opens_reasoning(prompt, self._turn_markers)

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
            list(messages), tools=tools, tokenize=False, **arguments
        )
        if not isinstance(rendered, str):
            raise TypeError("the rendering is no text")
        return rendered


def _cannot_continue(why: str) -> ClientError:
    return ClientError(why, code="unsupported_value", param="continue_final_message")


def load_chat_template(
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    special_tokens: SpecialTokens = "plain",
) -> ChatTemplate:
    """:meth:`ChatTemplate.load`. Importing ``transformers`` alone takes over a second, so this is
    apart from :func:`slime_trio.tokenizer.load_checkpoint` and not needed for text or ids."""
    return ChatTemplate.load(path, tokenizer=tokenizer, special_tokens=special_tokens)


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
