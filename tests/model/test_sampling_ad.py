"""How actions are drawn: from which distribution, with which log-probability, and from random streams of their own."""

import math

import numpy as np
import pytest
import torch
from context_reference import BOX, MULTI_DISCRETE
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ad_hf.model.heads_ad import action_probabilities, draw, uniform
from ad_hf.model.rollout_ad import RolloutConfig

ACTIONS_3_2 = {"type": "MultiDiscrete", "nvec": [3, 2]}
FIXED = {"deadline": None, "derandomize": True, "database": None}
WAYS = {
    "softmax": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 2},
    "all of top_k": {"top_k": 9},
    "top_p": {"top_p": 0.7},
    "hardly any of top_p": {"top_p": 1e-6},
    "epsilon": {"epsilon": 0.3},
    "uniform": {"epsilon": 1.0},
    "greedy": {"do_sample": False},
    "epsilon-greedy": {"do_sample": False, "epsilon": 0.2},
    "top_k and top_p": {"top_k": 4, "top_p": 0.8},
    "everything": {"temperature": 1.5, "top_k": 4, "top_p": 0.9, "epsilon": 0.1},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def distribution(logits, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, epsilon=0.0):
    """What the settings say, written down for one vector of logits without ties."""
    scores = np.asarray(logits, dtype=np.float64) / temperature
    order = np.argsort(-scores)
    kept = order[: top_k or None] if do_sample else order[:1]
    probabilities = np.zeros(len(scores))
    probabilities[kept] = np.exp(scores[kept] - scores.max())
    probabilities /= probabilities.sum()
    if do_sample:  # the fewest of the likeliest whose probabilities sum to top_p
        before = probabilities[order].cumsum() - probabilities[order]
        probabilities[order[before >= top_p]] = 0.0
        probabilities /= probabilities.sum()
    return (1 - epsilon) * probabilities + epsilon / len(scores)


def first_actions(model, num_envs, repetitions, **way):
    """Actions (repetitions, num_envs, ...) of ever new histories, their log-probabilities, and the logits of each."""
    context = model.init_context(num_envs, rollout_config=RolloutConfig(**way))
    actions, log_probs = [], []
    for _ in range(repetitions):
        context.reset()
        actions.append(context.act(np.full(num_envs, 3)))
        log_probs.append(context.log_probs.numpy())
    return np.stack(actions), np.stack(log_probs), context.logits[0]


def assert_frequencies(categories, probabilities):
    """A chi-square test that fails by chance once in some ten thousand times; the seeds are fixed."""
    counts = np.bincount(categories.ravel(), minlength=len(probabilities))
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities * counts.sum()
    if (possible & (expected < 5)).any():  # they count as one, together with the rarest of the others
        rare = possible & (expected <= expected[expected >= 5].min())
        counts, expected = (np.append(part[possible & ~rare], part[rare].sum()) for part in (counts, expected))
    else:
        counts, expected = counts[possible], expected[possible]
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert statistic <= freedom + 5 * np.sqrt(2 * freedom), (counts, expected)


@ways
def test_actions_are_drawn_as_the_settings_say(make_model, way):
    model = make_model(initializer_range=0.15)
    actions, log_probs, logits = first_actions(model, num_envs=60, repetitions=100, **way)
    probabilities = distribution(logits, **way)

    assert_frequencies(actions, probabilities)
    np.testing.assert_allclose(log_probs, np.log(probabilities[actions]), atol=1e-5)
    pairs = np.outer(probabilities, probabilities).ravel()
    assert_frequencies(5 * actions[:-1:2] + actions[1::2], pairs)  # from one step to the next
    assert_frequencies(5 * actions[:, :-1:2] + actions[:, 1::2], pairs)  # from one environment to the next


@pytest.mark.parametrize("way", [WAYS["softmax"], WAYS["epsilon-greedy"], {"top_k": 2, "epsilon": 0.2}], ids=str)
def test_dimensions_of_an_action_are_drawn_independently(make_model, way):
    model = make_model(action_space=MULTI_DISCRETE, initializer_range=0.15)
    actions, log_probs, logits = first_actions(model, num_envs=60, repetitions=100, **way)
    first, second = (distribution(part, **way) for part in logits.split([3, 2]))

    expected = np.outer(first, second).ravel()
    assert_frequencies(2 * actions[..., 0] + actions[..., 1], expected)
    assert_frequencies(2 * actions[1::2, :, 0] + actions[:-1:2, :, 1], expected)  # from one step to the next, too
    np.testing.assert_allclose(log_probs, np.log(first[actions[..., 0]] * second[actions[..., 1]]), atol=1e-5)


@pytest.mark.parametrize("way", [WAYS["softmax"], WAYS["top_p"], WAYS["greedy"]], ids=str)
def test_continuous_actions_are_evenly_spaced_from_bound_to_bound(make_model, way):
    model = make_model(action_space=BOX, num_action_bins=4, initializer_range=0.15)
    actions, log_probs, logits = first_actions(model, num_envs=60, repetitions=100, **way)

    expected = np.zeros(log_probs.shape)
    for dimension, (low, high) in enumerate(zip(BOX["low"], BOX["high"])):
        bins = (actions[..., dimension] - low) / (high - low) * 3
        np.testing.assert_allclose(bins, bins.round(), atol=1e-5)
        probabilities = distribution(logits.split(4)[dimension], **way)
        assert_frequencies(bins.round().astype(int), probabilities)
        expected += np.log(probabilities[bins.round().astype(int)])
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)
    assert actions.dtype == np.float32


def test_a_step_may_be_greedy_or_sampled_against_the_settings(make_model):
    model = make_model(initializer_range=0.05)
    sampled, greedy = model.init_context(200), model.init_context(200, do_sample=False)
    seen = np.arange(200) % 7
    assert (sampled.act(seen, do_sample=False) == greedy.act(seen)).all()
    assert (sampled.act(seen) != greedy.act(seen)).any()
    assert (greedy.act(seen, do_sample=True) != greedy.logits.argmax(-1).numpy()).any()


@settings(max_examples=150, **FIXED)
@given(
    logits=st.lists(st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6), min_size=1, max_size=4),
    temperature=st.floats(0.1, 10),
    top_k=st.integers(0, 8),
    top_p=st.floats(0.01, 1.0),
)
def test_top_k_and_top_p_are_those_of_generate(logits, temperature, top_k, top_p):
    config = RolloutConfig(temperature=temperature, top_k=top_k, top_p=top_p, epsilon=0.0)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    scores = torch.tensor(logits, dtype=torch.float64)

    probabilities = action_probabilities(scores, config, do_sample=True)

    torch.testing.assert_close(probabilities, warpers(None, scores).softmax(-1))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(scores), dtype=torch.float64))


@settings(max_examples=300, **FIXED)
@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1.0)), min_size=1, max_size=12).filter(any),
    number=st.one_of(st.sampled_from([0.0, 5e-324, math.nextafter(1.0, 0.0)]), st.floats(0, 1, exclude_max=True)),
    on_a_border=st.booleans(),
)
def test_what_has_no_probability_is_never_drawn(weights, number, on_a_border):
    probabilities = torch.tensor([weights], dtype=torch.float64)
    probabilities = probabilities / probabilities.sum()
    if on_a_border:  # one of the sums at which a category ends and the next one begins
        sums = probabilities.cumsum(-1)[0]
        number = min(float(sums[int(number * len(sums))]), math.nextafter(1.0, 0.0))

    category = int(draw(probabilities, torch.tensor([number], dtype=torch.float64)))

    assert weights[category] > 0


def test_sums_that_round_to_less_than_one_leave_no_gap():
    tenths = torch.tensor([[0.1] * 10 + [0.0, 0.0]], dtype=torch.float64)
    assert tenths.cumsum(-1)[0, -1] < 1
    assert draw(tenths, torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)).tolist() == [9]
    assert draw(tenths, torch.tensor([0.0], dtype=torch.float64)).tolist() == [0]


def test_random_numbers_are_uniform_in_every_direction():
    seeds = np.array([0, 1, 2, 3, 1000, 2**32, 2**63, 2**64 - 1], dtype=np.uint64)
    numbers = np.stack([uniform(seeds, np.full(8, counter), 3) for counter in range(4000)])  # (counters, seeds, 3)

    assert numbers.min() >= 0
    assert numbers.max() < 1
    cells = (numbers * 10).astype(int)
    assert_frequencies(cells, np.full(10, 0.1))
    pairs = np.full(100, 0.01)
    assert_frequencies(10 * cells[:-1:2] + cells[1::2], pairs)
    assert_frequencies(10 * cells[:, :-1:2] + cells[:, 1::2], pairs)
    assert_frequencies(10 * cells[:, :, 0] + cells[:, :, 1], pairs)
    assert_frequencies(10 * cells[:, :, 2][:-1] + cells[:, :, 0][1:], pairs)
    assert len(np.unique(numbers)) == numbers.size
