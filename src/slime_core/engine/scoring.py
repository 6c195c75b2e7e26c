"""Logprobs as they are reported: for drawn tokens, their rivals, and the tokens of a prompt."""

from __future__ import annotations

import math

from slime_core.engine.chance import float32
from slime_core.engine.distribution import Distribution, Sampler
from slime_core.engine.generation import Generation, Score
from slime_core.engine.language_model import LanguageModel
from slime_core.engine.sampling_params import SamplingParams

__all__ = ["prompt_scores", "score"]

_PLAIN = SamplingParams()


def score(token: int, logprob: float, distribution: Distribution, asked: Generation) -> Score:
    """A drawn token with what was asked about its position."""
    return Score(
        token=token,
        logprob=_reported(logprob),
        top=tuple((rival, _reported(value)) for rival, value in distribution.top(asked.top))
        if asked.top
        else (),
        watched=tuple((rival, _reported(distribution.logprob(rival))) for rival in asked.watched),
    )


def prompt_scores(model: LanguageModel, asked: Generation, version: str) -> tuple[Score, ...]:
    """The prompt's logprobs from the asked position on, at temperature 1 and without any cut.

    The first of them has no logprob, as in SGLang, wherever the range begins.
    """
    start = asked.prompt_scores_from
    if start is None:
        return ()
    ids = asked.prompt_ids
    scores = [Score(token=token, logprob=None) for token in ids[start : start + 1]]
    sampler = Sampler(model)
    for place in range(start + 1, len(ids)):
        context = ids[max(0, place - model.order) : place]
        if asked.top or asked.watched:
            plain = sampler.distribution(context, _PLAIN, (), version)
            scores.append(score(ids[place], plain.logprob(ids[place]), plain, asked))
        else:
            probability = model.probability(context, ids[place], version)
            logprob = math.log(probability) if probability else -math.inf
            scores.append(Score(token=ids[place], logprob=_reported(logprob)))
    return tuple(scores)


def _reported(logprob: float) -> float | None:
    return float32(logprob) if math.isfinite(logprob) else None
