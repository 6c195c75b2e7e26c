"""The forest of segments: everything captured, and the only code that changes it.

Each ``apply``-side method takes a fact that was decided elsewhere and makes it true; none decides.
Look-ups are in :mod:`slime_core.lookup`, derivations in :mod:`slime_core.trajectory`.

Two kinds of storage are told apart by why they are kept. A segment is *wanted* while its answer,
or one below it, has not been retrieved: that is data. Everything else is kept only for reuse. The
radix trees count both in bytes (``held`` nodes are data), so what segments share is counted once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec.structs import replace

from slime_core.chat.index import TurnIndex
from slime_core.errors import InvariantError
from slime_core.gone import GoneMemory
from slime_core.purse import Purse
from slime_core.radix import Node, RadixTree, id_tree, text_tree
from slime_core.segments import Segment, kept
from slime_core.transitions import (
    CallCaptured,
    LogprobsRead,
    PromptKept,
    PromptTold,
    SegmentsGone,
)
from slime_core.types import ID_BYTES, CallId, Encoding, Origin

__all__ = ["EXTRA_BYTES_PER_TOKEN", "SEGMENT_BYTES", "Forest"]

EXTRA_BYTES_PER_TOKEN: Final = 16
"""Extras (routed experts, …) count as the tokens that would take their room."""
SEGMENT_BYTES: Final = 1400
"""What a segment costs beside its tokens, text and extras, as measured; for the byte bound."""


class Forest:
    """Segments, the trees that store them, and the books of what is kept for what.

    ``one_text_root``: raw and rendered text become the same ids (the tokenizer adds nothing of
    its own to raw text), so both are found under either.
    """

    def __init__(self, *, one_text_root: bool = True) -> None:
        self.ids: Final[RadixTree[bytes]] = id_tree()
        raw = text_tree()
        rendered = raw if one_text_root else text_tree()
        self.texts: Final[dict[Encoding, RadixTree[str]]] = {
            Encoding.RAW: raw,
            Encoding.RENDERED: rendered,
        }
        self._trees: Final = (raw,) if raw is rendered else (raw, rendered)
        self.segments: Final[dict[int, Segment]] = {}
        self.calls: Final[dict[CallId, Segment]] = {}
        self.aliases: Final[dict[str, tuple[CallId, ...]]] = {}
        self.sessions: Final[dict[str, dict[int, Segment]]] = {}
        """The answers of each session, by number, in the order of capture."""
        self.turns: Final = TurnIndex()
        self.gone: Final = GoneMemory()
        self.unread: Final[dict[CallId, None]] = {}
        """Calls whose logprobs are kept as the worker wrote them, in the order of capture."""
        self.untold: Final = OrderedDict[int, Segment]()
        """Prompts that came as ids and can be given their text now, one after the other: in a plain
        dictionary the first is found only past all that were there."""
        self._waiting: Final[dict[int, list[Segment]]] = {}
        """Segments whose text must wait for that of the segment with this number."""
        self.clock = 0
        self.answer_bytes = 0
        self.answer_bytes_wanted = 0
        self.segments_wanted = 0
        self.extras_unwanted = 0
        self._next = 1
        self._reusable: Final = Purse(lambda one: not one.wanted and self._is_leaf(one))
        self._wanted: Final = Purse(lambda one: one.wanted > 0 and self._is_leaf(one))

    # -- what is kept --------------------------------------------------------------------

    @property
    def total_tokens(self) -> int:
        """Tokens stored, shared ones once, without extras."""
        return self.ids.weight // ID_BYTES

    @property
    def reuse_tokens(self) -> int:
        """Tokens kept only for reuse, extras included at their price in tokens.

        Every segment counts as one token more: equal answers share their tokens and empty ones
        have none, and neither may pile up.
        """
        ids = (self.ids.weight - self.ids.weight_held) // ID_BYTES
        segments = len(self.segments) - self.segments_wanted
        return ids + segments + self.extras_unwanted // EXTRA_BYTES_PER_TOKEN

    @property
    def data_bytes(self) -> int:
        """Bytes of what was captured and not yet retrieved."""
        held = self.ids.weight_held + self.answer_bytes_wanted
        for tree in self._trees:
            held += tree.weight_held
        return held + SEGMENT_BYTES * self.segments_wanted

    @property
    def total_bytes(self) -> int:
        """Bytes of everything, by the same reckoning."""
        text = sum(tree.weight for tree in self._trees)
        own = self.answer_bytes + SEGMENT_BYTES * len(self.segments)
        return self.ids.weight + text + own

    def oldest_reusable(self) -> Segment | None:
        """The leaf kept only for reuse that was used longest ago."""
        return self._reusable.first()

    def oldest_wanted(self) -> Segment | None:
        """The leaf not yet retrieved that was used longest ago."""
        return self._wanted.first()

    @staticmethod
    def _is_leaf(segment: Segment) -> bool:
        return not segment.children and not segment.pins and segment.number > 0

    def find(self, number: int | None) -> Segment | None:
        """The segment of that number; ``None`` for ``None``. Raises ``InvariantError``."""
        if number is None:
            return None
        segment = self.segments.get(number)
        if segment is None:
            raise InvariantError(f"segment #{number} is not in the forest")
        return segment

    # -- capture -------------------------------------------------------------------------

    def capture(self, fact: CallCaptured, epoch: int) -> Segment:
        """Add the prompt's new part (or find it) and the answer; the answer's segment."""
        if fact.call in self.calls:
            raise InvariantError("a call is captured once")
        parent = None if fact.parent is None else self.find(fact.parent)
        start, text_start, answer = fact.token_start, fact.text_start, fact.answer
        if self._adds_prompt(fact, parent):
            parent = self._prompt(fact, parent)
            parent.unanswered = False
            if parent.parent is not None:  # perhaps its own close
                parent.parent.unanswered = False
            start, text_start = parent.token_end, parent.text_end
        elif fact.prompt_text is None and parent is not None:
            text_start = parent.text_end  # only known now: the parent may have been told since
        segment = self._new(
            parent, Origin.SAMPLED, fact.encoding, (start, text_start), fact.answer_ids
        )
        segment.answer, segment.size, segment.extras_size = answer, answer.size, answer.extras_size
        self._attach(segment)
        self._tell_or_wait(segment, fact.answer_text, text_start)
        self.calls[fact.call] = segment
        if answer.session is not None:
            self.sessions.setdefault(answer.session, {})[segment.number] = segment
        if answer.turn is not None:
            self.turns.add(segment, answer.turn)
        if answer.unread:
            self.unread[fact.call] = None
        for alias in answer.aliases:
            self.aliases[alias] = (*self.aliases.get(alias, ()), fact.call)
        self.answer_bytes += segment.size
        self.extras_unwanted += segment.extras_size
        self._want(segment)
        self.touch(segment, epoch)
        return segment

    def read(self, fact: LogprobsRead) -> None:
        """Keep logprobs in place of what the worker wrote."""
        segment = self.calls[fact.call]
        old = segment.answer
        assert old is not None
        del self.unread[fact.call]
        segment.answer = replace(old, logprobs=fact.logprobs, unread=b"")
        more = segment.answer.size - segment.size
        segment.size += more
        self.answer_bytes += more
        if segment.wanted:
            self.answer_bytes_wanted += more

    def withdraw(self, segment: Segment, reason: str) -> None:
        """Forget an answer that nothing extends, and remember that it is gone."""
        if not self._is_leaf(segment):
            raise InvariantError("only a leaf that nobody uses may be withdrawn")
        self._remember(segment, reason)
        self._remove(segment)

    def keep_prompt(self, fact: PromptKept, parent: Segment | None, epoch: int) -> Segment | None:
        """Add a prompt's new part before its answer; ``parent`` itself if there is none."""
        if not self._adds_prompt(fact, parent):
            return parent
        segment = self._prompt(fact, parent)
        self.touch(segment, epoch)
        return segment

    @staticmethod
    def _adds_prompt(fact: CallCaptured | PromptKept, parent: Segment | None) -> bool:
        """Whether a prompt segment stands between ``parent`` and the answer.

        A cut in ids gets one even if nothing follows it: only that segment can be told later at
        which character the cut lies.
        """
        if parent is None or fact.prompt_ids or fact.prompt_text or fact.close_ids:
            return True
        return fact.prompt_text is None and fact.token_start < parent.token_end

    def _prompt(self, fact: CallCaptured | PromptKept, parent: Segment | None) -> Segment:
        """The segment of the prompt's new part, behind one that closes the parent's turn where
        that is needed."""
        start, joint = (fact.token_start, fact.text_start), fact.joint
        if fact.close_ids:
            close = self._new(parent, Origin.TEMPLATE, fact.encoding, start, fact.close_ids)
            close.joint = joint
            parent = self._piece(close, fact.close_text)
            start, joint = (parent.token_end, parent.text_end), 0
        piece = self._new(parent, fact.prompt_origin, fact.encoding, start, fact.prompt_ids)
        piece.joint = joint
        piece.from_ids = fact.prompt_text is None
        piece.hidden = fact.hidden
        return self._piece(piece, fact.prompt_text)

    def _piece(self, segment: Segment, text: str | None) -> Segment:
        """Add a piece of prompt, or find its twin: siblings with the same one share it."""
        twin = self._twin(segment, text)
        if twin is not None:
            # Whoever sent the same text encoded it to these very ids.
            twin.from_ids = twin.from_ids and segment.from_ids
            return twin
        self._attach(segment)
        segment.unanswered = True
        self._tell_or_wait(segment, text, segment.text_start)
        return segment

    def _new(
        self,
        parent: Segment | None,
        origin: Origin,
        encoding: Encoding,
        start: tuple[int, int],
        ids: bytes,
    ) -> Segment:
        """A segment with its id node, in no book yet."""
        base = self.ids.root if parent is None else parent.id_node
        node = self.ids.insert_at(ids, base, start[0] * ID_BYTES)
        return Segment(
            number=self._next,
            parent=parent,
            origin=origin,
            encoding=encoding,
            token_start=start[0],
            token_end=start[0] + len(ids) // ID_BYTES,
            text_start=start[1],
            text_end=start[1],
            id_node=node,
            text_node=None,
        )

    def _twin(self, new: Segment, text: str | None) -> Segment | None:
        for mark in new.id_node.marks or ():
            one: Segment = mark
            alike = (
                one.answer is None
                and one.parent is new.parent
                and one.origin is new.origin
                and one.encoding is new.encoding
                and one.token_start == new.token_start
                and one.hidden == new.hidden
            )
            if alike and (text is None or self._is_told_as(one, new, text)):
                return one
        return None

    def _is_told_as(self, one: Segment, new: Segment, text: str) -> bool:
        if new.hidden:
            return True
        same_place = (one.text_start, one.joint) == (new.text_start, new.joint)
        return same_place and self._spells(one, text)

    def _spells(self, segment: Segment, text: str) -> bool:
        if segment.text_node is None:
            return segment.waiting_text == text
        return self.own_text(segment) == text

    def own_text(self, segment: Segment) -> str:
        """The text that ``segment`` adds. It must be told."""
        if segment.text_node is None:
            raise InvariantError("the text of this segment is not told yet")
        return self.texts[segment.encoding].key(segment.text_node, segment.text_start)

    def own_ids(self, segment: Segment) -> bytes:
        """The token ids that ``segment`` adds, packed."""
        return self.ids.key(segment.id_node, segment.token_start * ID_BYTES)

    def _attach(self, segment: Segment) -> None:
        self._next += 1
        self.segments[segment.number] = segment
        self.ids.mark(segment.id_node, segment)
        if segment.parent is not None:
            segment.parent.children += 1

    # -- text ----------------------------------------------------------------------------

    def _tell_or_wait(self, segment: Segment, text: str | None, text_start: int) -> None:
        parent = segment.parent
        if segment.hidden:
            return
        if parent is not None and parent.text_node is None:
            segment.waiting_text = text
            self._waiting.setdefault(parent.number, []).append(segment)
        elif text is None:
            self.untold[segment.number] = segment
        else:
            self._tell(segment, text, text_start)

    def _tell(self, segment: Segment, text: str, text_start: int) -> None:
        tree = self.texts[segment.encoding]
        parent = segment.parent
        base: Node[str] | None = tree.root if parent is None else parent.text_node
        assert base is not None
        segment.text_start, segment.text_end = text_start, text_start + len(text)
        segment.text_node = tree.insert_at(text, base, text_start)
        tree.mark(segment.text_node, segment)
        if segment.wanted:
            tree.hold(segment.text_node)

    def tell_prompt(self, fact: PromptTold) -> None:
        """Give a prompt that came as ids its text; what waited for it follows."""
        segment = self.untold.pop(fact.segment, None)
        if segment is None:
            raise InvariantError("only a prompt that waits for its text can be told")
        if fact.text is None:
            return
        segment.joint = fact.joint
        self._tell(segment, fact.text, fact.text_start)
        told = [segment]
        while told:
            parent = told.pop()
            for child in self._waiting.pop(parent.number, ()):
                if child.waiting_text is None:
                    self.untold[child.number] = child
                else:
                    self._tell(child, child.waiting_text, parent.text_end)
                    child.waiting_text = None
                    told.append(child)

    # -- use -----------------------------------------------------------------------------

    def touch(self, segment: Segment, epoch: int) -> None:
        """``segment`` was used now, under the weights of ``epoch``."""
        self.clock += 1
        segment.used, segment.epoch = self.clock, epoch
        self._refile(segment)

    def pin(self, segment: Segment, by: int) -> None:
        """A call in flight needs ``segment`` (``by`` = 1), or no longer does (-1).

        What a call in flight needs is data, not something kept in case it is needed again.
        """
        segment.pins += by
        if segment.pins < 0:
            raise InvariantError("a segment was unpinned more often than pinned")
        if by > 0:
            self._want(segment)
        else:
            self._unwant(segment)
        self._refile(segment)

    def drop_if_unused(self, segment: Segment) -> None:
        """Forget a prompt that was never answered, once no call in flight needs it."""
        while segment.unanswered and self._is_leaf(segment):
            parent = segment.parent
            self._remove(segment)
            if parent is None:
                return
            segment = parent

    def retrieve(self, segment: Segment, epoch: int, token_end: int | None = None) -> None:
        """The trajectory that ends in ``segment`` (at ``token_end``) was delivered.

        An answer of which only the beginning was delivered is not retrieved yet.
        """
        end = segment.token_end if token_end is None else token_end
        for one, stop in reversed(list(kept(segment, end))):
            if one.is_sampled and not one.retrieved and stop == one.token_end:
                one.retrieved = True
                self._unwant(one)
        self.touch(segment, epoch)

    def _want(self, segment: Segment) -> None:
        here: Segment | None = segment
        while here is not None:
            here.wanted += 1
            if here.wanted > 1:
                return
            self._account(here, 1)
            here = here.parent

    def _unwant(self, segment: Segment) -> None:
        here: Segment | None = segment
        while here is not None:
            here.wanted -= 1
            if here.wanted:
                return
            self._account(here, -1)
            self._refile(here)
            here = here.parent

    def _account(self, segment: Segment, sign: int) -> None:
        """Move ``segment`` to the data (1) or to what is kept for reuse (-1)."""
        change = self.ids.hold if sign > 0 else self.ids.release
        change(segment.id_node)
        if segment.text_node is not None:
            tree = self.texts[segment.encoding]
            (tree.hold if sign > 0 else tree.release)(segment.text_node)
        self.segments_wanted += sign
        self.answer_bytes_wanted += sign * segment.size
        self.extras_unwanted -= sign * segment.extras_size

    def _refile(self, segment: Segment) -> None:
        if self._is_leaf(segment):
            (self._wanted if segment.wanted else self._reusable).file(segment)
        self._wanted.settle()
        self._reusable.settle()

    # -- end -----------------------------------------------------------------------------

    def remove(self, fact: SegmentsGone) -> None:
        """Forget segments, leaves first, and remember that they are gone."""
        for number in fact.segments:
            segment = self.find(number)
            assert segment is not None
            if not self._is_leaf(segment):
                raise InvariantError("only a leaf that nobody uses may go")
            self._remember(segment, fact.reason)
            self._remove(segment)

    def _remember(self, segment: Segment, reason: str) -> None:
        if segment.answer is None:
            return
        self.gone.note_call(segment.answer.call, reason)
        if not segment.tokens:
            return
        self.gone.ids.note(self.ids.key(segment.id_node), reason)
        if segment.text_node is not None:
            has_text = segment.text_end > segment.text_start
            texts = self.gone.texts if has_text else self.gone.silent
            texts.note(self.texts[segment.encoding].key(segment.text_node), reason)

    def _remove(self, segment: Segment) -> None:
        if segment.wanted:
            segment.wanted = 1
            self._unwant(segment)
        del self.segments[segment.number]
        self._waiting.pop(segment.number, None)
        self._stop_waiting(segment)
        self.ids.unmark(segment.id_node, segment)
        if segment.text_node is not None:
            self.texts[segment.encoding].unmark(segment.text_node, segment)
        if segment.answer is not None:
            self._forget_call(segment)
        parent = segment.parent
        segment.number = 0
        if parent is not None:
            parent.children -= 1
            parent.used = max(parent.used, segment.used)
            parent.epoch = max(parent.epoch, segment.epoch)
            self._refile(parent)
        else:
            self._wanted.settle()
            self._reusable.settle()

    def _stop_waiting(self, segment: Segment) -> None:
        self.untold.pop(segment.number, None)
        if segment.parent is not None and segment.parent.number in self._waiting:
            waiting = self._waiting[segment.parent.number]
            if segment in waiting:
                waiting.remove(segment)

    def _forget_call(self, segment: Segment) -> None:
        answer = segment.answer
        assert answer is not None
        del self.calls[answer.call]
        self.unread.pop(answer.call, None)
        if answer.session is not None:
            own = self.sessions[answer.session]
            del own[segment.number]
            if not own:
                del self.sessions[answer.session]
        if answer.turn is not None:
            self.turns.remove(segment, answer.turn)
        self.answer_bytes -= segment.size
        self.extras_unwanted -= segment.extras_size
        for alias in answer.aliases:
            left = tuple(call for call in self.aliases[alias] if call != answer.call)
            if left:
                self.aliases[alias] = left
            else:
                del self.aliases[alias]
