"""What a turn costs to tokenise with the token cache, against encoding the whole prompt.

Conversations of several turns under one system prompt, in groups that share a question, as GRPO
samples them. The cost of a turn is all that the router does to have the prompt's ids: look the
text up, open the call, encode the tail. Both sides are CPU time of the process, threads included,
and both find the tokenizer's own word cache warm.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import trio

from benchmarks.grove import WORKER, Speech, answer, checkpoint, new_router
from benchmarks.prose import prose
from benchmarks.report import Cell, Table, median, run
from slime_core.capture import Prompt
from slime_core.lookup import Wish
from slime_core.types import Encoding, PackedIds, token_count
from slime_trio.capture import Capture
from slime_trio.chat_template import ChatTemplate, load_chat_template
from slime_trio.router import Router

__all__ = ["COLUMNS", "Options", "measure"]

COLUMNS = (
    "turn",
    "prompt tokens",
    "reused",
    "encoded",
    "whole µs",
    "router µs",
    "router / whole",
    "claim",
    "holds",
)
_STOP = {"shipped": "<|im_end|>", "qwen": "<|im_end|>", "llama3": "<|eot_id|>"}
_DEEPSEEK_END = "<｜end▁of▁sentence｜>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Sizes in tokens are approximate: texts are cut by characters."""

    vocabularies: tuple[str, ...] = ("shipped", "qwen", "deepseek")
    groups: int = 4
    siblings: int = 4
    turns: int = 16
    system_tokens: int = 1500
    question_tokens: int = 120
    answer_tokens: int = 250


@dataclass(slots=True)
class _Row:
    """The samples of one row of the table."""

    whole: list[float] = field(default_factory=list)
    router: list[float] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Talk:
    group: int
    number: int
    messages: list[dict[str, Any]]


def measure(options: Options) -> list[Table]:
    """A table for each vocabulary."""
    return [trio.run(_measure, options, name) for name in options.vocabularies]


async def _measure(options: Options, vocabulary: str) -> Table:
    source = checkpoint(vocabulary)
    router = new_router(source)
    scene = _Scene(options, vocabulary, router)
    await scene.warm()
    rows: dict[str, _Row] = {}
    talks = scene.talks()
    for turn in range(1, options.turns + 1):
        for talk in talks:
            label = _label(turn, talk)
            await scene.turn(talk, turn, rows.setdefault(label, _Row()))
    counters = router.state.counters
    repeated = await _encoded_at_once(options, vocabulary)
    return Table(
        title=f"Tokenising a turn, vocabulary {vocabulary} (medians over conversations)",
        columns=COLUMNS,
        rows=tuple(_cells(label, row) for label, row in rows.items()),
        notes=(
            f"hit rate {counters.hits / counters.lookups:.1%} of {counters.lookups} look-ups, "
            f"token hit rate {counters.reused_tokens / counters.prompt_tokens:.1%} of "
            f"{counters.prompt_tokens:,} prompt tokens (claim: over 60%)",
            f"system prompt encoded once for {len(talks)} conversations that came in turn: "
            f"{'yes' if scene.encoded_system == 1 else f'no, {scene.encoded_system} times'}",
            f"encoded {repeated} times when all {len(talks)} came before the first answer",
        ),
    )


def _label(turn: int, talk: _Talk) -> str:
    if turn > 1:
        return str(turn)
    if talk.number:
        return "1, sibling"
    return "1, new question" if talk.group else "1, first of all"


def _cells(label: str, row: _Row) -> tuple[Cell, ...]:
    whole, router = median(row.whole), median(row.router)
    prompt, reused = int(median(row.prompt)), int(median(row.reused))
    ratio = router / whole if whole else 0.0
    claim = {"1": None, "2": 0.33}.get(label[0] if "," in label else label, 0.25)
    return (
        label,
        prompt,
        reused,
        prompt - reused,
        whole,
        router,
        ratio,
        None if claim is None else f"≤ {claim:.0%}",
        None if claim is None else ("yes" if ratio <= claim else "no"),
    )


class _Scene:
    """One router, its conversations, and how a turn of them is measured."""

    def __init__(self, options: Options, vocabulary: str, router: Router) -> None:
        tokenizer = router.tokenizer
        self._options = options
        self._deepseek = vocabulary == "deepseek"
        self._router = router
        self._speech = Speech(
            tokenizer, stop=_DEEPSEEK_END if self._deepseek else _STOP.get(vocabulary)
        )
        self._template: ChatTemplate = load_chat_template(
            checkpoint().path, tokenizer=checkpoint().tokenizer
        )
        sample = prose(1, 20_000)
        ids = tokenizer.encode(sample, encoding=Encoding.RENDERED, first=False)
        self._per_token = len(sample) / len(ids)
        self.encoded_system = 0
        """How many conversations had to encode the system prompt."""

    def _text(self, seed: int, tokens: int) -> str:
        return prose(seed, int(tokens * self._per_token))

    def talks(self) -> list[_Talk]:
        """One conversation per sample, all under one system prompt, one question per group."""
        options = self._options
        system = {"role": "system", "content": self._text(2, options.system_tokens)}
        return [
            _Talk(group, number, [system, self._question(1, group)])
            for group in range(options.groups)
            for number in range(options.siblings)
        ]

    def _question(self, turn: int, seed: int) -> dict[str, Any]:
        text = self._text(1000 * turn + seed, self._options.question_tokens)
        return {"role": "user", "content": text}

    def render(self, talk: _Talk) -> str:
        """The prompt's text; DeepSeek's own markers take the place of ChatML's there."""
        text = self._template.render(
            talk.messages, tools=None, add_generation_prompt=True, chat_template_kwargs=None
        )
        if not self._deepseek:
            return text
        for chatml, own in (
            ("<|im_start|>system\n", ""),
            ("<|im_start|>user\n", "<｜User｜>"),
            ("<|im_start|>assistant\n", "<｜Assistant｜>"),
            ("<|im_end|>\n", _DEEPSEEK_END),
        ):
            text = text.replace(chatml, own)
        return text

    async def warm(self) -> None:
        """Load what is loaded only once: threads, the tokenizer's word cache, the template."""
        await self._whole(self.render(self.talks()[0]))

    async def _whole(self, text: str) -> PackedIds:
        return await self._router.tokenizer.encode_async(
            text, encoding=Encoding.RENDERED, first=True
        )

    async def turn(self, talk: _Talk, turn: int, row: _Row) -> None:
        """Ask, measure both ways to the prompt's ids, and take the answer."""
        text = self.render(talk)
        await self._whole(text)
        started = time.process_time()
        await self._whole(text)
        between = time.process_time()
        capture, prompt = await _open(self._router, text)
        row.router.append((time.process_time() - between) * 1e6)
        row.whole.append((between - started) * 1e6)
        row.prompt.append(token_count(capture.prompts[0]))
        row.reused.append(prompt.looked_up().reused)
        self.encoded_system += turn == 1 and self.is_system_encoded(prompt)
        ids, said = self._speech.say(self._options.answer_tokens)
        capture.keep(0, answer(ids, said), WORKER)
        talk.messages += [
            {"role": "assistant", "content": said},
            self._question(turn + 1, talk.group),
        ]

    def is_system_encoded(self, prompt: Prompt) -> bool:
        """Whether this call had to encode the system prompt."""
        return prompt.looked_up().reused < self._options.system_tokens // 2


async def _open(router: Router, text: str) -> tuple[Capture, Prompt]:
    """What the router does with a prompt before it asks a worker."""
    capture = Capture(router, Wish())
    capture.open_text(text, Encoding.RENDERED, 1)
    ((_, prompt),) = capture.to_encode()
    await capture.encode()
    return capture, prompt


async def _encoded_at_once(options: Options, vocabulary: str) -> int:
    """How often the system prompt is encoded if all first turns are asked before any answer."""
    router = new_router(checkpoint(vocabulary))
    scene = _Scene(options, vocabulary, router)
    prompts = [(await _open(router, scene.render(talk)))[1] for talk in scene.talks()]
    return sum(map(scene.is_system_encoded, prompts))


if __name__ == "__main__":
    run(Options, measure)
