"""What was captured, kept the plain way: every call with its full ids, from the story's truth.

There is no tree and nothing is shared. Prompts are what workers were given, answers what they
sampled, texts what agents sent and saw; of the router's own facts only those are read that say what
it claims (a call was opened, kept so many tokens, was lost, went), and each claim is checked
elsewhere. Of the core nothing is used but small pure functions with tests of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product, takewhile
from typing import Any, Final

from slime_core.alignment import hidden_endings
from slime_core.segments import Outcome
from slime_core.transitions import CallCaptured, CallLost, CallOpened
from slime_core.types import Encoding, unpack_ids
from slime_core.versions import as_number
from slime_core.vocabulary import Vocabulary
from tests.simulate.story import Ask, Exchange, Sampled, Story
from tests.simulate.tokens import Tokens

__all__ = [
    "Book",
    "Call",
    "Columns",
    "Piece",
    "common",
    "events_of",
    "wholly_before",
    "without_logprobs",
]


_MOST_CHOICES: Final = 200
"""How many ways to tell twins apart are tried."""


@dataclass(kw_only=True, eq=False)
class Call:
    """One call. ``text`` is its prompt as the client sent it, ``None`` for ids or if unknown."""

    id: str
    opened_at: int
    session: str | None
    exchange: Exchange | None = None
    """The first that was told of it."""
    exchanges: list[Exchange] = field(default_factory=list)
    """All that were told of it: retries may share an answer."""
    sample: int = 0
    ask: Ask | None = None
    """Its own part of the request, where several prompts were asked for."""
    text: str | None = None
    from_ids: bool = False
    encoding: Encoding = Encoding.RAW
    truth: Sampled | None = None
    ended_at: int | None = None
    captured: CallCaptured | None = None
    lost: CallLost | None = None
    ends: int = 0
    gone_at: int | None = None
    gone_for: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[str | None] = field(default_factory=list)
    shown: str = ""
    endings: tuple[str, ...] = ()

    @property
    def start(self) -> int:
        """Where its answer begins, in tokens."""
        return len(self.prompt_ids)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt_ids, *self.answer_ids]

    @property
    def whole(self) -> str | None:
        """All of its text: prompt, then answer as it was shown."""
        return None if self.text is None else self.text + self.shown

    @property
    def is_partial(self) -> bool:
        return self.captured is not None and self.captured.answer.outcome is Outcome.PARTIAL

    def is_kept_at(self, at: int) -> bool:
        """Whether a look-up at that number must find it."""
        taken = self.captured is not None and self.ended_at is not None and self.ended_at < at
        return taken and (self.gone_at is None or self.gone_at > at)

    def joint(self, text: str) -> int:
        """How many characters of ``text``, behind all of this call's, its ids hold already."""
        assert self.whole is not None
        place = len(self.whole)
        return next((len(one) for one in self.endings if text.startswith(one, place)), 0)

    def __str__(self) -> str:
        where = "" if self.exchange is None else f" (exchange {self.exchange.number})"
        return f"call {self.id}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A trajectory as somebody gave it: ``source`` says who; it ends in or continues ``call``."""

    source: str
    call: str
    ids: Sequence[int]
    mask: Sequence[int]
    logprobs: Sequence[float]
    versions: Sequence[int]
    names: Sequence[str | None]
    cut: bool
    origins: Sequence[tuple[str | None, int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens ``start`` to ``end`` were sampled by ``call``, or by nobody."""

    call: Call | None
    start: int
    end: int

    @property
    def is_cut(self) -> bool:
        return self.call is not None and self.end < len(self.call.ids)


_Ways = dict[tuple[int, bool], list[tuple[Piece, bool]]]
"""Where a way has come to, and whether it left an answer midway → its last steps to there."""


@dataclass
class Book:
    """All calls of a run by id, in the order in which they were opened."""

    tokens: Tokens
    calls: dict[str, Call] = field(default_factory=dict)
    _starting: dict[tuple[int, tuple[int, ...]], list[Call]] = field(default_factory=dict)
    _starts: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, story: Story, tokens: Tokens, gone: dict[str, str]) -> Book:
        """The book of a story; ``gone`` names for each call that went the reason."""
        book = cls(tokens)
        book._read_journal(story)
        book._read_exchanges(story)
        book._read_samples(story)
        for call, reason in gone.items():
            book.calls[call].gone_for = reason
        for one in book.calls.values():
            if one.captured is not None and one.answer_ids:
                key = (one.start, tuple(one.prompt_ids))
                book._starting.setdefault(key, []).append(one)
                book._starts.add(one.start)
        return book

    # -- reading -------------------------------------------------------------------------

    def _read_journal(self, story: Story) -> None:
        for entry in story.journal:
            fact = entry.fact
            if isinstance(fact, CallOpened):
                self.calls[fact.call] = Call(id=fact.call, opened_at=entry.at, session=fact.session)
            elif isinstance(fact, CallCaptured | CallLost) and fact.call in self.calls:
                one = self.calls[fact.call]
                one.ends += 1
                one.ended_at = entry.at
                if isinstance(fact, CallCaptured):
                    one.captured = fact
                else:
                    one.lost = fact

    def _read_exchanges(self, story: Story) -> None:
        # Retries that share another's answer come last: the call is the other's.
        for exchange in sorted(story.exchanges, key=lambda one: one.retry is not None):
            for sample, name in enumerate(exchange.calls):
                one = self.calls.get(name)
                if one is None or sample >= exchange.ask.samples:
                    continue
                one.exchanges.append(exchange)
                if one.exchange is not None and exchange.retry is not None:
                    continue
                ask = exchange.ask.of(sample)
                one.exchange, one.sample, one.ask = exchange, sample, ask
                one.text, one.from_ids = ask.text, ask.text is None and ask.chat is None
                chat = ask.path.endswith("/chat/completions")
                one.encoding = Encoding.RENDERED if chat else Encoding.RAW

    def _read_samples(self, story: Story) -> None:
        by_place = {(each.exchange, each.place): each for each in story.sampled}
        by_rid = {each.rid: each for each in story.sampled}
        headless = {one.number for one in story.exchanges if not one.calls}
        left = [each for each in story.sampled if each.exchange in headless]
        for one in self.calls.values():
            # What a connection lost before its first byte is sent again: the last one counts.
            for exchange in one.exchanges:
                if (exchange.number, one.sample) in by_place:
                    one.truth = by_place[exchange.number, one.sample]
                    one.exchange = exchange
            one.truth = one.truth or by_rid.get(one.id) or _fitting(one, left)
            if one.truth is None and _is_shared(one.exchanges):
                one.truth = _attempted(one, left, story)
            self._fill(one)

    def _fill(self, one: Call) -> None:
        truth, fact = one.truth, one.captured
        one.prompt_ids = [] if truth is None else list(truth.prompt_ids)
        if fact is None:
            return
        size = len(fact.answer_ids) // 4
        one.shown = fact.answer_text
        if truth is not None:
            one.answer_ids = truth.told_ids[:size]
            one.logprobs = truth.told_logprobs[:size]
            one.versions = truth.told_versions[:size]
            if not one.is_partial and truth.lies is None:
                one.shown = truth.text
        one.endings = _endings(one, self.tokens.vocabulary)

    # -- asking --------------------------------------------------------------------------

    def same_tree(self, left: Encoding, right: Encoding) -> bool:
        """Whether texts encoded in these two ways are found under each other."""
        return left is right or not self.tokens.tokenizer.prefix_ids

    def explain(self, columns: Columns) -> dict[bool, list[list[Piece]]]:
        """Who sampled what, so that ids, logprobs and versions fit the truth at every position.

        Every answer must stand behind the very ids it was sampled behind. The ways are keyed by
        whether some answer is left midway; empty if nothing explains the columns. There are several
        where one call sampled the very token that another one's answer went on with.
        """
        ids = list(columns.ids)
        size = len(ids)
        ways: _Ways = {(0, False): []}
        for place in range(size):
            for cut in (False, True):
                if (place, cut) not in ways:
                    continue
                for piece in self._pieces(columns, ids, place):
                    ways.setdefault((piece.end, cut or piece.is_cut), []).append((piece, cut))
        return {
            cut: list(islice(_paths(ways, size, cut), _MOST_CHOICES))
            for cut in (False, True)
            if (size, cut) in ways
        }

    def _pieces(self, columns: Columns, ids: list[int], place: int) -> Iterator[Piece]:
        mask, size = columns.mask, len(ids)
        if not mask[place]:
            end = place
            while end < size and not mask[end]:
                end += 1
            yield Piece(None, place, end)
            return
        if place not in self._starts:
            return
        for call in self._starting.get((place, tuple(ids[:place])), ()):
            reach = min(_reach(call, columns, place), self._own_start(columns, place) - place)
            if reach == len(call.answer_ids):
                yield Piece(call, place, place + reach)
            for end in range(place + 1, place + min(reach, len(call.answer_ids) - 1) + 1):
                if end == size or not mask[end] or end in self._starts:
                    yield Piece(call, place, end)

    def _own_start(self, columns: Columns, place: int) -> int:
        """Where the trajectory's own answer begins, if that lies behind ``place``: what leads there
        may be followed by the very token that it sampled itself."""
        own = self.calls.get(columns.call)
        behind = own is not None and own.answer_ids and place < own.start < len(columns.ids)
        return own.start if own is not None and behind else len(columns.ids)

    def spelled(self, pieces: list[Piece], ids: Sequence[int], text: str) -> str | None:
        """Why ``pieces`` are not what ``text`` means; ``None`` if they are.

        Sampled pieces stand for what was shown of them, a joint for nothing, and every run that
        nobody sampled must be the tokenizer's encoding of the text that is left for it. Calls that
        sampled the same behind the same ids may have been asked for with different texts.
        """
        first: str | None = None
        alike = [self._alike(piece, ids) for piece in pieces]
        for choice in islice(product(*alike), _MOST_CHOICES):
            problem = self._spelled(choice, ids, text)
            if problem is None:
                return None
            first = first or problem
        return first

    def _alike(self, piece: Piece, ids: Sequence[int]) -> list[Piece]:
        """The piece itself, then as calls sampled it of which nothing else can be told."""
        mine, size = piece.call, piece.end - piece.start
        if mine is None:
            return [piece]
        others = [
            replace(piece, call=one)
            for one in self._starting.get((piece.start, tuple(ids[: piece.start])), ())
            if one is not mine
            and one.answer_ids[:size] == mine.answer_ids[:size]
            and one.logprobs[:size] == mine.logprobs[:size]
            and one.versions[:size] == mine.versions[:size]
        ]
        return [piece, *others]

    def _spelled(self, pieces: Sequence[Piece], ids: Sequence[int], text: str) -> str | None:
        place = 0
        for number, piece in enumerate(pieces):
            follower = next((one.call for one in pieces[number + 1 :] if one.call), None)
            end = len(text) if follower is None else len(follower.text or "")
            if follower is not None and follower.text is None:
                return None  # That call brought ids: nobody said which text they mean.
            if piece.call is None:
                problem = self._run_problem(text[place:end], ids[piece.start : piece.end], piece)
                place = end
            else:
                if piece.call.text is None:
                    return None
                reached = _sampled_text(piece, text[:end], place, self.tokens.vocabulary)
                problem = None if reached is not None else f"{piece.call} was not shown so"
                place = place if reached is None else reached
            if problem is not None:
                return problem
        return None if place == len(text) else f"the text goes on at character {place}"

    def _run_problem(self, text: str, ids: Sequence[int], piece: Piece) -> str | None:
        first = piece.start == 0
        ways = [self.tokens.encode(text, encoding=one, first=first) for one in Encoding]
        if list(ids) in (ways if first else ways[:1]):
            return None
        where = f"tokens {piece.start} to {piece.end}"
        return f"{where} are {list(ids)}, which is not how {text!r} is encoded: {ways[0]}"


def _fitting(one: Call, left: list[Sampled]) -> Sampled | None:
    """What was sampled for a call whose agent went away before it was told the call's id, and whose
    worker made ids of its own: whatever was asked and told so."""
    fact = one.captured
    if one.exchange is not None or fact is None:
        return None
    new = [*unpack_ids(fact.close_ids), *unpack_ids(fact.prompt_ids)]
    told = unpack_ids(fact.answer_ids)
    for each in left:
        asked = list(each.prompt_ids[fact.token_start :]) == new
        if asked and each.told_ids[: len(told)] == told and (each.told or each.told_finish):
            left.remove(each)
            return each
    return None


def _is_shared(told: list[Exchange]) -> bool:
    return len(told) > 1 or any(exchange.retry is not None for exchange in told)


def _attempted(one: Call, left: list[Sampled], story: Story) -> Sampled | None:
    """What was sampled for an attempt whose agent never saw its head, and that another shared."""
    exchange = one.exchange
    assert exchange is not None
    for each in left:
        first = None if each.exchange is None else story.exchanges[each.exchange]
        if first is None or first.number >= exchange.number or each.place != one.sample:
            continue
        if (first.ask.path, first.ask.body) == (exchange.ask.path, exchange.ask.body):
            left.remove(each)
            return each
    return None


def _endings(one: Call, vocabulary: Vocabulary) -> tuple[str, ...]:
    assert one.captured is not None
    finish = json.loads(one.captured.answer.finish_reason) or {}
    matched = finish.get("matched")
    return hidden_endings(
        one.answer_ids,
        one.shown,
        tuple(matched) if isinstance(matched, list) else matched,
        vocabulary,
        is_whole=one.captured.answer.outcome is Outcome.COMPLETE,
    )


def _paths(ways: _Ways, size: int, cut: bool) -> Iterator[list[Piece]]:
    """The ways that lead to a place, the one of the first steps first."""
    if not ways[size, cut]:
        yield []
    for piece, before in ways[size, cut]:
        for path in _paths(ways, piece.start, before):
            yield [*path, piece]


def _reach(call: Call, columns: Columns, place: int) -> int:
    """How many tokens of this answer stand there with all that is known of them."""
    size = 0
    for token, logprob, version in zip(call.answer_ids, call.logprobs, call.versions, strict=True):
        here = place + size
        if here >= len(columns.ids) or not columns.mask[here] or columns.ids[here] != token:
            break
        if columns.logprobs[here] != logprob or columns.names[here] != version:
            break
        if columns.versions[here] != as_number(version):
            break
        size += 1
    return size


def _sampled_text(piece: Piece, text: str, place: int, vocabulary: Vocabulary) -> int | None:
    """Where in ``text`` a sampled piece that begins at ``place`` ends, its joint included."""
    call = piece.call
    assert call is not None
    if not piece.is_cut:
        if not text.startswith(call.shown, place):
            return None
        place += len(call.shown)
        joint = next((len(one) for one in call.endings if text.startswith(one, place)), 0)
        # Of an answer that broke off, what its client never saw is nothing to go on from.
        unseen = call.is_partial and call.endings and not joint and place < len(text)
        return None if unseen else place + joint
    ids = call.answer_ids[: piece.end - piece.start]
    for skip in (False, True):
        part = vocabulary.decode(ids, skip_special=skip, at_start=False)
        if call.shown.startswith(part) and text.startswith(part, place):
            return place + len(part)
    return None


# -- small things ------------------------------------------------------------------------


def common(left: str, right: str) -> int:
    """How long the common prefix is."""
    size = 0
    while size < min(len(left), len(right)) and left[size] == right[size]:
        size += 1
    return size


def wholly_before(
    vocabulary: Vocabulary, ids: list[int], shown: str, chars: int
) -> tuple[int, int]:
    """How many tokens lie wholly before a place in the shown text: at least, and at most.

    Where the text does not tell whether special tokens were skipped in it, both are possible.
    """
    known = list(takewhile(lambda token: token in vocabulary, ids))
    texts = {
        skip: vocabulary.decode(known, skip_special=skip, at_start=False) for skip in (True, False)
    }
    views = [skip for skip in texts if texts[skip].startswith(shown[: len(texts[skip])])]
    counts = [_count_before(vocabulary, known, shown[:chars], skip) for skip in views or texts]
    return min(counts), max(counts)


def _count_before(vocabulary: Vocabulary, ids: list[int], before: str, skip: bool) -> int:
    """By trying each number."""
    target = before.encode("utf-8", "surrogatepass")
    for count in range(len(ids), 0, -1):
        data = vocabulary.decode_bytes(ids[:count], skip_special=skip, at_start=False)
        if data and target.startswith(data) and _is_text(data):
            return count
    return 0


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def events_of(body: bytes) -> list[bytes]:
    """The data of every complete event of a stream, the plain way: split the whole at once."""
    lines = bytes(body).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *blocks, _ = lines.split(b"\n\n")
    found = []
    for block in blocks:
        data = [
            line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")
        ]
        if data:
            found.append(b"\n".join(data))
    return found


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def without_logprobs(data: bytes) -> Any:
    """An answer or event as JSON, without what is there only because logprobs were asked for;
    the bytes themselves where they are no JSON."""
    value = _json(data)
    if value is None:
        return data
    for item in value if isinstance(value, list) else [value]:
        meta = item.get("meta_info") if isinstance(item, dict) else None
        if isinstance(meta, dict):
            item["meta_info"] = {k: v for k, v in meta.items() if not _is_logprob(k)}
    return value


def _is_logprob(key: str) -> bool:
    flat = ("_token_logprobs", "_token_logprobs_length", "_token_ids_logprobs")
    return key.startswith(("input_top_logprobs", "output_top_logprobs")) or (
        key.startswith(("input", "output")) and key.endswith(flat)
    )
