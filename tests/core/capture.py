"""Drives calls through ``RouterState`` as the shell does: look up, encode the rest, apply.

Every transition goes through :meth:`Driver.apply`, which keeps the journal, so that a test can
replay it. Tokenizers are told by what a driver needs of them (:class:`Pieces`): the toy below,
nasty on purpose, or a real one behind ``slime_trio.tokenizer.Tokenizer``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from slime_core.alignment import hidden_endings
from slime_core.boundaries import HardTokens
from slime_core.decide import next_untold, tell
from slime_core.lookup import IdsFound, TextFound, TokenizerFacts, Wish, find_ids, find_text
from slime_core.segments import Answer, Outcome
from slime_core.state import RouterState
from slime_core.transitions import (
    CallCaptured,
    CallLost,
    CallOpened,
    Lookup,
    PromptKept,
    Transition,
)
from slime_core.types import CallId, Encoding, PackedIds, pack_ids, pack_logprobs
from slime_core.versions import VersionRun
from slime_core.vocabulary import AddedToken, Vocabulary

__all__ = ["BOS", "EOS", "TOY", "TOY_BOS", "Driver", "Opened", "Pieces", "Toy", "spread"]

EOS: Final = 300
BOS: Final = 301
_MERGES: Final = (
    *(b"ab", b"bc", b"abc", b"cd", b"dab", b" a", b" b", b"  "),
    *(b"<E", b"E>", b">a", b"#!", b"!a", b"\xc3\xa9", b"a\xc3", b"\xa9b"),
)


class Pieces(Protocol):
    """What a driver needs of a tokenizer."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def hard_tokens(self) -> HardTokens: ...
    @property
    def prefix_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str, *, encoding: Encoding, first: bool) -> list[int]: ...


class Toy:
    """Bytes and some longer tokens, the longest taken greedily; ``<E>`` is found before all that.

    Any text has several spellings, tokens split characters, ``<E>`` can also be spelled with
    ordinary ids, and what follows a text may change its last tokens.
    """

    def __init__(self, *, bos: bool) -> None:
        pieces: list[bytes | None] = [bytes((byte,)) for byte in range(256)]
        pieces += _MERGES
        added = {
            EOS: AddedToken(id=EOS, content="<E>", special=True),
            BOS: AddedToken(id=BOS, content="<B>", special=True),
        }
        self.vocabulary: Final = Vocabulary(pieces, added)
        self.hard_tokens: Final = HardTokens({"<E>": EOS, "<B>": BOS}, frozenset({EOS, BOS}))
        self.prefix_ids: Final = (BOS,) if bos else ()
        self._longest: Final = sorted(
            ((piece, token) for token, piece in enumerate(pieces) if piece), key=_longest_first
        )

    def encode(self, text: str, *, encoding: Encoding, first: bool) -> list[int]:
        """The ids of a run."""
        ids = list(self.prefix_ids) if first and encoding is Encoding.RAW else []
        before = text.split("<E>")
        for place, part in enumerate(before):
            ids += [EOS] * bool(place)
            for number, inner in enumerate(part.split("<B>")):
                ids += [BOS] * bool(number)
                ids += self._plain(inner.encode("utf-8", "surrogatepass"))
        return ids

    def _plain(self, data: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(data):
            piece, token = next(one for one in self._longest if data.startswith(one[0], at))
            ids.append(token)
            at += len(piece)
        return ids


def _longest_first(entry: tuple[bytes, int]) -> tuple[int, int]:
    return (-len(entry[0]), entry[1])


TOY: Final = Toy(bos=False)
TOY_BOS: Final = Toy(bos=True)


def spread(number: int, count: int) -> list[float]:
    """Logprobs that no other call has; exact in ``float32``."""
    return [-(number + place / 256) for place in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A call in flight: what was looked up and what would be sent to the worker."""

    call: CallId
    session: str | None
    encoding: Encoding
    found: TextFound | IdsFound
    prompt_ids: PackedIds
    """The prompt's new part."""
    prompt_text: str | None

    @property
    def parent(self) -> int | None:
        return None if self.found.parent is None else self.found.parent.number


@dataclass
class Driver:
    """One router's state, the tokenizer at hand, and every transition applied so far."""

    pieces: Pieces = field(default_factory=lambda: TOY)
    state: RouterState = field(init=False)
    facts: TokenizerFacts = field(init=False)
    journal: list[Transition] = field(default_factory=list)

    def __post_init__(self) -> None:
        prefix = self.pieces.prefix_ids
        self.state = RouterState(one_text_root=not prefix)
        self.facts = TokenizerFacts(
            vocabulary=self.pieces.vocabulary,
            hard_tokens=self.pieces.hard_tokens,
            raw_prefix=len(prefix),
        )

    def apply(self, *facts: Transition) -> None:
        """Apply and note down."""
        for fact in facts:
            self.state.apply(fact)
            self.journal.append(fact)

    def replayed(self) -> RouterState:
        """A new state with the same journal."""
        state = RouterState(one_text_root=not self.pieces.prefix_ids)
        for fact in self.journal:
            state.apply(fact)
        return state

    def tell_all(self) -> None:
        """Give every prompt that came as ids its text, as the shell does before text look-ups."""
        while (untold := next_untold(self.state)) is not None:
            self.apply(tell(untold, self.facts.vocabulary))

    def look(
        self,
        text: str,
        encoding: Encoding = Encoding.RAW,
        *,
        session: str | None = None,
        parent_call: str | None = None,
    ) -> TextFound:
        """What is known of ``text``."""
        self.tell_all()
        named = None if parent_call is None else CallId(parent_call)
        wish = Wish(session=session, parent_call=named)
        return find_text(self.state.forest, text, encoding, self.facts, wish=wish)

    def rest(self, found: TextFound, text: str, encoding: Encoding = Encoding.RAW) -> PackedIds:
        """The ids of ``text`` from ``found.encode_from`` on."""
        first = found.parent is None and not found.run_ids
        if not first and found.encode_from == len(text):
            return PackedIds(b"")
        rest = text[found.encode_from :]
        return pack_ids(self.pieces.encode(rest, encoding=encoding, first=first))

    def open_text(
        self,
        call: str,
        text: str,
        encoding: Encoding = Encoding.RAW,
        *,
        session: str | None = None,
        parent_call: str | None = None,
    ) -> Opened:
        """A client sends text."""
        found = self.look(text, encoding, session=session, parent_call=parent_call)
        run = PackedIds(found.run_ids + self.rest(found, text, encoding))
        opened = Opened(
            call=CallId(call),
            session=session,
            encoding=encoding,
            found=found,
            prompt_ids=run,
            prompt_text=text[found.text_start :],
        )
        self.apply(
            Lookup(tokens=len(run) // 4, reused=found.token_start, used=found.used),
            CallOpened(call=opened.call, parent=opened.parent, session=session),
        )
        return opened

    def open_ids(self, call: str, ids: Sequence[int], *, session: str | None = None) -> Opened:
        """A client sends ids."""
        packed = pack_ids(ids)
        found = find_ids(self.state.forest, packed, wish=Wish(session=session))
        opened = Opened(
            call=CallId(call),
            session=session,
            encoding=Encoding.RAW,
            found=found,
            prompt_ids=PackedIds(packed[found.token_start * 4 :]),
            prompt_text=None,
        )
        self.apply(CallOpened(call=opened.call, parent=opened.parent, session=session))
        return opened

    def keep(self, opened: Opened) -> None:
        """The prompt of a call in flight was encoded, and is kept."""
        found = opened.found
        self.apply(
            PromptKept(
                call=opened.call,
                encoding=opened.encoding,
                token_start=found.token_start,
                text_start=found.text_start if isinstance(found, TextFound) else 0,
                joint=found.joint if isinstance(found, TextFound) else 0,
                prompt_ids=opened.prompt_ids,
                prompt_text=opened.prompt_text,
            )
        )

    def captured(
        self,
        opened: Opened,
        ids: Sequence[int],
        text: str | None = None,
        *,
        logprobs: Sequence[float] | None = None,
        matched: int | str | None = None,
        outcome: Outcome = Outcome.COMPLETE,
        runs: Iterable[VersionRun] | None = None,
        aliases: tuple[str, ...] = (),
        extras: tuple[tuple[str, bytes], ...] = (),
    ) -> CallCaptured:
        """The fact that ``opened`` was answered with ``ids``, shown to the client as ``text``."""
        found, vocabulary = opened.found, self.pieces.vocabulary
        if text is None:
            text = vocabulary.decode(ids, skip_special=True, at_start=False)
        values = spread(1, len(ids)) if logprobs is None else logprobs
        return CallCaptured(
            call=opened.call,
            parent=opened.parent,
            encoding=opened.encoding,
            token_start=found.token_start,
            text_start=found.text_start if isinstance(found, TextFound) else 0,
            joint=found.joint if isinstance(found, TextFound) else 0,
            prompt_ids=opened.prompt_ids,
            prompt_text=opened.prompt_text,
            answer_ids=pack_ids(ids),
            answer_text=text,
            answer=Answer(
                call=opened.call,
                session=opened.session,
                outcome=outcome,
                logprobs=pack_logprobs(values),
                runs=tuple(runs) if runs is not None else (VersionRun("1", 0, len(ids)),),
                finish_reason=b"{}",
                endings=hidden_endings(ids, text, matched, vocabulary),
                aliases=aliases,
                extras=extras,
                flags=found.history_flags,
            ),
        )

    def say(
        self,
        call: str,
        text: str,
        ids: Sequence[int],
        *,
        encoding: Encoding = Encoding.RAW,
        text_shown: str | None = None,
        matched: int | str | None = None,
        extras: tuple[tuple[str, bytes], ...] = (),
    ) -> Opened:
        """A whole call from text: opened and captured."""
        opened = self.open_text(call, text, encoding)
        self.apply(self.captured(opened, ids, text_shown, matched=matched, extras=extras))
        return opened

    def lose(self, opened: Opened, reason: str = "lost") -> None:
        """The call ends without an answer."""
        self.apply(CallLost(call=opened.call, reason=reason))
