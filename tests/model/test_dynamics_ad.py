"""Dynamics heads: what they learn of what follows a step, by hand, and that a model without them is as before."""

import numpy as np
import pytest
import ring_world
import torch
from context_reference import BOX, IMAGE, MULTI_DISCRETE, VECTOR
from torch.nn import functional as F

from ad_hf.model.dynamics_ad import reward_values
from ad_hf.model.modeling_ad import ADModel

PARTS = ["observation", "reward", "value", "end"]
SPACES = {
    "discrete": {},
    "multi_discrete": {"observation_space": MULTI_DISCRETE, "action_space": MULTI_DISCRETE},
    "multi_binary": {"observation_space": {"type": "MultiBinary", "n": 3}},
    "vector": {"observation_space": VECTOR, "action_space": BOX, "observation_mean": [0.5, 0.0, -1.0]},
}


@torch.no_grad()
def by_hand(model, inputs, mask):
    """Losses of each part, step by step: (sum, number) of those whose next step in the window tells it."""
    head, discount, scale = model.dynamics, model.config.dynamics_discount, model.config.reward_scale
    states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    values, found = reward_values(), {name: [] for name in PARTS}
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        rewards = (inputs["previous_rewards"][row] / scale).tolist()
        starts = inputs["episode_starts"][row].tolist()
        for step in range(length - 1):
            before, after = (inputs["observations"][row, step + offset][None, None] for offset in (0, 1))
            state, action = states[row, step][None, None], inputs["previous_actions"][row, step + 1][None, None]
            logits = head.transition(state, before, action)
            if starts[step + 1]:  # where it ended is not in the window
                after = head.next_observations(logits, before)
            predicted = head.outcomes(state, after, action)
            found["reward"].append(float(two_hot(predicted.reward[0, 0], rewards[step + 1], values)))
            found["end"].append(float(F.softplus(-predicted.end if starts[step + 1] else predicted.end)))
            if starts[step + 1]:
                continue
            found["observation"].append(float(of_observation(model, logits[0, 0], before[0, 0], after[0, 0])))
            ends = [later for later in range(step + 2, length) if starts[later]]
            last = ends[0] if ends else length - 1
            if ends or discount ** (length - 2 - step) < 0.05:
                total = sum(discount**k * rewards[step + 2 + k] for k in range(last - step - 1))
                found["value"].append(float(two_hot(predicted.value[0, 0], total, values)))
    return {name: (sum(each), len(each)) for name, each in found.items()}


def two_hot(logits, target, values):
    log_probs, target = logits.log_softmax(-1), min(max(target, float(values[0])), float(values[-1]))
    above = int((values < target).sum().clamp(min=1))
    share = (target - values[above - 1]) / (values[above] - values[above - 1])
    return -(1 - share) * log_probs[above - 1] - share * log_probs[above]


def of_observation(model, logits, before, after):
    if model.config.observation_space["type"] == "Box":
        mean, std = logits[:3], 0.01 + F.softplus(logits[3:])
        scale = torch.tensor(model.config.observation_std or [1.0] * 3)
        return -torch.distributions.Normal(mean, std).log_prob((after - before) / scale).sum()
    targets = np.atleast_1d(after.numpy())
    return sum(
        F.cross_entropy(part, torch.tensor(int(t))) for part, t in zip(logits.split(model.dynamics.sizes), targets)
    )


@pytest.mark.parametrize("discount", [0.6, 1.0])
@pytest.mark.parametrize("settings", SPACES.values(), ids=SPACES)
def test_losses_are_of_the_steps_whose_next_one_tells_them(make_model, make_history, settings, discount):
    model = make_model(**settings, dynamics_weight=0.5, dynamics_discount=discount, reward_scale=2.0)
    inputs, labels = make_history(model.config, batch=3, time=14)
    mask = (torch.arange(14) < torch.tensor([[14], [9], [1]])).long()
    plain = make_model(**settings, reward_scale=2.0)
    plain.load_state_dict({name: each for name, each in model.state_dict().items() if "dynamics" not in name})

    output = model(**inputs, labels=labels, attention_mask=mask)

    expected = by_hand(model, inputs, mask)
    assert [*output.losses] == ["actions", *PARTS]
    for name, (total, number) in expected.items():
        assert number > 3
        assert float(output.losses[name]) == pytest.approx(total / number, rel=1e-4), name
    actions = plain(**inputs, labels=labels, attention_mask=mask)
    assert torch.equal(output.losses["actions"], actions.loss)
    assert torch.equal(output.logits, actions.logits)
    dynamics = sum(total for total, _ in expected.values()) / float(mask.sum())
    assert float(output.loss.detach()) == pytest.approx(float(actions.loss.detach()) + 0.5 * dynamics, rel=1e-5)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.dynamics.parameters())


def test_what_is_predicted_is_of_the_action_that_was_taken_and_of_no_label(make_model, make_history):
    """Labels may be those of an expert."""
    model = make_model(dynamics_weight=1.0)
    inputs, labels = make_history(model.config)
    losses, others = (model(**inputs, labels=each).losses for each in (labels, (labels + 1) % 5))
    assert all(torch.equal(losses[name], others[name]) for name in PARTS)
    assert not torch.equal(losses["actions"], others["actions"])


def test_losses_of_parts_of_a_batch_add_up_with_dynamics(make_model, make_history):
    model = make_model(action_space=MULTI_DISCRETE, dynamics_weight=1.0)
    inputs, labels = make_history(model.config, batch=4)
    whole = model(**inputs, labels=labels).loss
    parts = [
        model(
            **{name: each[rows] for name, each in inputs.items()},
            labels=labels[rows],
            num_items_in_batch=torch.tensor(labels.numel()),
        ).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_a_model_without_them_has_the_weights_that_it_had(make_model, tmp_path):
    plain, model = make_model(), make_model(dynamics_weight=1.0)
    heads = {name for name in model.state_dict() if name.startswith("dynamics.")}
    assert model.state_dict().keys() - heads == plain.state_dict().keys()
    assert len(heads) == 12
    model.save_pretrained(tmp_path / "model")
    loaded = ADModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(each, model.state_dict()[name]) for name, each in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"observation_space": IMAGE}, "whose observations are images"),
        ({"observation_space": None, "action_space": None, "groups": {}}, "of several groups"),
    ],
)
def test_models_that_they_do_not_serve_are_refused(make_model, small_settings, settings, kind):
    if "groups" in settings:
        spaces = {name: small_settings[name] for name in ("observation_space", "action_space")}
        settings = {**settings, "groups": {"one": spaces, "other": spaces}}
    with pytest.raises(ValueError, match=f"dynamics_weight must be 0 for a model {kind}"):
        make_model(**settings, dynamics_weight=1.0)


def test_heads_learn_a_small_world(make_model):
    losses = ring_world.train(make_model)[1]
    assert all(float(losses[name]) < 0.2 for name in ("observation", "reward", "end")), losses
    assert float(losses["value"]) < 2.0  # of which the coming actions are unknown
