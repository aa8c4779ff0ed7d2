"""Learners of one's own: classes by import path and as objects, of Stable-Baselines3's kind and of none."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from types import ModuleType

import numpy as np
import pytest
import torch
from faulty import contents
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from test_readme import file_of

from ad_hf.collection.collect import collect
from ad_hf.collection.failures import CollectionError
from ad_hf.collection.jobs import Job, learn_job
from ad_hf.envs.dark_room import walk
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import algorithm_name, read_metadata, source_label
from ad_hf.sources.config import SourceConfig
from ad_hf.sources.learners import check_source, describe_source

ROOM = {"size": 3, "max_episode_steps": 6}


def rooms():
    tasks = [{"goal": goal} for goal in ([0, 0], [1, 0], [2, 2], [1, 1])]
    return TaskFamily("ad_hf/DarkRoom-v0", tasks, ROOM, native_vector=True)


class Wanderer:
    """Moves at random, by whichever random numbers it is told, and catches every error."""

    def __init__(self, envs, seed, draws: str = "own", steps: int | None = None, tau: float = 2.0):
        number, count, rng = envs.num_envs, envs.single_action_space.n, np.random.default_rng(seed)
        self.envs, self.steps, self.seen = envs, steps, []
        self.draw = {
            "own": lambda: rng.integers(count, size=number),
            "space": envs.action_space.sample,
            "numpy": lambda: np.random.randint(count, size=number),
            "python": lambda: np.array([random.randrange(count) for _ in range(number)]),
            "torch": lambda: torch.randint(count, (number,)),
        }[draws]
        SEEN.append(self.seen)

    def learn(self, total_timesteps):
        self.seen.append(self.envs.reset()[0])
        for _ in range(total_timesteps // self.envs.num_envs if self.steps is None else self.steps):
            with suppress(Exception):
                self.seen.append(self.envs.step(self.draw())[0])


SEEN = []  # the observations of each


class Improving(Wanderer):
    """Wanders for a while and then goes to a corner, for as long as it is let."""

    independent_streams = True

    def learn(self, total_timesteps):
        observations, _ = self.envs.reset()
        for step in itertools.count():
            to_corner = walk(observations, np.zeros_like(observations))
            observations, *_ = self.envs.step(to_corner if step > 300 else self.draw())


class Faulty(Wanderer):
    """Does something that a learner may not."""

    def __init__(self, envs, seed, fault=""):
        super().__init__(envs, seed)
        self.fault = fault
        if fault == "early":
            envs.reset()
            envs.step(self.draw())

    def learn(self, total_timesteps):
        actions = self.draw()
        if self.fault != "no reset":
            self.envs.reset()
        if self.fault == "part":
            self.envs.reset(options={"reset_mask": np.arange(self.envs.num_envs) == 0})
        wrong = {"outside": actions + 5, "shape": actions[:1], "kind": actions / 1}
        if self.fault != "nothing":
            self.envs.step(wrong.get(self.fault, actions))


class Stops(BaseCallback):
    """Stops a learner after 20 steps."""

    def _on_step(self):
        return self.n_calls < 20


class OwnPolicy(ActorCriticPolicy):
    """A policy under another name."""


class Quiet(A2C):
    """Sets itself what others take as arguments, but for one."""

    def __init__(self, env, seed, steps: int = 5):
        super().__init__("MlpPolicy", env, seed=seed, n_steps=steps)


def learn(learner, family=None, total_timesteps=120, n_envs=4, **settings):
    """The steps that a learner made, and whether it had converged."""
    source = SourceConfig(learner, n_envs, total_timesteps, **settings)
    family = family or rooms()
    check_source(source)
    ((_, steps, converged),) = learn_job(family, source, Job((family.tasks()[0],), 0))
    return steps, converged


def test_streams_of_whatever_it_steps_are_the_histories():
    """With the observations that the family shows to the source alone, and in vectors of single environments, too."""
    steps, converged = learn(Wanderer)
    assert converged is None
    assert steps.rewards.shape == (4, 30)
    np.testing.assert_array_equal(np.stack(SEEN[-1][:-1], axis=1), steps.observations)
    keys = TaskFamily(
        "ad_hf/DarkKeyToDoor-v0",
        [{"key": [0, 0], "door": [1, 1]}],
        ROOM,
        source_observation={"has_key": {"type": "Discrete", "n": 2}},
    )
    steps, _ = learn(Wanderer, keys)
    seen = np.stack(SEEN[-1][:-1], axis=1)
    np.testing.assert_array_equal(seen[:, :, :2], steps.observations)
    assert np.unique(seen[:, :, 2]).tolist() == [0, 1]


def test_learner_stops_by_itself_or_is_stopped():
    assert learn(Wanderer, hyperparameters={"steps": 7})[0].rewards.shape == (4, 7)
    assert learn(Wanderer, hyperparameters={"steps": 10**9})[0].rewards.shape == (4, 30)
    assert learn(Wanderer, total_timesteps=121, hyperparameters={"steps": 50})[0].rewards.shape == (4, 31)
    until = {"window": 5, "patience": 2}
    steps, converged = learn(Improving, total_timesteps=40_000, until_converged=until)
    assert converged is True
    assert 300 < steps.rewards.shape[1] < 1000
    steps, converged = learn(Wanderer, total_timesteps=1200, until_converged=until)
    assert converged is False
    assert steps.rewards.size == 1200


@pytest.mark.parametrize("draws", ["own", "space", "numpy", "python", "torch"])
def test_steps_depend_on_nothing_but_task_and_seed(draws):
    task = {"rewarding": "uniform", "task_seed": 1}
    bandits = TaskFamily("ad_hf/AdversarialBandit-v0", [task], {"max_episode_steps": 9}, native_vector=True)
    first, second = (learn(Wanderer, bandits, hyperparameters={"draws": draws})[0] for _ in range(2))
    for name in ("actions", "rewards"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert 0 < first.rewards.mean() < 1


REFUSALS = [  # a learner, its settings, the message
    ("no_such_module.Learner", {}, "^source.algorithm 'no_such_module.Learner': No module named 'no_such_module'"),
    (f"{__name__}.Nothing", {}, f"^source.algorithm must be .* module {__name__!r} has no attribute 'Nothing'"),
    ("json.dumps", {}, "^source.algorithm must be the import path of a class, got 'json.dumps'"),
    ("json.JSONDecoder", {}, r"json.JSONDecoder is no learner: expected .* BaseAlgorithm, or .* envs, seed"),
    ("stable_baselines3.common.base_class.BaseAlgorithm", {}, "source.algorithm must be the import path of a class"),
    ("tabularq", {}, "'tabularq' .did you mean TabularQ.*: expected one of A2C, .*or the import path of a class such"),
    ("Improving", {}, "unknown source algorithm 'Improving': expected"),
    (
        Wanderer,
        {"callbacks": [Stops]},
        "source.callbacks are Stable-Baselines3's, and .*Wanderer is",
    ),
    (Wanderer, {"tasks_per_job": 2}, "Wanderer learns one task at a time: set tasks_per_job to 1"),
    (PPO, {"tasks_per_job": 2}, "PPO learns one task at a time"),
    (
        Wanderer,
        {"hyperparameters": {"lr": 1, "seed": 2}},
        "no hyper-parameter 'lr', 'seed': expected draws, steps",
    ),
    (Wanderer, {"hyperparameters": {"tau": "high"}}, "source.hyperparameters.tau must be of type float, got 'high'"),
    (Wanderer, {"hyperparameters": {"draws": "dice"}}, "hyperparameters.draws: with 'dice', .*KeyError: 'dice'"),
    (Faulty, {"hyperparameters": {"fault": "early"}}, "fault: with 'early', .* too soon: in learn, and after"),
    (Faulty, {"hyperparameters": {"fault": "no reset"}}, "too soon: in learn, and after envs.reset"),
    (Faulty, {"hyperparameters": {"fault": "part"}}, "a learner resets all environments together"),
    (Faulty, {"hyperparameters": {"fault": "nothing"}}, "Faulty made no step"),
    (
        Faulty,
        {"hyperparameters": {"fault": "outside"}},
        "gave the action [5-9] at step 0, expected elements",
    ),
    (Faulty, {"hyperparameters": {"fault": "shape"}}, r"gave actions of shape \(1,\) .* in shape \(2,\)"),
    (Faulty, {"hyperparameters": {"fault": "kind"}}, "gave actions of .* dtype float64 at step 0"),
    (Quiet, {"hyperparameters": {"n_steps": 5}}, "Quiet takes no hyper-parameter 'n_steps': expected steps"),
    ("A2C", {"hyperparameters": {"n_steps": Wanderer}}, "source.hyperparameters must be JSON"),
]


def test_what_is_no_learner_is_refused_in_one_line(tmp_path):
    for learner, settings, message in REFUSALS:
        with pytest.raises((ValueError, CollectionError), match=message):
            collect(rooms(), learner, n_envs=2, total_timesteps=24, output_dir=tmp_path, num_workers=0, **settings)
        shutil.rmtree(tmp_path / ".incomplete", ignore_errors=True)


def test_a_class_that_no_other_process_can_import_is_refused():
    class Local(Wanderer):
        pass

    with pytest.raises(
        ValueError, match=r"source.algorithm: Local is defined inside a function.*top level of a module"
    ):
        SourceConfig(Local)
    hidden = type("Wanderer", (Wanderer,), {"__module__": __name__})
    with pytest.raises(ValueError, match=r"test_own_learners.Wanderer is another class than the one given"):
        SourceConfig(hidden)


def test_a_class_that_workers_cannot_import_ends_the_collection_at_once(tmp_path, monkeypatch):
    only_here = ModuleType("only_here")
    only_here.Wanderer = type("Wanderer", (Wanderer,), {"__module__": "only_here"})
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    with pytest.raises(
        ValueError, match=r"worker processes cannot import .*only_here.* or collect with num_workers=0"
    ):
        collect(rooms(), only_here.Wanderer, n_envs=2, total_timesteps=24, output_dir=tmp_path, num_workers=1)


def test_classes_in_python_are_import_paths_in_the_metadata(tmp_path):
    """Those of Stable-Baselines3's kind keep its callbacks, policies and hyper-parameters."""
    settings = {
        "hyperparameters": {"n_steps": 5, "policy": OwnPolicy, "policy_kwargs": {"activation_fn": torch.nn.ELU}},
        "callbacks": [Stops],
    }
    sizes = {"n_envs": 2, "total_timesteps": 600, "num_workers": 0}
    folder = collect(rooms(), A2C, **sizes, **settings, output_dir=tmp_path / "a2c")
    metadata = read_metadata(folder)
    assert metadata.source["algorithm"] == "stable_baselines3.a2c.a2c.A2C"
    assert metadata.source["callbacks"] == [{"name": f"{__name__}.Stops", "kwargs": {}}]
    assert metadata.source["hyperparameters"] == {
        "n_steps": 5,
        "policy": f"{__name__}.OwnPolicy",
        "policy_kwargs": {"activation_fn": "torch.nn.modules.activation.ELU"},
    }
    assert [row[2] for row in metadata.progress["rows"]] == [40] * 4
    collect(rooms(), Quiet, **sizes, hyperparameters={"steps": 3}, output_dir=tmp_path / "quiet")
    assert read_metadata(tmp_path / "quiet").source["independent_streams"] is False


def test_labels_show_the_name_of_a_class_and_metadata_whether_its_streams_are_known_to_be_independent():
    names = ("PPO", "my_package.learners.Mine", "my_package.Outer.Inner", "PPO v1.0", "")
    assert [*map(algorithm_name, names)] == ["PPO", "Mine", "Inner", "PPO v1.0", ""]
    assert source_label("ad_hf.sources.noised.NoisedPolicy") == source_label("NoisedPolicy")
    assert describe_source(SourceConfig(Improving))["independent_streams"] is True
    assert "independent_streams" not in describe_source(SourceConfig(Wanderer))


SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path

from ad_hf import TaskFamily, collect

family, settings = json.loads(sys.argv[1])


def kill_after_a_job():
    while not any(Path(settings["output_dir"]).glob(".incomplete/default/part-*.arrow")):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


threading.Thread(target=kill_after_a_job, daemon=True).start()
collect(TaskFamily(**family), **settings)
"""
FAMILY = {"env_id": "ad_hf/DarkRoom-v0", "env_kwargs": ROOM, "native_vector": True}
FAMILY["tasks"] = [{"goal": [x, y]} for x in range(3) for y in range(2)]


def test_killed_collections_of_both_kinds_resume_to_the_same_bytes(tmp_path, monkeypatch):
    (tmp_path / "my_learners.py").write_text(file_of("docs/guides/your_own_learner.md", "my_learners.py"))
    monkeypatch.syspath_prepend(tmp_path)
    import my_learners

    settings, running = {"num_workers": 0, "n_envs": 4}, []
    small = {"n_steps": 30, "batch_size": 60, "n_epochs": 4, "learning_rate": 0.003, "policy_kwargs": {"net_arch": []}}
    own = {
        my_learners.ExpectedSarsa: {"total_timesteps": 6000},
        my_learners.AnnealedPPO: {"total_timesteps": 600, "hyperparameters": small},
    }
    for learner, sizes in own.items():
        folder = tmp_path / f"killed {learner.__name__}"
        sizes |= {**settings, "algorithm": f"my_learners.{learner.__name__}"}
        argument = json.dumps([FAMILY, {**sizes, "output_dir": str(folder)}])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        running.append((folder, sizes, subprocess.Popen([sys.executable, "-c", SCRIPT, argument], env=environment)))
    for (folder, sizes, process), learner in zip(running, own):
        assert process.wait(timeout=120) == -signal.SIGKILL
        finished = list((folder / ".incomplete" / "default").glob("part-*.arrow"))
        assert 0 < len(finished) < 6
        collect(TaskFamily(**FAMILY), **sizes, output_dir=folder)
        whole = tmp_path / learner.__name__
        collect(TaskFamily(**FAMILY), **{**sizes, "algorithm": learner}, output_dir=whole)  # the class itself
        assert contents(folder) == contents(whole)
        rows = np.array(read_metadata(whole).progress["rows"], dtype=float)
        assert rows[:, 5].mean() > rows[:, 4].mean()  # returns at the end, and at the start
