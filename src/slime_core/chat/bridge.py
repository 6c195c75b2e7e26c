"""Extending a held conversation by what a client appended, exactly as the template would.

A sampled turn is held as ids and never rendered again. What follows it is rendered behind a stub
with the same kind of turn at its end, and cut off behind the stub's last word::

    render(stub + appended) = … word │ rest of the turn │ close │ delta
    render(stub)            = … word │ rest of the turn │ close │ (what follows a last turn)

A bridge is *proved* or refused; a refusal costs a branch, a wrong bridge an unnoticed error:

* the same must follow the word behind two stubs, which differ in every word and in all lengths;
* and behind the real history, its words replaced. This is done a few times for each shape of a
  history. Where a template depends on more than the last turn (DeepSeek V3 opens the first group of
  tool results only), the stub grows: one of each kind of step that the history has, or all of it;
* the delta must begin behind a close that is an added token of the vocabulary, or with one itself:
  only there the encoding of a part is the part of the encoding.

The end of a turn is the first token behind the word that the template or the checkpoint uses as
one. gpt-oss ends its last turn otherwise than the same turn in a history; both are known. GLM's
turns have no end: the token that opens the next turn stops the sampling.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final

from slime_core.errors import ClientError

from .marking import strings_of
from .rendering import Message, Ranges, Render, Rendered
from .spellings import Spellings
from .stubs import Kind, Words, blanked, compressed, kind_of, minimal, rounds

__all__ = ["Bridge", "Delta"]

_SHAPES: Final = 1024
"""Proofs of shapes that are remembered."""
_PROOFS: Final = 4
"""Proofs for a shape of long histories, or for a step at the end of different ones."""
_ROUNDS: Final = (*range(3, 13), 40, 120)
"""Lengths by which a template is found out that counts, on and on or in a circle."""
_LONGEST_STUB: Final = 512
"""Messages that are rendered twice for one delta where a template demands it. About 20 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What comes behind a held turn."""

    close: str
    """The token that closes the turn, in case that sampling stopped before one of
    :attr:`Bridge.turn_ends`; ``""`` where what opens the next turn also ends this one."""
    text: str
    """All that follows the close, separators and generation prompt included."""
    plain: Ranges = ()
    """Ranges of ``text``, as in :class:`~slime_core.chat.rendering.Rendered`."""
    opener: str | None = None
    """Where ``close`` is empty: the token that ``text`` begins with. A model that sampled it as its
    stop token has it already, and then it must not come twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """What stays the same over all renderings for one delta."""

    appended: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None
    arguments: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final: bool
    told: str = "content"
    """Where a stub's last word stands: ``calls`` or ``content``."""
    given: str = ""
    """Tools and arguments, spelled."""

    def stub(self, history: Sequence[Message], series: int) -> tuple[list[Message], str]:
        """``history`` with words of its own, and the last of them."""
        taken = (*strings_of(self.appended), *strings_of(self.arguments))
        return blanked(history, Words(series, taken), told=self.told)

    def shape(self, history: _History) -> bytes:
        """All that the control flow of a template may depend on, short of words."""
        kinds = [tuple([history.kinds[place] for place in history.places]), self._kinds]
        return self._sign(kinds, not history.is_short)

    def step(self, last: Kind) -> bytes:
        """The same of the last turn and what was appended to it."""
        return self._sign(last, self._kinds)

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return tuple(map(kind_of, self.appended))

    def _sign(self, *facts: object) -> bytes:
        settings = (self.told, self.add_generation_prompt, self.continue_final)
        return blake2b(f"{facts} {settings} {self.given}".encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _History:
    """The kinds of a history's messages, and the places that stay of it once it is compressed."""

    kinds: Sequence[Kind]
    places: Sequence[int]

    @classmethod
    def of(cls, history: Sequence[Message]) -> _History:
        kinds = list(map(kind_of, history))
        return cls(kinds=kinds, places=compressed(kinds))

    @property
    def is_short(self) -> bool:
        """Whether nothing is left out."""
        return len(self.places) == len(self.kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What was proved of a shape, and over histories of which lengths."""

    level: int
    lengths: tuple[int, ...]
    is_whole: bool
    """Nothing is left out of a history of this shape."""

    def covers(self, length: int) -> bool:
        return self.is_whole or length in self.lengths or len(self.lengths) >= _PROOFS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What was proved of a step at the end, behind histories of different shapes."""

    level: int = 0
    proofs: int = 0
    pairs: frozenset[object] = frozenset()
    """What kind of message followed which in those histories."""
    longest: int = 0

    def covers(self, pairs: frozenset[object], length: int) -> bool:
        is_old = self.proofs >= _PROOFS and length <= 2 * self.longest
        return is_old and pairs <= self.pairs

    def proved(self, level: int, pairs: frozenset[object], length: int) -> _Step:
        return _Step(
            level=max(level, self.level),
            proofs=self.proofs + 1,
            pairs=self.pairs | pairs,
            longest=max(length, self.longest),
        )


class Bridge:
    """Deltas for one template. Remembers which shapes of conversations were proved.

    ``render`` is the template's, ``added`` are the vocabulary's added tokens, ``turn_ends`` those
    that end an assistant's turn, and ``strip_right`` those that take the blanks behind them along.
    """

    def __init__(
        self,
        render: Render,
        *,
        added: Spellings,
        turn_ends: Collection[str],
        strip_right: Collection[str] = (),
    ) -> None:
        self.turn_ends: Final = frozenset(turn_ends)
        """Contents of the tokens that end an assistant's turn. Where turns have no end, this holds
        tokens that open turns as well, if the checkpoint names them as ends of text."""
        self._render: Final = render
        self._added: Final = added
        self._strip_right: Final = frozenset(strip_right)
        self._known: Final[dict[bytes, _Known]] = {}
        self._steps: Final[dict[bytes, _Step]] = {}
        self._counting: bool | None = None

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
        """What ``appended`` adds to a history that ends with a held turn; ``None``: not proved.

        ``history`` are the client's messages up to and including that turn, ``appended`` the rest,
        of which the last is left open with ``continue_final``.
        Without anything appended it is what stands between the turn and the next answer, if the
        template opens one there.
        """
        if not history or history[-1].get("role") != "assistant":
            return None
        ask = _Ask(
            appended=appended,
            tools=tools,
            arguments=arguments or {},
            add_generation_prompt=add_generation_prompt and not continue_final,
            continue_final=continue_final,
        )
        try:
            return self._first_proved(history, ask)
        except RecursionError:  # nested too deeply, which no rendering gets through either
            return None

    def _first_proved(self, history: Sequence[Message], ask: _Ask) -> Delta | None:
        known = _History.of(history)
        given = json.dumps((ask.tools, ask.arguments), sort_keys=True, default=repr)
        for told in ("calls", "content") if known.kinds[-1][3] else ("content",):
            delta = self._proved(history, known, replace(ask, told=told, given=given))
            if delta is not None:
                return delta
        return None

    def _proved(self, history: Sequence[Message], known: _History, ask: _Ask) -> Delta | None:
        stubs = (minimal(history[-1]), [history[place] for place in known.places], history)
        level = self._level(stubs, known, ask)
        if level is None:
            return None
        stub, ask = _at(level, stubs, ask)
        if len(stub) > _LONGEST_STUB:
            return None
        pair = [ask.stub(stub, series) for series in (0, 1)]
        whole = [self._behind(*words, ask) for words in pair]
        if whole[0] is None or whole[0] != whole[1]:
            return None
        alone = self._behind(*pair[0], ask, alone=True)
        delta = None if alone is None else self._cut(alone, whole[0])
        if delta is None or (not delta.text and not ask.appended and ask.add_generation_prompt):
            return None
        return delta

    def _level(
        self, stubs: Sequence[Sequence[Message]], history: _History, ask: _Ask
    ) -> int | None:
        """The least that gives what the whole history with the tools gives; see :func:`_at`.

        Histories of one shape have the same steps in them and differ in how often some of them
        were repeated. Where none was left out, one proof is for all of them; else some are made,
        over histories of different lengths, before what they showed is believed of all others.
        Agents whose every step differs make new shapes for ever; what a few of them showed of the
        step at the end is believed of those in which nothing follows what it never followed, and
        proved anew when they have become twice as long.
        """
        if self._counts:
            return len(stubs)
        shape, length = ask.shape(history), len(history.kinds)
        known = self._known.get(shape)
        if known is not None and known.covers(length):
            return known.level
        step, pairs = ask.step(history.kinds[-1]), frozenset(pairwise(history.kinds))
        shown = self._steps.get(step, _Step())
        if shown.covers(pairs, length):
            return shown.level
        level = self._least(stubs, ask)
        if level is None:
            return None
        lengths: tuple[int, ...] = (length,)
        if known is not None:
            level, lengths = max(level, known.level), (*known.lengths, length)
        if len(self._known) >= _SHAPES:
            self._known.clear()
            self._steps.clear()
        stub = stubs[1] if level == len(stubs) else _at(level, stubs, ask)[0]
        if len(stub) < length:  # one that is the whole history shows nothing of others
            self._steps[step] = shown.proved(level, pairs, length)
        self._known[shape] = _Known(level=level, lengths=lengths, is_whole=history.is_short)
        return level

    @property
    def _counts(self) -> bool:
        """Whether the template makes the number of messages before a turn part of what follows.

        Then nothing shown by one history holds for another, and every delta takes the whole of it.
        """
        if self._counting is None:
            ask = _Ask(
                appended=({"role": "user", "content": "-"},),
                tools=None,
                arguments={},
                add_generation_prompt=True,
                continue_final=False,
            )
            told = {self._behind(*ask.stub(one, 0), ask) for one in rounds(_ROUNDS)}
            self._counting = len(told - {None}) > 1
        return self._counting

    def _least(self, stubs: Sequence[Sequence[Message]], ask: _Ask) -> int | None:
        real = self._behind(*ask.stub(stubs[-1], 0), ask)
        if real is None:
            return None
        for level in range(len(stubs)):
            stub, less = _at(level, stubs, ask)
            if self._behind(*less.stub(stub, 0), less) == real:
                return level
        return len(stubs)

    def _behind(
        self, stub: Sequence[Message], word: str, ask: _Ask, *, alone: bool = False
    ) -> Rendered | None:
        """What the template writes behind the last word of a stub."""
        try:
            rendered = self._render(
                stub if alone else [*stub, *ask.appended],
                tools=ask.tools,
                arguments=ask.arguments,
                add_generation_prompt=ask.add_generation_prompt and not alone,
                continue_final=ask.continue_final and not alone,
            )
        except ClientError:
            return None
        at = rendered.text.rfind(word)
        return None if at < 0 else rendered.behind(at + len(word))

    def _cut(self, alone: Rendered, whole: Rendered) -> Delta | None:
        """Behind the turn's end, if the turn's rest is the same at the end and in a history."""
        last = self._first_end(alone)
        if last is None:
            return self._cut_without_close(alone.text, whole)
        end = self._first_end(whole)
        if end is None or alone.text[: last[0]] != whole.text[: end[0]]:
            return None
        close, rest = whole.text[end[0] : end[1]], whole.behind(end[1])
        if close in self._strip_right:
            rest = rest.behind(len(rest.text) - len(rest.text.lstrip()))
        return Delta(close=close, text=rest.text, plain=rest.plain)

    def _cut_without_close(self, turn: str, whole: Rendered) -> Delta | None:
        if not whole.text.startswith(turn) or turn != turn.rstrip():
            return None
        rest = whole.behind(len(turn))
        control = self._added.found_outside(rest.text, rest.plain)
        if not control or control[0][0] != 0:
            return None
        opener = rest.text[: control[0][1]]
        return Delta(close="", text=rest.text, plain=rest.plain, opener=opener)

    def _first_end(self, rendered: Rendered) -> tuple[int, int] | None:
        for start, end in self._added.found_outside(rendered.text, rendered.plain):
            if rendered.text[start:end] in self.turn_ends:
                return start, end
        return None


def _at(
    level: int, stubs: Sequence[Sequence[Message]], ask: _Ask
) -> tuple[Sequence[Message], _Ask]:
    """A stub and what is asked of it: the smallest without tools, or each of them with tools."""
    if level == 0:
        return stubs[0], replace(ask, tools=None)
    return stubs[level - 1], ask
