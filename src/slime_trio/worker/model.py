"""From a checkpoint's directory to a language model: tokenizer, corpus, counts, script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from slime_core.engine import (
    Engine,
    EngineOptions,
    Finish,
    LanguageModel,
    Reply,
    Script,
    Stop,
    in_turn,
)
from slime_core.vocabulary import Vocabulary, from_tokenizer_json
from slime_trio.tokenizer import CheckpointError, load_checkpoint
from slime_trio.worker.options import WorkerOptions

__all__ = ["Model", "load_engine", "load_model"]

CORPUS: Final = Path(__file__).resolve().parent.parent / "data" / "corpus.txt"
_END_OF_DOCUMENT: Final = "<|endoftext|>"
_END_OF_TURN: Final = "<|im_end|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A tokenizer and what was learnt with it. ``end_ids`` end an answer."""

    path: Path
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    end_ids: frozenset[int]
    language: LanguageModel

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to ids, as SGLang does: special tokens for raw prompts, none for rendered ones."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


def load_model(path: Path) -> Model:
    """Reads the tokenizer and counts the shipped corpus with it. Blocks (0.2 s for the shipped
    tokenizer). Raises ``CheckpointError`` for a directory that cannot be used."""
    checkpoint = load_checkpoint(path)
    source = (path / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_buffer(source)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = False
    vocabulary = from_tokenizer_json(msgspec.json.decode(source))
    if vocabulary is None:
        raise CheckpointError(f"{path}: the decoder of this tokenizer is of an unknown kind")
    end_ids = checkpoint.tokenizer.eos_ids
    encoded = tokenizer.encode_batch(_documents(vocabulary, end_ids), add_special_tokens=False)
    language = LanguageModel(
        [document.ids for document in encoded],
        support=(token for token in range(len(vocabulary)) if token in vocabulary),
    )
    return Model(
        path=path, tokenizer=tokenizer, vocabulary=vocabulary, end_ids=end_ids, language=language
    )


def _documents(vocabulary: Vocabulary, end_ids: frozenset[int]) -> list[str]:
    """The corpus in pieces; turns end with the tokenizer's own end token if it has no ChatML."""
    text = CORPUS.read_text(encoding="utf-8")
    known = {token.content for token in vocabulary.added.values()}
    if _END_OF_TURN not in known and end_ids:
        end = vocabulary.decode([min(end_ids)], skip_special=False)
        text = text.replace(_END_OF_TURN, end)
    return text.split(_END_OF_DOCUMENT)


def load_engine(options: WorkerOptions, model: Model) -> Engine:
    """The engine of a worker with these options."""
    script = options.script
    if script is None and options.script_file is not None:
        script = _script(options.script_file, model)
    return Engine(
        model=model.language,
        vocabulary=model.vocabulary,
        end_ids=model.end_ids,
        version=options.weight_version,
        script=script,
        options=EngineOptions(
            context_length=options.context_length,
            max_running_requests=options.max_running_requests,
            queue_max=options.queue_max,
            s_per_token=options.ms_per_token / 1000,
            prefill_tokens_per_s=options.prefill_tokens_per_s,
            prefix_cache_tokens=options.prefix_cache_tokens,
            role=options.role,
            transfer_timeout_s=options.transfer_timeout_s,
        ),
    )


def _script(path: Path, model: Model) -> Script:
    """Raises ``CheckpointError`` for a file that cannot be read as a script."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[Any])
        return in_turn([_reply(entry, model) for entry in entries])
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: no readable script: {error}") from None


def _reply(entry: Any, model: Model) -> Reply:
    """One answer. A text is encoded and ended with an end token, as a model would end it."""
    if isinstance(entry, str):
        entry = {"text": entry}
    if isinstance(entry, list):
        entry = {"ids": entry}
    if not isinstance(entry, dict) or ("text" in entry) == ("ids" in entry):
        raise ValueError("each answer is a string, a list of ids, or an object with one of both")
    finish: Finish | None = None
    if "text" in entry:
        end = min(model.end_ids, default=None)
        ids = model.encode(entry["text"], add_special_tokens=False)
        ids, finish = (ids, Stop(None)) if end is None else ([*ids, end], None)
    else:
        ids = msgspec.convert(entry["ids"], list[int])
        if not all(token in model.vocabulary for token in ids):
            raise ValueError("an id is not in the vocabulary")
    logprobs = entry.get("logprobs")
    stated = None if logprobs is None else tuple(msgspec.convert(logprobs, list[float]))
    return Reply(ids=tuple(ids), logprobs=stated, finish=finish)
