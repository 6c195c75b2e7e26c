"""Turns of a chat through the router's own code, in the order of the relay, timed step by step.

Times are CPU time of the process, threads included, in microseconds. Nothing waits for a worker:
its answer is made up between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

import msgspec

from benchmarks.chat_talk import Sizes, Talk, Words
from benchmarks.grove import WORKER, answer, checkpoint, new_router
from benchmarks.report import median
from slime_core import openai
from slime_core.chat import canonical as canonical_form
from slime_core.chat.bridge import Delta
from slime_core.chat.index import find_turn
from slime_core.chat.plans import ChatAsk
from slime_core.chat.rendering import Rendered
from slime_core.lookup import Wish
from slime_core.parsing.detect import detect
from slime_core.types import Encoding, PackedIds, token_count
from slime_trio.capture import Capture
from slime_trio.chat_template import ChatTemplate
from slime_trio.chatting import Chatting, load_chatting
from slime_trio.config import Settings
from slime_trio.dialects import ChatDialect
from slime_trio.exchange import Inbound
from slime_trio.tokenizer import Checkpoint

__all__ = [
    "READING",
    "STEPS",
    "Model",
    "Scene",
    "Turned",
    "against_naive",
    "canonical",
    "conversation",
    "load_model",
    "parsed",
    "step_median",
]

R = TypeVar("R")

READING: Final = ("read", "digest", "ask")
"""Steps that cost as much as request and prompt are long: they read or write all of it."""

STEPS: Final = (*READING, "look-up", "render", "prompt", "encode", "answer", "commit")
"""``read``: the body's JSON. ``digest``: the conversation in canonical form. ``ask``: the worker's
body, with all ids. ``look-up``: the message index. ``render``: the bridge, or the whole template.
``prompt``: what else makes the prompt. ``encode``: what is new. ``answer``: parsing it, and the
client's JSON. ``commit``: what is kept of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A tokenizer, a template and parsers."""

    checkpoint: Checkpoint
    chatting: Chatting


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """What a turn was: sizes, and what each of the steps cost."""

    body_bytes: int
    prompt_tokens: int
    flags: tuple[str, ...]
    costs: Mapping[str, float]
    naive: float | None
    """Rendering and encoding the whole prompt, where that was measured."""

    @property
    def own(self) -> float:
        """All steps but those that read or write the whole."""
        return sum(cost for name, cost in self.costs.items() if name not in READING)


def load_model(vocabulary: str) -> Model:
    """The shipped checkpoint, or a family of the tests with its real vocabulary."""
    source = checkpoint()
    if vocabulary == "shipped":
        chatting = load_chatting(source.path, source.tokenizer, Settings())
        return Model(checkpoint=source, chatting=chatting)
    from tests.chat_families import family

    found = family(vocabulary, "real")
    return Model(
        checkpoint=replace(source, tokenizer=found.tokenizer, context_length=None),
        chatting=Chatting(template=found.template, parsers=detect(found.source, list(found.ids))),
    )


class _Clock:
    """Adds up what steps cost."""

    def __init__(self) -> None:
        self.costs = dict.fromkeys(STEPS, 0.0)
        self._at = 0.0

    def start(self) -> None:
        """From here on."""
        self._at = time.process_time()

    def lap(self, step: str) -> None:
        """Up to here it was ``step``."""
        now = time.process_time()
        self.costs[step] += (now - self._at) * 1e6
        self._at = now

    def move(self, microseconds: float, step: str, to: str) -> None:
        """What was counted as ``step`` was ``to``."""
        self.costs[step] -= microseconds
        self.costs[to] += microseconds


class _Watched:
    """A template that tells what it cost; ``refuses``: nothing is proved of it."""

    def __init__(self, template: ChatTemplate, *, refuses: bool) -> None:
        self._template = template
        self._refuses = refuses
        self.turn_ends = template.turn_ends
        self.starts_in_reasoning = template.starts_in_reasoning
        self._spent = 0.0

    def taken(self) -> float:
        """Microseconds since this was last asked."""
        spent, self._spent = self._spent, 0.0
        return spent

    def rendered(self, messages: Sequence[Mapping[str, Any]], **asked: Any) -> Rendered:
        """As the template does."""
        return self._timed(lambda: self._template.rendered(messages, **asked))

    def delta(
        self,
        history: Sequence[Mapping[str, Any]],
        appended: Sequence[Mapping[str, Any]],
        **asked: Any,
    ) -> Delta | None:
        """As the template does."""
        if self._refuses:
            return None
        return self._timed(lambda: self._template.delta(history, appended, **asked))

    def _timed(self, work: Callable[[], R]) -> R:
        started = time.process_time()
        done = work()
        self._spent += (time.process_time() - started) * 1e6
        return done


def parsed(body: bytes, model: Model) -> openai.ChatRequest:
    """The request in ``body``."""
    return openai.parse_chat(body, vocabulary_size=model.checkpoint.tokenizer.vocab_size)


def canonical(chat: openai.ChatRequest) -> ChatAsk:
    """Its conversation in canonical form."""
    told = canonical_form.conversation(
        chat.messages, tools=chat.tools, arguments=chat.template_kwargs, mode="plain"
    )
    return ChatAsk(conversation=told)


async def conversation(
    model: Model, sizes: Sizes, kind: str, turns: int, *, naive: Container[int] = ()
) -> list[Turned]:
    """So many turns of a conversation with a new router; turns in ``naive``, from 1, both ways."""
    scene = Scene(model)
    talk = Talk(scene.words, sizes, kind=kind)
    return [await scene.turn(talk, naive=turn in naive) for turn in range(1, turns + 1)]


def step_median(turns: Iterable[Turned], step: str) -> float:
    """What ``step`` cost in ``turns``."""
    return median([turn.costs[step] for turn in turns])


def against_naive(turns: Sequence[Turned]) -> tuple[float, float, float | None]:
    """What is own, the naive way, and their ratio."""
    own = median([turn.own for turn in turns])
    naive = median([turn.naive for turn in turns if turn.naive is not None])
    return own, naive, own / naive if naive else None


class Scene:
    """A router, and how turns of conversations with it are measured."""

    def __init__(self, model: Model, *, refuses: bool = False) -> None:
        self._model = model
        self._tokenizer = model.checkpoint.tokenizer
        self._template = model.chatting.template
        self._watched = _Watched(self._template, refuses=refuses)
        # Whoever asks for the template gets one that is watched and has all that chats need.
        watched = cast("ChatTemplate", self._watched)
        self._chatting = replace(model.chatting, template=watched)
        self.router: Final = new_router(model.checkpoint)
        self.words: Final = Words(self._tokenizer)

    async def turn(self, talk: Talk, *, naive: bool = False) -> Turned:
        """One turn of ``talk``, which then has the answer and the results of its calls.

        ``naive``: behind the router, the whole prompt is rendered and encoded too, and finds its
        last part in the tokenizer's word cache.
        """
        body = talk.body()
        clock = _Clock()
        dialect, capture, ask = self._arrived(body, clock)
        prompt = await self._asked(dialect, capture, ask, clock)
        whole = await self._whole(talk) if naive else None
        self._answered(talk, dialect, capture, clock)
        return Turned(
            body_bytes=len(body),
            prompt_tokens=token_count(prompt),
            flags=capture.flags,
            costs=clock.costs,
            naive=whole,
        )

    async def _whole(self, talk: Talk) -> float:
        started = time.process_time()
        rendered = self._template.rendered(talk.messages, tools=talk.tools)
        await self._tokenizer.encode_async(
            rendered.text, encoding=Encoding.RENDERED, first=True, plain=rendered.plain
        )
        return (time.process_time() - started) * 1e6

    def _arrived(self, body: bytes, clock: _Clock) -> tuple[ChatDialect, Capture, ChatAsk]:
        clock.start()
        chat = parsed(body, self._model)
        clock.lap("read")
        ask = canonical(chat)
        clock.lap("digest")
        dialect = ChatDialect(
            chat,
            Inbound(method="POST", path="/", target=b"/", headers=[], body=body),
            ask=ask,
            chatting=self._chatting,
            vocabulary=self._tokenizer.vocabulary,
            created=0,
            context_length=None,
            can_constrain_behind_reasoning=True,
        )
        return dialect, Capture(self.router, Wish()), ask

    async def _asked(
        self, dialect: ChatDialect, capture: Capture, ask: ChatAsk, clock: _Clock
    ) -> PackedIds:
        """Up to the worker."""
        started = time.process_time()
        find_turn(self.router.state.forest.turns, ask.conversation, owners={}, wish=Wish())
        found = (time.process_time() - started) * 1e6
        clock.start()
        dialect.open(capture)
        clock.lap("prompt")
        clock.move(found, "prompt", "look-up")
        clock.move(self._watched.taken(), "prompt", "render")
        prompts = await capture.encode()
        clock.lap("encode")
        dialect.worker_body(prompts, capture)
        clock.lap("ask")
        return prompts[0]

    def _answered(self, talk: Talk, dialect: ChatDialect, capture: Capture, clock: _Clock) -> None:
        """From the worker to the client."""
        text = talk.answer()
        given = answer(self.words.sampled(text), text)
        clock.start()
        dialect.read([given])
        kept, shown = dialect.captured(0, given)
        clock.lap("answer")
        capture.keep(0, kept, WORKER, aliases=dialect.aliases(0), shown=shown)
        clock.lap("commit")
        told = dialect.whole(b"", [kept])
        clock.lap("answer")
        talk.take(msgspec.json.decode(told)["choices"][0]["message"])
