"""ADContext: what a model acts on is, at every step, the model on exactly the steps that the context should hold."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space

from ad_hf.envs.spaces import space_from_json
from ad_hf.model import ADModel
from ad_hf.model.cache_ad import ADCache
from ad_hf.model.rollout_ad import RolloutConfig

VECTOR = {"type": "Box", "shape": [3], "low": [-1.0] * 3, "high": [1.0] * 3, "dtype": "float32"}
MULTI_DISCRETE = {"type": "MultiDiscrete", "nvec": [3, 2]}
BOX = {"type": "Box", "shape": [2], "low": [-1.0, 0.0], "high": [1.0, 4.0], "dtype": "float32"}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
    "vocab_size": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}


class ReferenceContext:
    """The documented rule, slowly: a Python list of steps per environment, encoded alone and without a cache."""

    def __init__(self, model: ADModel, num_envs: int, none: torch.Tensor) -> None:
        self.model, self.none = model, none
        self.steps: list[list[tuple]] = [[] for _ in range(num_envs)]
        self.last_actions: list[torch.Tensor | None] = [None] * num_envs  # none before a history's first step

    def reset(self, index: int) -> None:
        self.steps[index], self.last_actions[index] = [], None

    @torch.no_grad()
    def logits(self, index: int, observation, reward, start) -> torch.Tensor:
        steps, last_action = self.steps[index], self.last_actions[index]
        if len(steps) == self.model.config.context_length:
            del steps[: max(1, len(steps) // 4)]
        if last_action is None:
            last_action, reward, start = self.none, 0.0, True
        steps.append((torch.as_tensor(observation), last_action, torch.tensor(reward).float(), torch.tensor(start)))
        inputs = [torch.stack(parts).unsqueeze(0) for parts in zip(*steps)]
        return self.model(*inputs).logits[0, -1]


def assert_agrees(model, none, num_envs, num_steps, seed=0, active_probability=1.0, reset_probability=0.0):
    """Drive a context with random steps; returns how often a row was inactive while full, and while another slid."""
    rng = np.random.default_rng(seed)
    space = batch_space(space_from_json(model.config.observation_space), num_envs)
    space.seed(seed)
    context, reference = model.init_context(num_envs, seed=seed), ReferenceContext(model, num_envs, none)
    length = model.config.context_length
    inactive_while_full = inactive_while_another_slides = 0
    for step in range(num_steps):
        resets = rng.random(num_envs) < reset_probability
        if resets.any():
            context.reset(resets)
            for index in np.flatnonzero(resets):
                reference.reset(index)
        observations, rewards = space.sample(), rng.normal(size=num_envs)
        starts, active = rng.random(num_envs) < 0.2, rng.random(num_envs) < active_probability
        full = np.array([len(steps) == length for steps in reference.steps])
        inactive_while_full += (full & ~active).sum()
        inactive_while_another_slides += (~active).sum() * (full & active).any()

        actions = context.act(observations, rewards, starts, active if active_probability < 1 else None)

        for index in np.flatnonzero(active):
            expected = reference.logits(index, observations[index], rewards[index], starts[index])
            error = (context.logits[index] - expected).abs().max().item()
            assert error < 1e-4, f"environment {index} at step {step}: {error}"
            reference.last_actions[index] = torch.as_tensor(actions[index])
        assert context.lengths.tolist() == [len(steps) for steps in reference.steps]
    return inactive_while_full, inactive_while_another_slides


@pytest.mark.parametrize("action_space", [{"type": "Discrete", "n": 5}, MULTI_DISCRETE, BOX], ids=lambda s: s["type"])
def test_logits_are_the_models_on_the_held_steps_long_after_the_context_is_full(make_model, none_action, action_space):
    model = make_model(observation_space=VECTOR, action_space=action_space)
    assert_agrees(model, none_action(action_space), num_envs=3, num_steps=110)


@pytest.mark.parametrize("seed", [0, 1])
def test_environments_that_pause_and_start_anew_on_their_own_do_not_disturb_each_other(make_model, none_action, seed):
    model = make_model(observation_space=MULTI_DISCRETE)
    none = none_action(model.config.action_space)

    seen = assert_agrees(model, none, 5, 150, seed, active_probability=0.7, reset_probability=0.012)

    assert min(seen) > 20  # the run went through the cases that it is there for


@pytest.mark.parametrize("context_length", [1, 2, 3, 4, 5])
def test_tiny_contexts_slide_correctly(make_model, none_action, context_length):
    model = make_model(context_length=context_length)
    none = none_action(model.config.action_space)
    assert_agrees(model, none, num_envs=3, num_steps=25)
    assert_agrees(model, none, num_envs=3, num_steps=40, active_probability=0.6, reset_probability=0.03)


@pytest.mark.parametrize(
    "backbone",
    [
        LLAMA,
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "initializer_range": 0.3},
    ],
    ids=lambda config: config["model_type"],
)
def test_backbones_re_encode_the_held_steps(make_model, none_action, backbone):
    model = make_model(backbone_config={**backbone, "vocab_size": 4, "bos_token_id": None, "eos_token_id": None})
    none = none_action(model.config.action_space)
    assert_agrees(model, none, num_envs=3, num_steps=40)
    assert_agrees(model, none, num_envs=4, num_steps=60, active_probability=0.7, reset_probability=0.03)


def test_images_as_unsigned_bytes_are_remembered(make_model, none_action):
    image = {"type": "Box", "shape": [4, 4, 1], "low": [0], "high": [255], "dtype": "uint8"}
    model = make_model(observation_space=image, context_length=6)
    assert_agrees(model, none_action(model.config.action_space), num_envs=2, num_steps=20)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_observations_may_be_integers_of_any_type(make_model, dtype):
    model = make_model(context_length=4)
    contexts = [model.init_context(2), model.init_context(2)]
    for step in range(8):
        observations = np.array([step, 2 * step]) % 7
        actions = [
            context.act(values) for context, values in zip(contexts, [observations, observations.astype(dtype)])
        ]
        assert (actions[0] == actions[1]).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 6], [3, 9]])
def test_a_cache_filled_in_chunks_gives_the_logits_of_one_pass(make_model, make_history, attention, chunks):
    model = make_model(attn_implementation=attention)
    inputs, _ = make_history(model.config, batch=3, time=12)
    cache = ADCache(model.config, 3, torch.device("cpu"), torch.float32)

    parts = zip(*(part.split(chunks, dim=1) for part in inputs.values()))
    logits = torch.cat([model(*part, past_key_values=cache).logits for part in parts], dim=1)

    torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_cache_refuses_more_steps_than_it_holds(make_model, make_history):
    model = make_model(context_length=4)
    inputs, _ = make_history(model.config, batch=1, time=5)
    with pytest.raises(ValueError, match="holds 4 steps"):
        model(**inputs, past_key_values=ADCache(model.config, 1, torch.device("cpu"), torch.float32))


def first_actions(model, num_envs, repetitions, **settings):
    """Actions (repetitions, num_envs, ...) at the first step of ever new histories, and their logits."""
    context = model.init_context(num_envs, rollout_config=RolloutConfig(**settings))
    observations = np.full(num_envs, 3)
    actions = []
    for _ in range(repetitions):
        context.reset()
        actions.append(context.act(observations))
    return np.stack(actions), context.logits[0]


def assert_frequencies(categories, probabilities):
    """A chi-square test that fails by chance once in some ten thousand times; the seeds are fixed."""
    counts = np.bincount(categories.ravel(), minlength=len(probabilities))
    expected = probabilities * counts.sum()
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(probabilities) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom), (counts, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_actions_are_drawn_from_the_tempered_softmax(make_model, temperature):
    model = make_model(initializer_range=0.15)
    actions, logits = first_actions(model, num_envs=60, repetitions=100, temperature=temperature)
    probabilities = (logits.double() / temperature).softmax(-1).numpy()

    assert probabilities.min() * actions.size > 5
    assert_frequencies(actions, probabilities)
    pairs = np.outer(probabilities, probabilities).ravel()
    assert_frequencies(5 * actions[:-1:2] + actions[1::2], pairs)  # from one step to the next
    assert_frequencies(5 * actions[:, :-1:2] + actions[:, 1::2], pairs)  # from one environment to the next


def test_dimensions_of_an_action_are_drawn_independently(make_model):
    model = make_model(action_space=MULTI_DISCRETE, initializer_range=0.15)
    actions, logits = first_actions(model, num_envs=60, repetitions=100)
    first, second = logits.double().split([3, 2])

    expected = np.outer(first.softmax(-1), second.softmax(-1)).ravel()
    assert_frequencies(2 * actions[..., 0] + actions[..., 1], expected)
    assert_frequencies(2 * actions[1::2, :, 0] + actions[:-1:2, :, 1], expected)  # from one step to the next, too


def test_continuous_actions_are_the_centres_of_the_drawn_bins(make_model):
    model = make_model(action_space=BOX, num_action_bins=4, initializer_range=0.15)
    actions, logits = first_actions(model, num_envs=60, repetitions=100)

    for dimension, (low, high) in enumerate(zip(BOX["low"], BOX["high"])):
        bins = (actions[..., dimension] - low) / (high - low) * 4 - 0.5
        np.testing.assert_allclose(bins, bins.round(), atol=1e-5)
        assert_frequencies(bins.round().astype(int), logits.double().split(4)[dimension].softmax(-1).numpy())
    assert actions.dtype == np.float32


def test_without_sampling_the_likeliest_action_is_taken(make_model):
    model = make_model(observation_space={"type": "Discrete", "n": 50})
    context = model.init_context(50, rollout_config=RolloutConfig(do_sample=False))
    for step in range(20):
        actions = context.act(np.roll(np.arange(50), step))
        assert (actions == context.logits.argmax(-1).numpy()).all()
    assert len(set(actions.tolist())) > 1


def test_refuses_a_temperature_that_is_not_positive(make_model):
    with pytest.raises(ValueError, match="temperature must be positive"):
        make_model().init_context(1, temperature=0.0)


def play(model, first_env, num_envs, num_steps=200):
    """Actions (num_steps, num_envs) in toy environments first_env, first_env + 1, ..., each with rules of its own."""
    ids = np.arange(first_env, first_env + num_envs)
    context = model.init_context(num_envs, seed=first_env)
    state, rewards, starts = ids % 7, np.zeros(num_envs), np.ones(num_envs, dtype=bool)
    actions = []
    for step in range(num_steps):
        actions.append(context.act(state, rewards, starts))
        state = (3 * state + actions[-1] + ids) % 7
        rewards, starts = (state == ids % 7).astype(float), (step + ids) % 9 == 0
    return np.stack(actions)


def test_an_environments_actions_depend_on_its_seed_and_past_alone(make_model):
    model = make_model()
    together = play(model, 0, 8)

    assert all((together[:, a] != together[:, b]).any() for a, b in itertools.combinations(range(8), 2))
    for first_env, num_envs in [(0, 3), (5, 3), (0, 1), (4, 1), (7, 1)]:
        alone = play(model, first_env, num_envs)
        np.testing.assert_array_equal(alone, together[:, first_env : first_env + num_envs])


def test_reset_forgets_everything_in_the_chosen_environments_only(make_model):
    model = make_model(context_length=6)
    context, untouched, new = (model.init_context(3, seed=4) for _ in range(3))
    rng = np.random.default_rng(0)
    for _ in range(8):
        step = (rng.integers(7, size=3), rng.normal(size=3), rng.random(3) < 0.5)
        context.act(*step)
        untouched.act(*step)

    context.reset(np.array([False, True, False]))
    step = (rng.integers(7, size=3), rng.normal(size=3), np.zeros(3, dtype=bool))
    for each in (context, untouched, new):
        each.act(*step)

    torch.testing.assert_close(context.logits[1], new.logits[1])
    torch.testing.assert_close(context.logits[[0, 2]], untouched.logits[[0, 2]])
    assert context.lengths.tolist() == [6, 1, 6]
    assert not torch.allclose(untouched.logits[1], new.logits[1], atol=1e-3)


def test_contexts_of_one_model_are_independent(make_model):
    model = make_model()
    expected = play(model, 0, 2, num_steps=30)
    first, second = model.init_context(2, seed=0), model.init_context(2, seed=7)
    state, rewards, starts = np.arange(2) % 7, np.zeros(2), np.ones(2, dtype=bool)
    for step in range(30):
        actions = first.act(state, rewards, starts)
        second.act(6 - state)
        assert (actions == expected[step]).all()
        state = (3 * state + actions + np.arange(2)) % 7
        rewards, starts = (state == np.arange(2) % 7).astype(float), (step + np.arange(2)) % 9 == 0
