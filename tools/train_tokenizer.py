"""Makes what ``src/slime_trio/data`` holds: the corpus and the tokenizer trained on it.

Run ``python -m tools.train_tokenizer`` from the repository root. The output is a function of this
script, its parts and the version of ``tokenizers``; running it twice writes the same bytes. The
chat template beside the tokenizer is written by hand and only carried along.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools import corpus_parts as parts

DATA: Final = Path(__file__).resolve().parent.parent / "src" / "slime_trio" / "data"
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED: Final = ("<think>", "</think>", "<tool_call>", "</tool_call>")
MERGED_VOCABULARY: Final = 4096 - len(SPECIAL) - len(ADDED)
DOCUMENTS: Final = 240
CONTEXT: Final = 32768

# Words with one leading character that is no letter or digit, single digits, runs of punctuation,
# line breaks, and spaces: pieces that never span a word, as current open models cut them.
PIECES: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Chance = random.Random
Turn = tuple[str, str]


def chat(turns: list[Turn]) -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def sum_pair(chance: Chance) -> Turn:
    a, b = chance.randrange(2, 100), chance.randrange(2, 100)
    match chance.randrange(3):
        case 0:
            return f"What is {a} + {b}?", f"{a} + {b} = {a + b}."
        case 1:
            return f"What is {a} - {b}?", f"{a} - {b} = {a - b}."
        case _:
            return f"What is {a} times {b % 10}?", f"{a} times {b % 10} is {a * (b % 10)}."


def thought_pair(chance: Chance) -> Turn:
    a, b = chance.randrange(11, 90), chance.randrange(11, 90)
    steps = (
        f"First the tens: {a // 10 * 10} + {b // 10 * 10} = {a // 10 * 10 + b // 10 * 10}. Then "
        f"the ones: {a % 10} + {b % 10} = {a % 10 + b % 10}. Together that makes {a + b}."
    )
    return f"Add {a} and {b}, step by step.", f"<think>{steps}</think>The answer is {a + b}."


def story(chance: Chance) -> str:
    name, friend = chance.sample(parts.NAMES, 2)
    sentences = (
        f"{name} {chance.choice(parts.VERBS)} a {chance.choice(parts.ADJECTIVES)} "
        f"{chance.choice(parts.THINGS)} near {chance.choice(parts.PLACES)}.",
        f"The {chance.choice(parts.ADJECTIVES)} {chance.choice(parts.ANIMALS)} watched from "
        f"{chance.choice(parts.PLACES)} and said nothing.",
        f'"Is this your {chance.choice(parts.THINGS)}?" asked {friend}.',
        f"It was a {chance.choice(parts.WEATHER)} day, and they walked together to "
        f"{chance.choice(parts.PLACES)}.",
        f"In the end {friend} {chance.choice(parts.VERBS)} the {chance.choice(parts.THINGS)}, and "
        f"{name} was {chance.choice(parts.ADJECTIVES)} again.",
    )
    return " ".join(chance.sample(sentences[:4], chance.randrange(2, 5))) + " " + sentences[4]


def story_pair(chance: Chance) -> Turn:
    subject = chance.choice((*parts.ANIMALS, *parts.THINGS))
    return f"Tell me a story about a {subject}.", story(chance)


def record(chance: Chance) -> dict[str, Any]:
    return {
        "id": chance.randrange(1, 10000),
        "name": chance.choice(parts.NAMES),
        "item": chance.choice(parts.THINGS),
        "price": chance.randrange(100, 9999) / 100,
        "tags": chance.sample(parts.ADJECTIVES, 2),
        "in_stock": chance.random() < 0.5,
        "note": None,
    }


def json_pair(chance: Chance) -> Turn:
    value = record(chance)
    indent = 2 if chance.random() < 0.4 else None
    return (
        f"Give me an order for {value['name']} as JSON.",
        json.dumps(value, indent=indent, ensure_ascii=False),
    )


def tool_turns(chance: Chance) -> list[Turn]:
    city = chance.choice(("Paris", "Tokyo", "Nairobi", "Oslo", "Lima", "Beijing", "Rome"))
    weather, degrees = chance.choice(parts.WEATHER), chance.randrange(-9, 35)
    call = json.dumps({"name": "get_weather", "arguments": {"city": city}})
    return [
        ("user", f"What is the weather like in {city}?"),
        ("assistant", f"<tool_call>\n{call}\n</tool_call>"),
        ("tool", json.dumps({"city": city, "weather": weather, "degrees": degrees})),
        ("assistant", f"It is {weather} in {city}, at {degrees} degrees."),
    ]


def table(chance: Chance) -> str:
    rows = [
        f"| {chance.choice(parts.THINGS)} | {chance.randrange(1, 40)} | "
        f"{chance.randrange(100, 9900) / 100:.2f} |"
        for _ in range(chance.randrange(2, 5))
    ]
    return "\n".join(["| thing | count | price |", "|---|---:|---:|", *rows, ""])


def log_lines(chance: Chance) -> str:
    return "".join(
        f"2024-0{chance.randrange(1, 10)}-1{chance.randrange(10)} 1{chance.randrange(10)}:"
        f"{chance.randrange(10, 60)}:{chance.randrange(10, 60)} "
        f"{chance.choice(('INFO', 'WARNING', 'ERROR'))} worker-{chance.randrange(8)} "
        f"{chance.choice(('request finished', 'connection closed', 'weights updated'))} "
        f"in {chance.randrange(2, 900)} ms\n"
        for _ in range(3)
    )


PAIRS: Final[tuple[Callable[[Chance], Turn], ...]] = (
    lambda chance: chance.choice(parts.QUESTIONS),
    lambda chance: chance.choice(parts.QUESTIONS),
    lambda chance: chance.choice(parts.CHINESE_PAIRS),
    lambda chance: chance.choice(parts.CODE_PAIRS),
    lambda chance: chance.choice(parts.EMOJI_PAIRS),
    sum_pair,
    sum_pair,
    thought_pair,
    story_pair,
    json_pair,
)


def dialogue(chance: Chance) -> str:
    turns: list[Turn] = []
    if chance.random() < 0.5:
        turns.append(("system", chance.choice(parts.SYSTEMS)))
    if chance.random() < 0.12:
        turns += tool_turns(chance)
    for _ in range(chance.randrange(1, 4)):
        question, answer = chance.choice(PAIRS)(chance)
        turns += [("user", question), ("assistant", answer)]
    return chat(turns)


def documents(chance: Chance) -> Iterator[str]:
    """Every hand-written part once, then combinations."""
    yield from (f"{text}\n" for text in (*parts.PARAGRAPHS, *parts.CHINESE_PROSE))
    for pairs in (parts.QUESTIONS, parts.CHINESE_PAIRS, parts.CODE_PAIRS, parts.EMOJI_PAIRS):
        for question, answer in pairs:
            yield chat([("user", question), ("assistant", answer)])
    for number in range(DOCUMENTS):
        match number % 10:
            case 0:
                yield story(chance) + "\n"
            case 1:
                yield table(chance) if number % 20 == 1 else log_lines(chance)
            case _:
                yield dialogue(chance)


def write_corpus() -> str:
    text = "<|endoftext|>".join(documents(random.Random(20240607)))
    (DATA / "corpus.txt").write_text(text, encoding="utf-8", newline="\n")
    return text


def train(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED_VOCABULARY,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # The markers become tokens of their own; merges must not be spent on spelling them out.
    markers = "|".join(re.escape(marker) for marker in (*SPECIAL, *ADDED))
    tokenizer.train_from_iterator(re.split(markers, text), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    return tokenizer


def configuration(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(text)): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": text in SPECIAL,
            }
            for text in (*SPECIAL, *ADDED)
        },
    }


def main() -> None:
    text = write_corpus()
    tokenizer = train(text)
    checkpoint = DATA / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(checkpoint / "tokenizer.json"), pretty=True)
    (checkpoint / "tokenizer_config.json").write_text(
        json.dumps(configuration(tokenizer), indent=2) + "\n", encoding="utf-8"
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    print(
        f"{len(text.encode())} bytes of corpus, {tokenizer.get_vocab_size()} tokens in the "
        f"vocabulary, {len(ids)} tokens in the corpus"
    )


if __name__ == "__main__":
    main()
