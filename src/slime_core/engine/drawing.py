"""One request's next token, and whether it ends the answer."""

from __future__ import annotations

from slime_core.engine.chance import uniform
from slime_core.engine.distribution import Distribution, Sampler
from slime_core.engine.generation import Abort, Finish, Length, Score
from slime_core.engine.run import Run
from slime_core.engine.scoring import score
from slime_core.engine.stops import finish_after
from slime_core.vocabulary import Vocabulary

__all__ = ["draw", "finish_of", "token_limit"]


def token_limit(run: Run, context_length: int) -> int:
    """How many tokens the answer may have."""
    room = context_length - len(run.generation.prompt_ids)
    asked = run.generation.params.max_new_tokens
    return room if asked is None else min(room, asked)


def finish_of(
    run: Run, limit: int, end_ids: frozenset[int], vocabulary: Vocabulary
) -> Finish | None:
    """Why the answer ends with the token taken last; ``None``: it goes on."""
    if run.aborted:
        return Abort()
    finish = finish_after(run.output_ids, run.generation.params, limit, end_ids, vocabulary)
    if finish is None and run.reply is not None and len(run.output_ids) == len(run.reply.ids):
        return run.reply.finish or Length(len(run.reply.ids))
    return finish


def draw(sampler: Sampler, run: Run, version: str) -> Score:
    """The next token: the script's, or drawn by the chance of this seed and position."""
    asked, place = run.generation, len(run.output_ids)
    context = run.tail(sampler.model.order)
    if run.reply is None:
        chance = uniform(asked.seed, place)
        token, distribution = sampler.sample(context, asked.params, run.output_ids, version, chance)
        return score(token, distribution.logprob(token), distribution, asked)
    distribution = sampler.distribution(context, asked.params, run.output_ids, version)
    token = run.reply.ids[place]
    return score(token, _stated(run, place, distribution), distribution, asked)


def _stated(run: Run, place: int, distribution: Distribution) -> float:
    """The logprob of a scripted token: the one it came with, else the model's own."""
    assert run.reply is not None
    if run.reply.logprobs is not None:
        return run.reply.logprobs[place]
    return distribution.logprob(run.reply.ids[place])
