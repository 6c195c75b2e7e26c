"""Bugs of chat on purpose; see :mod:`tests.simulate.planted`, whose list they join."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from slime_core.calls import Calls
from slime_core.chat import canonical, index, plans, prompts
from slime_core.chat.bridge import Bridge, Delta
from slime_core.chat.index import TurnIndex
from slime_core.chat.marking import Marking
from slime_core.chat.rendering import Rendered
from slime_core.parsing import AnswerParser
from slime_core.segments import Segment
from slime_core.sglang import Answer
from slime_core.trajectory import SampledRun, _Builder
from slime_core.types import Origin
from tests.simulate.planted import bug, patched

__all__: list[str] = []


@bug("arguments of tool calls are compared as text")
def _arguments_compared_as_text() -> Iterator[None]:
    with patched(canonical, "canonical_arguments", str):
        yield


@bug("content that was split into parts is another content")
def _parts_compared_as_parts() -> Iterator[None]:
    with patched(canonical, "_texts", lambda parts: [repr(parts)]):
        yield


@bug("history whose reasoning was dropped is not recognised")
def _dropped_reasoning_unknown() -> Iterator[None]:
    def strictly(self: Any, turn: Any, *_: Any) -> bool:
        kept: bytes | None = turn.reasoning
        return bool(self._conversation.reasonings[turn.end] == kept)

    with patched(index._Look, "_same_reasoning", strictly):
        yield


@bug("the ids of tool calls do not tell twins apart")
def _call_ids_ignored() -> Iterator[None]:
    rank = index._Look._rank

    def without(self: Any, segment: Segment, place: int) -> Any:
        named, _, *rest = rank(self, segment, place)
        return (named, 0, *rest)

    with (
        patched(index._Look, "_rank", without),
        patched(TurnIndex, "by_call_id", lambda *_: None),
    ):
        yield


@bug("a session's own turn counts no more than somebody else's")
def _foreign_twin_preferred() -> Iterator[None]:
    find: Any = vars(plans)["find_turn"]

    def anybodys(*args: Any, **more: Any) -> Any:
        return find(*args, **(more | {"owners": {}}))

    with patched(plans, "find_turn", anybodys):
        yield


@bug("a turn that the model closed is closed again")
def _close_doubled() -> Iterator[None]:
    behind = prompts._Chat._behind

    def closing(self: Any, found: Any, delta: Delta) -> Any:
        before, self._turn_ends = self._turn_ends, frozenset()
        try:
            return behind(self, found, delta)
        finally:
            self._turn_ends = before

    with patched(prompts._Chat, "_behind", closing):
        yield


@bug("a turn that sampling left open is not closed")
def _close_missing() -> Iterator[None]:
    behind = prompts._Chat._behind

    def open_still(self: Any, found: Any, delta: Delta) -> Any:
        return behind(self, found, dataclasses.replace(delta, close=""))

    with patched(prompts._Chat, "_behind", open_still):
        yield


@bug("what opens the next turn is written again where the model sampled it")
def _opener_doubled() -> Iterator[None]:
    behind = prompts._Chat._behind

    def again(self: Any, found: Any, delta: Delta) -> Any:
        return behind(self, found, dataclasses.replace(delta, opener=None))

    with patched(prompts._Chat, "_behind", again):
        yield


@bug("what separates turns is missing behind a held one")
def _separator_missing() -> Iterator[None]:
    behind = prompts._Chat._behind

    def bare(self: Any, found: Any, delta: Delta) -> Any:
        if delta.text.startswith("\n"):
            plain = tuple((start - 1, end - 1) for start, end in delta.plain)
            delta = dataclasses.replace(delta, text=delta.text[1:], plain=plain)
        return behind(self, found, delta)

    with patched(prompts._Chat, "_behind", bare):
        yield


@bug("the close that a template writes for the model counts as sampled")
def _close_trained() -> Iterator[None]:
    add = _Builder.add

    def trained(self: _Builder, segment: Segment, stop: int) -> None:
        add(self, segment, stop)
        if segment.origin is Origin.TEMPLATE and stop > segment.token_start:
            nothing = array("d", bytes(8 * (stop - segment.token_start)))
            self._sampled.append(SampledRun(segment.token_start, stop, nothing))

    with patched(_Builder, "add", trained):
        yield


@bug("special tokens that content spells are control tokens")
def _content_forges_control() -> Iterator[None]:
    read = Marking.read

    def believing(self: Marking, rendering: str, marker: str | None) -> Rendered:
        return Rendered(text=read(self, rendering, marker).text)

    with patched(Marking, "read", believing):
        yield


@bug("what was appended is cut off the whole rendering, whatever that makes of earlier turns")
def _bridge_unproved() -> Iterator[None]:
    own = Bridge.delta

    def unproved(
        self: Bridge, history: Sequence[Any], appended: Sequence[Any], **asked: Any
    ) -> Delta | None:
        delta = own(self, history, appended, **asked)
        if delta is None or not delta.close:
            return delta
        generation = asked.pop("add_generation_prompt", True)
        before = self._render(history, add_generation_prompt=False, **asked)
        whole = self._render([*history, *appended], add_generation_prompt=generation, **asked)
        rest = whole.behind(len(before.text) - 1)
        return dataclasses.replace(delta, text=rest.text, plain=rest.plain)

    with patched(Bridge, "delta", unproved):
        yield


@bug("of several samples of a chat only the first becomes a turn")
def _only_the_first_choice() -> Iterator[None]:
    keep = Calls.keep

    def first(self: Calls, sample: int, answer: Answer, worker: Any, **more: Any) -> bool:
        if sample:
            more |= {"shown": None}
        return keep(self, sample, answer, worker, **more)

    with patched(Calls, "keep", first):
        yield


@bug("what has left memory is still found by its messages")
def _stale_turns() -> Iterator[None]:
    with patched(TurnIndex, "remove", lambda *_: None):
        yield


@bug("tools are no part of what a conversation is")
def _tools_ignored() -> Iterator[None]:
    own: Any = vars(canonical)["digest"]

    def without(*parts: bytes) -> bytes:
        is_frame = len(parts) == 2 and parts[0].startswith(b'["')
        given: bytes = own(*(parts[1:] if is_frame else parts))
        return given

    with patched(canonical, "digest", without):
        yield


@bug("an answer that is gone on with keeps the token that ended it")
def _continued_behind_its_end() -> Iterator[None]:
    own = prompts._Chat._continued

    def kept(self: Any, found: Any) -> Any:
        before, self._turn_ends = self._turn_ends, frozenset()
        try:
            return own(self, found)
        finally:
            self._turn_ends = before

    with patched(prompts._Chat, "_continued", kept):
        yield


@bug("a chat does not say that it is a branch")
def _branch_not_said() -> Iterator[None]:
    with patched(prompts, "BRANCH", "-"):
        yield


@bug("a client is shown something else than what was sampled")
def _answer_altered() -> Iterator[None]:
    push = AnswerParser.push

    def altered(self: AnswerParser, text: str, marks: Any) -> Any:
        return push(self, text.replace("e", "E"), marks)

    with patched(AnswerParser, "push", altered):
        yield
