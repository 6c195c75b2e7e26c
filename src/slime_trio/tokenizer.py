"""The checkpoint's tokenizer, read from its directory and made safe to share.

Encoding goes through the plain ``tokenizers`` object: it loads three times as fast as the
``transformers`` classes, and its state is never touched after loading (those classes rewrite
truncation, padding and special-token settings on every call, which gives wrong ids to whoever
encodes in another thread at that moment). Nothing here ever asks a network.

Ids come out packed, because that is how they are kept; the conversion is part of the work that
long texts take to a thread.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import trio
from tokenizers import Encoding as RawEncoding
from tokenizers import Tokenizer as RawTokenizer

from slime_core.boundaries import HardTokens
from slime_core.chat.rendering import Ranges
from slime_core.errors import ClientError
from slime_core.types import Encoding, PackedIds, pack_ids, unpack_ids
from slime_core.vocabulary import Vocabulary, from_tokenizer_json

from .ascii_words import word_by_word
from .hard_tokens import probe_hard_tokens
from .line_cuts import lines_split, split_at_lines
from .plain_text import PlainText

__all__ = [
    "INLINE_CHARS",
    "PROBE_TEXT",
    "Checkpoint",
    "CheckpointError",
    "Tokenizer",
    "load_checkpoint",
    "probe_hard_tokens",
]

INLINE_CHARS: Final = 2048
"""Texts up to this length are encoded on the event loop: about a millisecond (0.4 ms per KB), where
the way to a thread and back costs a tenth of one. Most turns of a rollout are shorter."""

_INLINE_ASCII: Final = 4 * INLINE_CHARS
"""ASCII is encoded out of memory in a quarter of the time: 0.4 ms for so much of it, or up to 3 ms
where all words are new."""

_PIECE_CHARS: Final = 16_384
"""Long texts are encoded in pieces of this size where they may be cut, so that no step that holds
the interpreter's lock (making the list of ids, freeing the result) takes long."""

_CORES: Final = max(1, (os.cpu_count() or 2) // 2)
"""Pieces encoded at once. The library uses a core for each, and the event loop needs one too:
with every core busy it waited up to 11 ms for its turn, on two of them."""

_THREADS: Final = 4
"""Texts encoded at the same time."""

PROBE_TEXT: Final = (
    "Hello, world!  It's 2024-07-26; 3.14159 + 1000000.\n\n\tdef f(x):\n        return x**2  # ok\n"
    "Déjà vu, Ångström, ﬁne, e\u0301. 你好，世界。 東京 Привет 🙂 👩\u200d👩\u200d👧\u200d👦 "
    "<tag> [x] {'k': null}   \n"
)
"""Spaces, line ends, digits, accents, other scripts, emoji: whatever tokenizers differ about. It
holds no added token and nothing that a worker's HTTP layer could change."""


class CheckpointError(Exception):
    """The checkpoint cannot be used; the message is one line for the person who named it."""


class Tokenizer:
    """Text to ids, exactly as the workers do it, from any thread and without shared settings.

    Made by :func:`load_checkpoint`, or from the bytes of a ``tokenizer.json``. Blocks while it is
    made (0.1 to 1 s for published vocabularies). Raises :class:`CheckpointError`.
    """

    def __init__(self, tokenizer_json: bytes, *, eos_ids: frozenset[int] = frozenset()) -> None:
        try:
            description = json.loads(tokenizer_json)
            self._head: Final = _load(tokenizer_json)
            tail_description = _without_prefix(description)
            self._tail: Final = (
                self._head
                if tail_description == description
                else _load(json.dumps(tail_description).encode())
            )
            vocabulary = from_tokenizer_json(description)
            prefix, suffix = _added_around(self._head)
            hard = probe_hard_tokens(self._head, self._tail, description)
            self._words: Final = word_by_word(self._head, self._tail, hard, description)
            self._plain: Final = PlainText(self._head, self._tail, description)
        except CheckpointError:
            raise
        except BaseException as error:
            # The library raises bare Exception, and panics past it where it did not look.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(f"unreadable tokenizer.json: {error}") from error
        if vocabulary is None:
            raise CheckpointError("unsupported tokenizer.json: its decoder is not byte-exact")
        self.vocabulary: Final[Vocabulary] = vocabulary
        self.eos_ids: Final = eos_ids
        self.vocab_size: Final = len(vocabulary)
        """One more than the largest id."""
        self.prefix_ids: Final[tuple[int, ...]] = prefix
        """What raw text gets in front of its own ids (BOS, as a rule)."""
        self.adds_special_tokens: Final = bool(prefix or suffix)
        """Whether raw text and a rendered template are encoded differently at their beginning."""
        # Ids behind a text are in the way of everything that could follow it: no cuts then.
        self.hard_tokens: Final[HardTokens] = (
            HardTokens(hard.added, frozenset(), hard.late) if suffix else hard
        )
        self._suffix_ids: Final = suffix
        self._lines_split: Final = not suffix and lines_split(description)
        self._limiter: Final = trio.CapacityLimiter(_THREADS)

    def encode(
        self, text: str, *, encoding: Encoding, first: bool, plain: Ranges = ()
    ) -> list[int]:
        """The ids of one unsampled run, as a list. See :meth:`encode_packed`."""
        return unpack_ids(self.encode_packed(text, encoding=encoding, first=first, plain=plain))

    def encode_packed(
        self, text: str, *, encoding: Encoding, first: bool, plain: Ranges = ()
    ) -> PackedIds:
        """The ids of one unsampled run, on this very thread.

        ``first`` says that the run begins the text: then raw text gets the special tokens that a
        worker adds to it, and the space that some vocabularies put in front of every text. A later
        run gets neither, so its ids stand for its text and nothing more.

        ``plain`` are the ranges of characters whose special tokens are text
        (:class:`~slime_core.chat.rendering.Rendered`). The ids of what stands between two control
        tokens without such a range are what they are without any.

        Raises :class:`ClientError` for text that no UTF-8 can express (a lone surrogate).
        """
        if plain:
            return self._encode_sections(text, encoding, first, plain, size=len(text) + 1)
        if self._words is None:
            return pack_ids(self._encode([text], encoding, first=first)[0].ids)
        ids = self._by_words([text])
        if not (self.adds_special_tokens and first and encoding is Encoding.RAW):
            return ids
        return PackedIds(pack_ids(self.prefix_ids) + ids + pack_ids(self._suffix_ids))

    async def encode_async(
        self, text: str, *, encoding: Encoding, first: bool, plain: Ranges = ()
    ) -> PackedIds:
        """:meth:`encode_packed` that never stalls the event loop: long texts go to a thread.

        Cancellation is noticed when the thread is done. A short text is no checkpoint.
        """
        is_quick = self._words is not None and not plain and text.isascii()
        if len(text) <= (_INLINE_ASCII if is_quick else INLINE_CHARS):
            return self.encode_packed(text, encoding=encoding, first=first, plain=plain)
        return await trio.to_thread.run_sync(
            self._encode_long, text, encoding, first, plain, limiter=self._limiter
        )

    def ids_of_probe(self) -> list[int]:
        """What a worker with the same tokenizer answers for :data:`PROBE_TEXT`, specials added."""
        return self.encode(PROBE_TEXT, encoding=Encoding.RAW, first=True)

    def _encode_long(self, text: str, encoding: Encoding, first: bool, plain: Ranges) -> PackedIds:
        """In pieces that give the same ids, a few at a time; in a thread."""
        if plain or self._words is not None:
            return self._encode_sections(text, encoding, first, plain, size=_PIECE_CHARS)
        packed = array("I")
        self._gather_pieces(packed, text, encoding, first, _PIECE_CHARS)
        return PackedIds(packed.tobytes())

    def _by_words(self, pieces: Iterable[str]) -> PackedIds:
        """The ids of consecutive pieces of one run; what is not known by its words is encoded."""
        assert self._words is not None
        parts = [part for piece in pieces for part in self._words.parts(piece)]
        unknown = [part for part in parts if isinstance(part, str)]
        if not unknown:
            return PackedIds(b"".join(cast("list[bytes]", parts)))
        encoded = list[bytes]()
        for at in range(0, len(unknown), _CORES):
            some = self._encode(unknown[at : at + _CORES], Encoding.RENDERED, first=False)
            encoded += [pack_ids(one.ids) for one in some]
        found = iter(encoded)
        return PackedIds(b"".join(next(found) if isinstance(part, str) else part for part in parts))

    def _encode_sections(
        self, text: str, encoding: Encoding, first: bool, plain: Ranges, *, size: int
    ) -> PackedIds:
        """The sections that hold plain ranges without added tokens, all others with them."""
        packed = array("I")
        is_raw = first and encoding is Encoding.RAW
        packed.extend(self.prefix_ids if is_raw else ())
        for section in self._plain.sections(text, plain):
            # What is added to raw text stands around all sections.
            self._gather_pieces(
                packed, section.text, Encoding.RENDERED, first, size, is_plain=section.is_plain
            )
            first = False
        packed.extend(self._suffix_ids if is_raw else ())
        return PackedIds(packed.tobytes())

    def _gather_pieces(
        self,
        packed: array[int],
        text: str,
        encoding: Encoding,
        first: bool,
        size: int,
        *,
        is_plain: bool = False,
    ) -> None:
        """Append the ids of ``text``, encoded in pieces of about ``size`` characters."""
        pieces = [text] if is_plain else self.hard_tokens.split(text, size)
        if self._lines_split:
            pieces = [line for piece in pieces for line in split_at_lines(piece, size)]
        if self._words is not None and not is_plain:
            packed.frombytes(self._by_words(pieces))
            return
        for at in range(0, len(pieces), _CORES):
            some, begins = pieces[at : at + _CORES], first and at == 0
            _gather(packed, self._encode(some, encoding, first=begins, is_plain=is_plain))

    def _encode(
        self, pieces: list[str], encoding: Encoding, *, first: bool, is_plain: bool = False
    ) -> list[RawEncoding]:
        """Each piece by itself: the first as asked, all others as tails."""
        tail = self._plain.tail if is_plain else self._tail
        head = tail if not first else self._plain.head if is_plain else self._head
        add = first and encoding is Encoding.RAW
        try:
            # The batch calls release the interpreter's lock; `encode` does not.
            encoded = head.encode_batch_fast(pieces[:1], add_special_tokens=add)
            if len(pieces) > 1:
                encoded += tail.encode_batch_fast(pieces[1:], add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise ClientError("text must be valid Unicode, without lone surrogates") from error
        return encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the router needs to know of a model: how it tokenises and where it ends."""

    path: Path
    tokenizer: Tokenizer
    context_length: int | None
    """Tokens, as the model's configuration tells; ``None`` where it does not."""


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint's directory. Blocks; about a second for a large vocabulary.

    ``tokenizer.json`` is enough. End-of-text ids come from ``generation_config.json``,
    ``config.json`` and ``tokenizer_config.json``, as far as they exist.

    Raises :class:`CheckpointError` where the directory or the file is missing or unreadable. The
    path is never taken for the name of something to download.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"no such checkpoint: {directory} is not a directory")
    file = directory / "tokenizer.json"
    try:
        tokenizer_json = file.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"no such checkpoint: {directory} has no tokenizer.json") from error
    except OSError as error:
        raise CheckpointError(f"unreadable checkpoint: {file}: {error.strerror}") from error
    config = _read_json(directory / "config.json")
    try:
        tokenizer = Tokenizer(tokenizer_json, eos_ids=_eos_ids(directory, config, tokenizer_json))
    except CheckpointError as error:
        raise CheckpointError(f"unusable checkpoint {directory}: {error}") from error
    return Checkpoint(path=directory, tokenizer=tokenizer, context_length=_context_length(config))


def _load(tokenizer_json: bytes) -> RawTokenizer:
    """The library's object with the settings that would change ids switched off, once for all."""
    tokenizer = RawTokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_prefix(part: Any) -> Any:
    """A description of the same tokenizer that puts no space in front of a text.

    Three components do: ``Metaspace`` and ``ByteLevel`` before splitting, and the normaliser
    ``Prepend``. They stand alone or in sequences.
    """
    if not isinstance(part, Mapping):
        return part
    changed = dict(part)
    for name in ("normalizer", "pre_tokenizer"):
        if name in part:
            changed[name] = _switched_off(part[name])
    return changed


def _switched_off(component: Any) -> Any:
    if not isinstance(component, Mapping):
        return component
    kind = component.get("type")
    if kind == "Prepend":
        return None
    if kind == "Metaspace":
        kept = {key: value for key, value in component.items() if key != "add_prefix_space"}
        return {**kept, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**component, "add_prefix_space": False}
    if kind == "Sequence":
        changed = dict(component)
        for name in ("normalizers", "pretokenizers"):
            if name in component:
                parts = [_switched_off(part) for part in component[name]]
                changed[name] = [part for part in parts if part is not None]
        return changed
    return component


def _added_around(tokenizer: RawTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer adds before and after the ids of a raw text."""
    marked: list[int] = tokenizer.encode("", add_special_tokens=True).ids
    plain: list[int] = tokenizer.encode(PROBE_TEXT, add_special_tokens=False).ids
    full: list[int] = tokenizer.encode(PROBE_TEXT, add_special_tokens=True).ids
    extra = len(full) - len(plain)
    for before in range(extra + 1):
        if full[before : before + len(plain)] == plain and full[:before] == marked[:before]:
            return tuple(full[:before]), tuple(full[before + len(plain) :])
    raise CheckpointError("its special tokens do not stand around the text")


def _gather(packed: array[int], encoded: list[RawEncoding]) -> None:
    """Append the ids of consecutive pieces, freeing each result as soon as it was read."""
    encoded.reverse()
    while encoded:
        packed.extend(encoded.pop().ids)


def _read_json(file: Path) -> Mapping[str, Any]:
    """The object in a file; empty if there is no file. Raises :class:`CheckpointError`."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"unreadable checkpoint: {file}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"unreadable checkpoint: {file} is not a JSON object")
    return value


def _eos_ids(directory: Path, config: Mapping[str, Any], tokenizer_json: bytes) -> frozenset[int]:
    """Every id that the checkpoint's files call an end of text."""
    generation = _read_json(directory / "generation_config.json")
    text_config = config.get("text_config")
    found: set[int] = set()
    for source in (generation, config, text_config if isinstance(text_config, dict) else {}):
        named = source.get("eos_token_id")
        found.update(
            token_id
            for token_id in (named if isinstance(named, list) else [named])
            if isinstance(token_id, int)
        )
    token = _read_json(directory / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if isinstance(content, str):
        found.update(_ids_of_added(tokenizer_json, content))
    return frozenset(found)


def _ids_of_added(tokenizer_json: bytes, content: str) -> set[int]:
    try:
        return {
            token["id"]
            for token in json.loads(tokenizer_json)["added_tokens"]
            if token["content"] == content
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"unreadable tokenizer.json: {error}") from error


def _context_length(config: Mapping[str, Any]) -> int | None:
    """``max_position_embeddings``, also where the language model's part is nested."""
    for source in (config, config.get("text_config")):
        if isinstance(source, dict) and isinstance(source.get("max_position_embeddings"), int):
            return int(source["max_position_embeddings"])
    return None
