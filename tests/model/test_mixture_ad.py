"""The mixture head of continuous actions: its likelihoods, and that actions are drawn as these say."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from context_reference import BOX

from ad_hf.model.heads_ad import EDGE

LOW, HIGH = (np.array(BOX[bound]) for bound in ("low", "high"))
MIXTURE = {"action_space": BOX, "action_distribution": "mixture", "num_action_components": 3}


def parameters(model, logits):
    """Weights (3,), means and standard deviations (3, 2) in units of actions, of one step's logits."""
    weights, means, stds = (part.double().numpy() for part in model.head.mixture(logits))
    half = (HIGH - LOW) / 2
    return np.exp(weights), LOW + (means + 1) * half, stds * half


def slow_likelihood(model, logits, action, temperature=1.0, epsilon=0.0):
    """What the documentation says, one component and dimension after another."""
    weights, means, stds = parameters(model, logits)
    weights = weights ** (1 / temperature) / (weights ** (1 / temperature)).sum()
    edge, total = EDGE * (HIGH - LOW) / 2, 0.0
    for weight, mean, std in zip(weights, means, stds * math.sqrt(temperature)):
        likelihood = weight
        for dimension, value in enumerate(action):
            gaussian = NormalDist(mean[dimension], std[dimension])
            low, high, near = LOW[dimension], HIGH[dimension], edge[dimension]
            if value <= low + near:
                parts = [gaussian.cdf(low + near), near / (high - low)]
            elif value >= high - near:
                parts = [1 - gaussian.cdf(high - near), near / (high - low)]
            else:
                parts = [gaussian.pdf(value), 1 / (high - low)]
            likelihood *= (1 - epsilon) * parts[0] + epsilon * parts[1]
        total += likelihood
    return total


def drawn(model, repetitions=40, num_envs=500, **way):
    """Actions (number, 2) of new histories, their log-probabilities (number,), and the logits of all of them."""
    context = model.init_context(num_envs, **way)
    actions, log_probs = [], []
    for _ in range(repetitions):
        context.reset()
        actions.append(context.act(np.full(num_envs, 3)))
        log_probs.append(context.log_probs.numpy())
    return np.concatenate(actions), np.concatenate(log_probs), context.logits[0]


@pytest.mark.parametrize("way", [{}, {"temperature": 0.5}, {"epsilon": 0.3}, {"epsilon": 1.0}, {"temperature": 2.0}])
def test_actions_are_drawn_as_their_likelihoods_say(make_model, way):
    model = make_model(**MIXTURE)
    actions, log_probs, logits = drawn(model, **way)

    assert (actions >= LOW).all()
    assert (actions <= HIGH).all()
    expected = [math.log(slow_likelihood(model, logits, action, **way)) for action in actions[:200]]
    np.testing.assert_allclose(log_probs[:200], expected, atol=1e-4)
    # Joint distribution function: also at the lower bounds, and just under the upper ones, which have a probability.
    temperature, epsilon = way.get("temperature", 1.0), way.get("epsilon", 0.0)
    weights, means, stds = parameters(model, logits)
    weights, stds = weights ** (1 / temperature), stds * math.sqrt(temperature)
    for places in np.ndindex(5, 5):
        cut = LOW + (0.001 + np.array(places) * 0.2495) * (HIGH - LOW)
        uniform = (cut - LOW) / (HIGH - LOW)
        gaussian = np.vectorize(NormalDist().cdf)((cut - means) / stds)
        parts = ((1 - epsilon) * gaussian + epsilon * uniform).prod(axis=1)
        expected_share = (weights * parts).sum() / weights.sum()
        share = (actions <= cut).all(axis=1).mean()
        assert abs(share - expected_share) < 5 * math.sqrt(expected_share / len(actions)) + 1e-6, places


def test_likelihoods_integrate_to_one(make_model):
    model = make_model(**{**MIXTURE, "action_space": {**BOX, "shape": [1], "low": [-1.0], "high": [3.0]}})
    context = model.init_context(1)
    context.act([3])
    inner = torch.linspace(-1 + 2 * EDGE, 3 - 2 * EDGE, 200_001, dtype=torch.float64)[1:-1].unsqueeze(-1)
    for way in ({}, {"temperature": 3.0}, {"epsilon": 0.4}):
        density = model.head.log_prob(context.logits[0].double(), inner, **way).exp()
        bounds = model.head.log_prob(context.logits[0].double(), torch.tensor([[-1.0], [3.0]]), **way).exp()
        total = density.mean() * (4 - 4 * EDGE) + bounds.sum()
        assert float(total) == pytest.approx(1.0, abs=1e-5)


def test_the_loss_is_the_mean_log_likelihood_of_what_is_no_padding(make_model, make_history):
    model = make_model(**MIXTURE)
    inputs, labels = make_history(model.config, batch=2, time=5)
    labels[0, 0] = torch.tensor(BOX["low"])
    labels[0, 1, 1] = BOX["high"][1]
    attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])

    output = model(**inputs, labels=labels, attention_mask=attention_mask)

    assert output.logits.shape == (2, 5, 3 * (1 + 2 * 2))
    likelihoods = [
        slow_likelihood(model, output.logits[row, step].detach(), labels[row, step].numpy())
        for row, step in zip(*np.nonzero(attention_mask.numpy()))
    ]
    assert output.loss.item() == pytest.approx(-np.log(likelihoods).mean(), rel=1e-4)


def test_gradients_are_finite_at_bounds_far_from_all_gaussians(make_model, make_history):
    model = make_model(**MIXTURE, initializer_range=2.0)
    inputs, _ = make_history(model.config, batch=4, time=8)
    for bound in ("low", "high"):
        model.zero_grad()
        model(**inputs, labels=torch.tensor(BOX[bound]).expand(4, 8, 2)).loss.backward()
        assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_without_sampling_the_weightiest_components_mean_is_taken(make_model):
    model = make_model(**MIXTURE)
    actions, log_probs, logits = drawn(model, repetitions=1, do_sample=False, temperature=0.3)
    weights, means, _ = parameters(model, logits)
    np.testing.assert_allclose(actions, np.broadcast_to(np.clip(means[weights.argmax()], LOW, HIGH), actions.shape))
    assert (log_probs == 0).all()

    mixed, log_probs, _ = drawn(model, repetitions=4, do_sample=False, epsilon=0.25)
    usual = mixed == actions[0]
    assert usual.mean() == pytest.approx(0.75, abs=0.02)
    expected = np.where(usual, 0.75, 0.25 / (HIGH - LOW)).prod(axis=1)
    np.testing.assert_allclose(log_probs, np.log(expected), atol=1e-5)


def test_settings_of_categories_are_refused_and_categories_stay_categories(make_model):
    for way in ({"top_k": 2}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match="top_k and top_p choose among categories"):
            make_model(**MIXTURE).init_context(2, **way)
    assert make_model(action_distribution="mixture", label_smoothing=0.1).head.sizes == [5]
