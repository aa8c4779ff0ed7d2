"""RL2: trials as episodes, what is seen in them, and that it learns."""

import numpy as np
import pytest
from gymnasium import spaces
from studies.rl2 import RL2Config, TrialVecEnv, evaluate_rl2, one_hot, one_hot_size, train_rl2

from ad_hf.envs.sb3 import SB3VecEnv

sb3_contrib = pytest.importorskip("sb3_contrib")


def trials(family, episodes, split="test"):
    return TrialVecEnv(SB3VecEnv(family.make_vec(family.tasks(split))), episodes)


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (spaces.Discrete(3, start=1), 2, [0, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), [1, 2], [0, 1, 0, 0, 1]),
        (spaces.Box(-1, 1, (2,)), [0.5, -0.5], [0.5, -0.5]),
    ],
    ids=["discrete", "multidiscrete", "box"],
)
def test_elements_are_vectors(space, value, expected):
    assert one_hot(np.array([value]), space).tolist() == [expected]
    assert one_hot_size(space) == len(expected)


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match=r"RL2 takes Discrete, MultiDiscrete and one-dimensional Box spaces, got Box"):
        one_hot_size(spaces.Box(0, 255, (8, 8, 3), np.uint8))


def test_a_trial_is_some_episodes_and_the_last_action_and_reward_are_seen_in_it(dark_room_family):
    envs = trials(dark_room_family, 2)
    plain = SB3VecEnv(dark_room_family.make_vec(dark_room_family.tasks("test")))
    envs.seed(3)
    plain.seed(3)
    seen, observations = envs.reset(), plain.reset()
    actions, rewards, ends = None, np.zeros(3), np.ones(3)
    rng, done_at = np.random.default_rng(0), []
    for step in range(16):
        # 3 + 3 numbers of the cell, 5 of the action, the reward, and whether an episode starts.
        np.testing.assert_array_equal(seen[:, :6], one_hot(observations, plain.observation_space))
        expected = np.zeros((3, 5)) if actions is None else np.eye(5)[actions]
        np.testing.assert_array_equal(seen[:, 6:11], expected)
        np.testing.assert_array_equal(seen[:, 11], rewards)
        np.testing.assert_array_equal(seen[:, 12], ends)
        actions = rng.integers(5, size=3)
        seen, reward, dones, infos = envs.step(actions)
        observations, rewards, ends, _ = plain.step(actions)
        np.testing.assert_array_equal(reward, rewards)
        if dones.any():  # a new trial knows nothing of the last
            assert dones.all()
            assert infos[0]["terminal_observation"][6:11].tolist() == np.eye(5)[actions[0]].tolist()
            done_at.append(step)
            actions, rewards, ends = None, np.zeros(3), np.ones(3)
    assert done_at == [7, 15]
    assert [len(returns) for returns in envs.returns] == [4, 4, 4]


def test_it_learns_goes_on_where_it_was_saved_and_is_evaluated_as_others_are(dark_room_family, tmp_path):
    settings = {"n_steps": 16, "batch_size": 64, "policy_kwargs": {"lstm_hidden_size": 16, "net_arch": []}}
    config = RL2Config(640, episodes_per_trial=2, hyperparameters=settings, save_every=2)
    learner = train_rl2(dark_room_family, tmp_path, config, seed=1)
    assert learner.num_timesteps == 640

    config.total_timesteps = 960
    longer = train_rl2(dark_room_family, tmp_path, config, seed=1)
    assert longer.num_timesteps == 960
    assert train_rl2(dark_room_family, tmp_path, config).num_timesteps == 960

    result = evaluate_rl2(longer, dark_room_family, num_episodes=5, num_seeds=2)
    assert result.returns.shape == result.lengths.shape == (2, 3, 5)
    assert (result.lengths == 4).all()
    again = evaluate_rl2(longer, dark_room_family, num_episodes=5, num_seeds=2)
    np.testing.assert_array_equal(result.returns, again.returns)
