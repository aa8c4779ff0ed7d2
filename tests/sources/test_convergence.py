"""Sources that stop when they have converged, how far they got, and their callbacks."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from ad_hf.collection.collect import collect
from ad_hf.collection.jobs import Job, learn_job, progress_row
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import PROGRESS_COLUMNS, read_metadata
from ad_hf.sources.config import ConvergenceConfig, SourceConfig
from ad_hf.sources.convergence import StopWhenConverged

STOP_AFTER = "stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes"
QUICK = {"window": 5, "patience": 2}
A2C = {"learning_rate": 0.01, "n_steps": 5, "policy_kwargs": {"net_arch": [16]}}


def rooms(goals=((0, 0), (1, 0)), **kwargs):
    tasks = [{"goal": list(goal)} for goal in goals]
    return TaskFamily("ad_hf/DarkRoom-v0", tasks, {"size": 3, "max_episode_steps": 6, **kwargs}, native_vector=True)


class OfNumbers:
    """Shows the callback returns, each of an episode of one step, as any learner shows them."""

    def __init__(self, num_tasks=1, **settings):
        self.callback = StopWhenConverged(ConvergenceConfig(**QUICK, **settings), num_tasks)
        self.callback.model = self
        self.num_timesteps = 0

    def get_env(self):
        return self

    def stops_after(self, returns):
        """Steps after which returns (steps, streams) stop the learner."""
        returns = np.asarray(returns, dtype=float)
        self.num_envs = returns.shape[1]
        self.callback._init_callback()
        for step, rewards in enumerate(returns, start=1):
            self.callback.update_locals({"rewards": rewards, "dones": np.ones(self.num_envs, dtype=bool)})
            if not self.callback.on_step():
                return step
        return None


def rising(start, stop, steps, after, streams=4):
    """Returns that rise and then stay."""
    means = np.concatenate([np.linspace(start, stop, steps), np.full(after, stop)])
    return means[:, None] + np.random.default_rng(0).normal(0, 0.05, (len(means), streams))


TWO_REWARDS = np.concatenate([rising(0, 1, 20, 60), rising(1, 2, 20, 60)])


@pytest.mark.parametrize(
    ("returns", "settings", "stops"),
    [
        (rising(0, 1, 50, 100), {}, range(60, 76)),
        (rising(0, 1, 150, 0), {}, [None]),
        (np.zeros((300, 4)), {}, [None]),  # what has not risen yet is not converged
        ((np.random.default_rng(1).random((300, 4)) < 0.02).astype(float), {}, [None]),  # rare, and met by chance
        (np.concatenate([np.zeros((100, 4)), rising(0, 1, 30, 60)]), {}, range(130, 161)),
        (np.ones((100, 4)), {"return_threshold": 0.9}, [15]),  # takes the place of having risen
        (np.ones((100, 4)), {"return_threshold": 1.1}, [None]),
        (rising(0, 1, 20, 100), {"return_threshold": 1.1}, [None]),
        (TWO_REWARDS, {}, range(60)),
        (TWO_REWARDS, {"min_timesteps": 4 * 100}, range(101, 161)),  # outlasts the plateau on the way
    ],
)
def test_learner_stops_some_windows_after_its_returns_have_stopped_to_rise(returns, settings, stops):
    assert OfNumbers(**settings).stops_after(returns) in stops


def test_tasks_side_by_side_converge_each_by_itself():
    slow, fast = rising(0, 1, 90, 60, streams=2), rising(0, 1, 20, 130, streams=2)
    watched = OfNumbers(num_tasks=2)
    stopped = watched.stops_after(np.stack([slow, fast], axis=2).reshape(150, 4))
    assert watched.callback.converged_at == [stopped, OfNumbers().stops_after(fast)]
    assert stopped == OfNumbers().stops_after(slow)


def test_learner_that_tells_no_rewards_is_refused():
    watched = OfNumbers()
    watched.stops_after(np.ones((1, 2)))
    watched.callback.locals = {"dones": np.ones(2, dtype=bool)}
    with pytest.raises(ValueError, match="OfNumbers tells callbacks no rewards"):
        watched.callback.on_step()


@pytest.mark.parametrize(
    ("algorithm", "hyperparameters", "streams"),
    [
        ("TabularQ", {"learning_rate": 1.0}, 3),
        ("A2C", A2C, 8),
        ("DQN", {"learning_starts": 50, "train_freq": 1, "exploration_fraction": 0.02, "learning_rate": 3e-3}, 2),
    ],
)
def test_array_on_policy_and_off_policy_learners_stop(algorithm, hyperparameters, streams):
    source = SourceConfig(algorithm, streams, 60_000, hyperparameters, until_converged={**QUICK, "window": 20})
    family, announced = rooms(), []
    ((task, steps, converged),) = learn_job(family, source, Job((family.tasks()[0],), 0), on_step=announced.append)
    assert converged is True
    assert steps.rewards.size == sum(announced) < 50_000
    assert steps.rewards.shape[1] % 6 == 0  # it is seen at an episode's end
    assert [len(finals) for finals in steps.final_observations] == [steps.rewards.shape[1] // 6] * streams
    row = dict(zip(PROGRESS_COLUMNS, progress_row(task.task_id, 0, steps, converged), strict=True))
    assert row["return_last"] > row["return_first"] + 1


def test_metadata_says_how_far_each_source_got(tmp_path):
    """Of tasks side by side, each one's histories end where it had converged; one is optimal from the start."""
    goals = [(0, 0), (1, 1), (1, 0)]
    settings = {"n_envs": 3, "hyperparameters": {"learning_rate": 1.0}, "num_workers": 0, "tasks_per_job": 3}
    family = rooms(goals, size=3)
    collect(family, "TabularQ", **settings, total_timesteps=5400, until_converged=QUICK, output_dir=tmp_path)
    metadata = read_metadata(tmp_path)
    assert metadata.source["until_converged"] == asdict(ConvergenceConfig(**QUICK))
    assert tuple(metadata.progress["columns"]) == PROGRESS_COLUMNS
    text = (tmp_path / "default" / "metadata.json").read_text()
    assert all(json.dumps(row) in text.splitlines()[-6:][i].strip() for i, row in enumerate(metadata.progress["rows"]))
    lengths = {}
    for path in (tmp_path / "default").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            returns = np.reshape(row["rewards"], (-1, 6)).sum(axis=1)
            tenth = -(-len(returns) // 10)
            lengths.setdefault(row["task_id"], []).append(
                (len(returns), returns[:tenth].mean(), returns[-tenth:].mean())
            )
    for task, seed, steps, episodes, first, last, converged in metadata.progress["rows"]:
        streams = np.array(lengths[task])
        assert (seed, steps, episodes) == (0, streams[:, 0].sum() * 6, streams[:, 0].sum())
        np.testing.assert_allclose([first, last], streams[:, 1:].mean(axis=0), rtol=1e-5)
        assert converged == (steps < 5400)
    assert metadata.progress["rows"][0][-1] is True


class Count(BaseCallback):
    """Counts the steps of all learners."""

    steps = 0

    def _on_step(self):
        Count.steps += 1
        return True


def test_callbacks_are_given_to_every_learner(tmp_path):
    """One stops it, after whole episodes, and another saves it, in a folder of each task and seed."""
    saved = str(tmp_path / "saved" / "{task_id}-{seed}")
    name = "stable_baselines3.common.callbacks.CheckpointCallback"
    callbacks = [
        {"name": STOP_AFTER, "kwargs": {"max_episodes": 4}},
        {"name": name, "kwargs": {"save_freq": 10, "save_path": saved}},
        f"{__name__}.Count",  # without arguments
    ]
    folder = tmp_path / "histories"
    settings = {"n_envs": 2, "total_timesteps": 600, "hyperparameters": A2C, "seeds": [0, 5], "num_workers": 0}
    collect(rooms(), "A2C", **settings, callbacks=callbacks, output_dir=folder)
    metadata = read_metadata(folder)
    assert metadata.source["callbacks"] == [*callbacks[:2], {"name": callbacks[2], "kwargs": {}}]
    assert Count.steps >= 4 * 24
    assert [row[2:4] + row[-1:] for row in metadata.progress["rows"]] == [[48, 8, None]] * 4
    files = {f"{task}-{seed}/rl_model_{steps}_steps.zip" for task in (0, 1) for seed in (0, 5) for steps in (20, 40)}
    assert {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*.zip")} == files
