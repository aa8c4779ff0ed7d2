"""Tabular Q-learning against value iteration, and how streams keep to themselves."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.source_observation import SourceObservation
from ad_hf.envs.task_family import TaskFamily
from ad_hf.sources.recorder import HistoryRecorder
from ad_hf.sources.tabular import TabularQ

GAMMA = 0.9


def rooms(goals, size=3, max_episode_steps=20):
    different = [list(goal) for goal in dict.fromkeys(map(tuple, goals))]
    family = TaskFamily(
        "ad_hf/DarkRoom-v0",
        [{"goal": goal} for goal in different],
        {"size": size, "max_episode_steps": max_episode_steps},
        native_vector=True,
    )
    return SB3VecEnv(family.make_vec([family.tasks()[different.index(list(goal))] for goal in goals]))


def frozen_lake_values(env):
    """Optimal action values of FrozenLake by value iteration."""
    moves = env.unwrapped.P
    values = np.zeros((len(moves), 4))
    for _ in range(500):
        for state, action in np.ndindex(values.shape):
            values[state, action] = sum(
                p * (reward + (not ends) * GAMMA * values[after].max())
                for p, after, reward, ends in moves[state][action]
            )
    return values


def room_values(goal, size=3):
    """Optimal action values (x, y, action) of a Dark Room without a time limit."""
    moves = [(-1, 0), (1, 0), (0, 1), (0, -1), (0, 0)]
    values = np.zeros((size, size, 5))
    for _ in range(500):
        before = values.copy()
        for x, y, action in np.ndindex(values.shape):
            after = tuple(np.clip(np.add((x, y), moves[action]), 0, size - 1))
            values[x, y, action] = float(after == tuple(goal)) + GAMMA * before[after].max()
    return values


def test_values_are_those_of_value_iteration_where_episodes_terminate():
    """Of FrozenLake's states, those that are met: actions out of holes and the goal are never tried."""
    env = gym.make("FrozenLake-v1", is_slippery=False)
    expected = frozen_lake_values(env)
    learner = TabularQ("MlpPolicy", DummyVecEnv([lambda: env]), 1.0, GAMMA, epsilon=1.0, seed=0)
    learner.learn(15_000)
    tried = [state for state, tile in enumerate(env.unwrapped.desc.ravel()) if tile in b"SF"]
    np.testing.assert_allclose(learner.tables["q_values"][0, tried], expected[tried], atol=1e-5)


def test_time_limits_end_no_value():
    """Episodes of 4 steps teach the values of a room that is never left."""
    goals = [[0, 0], [2, 1]]
    learner = TabularQ("MlpPolicy", rooms(goals, max_episode_steps=4), 1.0, GAMMA, epsilon=1.0, seed=0)
    learner.learn(16_000)
    for stream, goal in enumerate(goals):
        learnt = learner.tables["q_values"][stream].reshape(3, 3, 5)
        np.testing.assert_allclose(learnt, room_values(goal), atol=1e-3)


def test_replay_learns_the_same_values_from_a_tenth_of_the_steps(tmp_path):
    """Of two streams in rooms of their own, also when it goes on from a file."""
    goals = [[0, 0], [2, 1]]
    settings = {"gamma": GAMMA, "learning_rate": 1.0, "epsilon": 1.0, "seed": 0}
    learnt = {}
    for replayed_steps in (0, 40):
        learner = TabularQ("MlpPolicy", rooms(goals, max_episode_steps=4), replayed_steps=replayed_steps, **settings)
        learner.learn(800).save(tmp_path / "learner.zip")
        learner = TabularQ.load(tmp_path / "learner.zip", env=rooms(goals, max_episode_steps=4)).learn(800)
        values = np.stack([room_values(goal).reshape(9, 5) for goal in goals])
        learnt[replayed_steps] = np.isclose(learner.tables["q_values"], values, atol=1e-3).mean()
    assert learnt[40] > 0.95  # a few actions were not tried yet
    assert learnt[0] < 0.05


def test_update_goes_a_learning_rate_of_the_way_to_reward_and_what_follows():
    """In a room of one cell, which always pays 1: from 2 to 1 + 0.8 * 2."""
    learner = TabularQ("MlpPolicy", rooms([[0, 0]], size=1), 0.5, 0.8, initial_value=2.0, seed=0).learn(1)
    assert sorted(learner.tables["q_values"].ravel()) == pytest.approx([2.0] * 4 + [2.3])


@pytest.mark.parametrize("space", [spaces.MultiBinary(2), spaces.Discrete(4), spaces.MultiDiscrete([1, 4])], ids=str)
def test_all_discrete_observations_have_a_table(space):
    class Still(gym.Env):
        observation_space, action_space = space, spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return space.sample(), {}

        def step(self, action):
            return space.sample(), 0.0, False, False, {}

    learner = TabularQ("MlpPolicy", DummyVecEnv([Still] * 2), initial_value=0.0)
    learner.learn(10)
    assert learner.tables["q_values"].shape == (2, 4, 2)


def test_observations_without_a_finite_number_of_values_and_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="Discrete, MultiDiscrete or MultiBinary space, got Box"):
        TabularQ("MlpPolicy", DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    for setting in (
        {"learning_rate": 0.0},
        {"learning_rate": 1.1},
        {"gamma": -0.1},
        {"epsilon": 2.0},
        {"final_epsilon": -0.1},
        {"replayed_steps": -1},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} must be (in|at least)"):
            TabularQ("MlpPolicy", rooms([[0, 0]]), **setting)


def test_streams_share_the_table_of_their_task_and_no_other():
    goals = [[0, 0], [2, 2]]
    family = TaskFamily("ad_hf/DarkRoom-v0", [{"goal": goal} for goal in goals], {"size": 3}, native_vector=True)
    envs = SB3VecEnv(family.make_vec(family.tasks(), num_envs=8), [5, 9] * 4)
    learner = TabularQ("MlpPolicy", envs, 1.0, GAMMA, epsilon=0.5, shared=True, seed=0).learn(8 * 1000)
    tables = learner.tables["q_values"]
    assert tables.shape == (2, 9, 5)
    assert learner.policy.q_values.shape == tables.shape
    for table, goal in zip(tables, goals, strict=True):
        best = room_values(goal).reshape(9, 5)
        assert (best[np.arange(9), table.argmax(axis=1)] == best.max(axis=1)).all()


def test_without_random_ties_the_first_of_equal_actions_is_taken():
    """Of two streams in one room, which go through its actions in their order, both the same way."""
    envs = HistoryRecorder(rooms([[2, 2]] * 2).envs, 300)
    TabularQ("MlpPolicy", SB3VecEnv(envs), 1.0, 0.95, random_ties=False, seed=0).learn(600)
    recorded = envs.recorded()
    mine, others = recorded.actions.reshape(2, 300)
    np.testing.assert_array_equal(mine, others)
    cells = recorded.observations.reshape(2, 300, 2)[0]
    centre = (cells == 1).all(axis=1)
    assert mine[centre][:5].tolist() == list(range(5))


@pytest.mark.parametrize(("final", "shares"), [(None, (0.6, 0.6)), (0.0, (0.45, 0.15))])
def test_the_probability_of_random_actions_falls_evenly(final, shares):
    """Of a learner that knows nothing, and takes the first action wherever it does not take one of five at random."""
    envs = HistoryRecorder(rooms([[8, 8]] * 20, size=9, max_episode_steps=5).envs, 400)  # too far to get there
    settings = {"epsilon": 0.75, "final_epsilon": final, "learning_rate": 1e-9, "random_ties": False}
    TabularQ("MlpPolicy", SB3VecEnv(envs), gamma=0.0, initial_value=0.0, seed=0, **settings).learn(20 * 400)
    others = envs.recorded().actions.reshape(20, 2, 200) > 0
    np.testing.assert_allclose(others.mean(axis=(0, 2)), shares, atol=0.03)


def test_without_tasks_all_streams_share_one_table(tmp_path):
    learner = TabularQ("MlpPolicy", rooms([[0, 0]] * 4), 1.0, GAMMA, shared=True, seed=0).learn(2000)
    assert learner.tables["q_values"].shape == (1, 9, 5)
    learner.save(tmp_path / "learner.zip")
    loaded = TabularQ.load(tmp_path / "learner.zip", env=rooms([[0, 0]] * 4))
    np.testing.assert_array_equal(loaded.tables["q_values"], learner.tables["q_values"])
    observations = np.array([[0, 1], [2, 2], [1, 1], [0, 0]])
    np.testing.assert_array_equal(loaded.predict(observations)[0], learner.predict(observations)[0])


def test_optimism_finds_a_rare_reward_the_sooner_the_more_is_shared_and_then_walks_straight_to_it():
    """The far corner of a room of 9 x 9 cells, paid once an episode, which random play meets in 1 of 100 episodes."""
    kwargs, reached = {"size": 9, "sparse_reward": True}, {"reached": {"type": "Discrete", "n": 2}}
    family = TaskFamily("ad_hf/DarkRoom-v0", [{"goal": [8, 8]}], kwargs, native_vector=True)
    found = {}
    for shared in (False, True):
        recorder = HistoryRecorder(family.make_vec(family.tasks(), num_envs=20), 8000)
        envs = SB3VecEnv(SourceObservation(recorder, reached))
        learner = TabularQ("MlpPolicy", envs, 1.0, 0.95, shared=shared, seed=0).learn(20 * 8000)
        returns = recorder.recorded().rewards.reshape(20, 400, 20).sum(axis=2)
        found[shared] = int((returns.mean(axis=0) > 0.8).argmax())
        observations = envs.reset()
        for step in range(1, 21):
            actions, _ = learner.predict(observations, deterministic=True)
            observations, rewards, _, _ = envs.step(actions)
            np.testing.assert_array_equal(rewards, step == 8)
    assert 0 < found[True] < found[False] / 3
