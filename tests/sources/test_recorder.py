"""The recorder against an independent log kept inside every environment."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.histories.steps import STEPWISE
from ad_hf.sources.learners import make_learner
from ad_hf.sources.recorder import HistoryRecorder

NUM_ENVS = 3
ENVS = {
    "CartPole-v1": {"max_episode_steps": 12},
    "ad_hf/DarkRoom-v0": {"size": 4, "goal": (2, 3), "max_episode_steps": 6},
    "Pendulum-v1": {"max_episode_steps": 9},
    "FrozenLake-v1": {"is_slippery": True, "max_episode_steps": 8},
}


class Log(gym.Wrapper):
    """Keeps an environment's episodes: the observations, one more than there are steps, and the steps."""

    def __init__(self, env):
        super().__init__(env)
        self.episodes = []

    def reset(self, **kwargs):
        observation, info = self.env.reset(**kwargs)
        self.episodes.append(([np.copy(observation)], []))
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        observations, steps = self.episodes[-1]
        observations.append(np.copy(observation))
        steps.append((np.copy(action), float(reward), terminated, truncated))
        return observation, reward, terminated, truncated, info


def make_envs(env_id, autoreset_mode=AutoresetMode.SAME_STEP):
    env_fns = [lambda: Log(gym.make(env_id, **ENVS[env_id])) for _ in range(NUM_ENVS)]
    return SyncVectorEnv(env_fns, autoreset_mode=autoreset_mode)


def assert_recorded(recorded, envs):
    """Compare with the logs; an episode that a reset broke off counts as truncated."""
    for stream, env in enumerate(envs.envs):
        episodes = [episode for episode in env.episodes if episode[1]]
        steps = [step for _, of_episode in episodes for step in of_episode]
        observations = [observation for seen, _ in episodes for observation in seen[:-1]]
        columns = [list(each) for each in zip(*steps, strict=True)]
        *_, terminations, truncations = columns
        last = -1
        for _, of_episode in episodes[:-1]:
            last += len(of_episode)
            truncations[last] = truncations[last] or not terminations[last]
        for name, values in zip(STEPWISE, [observations, *columns], strict=True):
            np.testing.assert_array_equal(getattr(recorded, name)[stream], values)
        finals = np.array([seen[-1] for seen, _ in episodes])
        np.testing.assert_array_equal(recorded.final_observations[stream], finals)
        assert recorded.final_observations[stream].dtype == recorded.observations.dtype


def ended_episodes(envs):
    return [steps for env in envs.envs for _, steps in env.episodes if steps and (steps[-1][2] or steps[-1][3])]


def step_randomly(recorder, rng, num_steps):
    space = recorder.single_action_space
    space.seed(int(rng.integers(1000)))
    for _ in range(num_steps):
        recorder.step(np.array([space.sample() for _ in range(NUM_ENVS)]))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ad_hf/DarkRoom-v0"])
def test_recording_can_be_read_on_the_way_and_goes_on_beyond_the_announced_steps(env_id):
    """Episodes that a reset broke off are truncated, and elements take few bytes."""
    envs, rng = make_envs(env_id), np.random.default_rng(3)
    recorder = HistoryRecorder(envs, num_steps=1)
    recorder.reset(seed=0)
    assert recorder.recorded().rewards.shape == (NUM_ENVS, 0)
    step_randomly(recorder, rng, 12)
    before = recorder.recorded()
    if env_id == "ad_hf/DarkRoom-v0":
        # A history that ends with an episode has no final observation too many.
        assert [len(finals) for finals in before.final_observations] == [2] * NUM_ENVS
        assert before.observations.dtype == before.actions.dtype == np.uint8
    assert_recorded(before, envs)
    observations = before.observations.copy()
    step_randomly(recorder, rng, 4)
    recorder.reset()
    recorder.reset()  # a second one ends nothing
    step_randomly(recorder, rng, 15)
    recorded = recorder.recorded()
    np.testing.assert_array_equal(before.observations, observations)
    np.testing.assert_array_equal(recorded.observations[:, :12], observations)
    assert (recorded.terminations[:, 15] | recorded.truncations[:, 15]).all()
    assert_recorded(recorded, envs)
    assert before.rewards.dtype == np.float64
    assert before.terminations.dtype == before.truncations.dtype == np.bool_


def test_other_autoreset_modes_are_refused():
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        with pytest.raises(ValueError, match="SAME_STEP"):
            HistoryRecorder(make_envs("CartPole-v1", mode), num_steps=5)


@pytest.mark.parametrize(
    ("algorithm", "env_id", "hyperparameters"),
    [
        ("A2C", "CartPole-v1", {"n_steps": 4}),
        ("PPO", "ad_hf/DarkRoom-v0", {"n_steps": 16, "batch_size": 48, "n_epochs": 1}),
        ("DQN", "CartPole-v1", {"learning_starts": 20, "train_freq": 4, "buffer_size": 200}),
        ("TabularQ", "FrozenLake-v1", {}),
        ("SAC", "Pendulum-v1", {"learning_starts": 30, "train_freq": 16, "policy_kwargs": {"net_arch": [8]}}),
    ],
)
def test_on_and_off_policy_learners_are_recorded_alike(algorithm, env_id, hyperparameters):
    envs, announced = make_envs(env_id), []
    recorder = HistoryRecorder(envs, num_steps=60, on_step=announced.append)
    learner = make_learner(algorithm, SB3VecEnv(recorder), 1, hyperparameters)
    learner.learn(180)
    recorded = recorder.recorded()
    episodes = list(learner.ep_info_buffer)  # that SB3's log and callbacks see
    returns = sorted(sum(step[1] for step in steps) for steps in ended_episodes(envs))
    assert sorted(episode["r"] for episode in episodes) == pytest.approx(returns)
    assert sorted(episode["l"] for episode in episodes) == sorted(map(len, ended_episodes(envs)))
    assert recorded.rewards.shape[1] >= 60
    assert sum(announced) == recorded.rewards.size
    assert_recorded(recorded, envs)


class Changed(VectorWrapper):
    """Changes what the environments return."""

    def __init__(self, envs, reset=None, step=None):
        super().__init__(envs)
        self.of_reset, self.of_step = reset or (lambda returned: returned), step or (lambda returned: returned)

    def reset(self, **kwargs):
        return self.of_reset(self.env.reset(**kwargs))

    def step(self, actions):
        return self.of_step(self.env.step(actions))


def with_value(place, value):
    return lambda returned: (*returned[:place], value, *returned[place + 1 :])


def without_final(returned):
    returned[4].pop("final_obs", None)
    return returned


def run(envs, num_steps=9):
    recorder = HistoryRecorder(envs, num_steps)
    recorder.reset()
    for _ in range(num_steps):
        recorder.step(np.zeros(NUM_ENVS, dtype=int))
    return recorder.recorded()


def test_other_forms_than_gymnasiums_are_refused_by_the_step():
    for change, message in (
        (DictInfoToList, r"step 0: .*returned infos as a list,"),
        (partial(Changed, reset=lambda returned: returned[0]), "step 0: the reset of .* returned a ndarray"),
        (partial(Changed, reset=with_value(1, None)), "step 0: .*returned infos as a NoneType"),
        (partial(Changed, step=lambda returned: returned[:4]), r"step 0: .* returned a tuple of 4 values"),
        (partial(Changed, step=with_value(4, None)), "step 0: .*returned infos as a NoneType"),
        (partial(Changed, step=with_value(1, [1.0])), r"step 0: .* returned rewards of shape \(1,\)"),
        (partial(Changed, step=with_value(1, ["a"] * 3)), "step 0: .* returned rewards .*a number for each"),
        (partial(Changed, step=with_value(2, np.zeros((3, 1)))), "step 0: .* returned terminations of shape"),
        (partial(Changed, step=with_value(3, None)), "step 0: .* returned truncations of shape"),
        (partial(Changed, step=without_final), "step 5: .* without their last observations"),
    ):
        with pytest.raises(ValueError, match=message):
            run(change(make_envs("ad_hf/DarkRoom-v0")))
    for rewards in ([1, 2, 3], [np.array(1.0)] * 3, np.ones(3, dtype=bool)):  # numbers of any kind
        recorded = run(Changed(make_envs("ad_hf/DarkRoom-v0"), step=with_value(1, rewards)), 1)
        assert recorded.rewards[:, 0].tolist() == np.array(rewards, dtype=float).tolist()


def test_what_environments_raise_and_actions_that_are_no_numbers_tell_their_step():
    def fails(returned):
        raise KeyError("lost")

    recorder = HistoryRecorder(Changed(make_envs("Pendulum-v1"), step=fails), num_steps=9)
    recorder.reset()
    with pytest.raises(KeyError) as caught:
        recorder.step(np.zeros((NUM_ENVS, 1)))
    assert caught.value.__notes__ == ["(in step 0)"]
    with pytest.raises(ValueError, match=r"the source gave the actions .*nan.* at step 0, expected elements of"):
        recorder.step(np.full((NUM_ENVS, 1), np.nan))
