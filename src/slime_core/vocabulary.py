"""Token ids to bytes and text, exactly as the checkpoint's own decoder would.

Most vocabularies are *byte-level*: a token is a string of bytes, a text is their concatenation, and
what is not UTF-8 becomes U+FFFD. SentencePiece-style ones differ in three ways, and all three are
modelled, since a text that differs in one character is not found again:

* ``<0x0A>`` is one byte. A run of such tokens is read as a whole: if the run is not UTF-8,
  *every* byte of it becomes U+FFFD, also those that would have been characters on their own;
* a space that was added in front of every text is taken off again: one space off the text
  (Llama 2), or every space off the first token (Metaspace);
* that happens only at the start of a text. An answer that continues a prompt is not there, so
  whoever decodes it says ``at_start=False``.

Ids that are no tokens (a hole, or the padding that engines add to the last layer) decode to
nothing, as in the library.

Source of the rules: the decoders of Hugging Face ``tokenizers`` 0.23, which the tests compare with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from types import MappingProxyType
from typing import Any, Final

__all__ = ["AddedToken", "Vocabulary", "byte_level_table", "from_tokenizer_json"]

_MOST_IDS: Final = 2**24
"""Sixty times the largest vocabulary published (2026: some 260 000 tokens)."""

_SLICE: Final = 8192
_REPLACEMENT: Final = "\ufffd".encode()
# Rust's parser, which reads the two digits, takes a plus sign too.
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token beside the model's own, found in a text before the text is cut into words.

    ``special`` tokens are left out by ``skip_special``; the other flags say how the tokenizer finds
    the token in a text and do not touch decoding.
    """

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Vocabulary:
    """The bytes of every token id. Immutable; safe to share between threads.

    ``token_bytes[id]`` is what the id adds to a text, ``None`` where there is no such token; where
    it is ``None`` for an added token, its content in UTF-8 is taken. The ids in ``byte_fallback``
    are read by the rule for runs (the others must then be UTF-8 each); ``lead_spaces`` is how many
    spaces are taken off the front of a text, and ``heads`` holds other bytes for tokens that come
    first in a text.
    """

    __slots__ = (
        "_bytes",
        "_has_empty",
        "_heads",
        "_shown",
        "_size",
        "_special",
        "added",
        "byte_fallback",
        "lead_spaces",
    )

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        added: Mapping[int, AddedToken],
        *,
        byte_fallback: frozenset[int] = frozenset(),
        lead_spaces: int = 0,
        heads: Mapping[int, bytes] | None = None,
    ) -> None:
        table = {token: token_added.content.encode() for token, token_added in added.items()}
        table.update((i, piece) for i, piece in enumerate(token_bytes) if piece is not None)
        special = frozenset(i for i, token in added.items() if token.special)
        self.added: Mapping[int, AddedToken] = MappingProxyType(dict(added))
        """The added tokens, by id."""
        self.byte_fallback = byte_fallback
        """The ids that are one byte each, read run by run; empty for a byte-level vocabulary."""
        self.lead_spaces = lead_spaces
        """How many spaces are taken off the front of a text."""
        self._bytes = table
        self._shown = {i: piece for i, piece in table.items() if i not in special}
        self._special = special
        self._has_empty = b"" in table.values()
        self._size = max(table, default=-1) + 1
        self._heads = dict(heads or {})

    def __len__(self) -> int:
        """One more than the largest id; ids below it need not all exist."""
        return self._size

    def __contains__(self, token: object) -> bool:
        return token in self._bytes

    def bytes_of(self, token: int) -> bytes:
        """What this id adds to a text, except at its start. Raises ``KeyError`` for no token."""
        return self._bytes[token]

    def is_special(self, token: int) -> bool:
        """Whether ``skip_special`` leaves this id out."""
        return token in self._special

    def is_shown(self, token: int, *, skip_special: bool) -> bool:
        """Whether this id takes part in a decoding: it is a token, and not left out."""
        return token in (self._shown if skip_special else self._bytes)

    def pieces(
        self, ids: Sequence[int], *, skip_special: bool, at_start: bool = True
    ) -> list[bytes]:
        """The bytes of each id, empty where it is not shown; ``lead_spaces`` still among them."""
        table = self._shown if skip_special else self._bytes
        pieces: list[bytes] = []
        # In slices: one call for 200k ids would hold the interpreter's lock for 10 ms.
        for at in range(0, len(ids), _SLICE):
            pieces += map(table.get, ids[at : at + _SLICE], repeat(b""))
        if at_start and self._heads:
            first = next((i for i, token in enumerate(ids) if token in table), None)
            if first is not None:
                pieces[first] = self._heads.get(ids[first], pieces[first])
        return pieces

    def decode_bytes(
        self, ids: Iterable[int], *, skip_special: bool, at_start: bool = True
    ) -> bytes:
        """The bytes of a text, nothing replaced yet."""
        data = b"".join(self.pieces(list(ids), skip_special=skip_special, at_start=at_start))
        return data[self._lead(data, at_start) :]

    def decode(self, ids: Iterable[int], *, skip_special: bool, at_start: bool = True) -> str:
        """The text of these ids, equal to ``tokenizers.Tokenizer.decode`` (when ``at_start``)."""
        pieces = self._whole_runs(list(ids), skip_special, at_start)
        data = _joined(pieces)
        # A space stays itself whatever is replaced around it, so it can be taken off before.
        return data[self._lead(data, at_start) :].decode("utf-8", "replace")

    def _lead(self, data: bytes, at_start: bool) -> int:
        """How many bytes at the front are taken off."""
        head = data[: self.lead_spaces] if at_start else b""
        return len(head) - len(head.lstrip(b" "))

    def _whole_runs(self, ids: Sequence[int], skip_special: bool, at_start: bool) -> list[bytes]:
        """The pieces, where every byte of a run that is not UTF-8 is U+FFFD."""
        pieces = self.pieces(ids, skip_special=skip_special, at_start=at_start)
        if not self.byte_fallback:
            return pieces
        # A run ends where a token of whole characters begins: if all is UTF-8, every run is. Only a
        # token without any text can part two halves of a character unseen.
        if not self._has_empty and _is_utf8(b"".join(pieces)):
            return pieces
        table = self._shown if skip_special else self._bytes
        run: list[int] = []
        for i, token in enumerate(ids):
            if token in self.byte_fallback and token in table:
                run.append(i)
            elif token in table:
                _replace_if_broken(pieces, run)
                run = []
        _replace_if_broken(pieces, run)
        return pieces


def _replace_if_broken(pieces: list[bytes], run: list[int]) -> None:
    if not _is_utf8(b"".join(pieces[i] for i in run)):
        for i in run:
            pieces[i] = _REPLACEMENT


@lru_cache(maxsize=1)
def byte_level_table() -> tuple[str, ...]:
    """The letter that GPT-2's byte-level vocabularies write for each byte, by byte.

    A printable character of Latin-1 stands for itself; the other 68 bytes take the characters from
    U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    spare = {byte: 0x100 + place for place, byte in enumerate(others)}
    return tuple(chr(spare.get(byte, byte)) for byte in range(256))


def from_tokenizer_json(json: Mapping[str, Any]) -> Vocabulary | None:
    """The vocabulary of a parsed ``tokenizer.json``, or ``None`` if its decoder is not modelled.

    Modelled are: ``ByteLevel``; ``Metaspace``; and sequences of ``Replace`` (of a fixed string),
    ``ByteFallback``, ``Fuse``, ``Strip`` (of leading spaces), in this order, each optional. Added
    tokens get the ids that the library gives them: the model's own if it has such an entry, else
    the next free one, whatever the file says.

    Raises ``ValueError`` for an id that no vocabulary has: the table is as long as the largest.
    """
    reader = _reader(json.get("decoder"))
    entries = _entries(json.get("model"))
    if reader is None or entries is None:
        return None
    added = _added(json.get("added_tokens") or (), entries)
    contents = {token: content for content, token in entries.items()}
    contents.update((token.id, token.content) for token in added.values())
    largest = max(contents, default=-1)
    if largest >= _MOST_IDS:
        raise ValueError(f"token id {largest} is larger than any vocabulary")
    spelt: list[bytes | None] = [None] * (largest + 1)
    for token, content in contents.items():
        spelt[token] = reader.spell(content)
    drop = reader.head_drop
    return Vocabulary(
        spelt,
        added,
        byte_fallback=frozenset(i for i, content in contents.items() if reader.is_byte(content)),
        lead_spaces=reader.lead_spaces,
        heads={i: c.replace(drop, "").encode() for i, c in contents.items() if drop and drop in c},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """How a decoder reads a token's content."""

    spell: Callable[[str], bytes]
    is_byte: Callable[[str], bool] = lambda _content: False
    lead_spaces: int = 0
    head_drop: str = ""
    """What is left out of the first token."""


def _reader(decoder: object) -> _Reader | None:
    steps = _steps(decoder)
    match [step.get("type") for step in steps]:
        case []:
            return None
        case ["ByteLevel"]:
            return _Reader(spell=_spell_byte_level)
        case ["Metaspace"]:
            mark = steps[0].get("replacement", "▁")
            never = steps[0].get("prepend_scheme") == "never"
            return _Reader(
                spell=lambda content: content.replace(mark, " ").encode(),
                head_drop="" if never else mark,
            )
        case _:
            return _sequence_reader(steps)


def _steps(decoder: object) -> list[Mapping[str, Any]]:
    """The decoder's steps with nested sequences laid flat; empty if there is none."""
    if not isinstance(decoder, Mapping):
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [step for inner in decoder.get("decoders", ()) for step in _steps(inner)]


def _sequence_reader(steps: list[Mapping[str, Any]]) -> _Reader | None:
    replacements: list[tuple[str, str]] = []
    lead_spaces = 0
    order = ("Replace", "ByteFallback", "Fuse", "Strip")
    stage = 0
    for step in steps:
        kind = step.get("type")
        if kind not in order or order.index(kind) < stage:
            return None
        if kind == "Replace":
            old = step["pattern"].get("String")
            if not old:
                return None
            replacements.append((old, step["content"]))
        elif kind == "Strip":
            # Before everything is fused into one, it would strip each token.
            if order[stage] != "Fuse" or step["content"] != " " or step["stop"] != 0:
                return None
            lead_spaces = step["start"]
        stage = order.index(kind)
    falls_back = any(step.get("type") == "ByteFallback" for step in steps)

    def replaced(content: str) -> str:
        for old, new in replacements:
            content = content.replace(old, new)
        return content

    def byte_of(content: str) -> bytes:
        return _byte_of(replaced(content)) if falls_back else b""

    return _Reader(
        spell=lambda content: byte_of(content) or replaced(content).encode(),
        is_byte=lambda content: bool(byte_of(content)),
        lead_spaces=lead_spaces,
    )


def _byte_of(content: str) -> bytes:
    """The byte that ``<0x0A>`` names; empty for any other content."""
    found = _BYTE_TOKEN.fullmatch(content)
    return bytes([int(found[1], 16)]) if found else b""


def _spell_byte_level(content: str) -> bytes:
    """Letters back to bytes; content with any other character is taken as it stands, in UTF-8."""
    try:
        return bytes(map(_letter_bytes().__getitem__, content))
    except KeyError:
        return content.encode()


@lru_cache(maxsize=1)
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_level_table())}


def _entries(model: object) -> dict[str, int] | None:
    """The model's own tokens: a table for BPE and word models, a scored list for Unigram."""
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, Mapping):
        return dict(vocab)
    if isinstance(vocab, list):
        return {piece: place for place, (piece, _score) in enumerate(vocab)}
    return None


def _added(
    tokens: Iterable[Mapping[str, Any]], entries: Mapping[str, int]
) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = {}
    ids: dict[str, int] = {}
    for token in tokens:
        content = token["content"]
        if not content:
            continue
        free = max(len(entries), max(added, default=-1) + 1)
        place = ids.setdefault(content, entries.get(content, free))
        added[place] = AddedToken(
            id=place,
            content=content,
            special=token["special"],
            lstrip=token["lstrip"],
            rstrip=token["rstrip"],
            single_word=token["single_word"],
            normalized=token["normalized"],
        )
    return added


def _is_utf8(data: bytes) -> bool:
    """Whether these bytes are whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _joined(pieces: list[bytes]) -> bytes:
    """All pieces as one, in slices for the same reason."""
    parts = [b"".join(pieces[at : at + _SLICE]) for at in range(0, len(pieces), _SLICE)]
    return b"".join(parts)
