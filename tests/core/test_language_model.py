"""The n-gram model and the distributions it is bent into, against dense recomputation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.engine import LanguageModel, Sampler, SamplingParams, float32, uniform
from slime_core.engine.language_model import style_of

SIZE = 12
DOCUMENTS = st.lists(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=14), max_size=6)
CONTEXTS = st.lists(st.integers(0, SIZE - 1), max_size=5)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([0.2, 0.8, 1.0]),
    top_k=st.sampled_from([2, 5, 1 << 30]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.sampled_from([(), ((3, 2.0),), ((0, -5.0), (7, 1.0))]),
    min_new_tokens=st.sampled_from([0, 3]),
    stop_token_ids=st.sampled_from([(), (4,)]),
)


def naive_probability(
    documents: Sequence[Sequence[int]], context: Sequence[int], token: int, version: str, order: int
) -> float:
    """Witten and Bell's recursion, counted from the documents each time."""
    style = style_of(version)
    everything = [other for document in documents for other in document]
    value = (everything.count(token) + style.smoothing) / (len(everything) + style.smoothing * SIZE)
    for length in range(1, order):
        if length > len(context):
            break
        suffix = list(context[len(context) - length :])
        followers = Counter(
            document[place]
            for document in documents
            for place in range(length, len(document))
            if list(document[place - length : place]) == suffix
        )
        if not followers:
            break
        doubt = style.doubt * len(followers)
        value = (followers[token] + doubt * value) / (followers.total() + doubt)
    return value


def naive_distribution(
    plain: Sequence[float], params: SamplingParams, generated: Sequence[int], end: int
) -> list[float]:
    """The sampling parameters applied to a dense list, one after the other."""
    logits = [math.log(p) for p in plain]
    for token in set(generated):
        logits[token] *= params.repetition_penalty
        logits[token] -= params.frequency_penalty * generated.count(token)
        logits[token] -= params.presence_penalty
    for token, bias in params.logit_bias:
        logits[token] += bias
    weights = [math.exp(logit / params.temperature) for logit in logits]
    if len(generated) < params.min_new_tokens:
        for token in (end, *params.stop_token_ids):
            weights[token] = 0.0
    total = sum(weights)
    shares = [weight / total for weight in weights]
    kept, before = [0.0] * len(shares), 0.0
    ranked = sorted(range(len(shares)), key=lambda token: (-shares[token], token))
    for rank, token in enumerate(ranked):
        if rank < params.top_k and before <= params.top_p:
            if shares[token] >= params.min_p * shares[ranked[0]]:
                kept[token] = shares[token]
            before += shares[token]
    return [share / sum(kept) for share in kept]


@given(DOCUMENTS, CONTEXTS, st.sampled_from(["default", "1", "2"]))
def test_probability_is_the_interpolation_by_definition(
    documents: list[list[int]], context: list[int], version: str
) -> None:
    model = LanguageModel(documents, support=range(SIZE), order=4)
    sampler = Sampler(model)
    distribution = sampler.distribution(context, SamplingParams(), (), version)
    for token in range(SIZE):
        expected = naive_probability(documents, context, token, version, 4)
        assert expected > 0
        assert model.probability(context, token, version) == pytest.approx(expected, rel=1e-9)
        assert distribution.probability(token) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=300)
@given(
    DOCUMENTS, CONTEXTS, PARAMS, st.lists(st.integers(0, SIZE - 1), max_size=4), st.integers(0, 99)
)
def test_sampling_parameters_bend_the_distribution_as_a_dense_computation_does(
    documents: list[list[int]],
    context: list[int],
    params: SamplingParams,
    generated: list[int],
    salt: int,
) -> None:
    model = LanguageModel(documents, support=range(SIZE), order=3)
    sampler = Sampler(model, end_ids=frozenset({1}))
    plain = [model.probability(context, token, "v") for token in range(SIZE)]
    # A share that some tokens make up exactly is a matter of the last bit, too.
    shares = [min(1.0, params.top_p * by) for by in (1 - 1e-9, 1, 1 + 1e-9)]
    dense = [
        naive_distribution(plain, replace(params, top_p=share), generated, end=1)
        for share in shares
    ]
    distribution = sampler.distribution(context, params, generated, "v")
    got = [distribution.probability(token) for token in range(SIZE)]
    # Which of two equally likely tokens a cut leaves is a matter of the last bit.
    fitting = [
        one for one in dense if sorted(got) == pytest.approx(sorted(one), rel=1e-6, abs=1e-12)
    ]
    assert fitting
    if not params.cuts:
        assert got == pytest.approx(fitting[0], rel=1e-6, abs=1e-12)
    assert sum(got) == pytest.approx(1.0)
    token, drawn_from = sampler.sample(context, params, generated, "v", uniform(salt, 0))
    assert drawn_from.probability(token) > 0


@given(DOCUMENTS, CONTEXTS, PARAMS)
def test_picking_inverts_the_distribution_function(
    documents: list[list[int]], context: list[int], params: SamplingParams
) -> None:
    sampler = Sampler(LanguageModel(documents, support=range(SIZE), order=3))
    distribution = sampler.distribution(context, params, (), "v")
    steps = 4000
    counts = Counter(distribution.pick((step + 0.5) / steps) for step in range(steps))
    for token in range(SIZE):
        assert counts[token] / steps == pytest.approx(distribution.probability(token), abs=2e-3)


def test_sampled_frequencies_follow_the_reported_probabilities() -> None:
    sampler = Sampler(LanguageModel([[1, 2, 3, 1, 2, 4, 1, 5]], support=range(8)))
    draws = 20_000
    distribution = sampler.distribution([1], SamplingParams(), (), "v")
    counts = Counter(distribution.pick(uniform(11, place)) for place in range(draws))
    chi_square = sum(
        (counts[token] - draws * distribution.probability(token)) ** 2
        / (draws * distribution.probability(token))
        for token in range(8)
    )
    assert chi_square < 24.3  # 7 degrees of freedom, one in a thousand


def test_every_id_of_a_vocabulary_with_holes_is_possible_and_no_other() -> None:
    model = LanguageModel([[0, 5, 9]], support=[0, 5, 9, 20])
    distribution = Sampler(model).distribution([5], SamplingParams(temperature=0.5), (), "v")
    drawn = {distribution.pick(step / 5000) for step in range(5000)}
    assert drawn <= {0, 5, 9, 20}
    assert {t for t in range(-1, 30) if distribution.probability(t) > 0} == {0, 5, 9, 20}
    assert sum(distribution.probability(token) for token in range(21)) == pytest.approx(1.0)


def test_greedy_takes_the_likeliest_token_and_reports_its_logprob_before_the_cut() -> None:
    sampler = Sampler(LanguageModel([[1, 2], [1, 2], [1, 3]], support=range(5)))
    greedy, plain = SamplingParams(top_k=1), SamplingParams()
    token, distribution = sampler.sample([1], greedy, (), "v", 0.999)
    assert token == 2
    assert distribution.logprob(2) == sampler.logprob([1], 2, plain, (), "v") < 0


def test_top_lists_the_likeliest_ids_in_order() -> None:
    distribution = Sampler(LanguageModel([[1, 2, 1, 2, 1, 3]], support=range(6))).distribution(
        [1], SamplingParams(), (), "v"
    )
    everything = distribution.top(6)
    assert sorted(token for token, _ in everything) == list(range(6))
    logprobs = [logprob for _, logprob in everything]
    assert logprobs == sorted(logprobs, reverse=True)
    assert everything[:2] == distribution.top(2)
    assert dict(everything) == {t: pytest.approx(distribution.logprob(t)) for t in range(6)}


def test_another_weight_version_changes_every_logprob() -> None:
    model = LanguageModel([[1, 2, 3, 4], [1, 3, 2, 4]], support=range(6))
    for context in ([], [1], [1, 2]):
        for token in range(6):
            one, two = (math.log(model.probability(context, token, v)) for v in ("1", "2"))
            assert abs(one - two) > 1e-4


def test_a_document_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        LanguageModel([[1, 9]], support=range(5))


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        LanguageModel([], support=())


def test_chance_is_a_pure_function_of_seed_and_position() -> None:
    assert uniform(7, 3) == uniform(7, 3)
    values = [uniform(seed, place) for seed in range(40) for place in range(40)]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 1 for value in values)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.03)


def test_float32_rounds_to_what_single_precision_can_hold() -> None:
    assert float32(-0.1) == -0.10000000149011612
    assert float32(float32(-1 / 3)) == float32(-1 / 3)
