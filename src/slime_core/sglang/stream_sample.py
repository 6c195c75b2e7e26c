"""One sample of a stream, as far as it came."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from msgspec import Raw

from slime_core.sglang.answer import FinishReason, read_version
from slime_core.sglang.repetition import Cut, Repetition
from slime_core.sglang.stream_event import Meta, PlainEvent, read_meta
from slime_core.sglang.tokens import Tokens
from slime_core.versions import VersionRun

__all__ = ["Sample"]

_NULL: Final = b"null"
_NO_LIST: Final = b"[]"
_ALL_LISTS: Final = 3


class _Repeating:
    """A JSON list that is sent anew with more at its end; gives what was added."""

    __slots__ = ("before",)

    def __init__(self) -> None:
        self.before = b"[]"

    def added(self, now: bytes) -> bytes | None:
        """The new elements as a JSON array, or ``None`` if ``now`` does not continue the list."""
        before, self.before = self.before, now
        kept = len(before) - 1
        if not now.startswith(before[:kept]) or now[kept : kept + 1] not in (b",", b"]"):
            # From the empty list there is no comma to continue after.
            return now if before == b"[]" else None
        return b"[" + now[kept + 1 :] if now[kept : kept + 1] == b"," else b"[]"


class Sample:
    """One sample so far."""

    __slots__ = (
        "_last",
        "_lists",
        "_meta",
        "_repetition",
        "_version",
        "_versions",
        "finish_reason",
        "has_text",
        "ids",
        "listed",
        "logprobs",
        "problem",
        "text",
        "tops",
    )

    def __init__(self) -> None:
        self.ids = array("I")
        self.logprobs: list[float | None] = []
        self.tops: list[bytes] = []
        self.text: list[str] = []
        self.has_text = False
        self.finish_reason: FinishReason | None = None
        self.problem: str | None = None
        self.listed = 0
        """How many ids the last event listed, if there is something to cut from the next."""
        self._last = b""
        """The last event, or what of it was new; its ``meta_info`` is read when it is needed."""
        self._meta: dict[str, Raw] | None = None
        self._lists = (_Repeating(), _Repeating(), _Repeating())
        """``output_ids``, ``output_token_logprobs`` and ``output_top_logprobs``."""
        self._repetition: Repetition | None = None
        self._version: Raw | None = None
        self._versions: list[tuple[bytes, int]] = []
        """Versions as raw JSON, and with which token each began; the last one is ``_version``."""

    # -- what an event brings ------------------------------------------------------------

    def cut(self, data: bytes) -> Cut | None:
        """The next event without what it repeats; ``None`` where it is to be read whole."""
        return None if self._repetition is None else self._repetition.cut(data)

    def is_covered(self, cut: Cut, text: str | None, top: bytes) -> bool:
        """Whether what the rest of an event gives is new: what begins late was not cut."""
        return (text is None or self.has_text) and (top == _NULL or len(cut.joints) == _ALL_LISTS)

    def go_on(self, data: bytes, cut: Cut, values: Sequence[bytes], listed: int) -> None:
        """That was the event: its rest's lists were ``values``, and it listed so many ids."""
        assert self._repetition is not None
        self._repetition.go_on(data, cut, values)
        self.listed = listed

    def expect(self, data: bytes, values: Sequence[bytes], listed: int) -> None:
        """The next event will repeat this one, which was read whole."""
        if values[1] == _NULL or any(
            value == _NULL and one.before != _NO_LIST
            for one, value in zip(self._lists, values, strict=True)
        ):
            return  # A list is missing, which is wrong: each is compared for itself.
        told = [value for value in values if value != _NULL]
        self._repetition = Repetition.after(data, told, has_text=self.has_text)
        self.listed = listed

    def expect_nothing(self) -> None:
        """An event is to be read whole: what it repeats is found by comparing lists."""
        if self._repetition is not None:
            for listed, value in zip(self._lists, self._repetition.values(), strict=False):
                listed.before = value
            self._repetition = None

    def added(self, values: Sequence[bytes]) -> list[bytes]:
        """What is new in the lists of an event that repeats those before."""
        return [
            self._added(listed, value) for listed, value in zip(self._lists, values, strict=True)
        ]

    def _added(self, listed: _Repeating, now: bytes) -> bytes:
        if now == _NULL:
            return now
        added = listed.added(now)
        if added is None:
            self.note("tokens that were already sent have changed")
            return b"[]"
        return added

    def say(self, text: str | None, *, repeats: bool) -> str:
        """The new text, of an event whose text ``repeats`` what came before."""
        if text is None:
            return ""
        self.has_text = True
        if not repeats:
            self.text.append(text)
            return text
        before = self.whole_text()
        if not text.startswith(before):
            self.note("text that was already sent has changed")
            return ""
        self.text = [text]
        return text[len(before) :]

    def take(self, tokens: Tokens, top: bytes, meta: Meta) -> None:
        """New tokens and their top logprobs, which came with this."""
        if tokens.problem is not None:
            self.note(tokens.problem)
        if tokens.ids:
            self._note_version(meta.weight_version, len(self.ids))
        self.ids.extend(tokens.ids)
        self.logprobs.extend(tokens.logprobs)
        if len(top) > len(_NO_LIST):
            self.tops.append(top[1:-1])

    def take_plain(self, found: PlainEvent, data: bytes) -> bool:
        """Take an event that was read as a plain one, of a worker that sends only what is new.

        False, and nothing has changed, where its counts and tokens are not as they must be.
        """
        meta, ids = found.meta_info, found.output_ids
        had, entries = len(self.ids), meta.output_token_logprobs
        if had + len(ids) != meta.completion_tokens or self.finish_reason is not None:
            return False
        if [entry.token for entry in entries] != ids:
            return False
        try:
            self.ids.fromlist(ids)
        except OverflowError:
            return False
        if ids:
            self._note_version(meta.weight_version, had)
        self.logprobs += [entry.logprob for entry in entries]
        self.text.append(found.text)
        self.has_text = True
        self._last = data
        return True

    def note(self, problem: str) -> None:
        """Why it cannot be captured exactly; the first problem counts."""
        self.problem = self.problem or problem

    def _note_version(self, told: Raw, start: int) -> None:
        """The tokens from ``start`` on came with this version."""
        if told != self._version:
            self._version = told
            self._versions.append((bytes(told), start))

    def tell(self, data: bytes) -> None:
        """An event that is not the last told this."""
        self._last = data

    def finish(self, reason: FinishReason, told: dict[str, Raw], *, has_new: bool) -> None:
        """The last event told this; ``has_new``: tokens among it."""
        # An abort in the queue tells less of the prompt than the events before it.
        before = self.meta
        if has_new:
            before.pop("weight_versions", None)  # Spans told before them do not speak of them.
        self._meta = before | told
        self.finish_reason = reason

    # -- what there is of it -------------------------------------------------------------

    @property
    def meta(self) -> dict[str, Raw]:
        """``meta_info`` as it was told; empty before the first event."""
        if self._meta is not None:
            return self._meta
        return read_meta(self._last) if self._last else {}

    def whole_text(self) -> str:
        """The text so far."""
        if len(self.text) > 1:
            self.text = ["".join(self.text)]
        return self.text[0] if self.text else ""

    def version_runs(self) -> tuple[VersionRun, ...]:
        """The version of every token, as the event that brought it told; empty: none did."""
        ends = [*(start for _, start in self._versions), len(self.ids)][1:]
        runs = tuple(
            VersionRun(read_version(told), start, end)
            for (told, start), end in zip(self._versions, ends, strict=True)
        )
        return runs if any(run.version is not None for run in runs) else ()
