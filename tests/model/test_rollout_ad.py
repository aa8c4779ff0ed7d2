"""Rollouts: what is counted, what the context is given, and that no way of resetting environments changes either."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.model import ADModel
from ad_hf.model.context_ad import ADContext
from ad_hf.model.rollout_ad import RolloutConfig, RolloutOutput

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]
DARK_ROOM = {
    "observation_space": {"type": "MultiDiscrete", "nvec": [3, 3]},
    "action_space": {"type": "Discrete", "n": 5},
}
CART_POLE = {
    "observation_space": {"type": "Box", "shape": [4], "low": [None] * 4, "high": [None] * 4, "dtype": "float32"},
    "action_space": {"type": "Discrete", "n": 2},
    "initializer_range": 0.1,
}
GOALS = np.array([[0, 1], [1, 1], [2, 2], [1, 0]])


def dark_rooms(mode=AutoresetMode.SAME_STEP, **kwargs):
    return gym.make_vec(
        "ad_hf/DarkRoom-v0",
        num_envs=len(GOALS),
        vectorization_mode="vector_entry_point",
        goal=GOALS,
        **{"size": 3, "max_episode_steps": 5, "autoreset_mode": mode, **kwargs},
    )


def cart_poles(mode=AutoresetMode.SAME_STEP, num_envs=3):
    return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * num_envs, autoreset_mode=mode)


class Recorder(VectorWrapper):
    """Keeps what the environments returned."""

    def __init__(self, envs):
        super().__init__(envs)
        self.actions, self.rewards, self.dones = [], [], []

    def step(self, actions):
        result = self.env.step(actions)
        self.actions.append(np.array(actions))
        self.rewards.append(np.array(result[1]))
        self.dones.append(result[2] | result[3])
        return result

    def episodes(self, env):
        """Returns and lengths of an environment's finished episodes, in SAME_STEP or DISABLED mode."""
        returns, lengths, rewards = [], [], []
        for reward, done in zip(np.array(self.rewards)[:, env], np.array(self.dones)[:, env]):
            rewards.append(reward)
            if done:
                returns.append(sum(rewards))
                lengths.append(len(rewards))
                rewards = []
        return returns, lengths


class RecordingContext(ADContext):
    """Keeps the steps that count, per environment: what was seen, the reward that led there, episode start, action."""

    def act(self, observations, rewards=None, episode_starts=None, active=None, do_sample=None):
        actions = super().act(observations, rewards, episode_starts, active, do_sample)
        if not hasattr(self, "steps"):
            self.steps = [[] for _ in range(self.num_envs)]
        for env in np.flatnonzero(np.ones(self.num_envs) if active is None else active):
            seen = np.ravel(observations[env]).tolist()
            self.steps[env].append((seen, float(rewards[env]), bool(episode_starts[env]), int(actions[env])))
        return actions


class RecordingModel(ADModel):
    """Hands out recording contexts."""

    def init_context(self, num_envs, prompt=None, seed=None, rollout_config=None):
        self.context = RecordingContext(self, num_envs, rollout_config)
        return self.context


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize(("make_envs", "spaces"), [(dark_rooms, DARK_ROOM), (cart_poles, CART_POLE)])
def test_returns_and_lengths_are_those_of_the_episodes_in_order(make_model, make_envs, spaces, mode):
    envs = Recorder(make_envs(mode))
    output = make_model(**spaces).rollout(envs, num_episodes=4, seed=1)

    assert isinstance(output, RolloutOutput)
    assert output.episode_returns.shape == output.episode_lengths.shape == (envs.num_envs, 4)
    for env in range(envs.num_envs):
        returns, lengths = envs.episodes(env)
        assert output.episode_returns[env].tolist() == returns[:4]
        assert output.episode_lengths[env].tolist() == lengths[:4]
    if make_envs is cart_poles:  # which then did not all end at the same steps
        assert len(np.unique(output.episode_lengths)) > 1


@pytest.mark.parametrize(("make_envs", "spaces"), [(dark_rooms, DARK_ROOM), (cart_poles, CART_POLE)])
def test_every_autoreset_mode_gives_the_same_experience(make_model, make_envs, spaces):
    outputs, contexts = [], []
    for mode in MODES:
        model = make_model(RecordingModel, **spaces)
        outputs.append(model.rollout(make_envs(mode), num_episodes=6, seed=3))
        contexts.append(model.context.steps)

    assert np.ptp(outputs[0].episode_returns) > 0
    for output, steps in zip(outputs[1:], contexts[1:]):
        np.testing.assert_array_equal(output.episode_returns, outputs[0].episode_returns)
        np.testing.assert_array_equal(output.episode_lengths, outputs[0].episode_lengths)
        for env, expected in enumerate(contexts[0]):
            counted = outputs[0].episode_lengths[env].sum()
            assert steps[env][:counted] == expected[:counted]


@pytest.mark.parametrize("mode", MODES)
def test_the_context_is_given_rewards_across_episodes_and_their_starts(make_model, mode):
    model = make_model(RecordingModel, **DARK_ROOM, initializer_range=0.1)
    model.rollout(dark_rooms(mode), num_episodes=20, seed=0)

    paid_at_the_end = 0
    for env, steps in enumerate(model.context.steps):
        position, reward = (1, 1), 0.0
        for number, (seen, given_reward, start, action) in enumerate(steps):
            if number % 5 == 0:
                position = (1, 1)
            assert (seen, given_reward, start) == (list(position), reward, number % 5 == 0)
            move = [(-1, 0), (1, 0), (0, 1), (0, -1), (0, 0)][action]
            position = tuple(min(max(old + change, 0), 2) for old, change in zip(position, move))
            reward = float(position == tuple(GOALS[env]))
            paid_at_the_end += reward * (number % 5 == 4)
    assert paid_at_the_end


def test_an_environments_rollout_does_not_depend_on_the_others(make_model):
    model = make_model(**CART_POLE)
    together = model.rollout(cart_poles(num_envs=4), num_episodes=5, seed=10)

    for env in (0, 3):
        alone = model.rollout(cart_poles(num_envs=1), num_episodes=5, seed=10 + env)
        np.testing.assert_array_equal(alone.episode_returns[0], together.episode_returns[env])


def test_same_seed_same_rollout_whatever_torchs_and_numpys_own_generators(make_model):
    model = make_model(**DARK_ROOM)
    outputs = []
    for global_seed, seed in [(0, 5), (1, 5), (1, 6)]:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        outputs.append(model.rollout(dark_rooms(), num_episodes=10, seed=seed).episode_returns)

    assert (outputs[0] == outputs[1]).all()
    assert (outputs[1] != outputs[2]).any()


def test_without_sampling_the_seed_does_not_matter(make_model):
    model = make_model(**DARK_ROOM)
    outputs = [model.rollout(dark_rooms(), num_episodes=5, seed=seed, do_sample=False) for seed in (0, 1)]
    assert (outputs[0].episode_returns == outputs[1].episode_returns).all()


def test_continuous_actions_reach_the_environments_in_their_bounds_and_shape(make_model):
    envs = Recorder(gym.make_vec("Pendulum-v1", num_envs=2, vectorization_mode="sync", max_episode_steps=10))
    spaces = {
        "observation_space": {"type": "Box", "shape": [3], "low": [-1, -1, -8], "high": [1, 1, 8], "dtype": "float32"},
        "action_space": {"type": "Box", "shape": [1], "low": [-2.0], "high": [2.0], "dtype": "float32"},
    }
    output = make_model(**spaces).rollout(envs, num_episodes=2)

    assert np.isfinite(output.episode_returns).all()
    assert all(envs.action_space.contains(actions) for actions in envs.actions)
    assert np.ptp(envs.actions) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backbones_and_half_precision_act_too(make_model, dtype):
    backbone = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 1,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    for settings in ({}, {"backbone_config": backbone}):
        model = make_model(**DARK_ROOM, **settings).to(dtype)
        output = model.rollout(dark_rooms(AutoresetMode.NEXT_STEP), num_episodes=5)
        assert np.isfinite(output.episode_returns).all()
        assert (output.episode_lengths == 5).all()


@pytest.mark.parametrize("training", [True, False])
def test_acts_in_evaluation_mode_and_restores_the_models_mode(make_model, training):
    model = make_model(**DARK_ROOM, dropout=0.5).train(training)
    modes = []

    model.rollout(dark_rooms(), num_episodes=1, callback=lambda _: modes.append(model.training))

    assert modes
    assert not any(modes)
    assert model.training == training


def test_an_interrupted_rollout_restores_the_models_mode(make_model):
    def interrupt(_):
        raise KeyboardInterrupt

    model = make_model(**DARK_ROOM).train()
    with pytest.raises(KeyboardInterrupt):
        model.rollout(dark_rooms(), num_episodes=1, callback=interrupt)
    assert model.training


def test_the_callback_sees_episodes_as_they_are_finished(make_model):
    finished = []

    def watch(output):
        finished.append(int((~np.isnan(output.episode_returns)).sum()))

    make_model(**DARK_ROOM).rollout(dark_rooms(), num_episodes=3, callback=watch)

    assert len(finished) == 3 * 5
    assert finished[:5] == [0, 0, 0, 0, 4]
    assert finished[-2:] == [8, 12]


def test_unknown_settings_are_refused_by_name(make_model):
    model = make_model(**DARK_ROOM)
    with pytest.raises(ValueError, match=r"'num_beams'.*num_episodes"):
        model.rollout(dark_rooms(), num_episodes=1, num_beams=3)
    with pytest.raises(ValueError, match="'beams', 'max_new_tokens'"):
        RolloutConfig.from_dict({"beams": 1, "max_new_tokens": 3, "seed": 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_episodes": 0}, "num_episodes must be an integer, at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive.*got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive.*got -1.0"),
        ({"max_steps": 1.5}, "max_steps must be an integer, at least 1, got 1.5"),
        ({"top_k": -1}, "top_k must be an integer, 0 or greater, got -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"epsilon": 1.1}, "epsilon must be from 0 to 1, got 1.1"),
        ({"seed": -1}, "seed must be an integer, 0 or greater, got -1"),
        ({"do_sample": 1}, "do_sample must be True or False, got 1"),
        ({"temperature": "1"}, "temperature must be positive.*got '1'"),
    ],
)
def test_settings_out_of_range_are_refused(make_model, settings, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**settings)
    with pytest.raises(ValueError, match=message):
        make_model(**DARK_ROOM).rollout(dark_rooms(), **settings)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"observation_space": {"type": "MultiDiscrete", "nvec": [9, 9]}}, r"observation_space.*\[3 3\].*\[9, 9\]"),
        ({"observation_space": {"type": "Discrete", "n": 9}}, "observation_space"),
        ({"action_space": {"type": "Discrete", "n": 4}}, r"action_space.*Discrete\(5\).*4"),
        ({"action_space": {"type": "MultiDiscrete", "nvec": [5]}}, "action_space"),
    ],
)
def test_environments_of_other_spaces_are_refused(make_model, spaces, message):
    with pytest.raises(ValueError, match=message):
        make_model(**{**DARK_ROOM, **spaces}).rollout(dark_rooms(), num_episodes=1)


class FromOne(gym.ActionWrapper):
    """Numbers the actions from 1."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Discrete(env.action_space.n, start=1)

    def action(self, action):
        assert self.action_space.contains(action)
        return action - 1


def test_action_spaces_that_do_not_start_at_zero_are_refused(make_model):
    envs = SyncVectorEnv([lambda: FromOne(gym.make("CartPole-v1"))], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="action_space"):
        make_model(**CART_POLE).rollout(envs, num_episodes=1)


def test_continuous_actions_of_other_bounds_are_refused(make_model):
    envs = gym.make_vec("Pendulum-v1", num_envs=1, vectorization_mode="sync", max_episode_steps=5)
    spaces = {
        "observation_space": {"type": "Box", "shape": [3], "low": [-1, -1, -8], "high": [1, 1, 8], "dtype": "float32"},
        "action_space": {"type": "Box", "shape": [1], "low": [-1.0], "high": [1.0], "dtype": "float32"},
    }
    with pytest.raises(ValueError, match="action_space"):
        make_model(**spaces).rollout(envs, num_episodes=1)


def test_environments_that_do_not_say_how_they_reset_are_refused(make_model):
    envs = dark_rooms()
    envs.unwrapped.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        make_model(**DARK_ROOM).rollout(envs, num_episodes=1)


def test_settings_are_saved_with_the_model_and_loaded_with_it(make_model, tmp_path):
    model = make_model(**DARK_ROOM)
    model.rollout_config = RolloutConfig(num_episodes=3, do_sample=False, temperature=0.5, seed=7)
    model.save_pretrained(tmp_path)

    assert json.loads((tmp_path / "rollout_config.json").read_text()) == {
        "num_episodes": 3,
        "do_sample": False,
        "temperature": 0.5,
        "seed": 7,
    }
    assert RolloutConfig.from_pretrained(tmp_path) == model.rollout_config
    assert ADModel.from_pretrained(tmp_path).rollout_config == model.rollout_config


def test_a_model_without_saved_settings_has_the_defaults(make_model, tmp_path):
    make_model(**DARK_ROOM).save_pretrained(tmp_path)
    (tmp_path / "rollout_config.json").unlink()

    assert ADModel.from_pretrained(tmp_path).rollout_config == RolloutConfig()


def test_an_override_beats_the_argument_which_beats_the_models_own_settings(make_model):
    model = make_model(**DARK_ROOM)
    model.rollout_config = RolloutConfig(num_episodes=2, seed=1)
    argument = RolloutConfig(num_episodes=3, seed=2)

    def returns(*args, **kwargs):
        return model.rollout(dark_rooms(), *args, **kwargs).episode_returns

    def expected(num_episodes, seed):
        return make_model(**DARK_ROOM).rollout(dark_rooms(), num_episodes=num_episodes, seed=seed).episode_returns

    np.testing.assert_array_equal(returns(), expected(2, seed=1))
    np.testing.assert_array_equal(returns(argument), expected(3, seed=2))
    np.testing.assert_array_equal(returns(argument, num_episodes=4), expected(4, seed=2))
    np.testing.assert_array_equal(returns(num_episodes=4), expected(4, seed=1))
    assert model.rollout_config == RolloutConfig(num_episodes=2, seed=1)
