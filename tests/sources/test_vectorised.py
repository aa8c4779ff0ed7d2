"""Learners with independent streams: Stable-Baselines3's interface, and that streams keep to themselves."""

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.vec_env import DummyVecEnv

import ad_hf.envs  # noqa: F401  registers the environments
from ad_hf.collection.collect import collect
from ad_hf.collection.jobs import Job, learn_job
from ad_hf.envs.sb3 import SB3VecEnv
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import read_metadata
from ad_hf.sources.bandits import UCB, ThompsonSampling
from ad_hf.sources.config import SourceConfig
from ad_hf.sources.learners import has_independent_streams, learns_side_by_side
from ad_hf.sources.recorder import HistoryRecorder
from ad_hf.sources.tabular import TabularQ
from ad_hf.sources.vectorised import state_count, state_numbers

LEARNERS = [TabularQ, UCB, ThompsonSampling]
ROOM = {"size": 3, "max_episode_steps": 6}


def family_of(learner_class):
    """A family whose tasks pay differently."""
    if learner_class is TabularQ:
        tasks = [{"goal": goal} for goal in ([0, 0], [2, 2], [1, 0], [0, 2])]
        return TaskFamily("ad_hf/DarkRoom-v0", tasks, ROOM, native_vector=True)
    bandits = [{"rewarding": "uniform", "task_seed": seed} for seed in range(4)]
    return TaskFamily("ad_hf/AdversarialBandit-v0", bandits, {"max_episode_steps": 15}, native_vector=True)


def make(learner_class, tasks=None, seed=0, num_envs=4):
    """A learner, and the recorder of what it lives through."""
    family = family_of(learner_class)
    recorder = HistoryRecorder(family.make_vec(tasks or family.tasks(), num_envs), 10)
    return learner_class("MlpPolicy", SB3VecEnv(recorder), seed=seed), recorder


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_seed_decides_everything(learner_class):
    lived = []
    for seed, later in ((3, None), (3, None), (4, None), (1, 11), (2, 11)):
        learner, recorder = make(learner_class, seed=seed)
        if later is not None:
            learner.set_random_seed(later)
        assert learner.learn(400) is learner
        assert learner.num_timesteps == 400
        recorded = recorder.recorded()
        assert recorded.rewards.shape == (4, 100)
        lived.append([getattr(recorded, name).tolist() for name in ("actions", "observations", "rewards")])
    assert lived[0] == lived[1]
    assert lived[0][0] != lived[2][0]
    assert lived[3] == lived[4]


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_saved_learner_predicts_the_same_and_learns_on(learner_class, tmp_path):
    learner, _ = make(learner_class)
    learner.learn(400)
    learner.save(tmp_path / "learner")
    again, recorder = make(learner_class)
    loaded = learner_class.load(tmp_path / "learner", env=again.get_env())
    observations = np.stack([again.observation_space.sample() for _ in range(4)])
    np.testing.assert_array_equal(*(each.predict(observations, deterministic=True)[0] for each in (learner, loaded)))
    for name, table in learner.tables.items():
        np.testing.assert_array_equal(loaded.tables[name], table)
        assert table.any()
    before = {name: table.copy() for name, table in loaded.tables.items()}
    loaded.learn(200, reset_num_timesteps=False)
    assert loaded.num_timesteps == 600
    assert recorder.recorded().rewards.shape == (4, 50)
    assert any((loaded.tables[name] != table).any() for name, table in before.items())
    for name, table in loaded.tables.items():  # what is learnt is what is saved
        np.testing.assert_array_equal(getattr(loaded.policy, name).numpy(), table)


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_predict_takes_one_observation_for_each_stream(learner_class):
    learner, _ = make(learner_class)
    observations = np.stack([learner.observation_space.sample() for _ in range(4)])
    actions, state = learner.predict(observations)
    assert actions.shape == (4,)
    assert state is None
    with pytest.raises(ValueError, match=r"one observation for each of 4 streams.*got 3"):
        learner.predict(observations[:3])
    single = make(learner_class, family_of(learner_class).tasks()[:1], num_envs=1)[0]
    assert np.shape(single.predict(observations[0])[0]) == ()


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_single_environments_of_sb3_teach_the_same(learner_class):
    family = family_of(learner_class)
    learner, recorder = make(learner_class, seed=7)
    learner.learn(600)
    made = [lambda task=task: gym.make(family.env_id, **family.env_kwargs, **task.kwargs) for task in family.tasks()]
    dummy = learner_class("MlpPolicy", DummyVecEnv(made), seed=7)
    dummy.learn(600)
    for name, table in learner.tables.items():
        np.testing.assert_array_equal(dummy.tables[name], table)
    assert recorder.recorded().rewards.any()


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_what_one_stream_is_paid_changes_nothing_for_the_others(learner_class):
    tasks = family_of(learner_class).tasks()
    results = []
    for other in (tasks[1], tasks[2]):
        learner, recorder = make(learner_class, [tasks[0], other], seed=5, num_envs=4)
        learner.learn(1200)
        results.append(recorder.recorded())
    first, second = results
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(first, name)[::2], getattr(second, name)[::2])
    assert (first.rewards[1::2] != second.rewards[1::2]).any()


class Watch(BaseCallback):
    """Keeps what a callback is told, and stops after 30 steps."""

    def __init__(self):
        super().__init__()
        self.calls, self.rewards, self.dones = [], [], []
        for name in ("training_start", "rollout_start", "rollout_end", "training_end"):
            setattr(self, f"_on_{name}", lambda name=name: self.calls.append(name))

    def _on_step(self):
        self.rewards.append(np.array(self.locals["rewards"]))
        self.dones.append(np.array(self.locals["dones"]))
        return self.n_calls != 30


@pytest.mark.parametrize("learner_class", LEARNERS)
def test_callbacks_see_every_step_and_can_stop(learner_class):
    learner, recorder = make(learner_class)
    watch = Watch()
    learner.learn(400, callback=watch)
    assert learner.num_timesteps == 120
    assert watch.calls == ["training_start", "rollout_start", "rollout_end", "training_end"]
    recorded = recorder.recorded()
    np.testing.assert_array_equal(np.transpose(watch.rewards), recorded.rewards)
    np.testing.assert_array_equal(np.transpose(watch.dones), recorded.terminations | recorded.truncations)


def test_callbacks_of_sb3_work(tmp_path):
    learner, _ = make(TabularQ)
    stop, save = StopTrainingOnMaxEpisodes(max_episodes=2), CheckpointCallback(5, str(tmp_path))
    learner.learn(4000, callback=[stop, save])
    assert learner.num_timesteps == 2 * 4 * 6  # two episodes of 6 steps in each of 4 environments
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl_model_20_steps.zip", "rl_model_40_steps.zip"]


def test_states_are_numbered_one_to_one():
    for sizes in ([4], [2, 3], [3, 1, 4]):
        space = gym.spaces.MultiDiscrete(sizes)
        elements = np.array(list(np.ndindex(*sizes)), dtype=np.uint8)
        assert state_count(space) == len(elements)
        assert state_numbers(elements, space).tolist() == list(range(len(elements)))


def test_only_algorithms_whose_streams_are_independent_learn_side_by_side():
    names = ("TabularQ", "UCB", "ThompsonSampling", "NoisedPolicy", "A2C")
    for independent in (learns_side_by_side, lambda name: has_independent_streams(name, {})):
        assert [independent(name) for name in names] == [True] * 4 + [False]
    assert not has_independent_streams("TabularQ", {"shared": True})


def test_parts_of_a_job_live_through_what_they_do_in_all_of_it():
    family = family_of(ThompsonSampling)
    source = SourceConfig("ThompsonSampling", 3, 90, tasks_per_job=4)
    job = Job(tuple(family.tasks()), 0)
    whole = learn_job(family, source, job)
    halves = [each for half in job.halves() for each in learn_job(family, source, half)]
    assert [task for task, *_ in halves] == [task for task, *_ in whole] == family.tasks()
    for (_, one, _), (_, other, _) in zip(whole, halves, strict=True):
        for name, array in vars(one).items():
            np.testing.assert_array_equal(getattr(other, name), array)


def test_jobs_of_several_tasks_give_every_task_histories_of_its_own_goal(tmp_path):
    """Five tasks by jobs of up to two of them."""
    tasks = [{"goal": goal} for goal in ([0, 0], [2, 2], [1, 0], [0, 2], [2, 0])]
    family = TaskFamily("ad_hf/DarkRoom-v0", tasks, ROOM, num_test_tasks=1, native_vector=True)
    source = SourceConfig("TabularQ", n_envs=3, total_timesteps=360, seeds=[0, 1], tasks_per_job=2)
    collected = collect(family, source, output_dir=tmp_path / "histories", num_workers=0)
    metadata = read_metadata(collected)
    goals = {task["task_id"]: task["kwargs"]["goal"] for task in metadata.tasks}
    moves = np.array([[-1, 0], [1, 0], [0, 1], [0, -1], [0, 0]])
    ids = []
    for path in (collected / "default").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            after = np.clip(np.array(row["observations"]) + moves[row["actions"]], 0, 2)
            rewards = (after == goals[row["task_id"]]).all(axis=1)
            assert row["rewards"] == rewards.astype(float).tolist()
            assert len(rewards) == 120
            ids.append(row["history_id"])
    assert sorted(ids) == sorted(f"{task}-{seed}-{stream}" for task in goals for seed in (0, 1) for stream in range(3))
    assert metadata.source["tasks_per_job"] == 2
    rows = metadata.progress["rows"]
    assert [row[:4] for row in rows] == [[task, seed, 360, 60] for task in range(5) for seed in (0, 1)]
    assert all(last > first for *_, first, last, _ in rows)
