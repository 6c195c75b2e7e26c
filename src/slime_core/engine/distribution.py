"""The distribution that a token is drawn from: the model's, as the sampling parameters bend it.

The order of operations is SGLang's: penalties and ``logit_bias`` change the logits (here: log
probabilities), the temperature divides them, then top-k, top-p and min-p cut the tail and the
rest is scaled to one. **The logprob that is reported is that of the very distribution the token
was drawn from**, all of it applied. Greedy decoding is the exception that SGLang makes as well:
the token is certain, and what is reported is its logprob before top-k cuts everything else away,
at temperature 1 when ``temperature`` was 0.

A vocabulary may have 150 000 tokens and a sample should cost microseconds, so only the ids that
differ from the unigram base are listed; the others share it through one factor, and both halves
are inverted by bisection.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from slime_core.engine.language_model import Base, LanguageModel, Mixture
from slime_core.engine.sampling_params import SamplingParams

__all__ = ["Distribution", "Sampler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A normalised distribution over ids, exact to float precision.

    ``listed``: weights of single ids. Every other id ``i`` weighs ``scale * base.weights[i]``;
    ``scale`` is zero after a cut. ``total``: the sum of all weights.
    """

    listed: Mapping[int, float]
    base: Base
    scale: float
    total: float
    _ids: tuple[int, ...]
    _cumulative: tuple[float, ...]
    _gaps: tuple[float, ...]
    _skipped: tuple[float, ...]

    @classmethod
    def of(cls, listed: Mapping[int, float], base: Base, scale: float) -> Distribution:
        """Sums up. ``listed`` must not be empty if ``scale`` is zero."""
        ids = tuple(sorted(listed))
        cumulative = tuple(accumulate(listed[token] for token in ids))
        # Where each listed id would begin on the base's line if the ones before it were cut out,
        # and how much is cut out before that point.
        skipped = (0.0, *accumulate(base.weights[token] for token in ids)) if scale else (0.0,)
        gaps = (
            tuple(base.cumulative[token] - cut for token, cut in zip(ids, skipped[1:], strict=True))
            if scale
            else ()
        )
        tail = max(0.0, scale * (base.total - skipped[-1])) if scale else 0.0
        return cls(
            listed=listed,
            base=base,
            scale=scale,
            total=(cumulative[-1] if cumulative else 0.0) + tail,
            _ids=ids,
            _cumulative=cumulative,
            _gaps=gaps,
            _skipped=skipped,
        )

    def weight(self, token: int) -> float:
        """The weight of any integer; zero for those outside the vocabulary."""
        if token in self.listed:
            return self.listed[token]
        inside = self.scale and 0 <= token < len(self.base.weights)
        return self.scale * self.base.weights[token] if inside else 0.0

    def probability(self, token: int) -> float:
        """The probability of any integer; zero for those outside the vocabulary."""
        return self.weight(token) / self.total

    def logprob(self, token: int) -> float:
        """The natural logarithm of the probability; minus infinity where that is zero."""
        weight = self.weight(token)
        return math.log(weight / self.total) if weight else -math.inf

    def pick(self, chance: float) -> int:
        """The id that a number in [0, 1) stands for: inversion of the distribution function."""
        target = chance * self.total
        if self._cumulative and (target < self._cumulative[-1] or not self.scale):
            place = bisect_right(self._cumulative, target)
            return self._ids[min(place, len(self._ids) - 1)]
        seen = self._cumulative[-1] if self._cumulative else 0.0
        point = (target - seen) / self.scale
        point += self._skipped[bisect_right(self._gaps, point)]
        place = bisect_right(self.base.cumulative, point)
        return place if place < len(self.base.weights) else self.base.ranked[-1]

    def ranked(self) -> Iterator[tuple[float, int]]:
        """(probability, id) from the likeliest on, equal ones by id; lazily."""
        listed = sorted((-weight, token) for token, weight in self.listed.items() if weight)
        weights, scale = self.base.weights, self.scale
        others = (
            (-scale * weights[token], token)
            for token in (self.base.ranked if scale else ())
            if token not in self.listed
        )
        return ((-weight / self.total, token) for weight, token in heapq.merge(listed, others))

    def top(self, count: int) -> list[tuple[int, float]]:
        """The ``count`` likeliest ids with their logprobs; fewer if fewer are possible."""
        return [(token, math.log(share)) for share, token in islice(self.ranked(), count)]


class Sampler:
    """Distributions of a model under sampling parameters; remembers those it built lately.

    ``end_ids`` end a turn; ``min_new_tokens`` forbids them and the request's stop tokens.
    """

    def __init__(
        self, model: LanguageModel, *, end_ids: frozenset[int] = frozenset(), remembered: int = 4096
    ) -> None:
        self.model = model
        self.end_ids = end_ids
        self._remembered = remembered
        self._known: dict[tuple[object, ...], Distribution] = {}

    def distribution(
        self,
        context: Sequence[int],
        params: SamplingParams,
        generated: Sequence[int],
        version: str,
    ) -> Distribution:
        """What the token after ``context`` is drawn from.

        ``context``: prompt and output so far; only its end matters. ``generated``: the output so
        far, for penalties and ``min_new_tokens``. For greedy parameters the distribution is the
        one before the cut to one token; take the first of :meth:`Distribution.ranked`.
        """
        context = context[-self.model.order :]
        changed = _changed_logits(params, generated, self.end_ids)
        if changed:
            return self._built(context, params, changed, version)
        key = (version, params.shape, *context[len(context) - self.model.depth(context) :])
        if key not in self._known:
            if len(self._known) >= self._remembered:
                self._known.clear()
            self._known[key] = self._built(context, params, {}, version)
        return self._known[key]

    def logprob(
        self,
        context: Sequence[int],
        token: int,
        params: SamplingParams,
        generated: Sequence[int],
        version: str,
    ) -> float:
        """The logprob that is reported for ``token``, before rounding to single precision."""
        return self.distribution(context, params, generated, version).logprob(token)

    def sample(
        self,
        context: Sequence[int],
        params: SamplingParams,
        generated: Sequence[int],
        version: str,
        chance: float,
    ) -> tuple[int, Distribution]:
        """The token that ``chance`` in [0, 1) stands for, and what it was drawn from."""
        distribution = self.distribution(context, params, generated, version)
        if params.greedy:
            return next(distribution.ranked())[1], distribution
        return distribution.pick(chance), distribution

    def _built(
        self,
        context: Sequence[int],
        params: SamplingParams,
        changed: Mapping[int, _Change],
        version: str,
    ) -> Distribution:
        mixture = self.model.mixture(context, version)
        power = 1.0 / params.temperature
        base = self.model.base(version, params.temperature)
        plain = self.model.base(version, 1.0).weights
        listed = dict(mixture.known)
        for token, change in changed.items():
            if token < len(plain):
                share = listed.get(token, mixture.rest * plain[token])
                listed[token] = change.applied(share)
        if power != 1.0:
            listed = {token: share**power for token, share in listed.items()}
        full = Distribution.of(listed, base, _scale(mixture, power))
        return full if params.greedy else _cut(full, params)


@dataclass(frozen=True, slots=True)
class _Change:
    """What penalties do to one logit: ``logit * factor + offset``."""

    factor: float
    offset: float

    def applied(self, share: float) -> float:
        return math.exp(math.log(share) * self.factor + self.offset) if share else 0.0


def _scale(mixture: Mixture, power: float) -> float:
    return mixture.rest if power == 1.0 else mixture.rest**power


def _changed_logits(
    params: SamplingParams, generated: Sequence[int], end_ids: frozenset[int]
) -> dict[int, _Change]:
    """The ids whose logits differ from the model's. Penalties count generated tokens only."""
    changed = {token: _Change(1.0, bias) for token, bias in params.logit_bias}
    if params.penalised and generated:
        counts: dict[int, int] = {}
        for token in generated:
            counts[token] = counts.get(token, 0) + 1
        for token, count in counts.items():
            penalty = params.frequency_penalty * count + params.presence_penalty
            bias = changed[token].offset if token in changed else 0.0
            changed[token] = _Change(params.repetition_penalty, bias - penalty)
    if len(generated) < params.min_new_tokens:
        forbidden = end_ids.union(params.stop_token_ids)
        changed.update((token, _Change(1.0, -math.inf)) for token in forbidden)
    return changed


def _cut(full: Distribution, params: SamplingParams) -> Distribution:
    """Top-k, top-p and min-p: the likeliest tokens that all three leave."""
    if not params.cuts:
        return full
    kept: dict[int, float] = {}
    before = 0.0
    threshold = 0.0
    for share, token in full.ranked():
        if not kept:
            threshold = share * params.min_p
        if len(kept) >= params.top_k or before > params.top_p or share < threshold:
            break
        kept[token] = share
        before += share
    return Distribution.of(kept, full.base, 0.0)
