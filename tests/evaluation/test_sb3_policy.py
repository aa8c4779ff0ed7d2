"""A model in Stable-Baselines3's own evaluation: the same experience as its rollout's."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from ad_hf.evaluation.sb3_policy import ADPolicy, RewardInObservation
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel

NUM_ENVS, EPISODES = 3, 5


@pytest.fixture
def model():
    torch.manual_seed(0)
    vector = {"type": "Box", "shape": [4], "low": [None] * 4, "high": [None] * 4, "dtype": "float32"}
    spaces = {"observation_space": vector, "action_space": {"type": "Discrete", "n": 2}, "initializer_range": 0.1}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "context_length": 24}
    return ADModel(ADConfig(**spaces, **sizes)).eval()


def cart_poles(num_envs=NUM_ENVS):
    venv = make_vec_env("CartPole-v1", n_envs=num_envs)
    venv.seed(4)
    return RewardInObservation(venv)


def test_evaluate_policy_sees_the_episodes_of_a_rollout(model):
    settings = {"deterministic": False, "return_episode_rewards": True}
    returns, lengths = evaluate_policy(ADPolicy(model, seed=4), cart_poles(), NUM_ENVS * EPISODES, **settings)

    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    output = model.rollout(envs, num_episodes=EPISODES, seed=4)
    assert len(returns) == NUM_ENVS * EPISODES
    assert sorted(returns) == sorted(output.episode_returns.ravel())
    assert sorted(lengths) == sorted(output.episode_lengths.ravel())
    assert len(set(lengths)) > 3  # episodes that did not end together


def test_rewards_arrive_with_the_observations_that_they_led_to():
    class Counting(gym.Env):
        """Pays the number of the step, counted over episodes of three steps."""

        observation_space, action_space = gym.spaces.Discrete(100), gym.spaces.Discrete(2)
        total = 0

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return self.total, {}

        def step(self, action):
            self.total += 1
            self.steps += 1
            return self.total, float(self.total), self.steps == 3, False, {}

    venv = RewardInObservation(DummyVecEnv([Counting, Counting]))
    seen = [venv.reset()]
    for _ in range(7):
        seen.append(venv.step(np.zeros(2, dtype=int))[0])

    assert [each["reward"].tolist() for each in seen] == [[step, step] for step in range(8)]
    assert [each["observation"].tolist() for each in seen] == [[step, step] for step in range(8)]
    assert venv.observation_space.contains({"observation": 3, "reward": np.array(1.0, np.float32)})


def test_deterministic_predictions_take_the_likeliest_action(model):
    policy, venv = ADPolicy(model), cart_poles()
    observation, state, starts = venv.reset(), None, np.ones(NUM_ENVS, dtype=bool)
    for _ in range(40):
        actions, state = policy.predict(observation, state, starts, deterministic=True)
        assert (actions == state[0].logits.argmax(-1).numpy()).all()
        observation, _, starts, _ = venv.step(actions)


def test_a_new_state_is_a_new_history_and_a_kept_one_goes_on(model):
    policy = ADPolicy(model, seed=1)
    step = {"observation": np.full((2, 4), 0.5, np.float32), "reward": np.ones(2, np.float32)}
    _, state = policy.predict(step)
    kept = (state[0].copy(),)
    _, state = policy.predict(step, state)
    second = state[0].logits.clone()

    policy.predict(step, kept)
    torch.testing.assert_close(kept[0].logits, second, atol=0, rtol=0)
    _, fresh = policy.predict(step)
    assert not torch.allclose(fresh[0].logits, second)


def test_observations_without_rewards_and_dicts_are_refused(model):
    with pytest.raises(ValueError, match="RewardInObservation"):
        ADPolicy(model).predict(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="dict observations"):
        RewardInObservation(cart_poles(1))
