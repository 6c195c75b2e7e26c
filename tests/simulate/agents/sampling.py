"""How answers shall be sampled, and the ways in which they end."""

from __future__ import annotations

import random
from typing import Any, Final

from slime_core.types import Encoding
from tests.simulate.agents.wording import STOPS
from tests.simulate.knobs import Knobs
from tests.simulate.tokens import Tokens

__all__ = ["draw_sampling", "for_openai"]

_OPENAI_NAMES: Final = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
}
_FORBIDDING: Final = frozenset({"top_k", "top_p", "min_p", "min_new_tokens"})


def draw_sampling(knobs: Knobs, tokens: Tokens, chance: random.Random, seen: str) -> dict[str, Any]:
    """``sampling_params`` as SGLang names them. ``seen``: text that may well be sampled again."""
    params: dict[str, Any] = {"max_new_tokens": chance.randint(1, max(1, knobs.answer_tokens))}
    temperature = chance.choice((None, 0.0, 0.7, 1.0, 1.5))
    if temperature is not None:
        params["temperature"] = temperature
    if chance.random() < 0.2:
        params |= chance.choice(
            ({"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"frequency_penalty": 0.5}, {"top_k": 1})
        )
    if chance.random() < 0.1:
        params["sampling_seed"] = chance.randrange(1000)
    if chance.random() < knobs.endings:
        for _ in range(chance.randint(1, 3)):
            params |= chance.choice(_ENDINGS)(tokens, chance, seen)
        least = params.get("min_new_tokens", 0)
        params["max_new_tokens"] = max(params["max_new_tokens"], least)
    if knobs.scripts:
        # What these forbid, a script may say, and then nothing would have a probability.
        params = {name: value for name, value in params.items() if name not in _FORBIDDING}
    return params


def for_openai(params: dict[str, Any]) -> dict[str, Any]:
    """The same in the words of OpenAI's API and of its users' extensions."""
    return {
        _OPENAI_NAMES.get(name, name): max(1, value) if name == "max_new_tokens" else value
        for name, value in params.items()
        if name != "n"
    }


def _stop_strings(tokens: Tokens, chance: random.Random, seen: str) -> dict[str, Any]:
    stops = [chance.choice(STOPS) for _ in range(chance.randint(1, 3))]
    if seen and chance.random() < 0.5:
        start = chance.randrange(len(seen))
        stops.append(seen[start : start + chance.randint(1, 4)])
    return {"stop": stops[0] if len(stops) == 1 else stops}


def _stop_tokens(tokens: Tokens, chance: random.Random, seen: str) -> dict[str, Any]:
    words = chance.choice(STOPS) + seen[:8]
    ids = tokens.encode(words, encoding=Encoding.RENDERED, first=False)
    return {"stop_token_ids": chance.sample(ids, min(len(ids), 3))}


def _flags(**flags: Any) -> Any:
    return lambda tokens, chance, seen: flags


_ENDINGS: Final = (
    _stop_strings,
    _stop_strings,
    _stop_tokens,
    _flags(ignore_eos=True),
    _flags(skip_special_tokens=False),
    _flags(no_stop_trim=True),
    _flags(min_new_tokens=2),
    _flags(max_new_tokens=1),
    _flags(max_new_tokens=0),
    _flags(stop_regex="[0-9]+|\\s\\w"),
)
