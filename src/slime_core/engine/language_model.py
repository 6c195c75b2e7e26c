"""A language model whose every probability can be checked by hand: interpolated n-grams.

The probability of the next token mixes what followed the last one, two, … tokens in the training
text, longest context first, and gives the rest to a unigram distribution that covers every token
of the vocabulary. With ``n`` occurrences of a context that had ``t`` different followers, its
counts get the share ``n / (n + d·t)`` of what the longer contexts left (Witten and Bell's
interpolation; ``d`` scales the doubt). Rejected: back-off with discounts, whose normalisation
needs the sums of excluded followers, and a neural model, whose floats differ between machines.

A weight version is a string. Its hash chooses ``d`` and the smoothing of the unigrams, so two
versions are two models: nearly every logprob differs, and a test can tell which one spoke.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import Final

__all__ = ["Base", "LanguageModel", "Mixture", "Style", "style_of"]

_DOUBT: Final = (0.08, 0.64)
_SMOOTHING: Final = (0.05, 0.5)
_BASES_KEPT: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What a weight version changes: ``doubt`` in shorter contexts' favour, unigram smoothing."""

    doubt: float
    smoothing: float


def style_of(version: str) -> Style:
    """The style of a weight version: geometric between fixed bounds, by the string's hash."""
    digest = blake2b(version.encode(), digest_size=16).digest()
    shares = (int.from_bytes(part, "little") / 2.0**64 for part in (digest[:8], digest[8:]))
    doubt, smoothing = (
        low * (high / low) ** share
        for (low, high), share in zip((_DOUBT, _SMOOTHING), shares, strict=True)
    )
    return Style(doubt=doubt, smoothing=smoothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """One number per id of the vocabulary, with what is needed to sum, rank and invert them.

    ``weights[i]`` is the unigram probability to the power of ``1 / temperature`` (zero for ids
    that no token has), ``cumulative[i]`` the sum up to and including ``i``, ``ranked`` the ids
    from the likeliest on, equal ones by id.
    """

    weights: array[float]
    cumulative: array[float]
    ranked: array[int]

    @property
    def total(self) -> float:
        """The sum of all numbers."""
        return self.cumulative[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The plain distribution behind one context, at temperature 1.

    Ids in ``known`` have the probability stated there; any other id ``i`` has
    ``rest * base.weights[i]``. ``depth`` is the length of the longest context that was seen.
    """

    known: Mapping[int, float]
    rest: float
    depth: int


class LanguageModel:
    """Counts of a training text; every method is a pure function of them and its arguments."""

    def __init__(
        self, documents: Iterable[Sequence[int]], *, support: Iterable[int], order: int = 5
    ) -> None:
        """Counts ``documents`` (token ids; contexts do not reach across them).

        ``support``: every id that may ever be sampled; all get a non-zero probability.
        ``order``: the longest n-gram. Raises ``ValueError`` for an empty support, an order below
        one, or a document with an id outside the support.
        """
        ids = sorted(set(support))
        if not ids or order < 1:
            raise ValueError("a language model needs a vocabulary and an order of at least 1")
        self.support = tuple(ids)
        self.order = order
        self._unigrams: dict[int, int] = {}
        self._followers: dict[tuple[int, ...], dict[int, int]] = {}
        for document in documents:
            self._count(document)
        if not set(self._unigrams) <= set(ids):
            raise ValueError("the training text has ids outside the vocabulary")
        self._sizes = {context: sum(f.values()) for context, f in self._followers.items()}
        self._bases: dict[tuple[str, float], Base] = {}

    def _count(self, document: Sequence[int]) -> None:
        for position, token in enumerate(document):
            self._unigrams[token] = self._unigrams.get(token, 0) + 1
            for length in range(1, min(position, self.order - 1) + 1):
                context = tuple(document[position - length : position])
                followers = self._followers.setdefault(context, {})
                followers[token] = followers.get(token, 0) + 1

    def base(self, version: str, temperature: float) -> Base:
        """The unigram part of a version, at a temperature. Costs a pass over the vocabulary."""
        key = (version, temperature)
        if key not in self._bases:
            if len(self._bases) >= _BASES_KEPT:
                self._bases.pop(next(iter(self._bases)))
            self._bases[key] = self._computed_base(version, temperature)
        return self._bases[key]

    def _computed_base(self, version: str, temperature: float) -> Base:
        smoothing = style_of(version).smoothing
        total = sum(self._unigrams.values()) + smoothing * len(self.support)
        weights = array("d", bytes(8 * (self.support[-1] + 1)))
        unseen = (smoothing / total) ** (1.0 / temperature)
        for token in self.support:
            weights[token] = unseen
        for token, count in self._unigrams.items():
            weights[token] = ((count + smoothing) / total) ** (1.0 / temperature)
        return Base(
            weights=weights,
            cumulative=array("d", accumulate(weights)),
            ranked=array("I", sorted(self.support, key=lambda token: (-weights[token], token))),
        )

    def depth(self, context: Sequence[int]) -> int:
        """How many of the last tokens of ``context`` count: the longest context that was seen."""
        longest = 0
        for length in range(1, min(len(context), self.order - 1) + 1):
            if tuple(context[len(context) - length :]) not in self._followers:
                break
            longest = length
        return longest

    def mixture(self, context: Sequence[int], version: str) -> Mixture:
        """The distribution of the token after ``context`` (any length) under a version."""
        doubt = style_of(version).doubt
        depth = self.depth(context)
        known: dict[int, float] = {}
        rest = 1.0
        for length in range(depth, 0, -1):
            key = tuple(context[len(context) - length :])
            followers, size = self._followers[key], self._sizes[key]
            share = rest / (size + doubt * len(followers))
            for token, count in followers.items():
                known[token] = known.get(token, 0.0) + share * count
            rest -= share * size
        weights = self.base(version, 1.0).weights
        for token in known:
            known[token] += rest * weights[token]
        return Mixture(known=known, rest=rest, depth=depth)

    def probability(self, context: Sequence[int], token: int, version: str) -> float:
        """The probability of one token, at temperature 1; zero outside the support.

        A second way to the numbers of :meth:`mixture`, from the shortest context up, without
        building it: prompt logprobs need one id per position, and tests need a second opinion.
        """
        weights = self.base(version, 1.0).weights
        doubt = style_of(version).doubt
        probability = weights[token] if 0 <= token < len(weights) else 0.0
        for length in range(1, self.depth(context) + 1):
            key = tuple(context[len(context) - length :])
            followers, size = self._followers[key], self._sizes[key]
            mass = size + doubt * len(followers)
            probability = (followers.get(token, 0) + doubt * len(followers) * probability) / mass
        return probability
