"""What would fail in every job of a collection is refused before the first one, by its setting."""

import json
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import ad_hf
from ad_hf.collection.collect import collect
from ad_hf.collection.rehearsal import check_spaces
from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import read_metadata

ROOM = {
    "env_id": "ad_hf/DarkRoom-v0",
    "splits": {"train": [{"goal": [0, 1]}], "test": [{"goal": [1, 1]}]},
    "env_kwargs": {"size": 3, "max_episode_steps": 6},
    "native_vector": True,
}
QUICK = {"algorithm": "TabularQ", "n_envs": 2, "total_timesteps": 24, "num_workers": 1}
CALLBACK = "stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes"
ABSTRACT = "stable_baselines3.common.callbacks.BaseCallback"


def a2c(**hyperparameters):
    return {"algorithm": "A2C", "hyperparameters": hyperparameters}


def room(**kwargs):
    return {"env_kwargs": {**ROOM["env_kwargs"], **kwargs}}


def fails(**kwargs):
    raise KeyError("lost")


REFUSALS = [  # changes of the family, changes of the settings, the message
    (
        {"env_id": "ad_hf/NoRoom-v0"},
        {},
        r"family\.env_id 'ad_hf/NoRoom-v0': .*NoRoom.*write my_module:ad_hf/NoRoom-v0",
    ),
    ({"env_id": "no_such:Room-v0"}, {}, r"family\.env_id .* No module named 'no_such': put no_such\.py beside the"),
    (
        {"env_id": "faulty:Room-v0"},
        {},
        r"doesn.t exist.*: the module faulty has to call gymnasium\.register\('Room-v0'",
    ),
    (room(walls=3), {}, r"^family\.env_kwargs and tasks: .*'walls': 3.*unexpected keyword argument 'walls'"),
    (room(size="3"), {}, r"^family\.env_kwargs and tasks: .*'size': '3'"),
    (room(size=10**9), {}, r"^no model can .*'size': 1000000000.* would take [\d,]+ bytes"),
    ({"splits": {"train": [{"goal": [0, 1]}], "test": [{"gaol": [1, 1]}]}}, {}, r"split 'test' can be made.*'gaol'"),
    (
        {"env_id": f"{__name__}:Lost-v0", "native_vector": False, "env_kwargs": {}},
        {},
        "made and reset, .*KeyError: 'lost'",
    ),
    ({"native_vector": False, "wrappers": ["builtins.id"]}, {}, r"family\.wrappers\[0\]: builtins\.id returned"),
    ({"source_observation": {"door": 5}}, {}, r"family\.source_observation\.door must be a space"),
    ({"optimal_return": math.sqrt}, {}, r"^family\.optimal_return failed for .*'goal': \[0, 1\]"),
    ({"random_return": fails}, {}, r"^family\.random_return failed for .*KeyError: 'lost'"),
    ({"random_return": dict}, {}, r"^family\.random_return returned .*expected a finite number"),
    ({}, a2c(n_steps=-1), r"^source\.hyperparameters\.n_steps must be at least 1, got -1"),
    ({}, a2c(n_steps="a"), r"^source\.hyperparameters\.n_steps must be of type int, got 'a'"),
    ({}, a2c(n_steps=True), r"^source\.hyperparameters\.n_steps must be of type int, got True"),
    ({}, a2c(use_rms_prop="no"), r"^source\.hyperparameters\.use_rms_prop must be of type bool, got 'no'"),
    ({}, a2c(gamma=math.nan), r"^source\.hyperparameters\.gamma must be a finite number, got nan"),
    ({}, a2c(gamma=1.5), r"^source\.hyperparameters\.gamma must be from 0 to 1, got 1.5"),
    ({}, a2c(policy_kwargs={"log_std_init": math.inf}), r"policy_kwargs\.log_std_init must be a finite number"),
    ({}, a2c(policy="NoPolicy"), r"^source\.hyperparameters\.policy: with 'NoPolicy', A2C cannot be made"),
    ({}, a2c(device="no such device"), r"^source\.hyperparameters\.device: with 'no such device', A2C"),
    ({}, a2c(policy_kwargs={"net_arch": [-3]}), r"^source\.hyperparameters\.policy_kwargs: with"),
    ({}, {"algorithm": "SAC"}, r"^source\.algorithm: SAC cannot be made for task 0 .*Discrete"),
    ({}, {"algorithm": "A3C"}, "unknown source algorithm 'A3C'"),
    ({}, {"algorithm": "DQN", "hyperparameters": {"train_freq": [0, "episode"]}}, r"train_freq must be at least 1"),
    ({}, {"algorithm": "A2C", "tasks_per_job": 2}, r"A2C learns one task at a time: set tasks_per_job to 1, got 2"),
    ({}, {"hyperparameters": [1]}, r"^source\.hyperparameters must be a mapping"),
    ({}, {"hyperparameters": {"gamma": {1}}}, r"^source\.hyperparameters must be JSON"),
    ({}, {"n_envs": 10**9}, r"^source\.n_envs 10{9} .* would take 1,037,000,000,000 bytes"),
    ({}, {"n_envs": 2.5}, r"^source\.n_envs must be a whole number"),
    ({}, {"n_envs": True}, r"^source\.n_envs must be a whole number"),
    ({}, {"n_envs": 0}, r"^source\.n_envs must be .*at least 1"),
    ({}, {"total_timesteps": 10**15}, r"source\.total_timesteps 10{15}: .* would take [\d,]+ bytes"),
    ({}, {"total_timesteps": 10**30}, r"^source\.total_timesteps must be"),
    ({}, {"seeds": [-1]}, r"^source\.seeds must hold different whole numbers from 0"),
    ({}, {"seeds": [2**32]}, r"^source\.seeds must hold"),
    ({}, {"seeds": [1, 1]}, r"^source\.seeds must hold different"),
    ({}, {"seeds": []}, r"^source\.seeds must hold"),
    ({}, {"seeds": ["a"]}, r"^source\.seeds.* must be a whole number"),
    ({}, {"seeds": 3}, r"^source\.seeds must be a list"),
    ({}, {"until_converged": {"window": 0}}, r"^source\.until_converged\.window must be .*at least 1"),
    ({}, {"until_converged": {"tolerance": math.nan}}, r"^source\.until_converged\.tolerance must be"),
    ({}, {"until_converged": {"windows": 3}}, r"^unknown setting source\.until_converged\.windows \(did"),
    ({}, {"until_converged": 5}, r"^source\.until_converged must be"),
    ({}, {"callbacks": CALLBACK}, r"^source\.callbacks must be a list"),
    ({}, {"callbacks": ["no.such.Callback"]}, r"^source\.callbacks\[0\] '.*': No module named 'no': put no\.py"),
    ({}, {"callbacks": ["numpy.ndarray"]}, "source.callbacks.* numpy.ndarray"),
    (
        {},
        {"callbacks": [ABSTRACT]},
        "derives from BaseCallback",
    ),
    ({}, {"callbacks": [CALLBACK]}, "missing a required argument: 'max_episodes'"),
    (
        {},
        {"callbacks": [{"name": CALLBACK, "kwargs": {"max": 3}}]},
        "callbacks.0.: .* cannot be called with .*argument",
    ),
    ({}, {"callbacks": [{"path": CALLBACK}]}, "expected an import path, or a name and kwargs"),
    ({}, {"callbacks": [{"name": CALLBACK, "arguments": {}}]}, "expected an import path, or a name and kwargs"),
    ({}, {"lr": 1.0}, r"unknown setting source\.lr"),
    ({}, {"config_name": "../elsewhere"}, r"^config_name must be the name of a folder"),
    ({}, {"split": "validation"}, r"^split 'validation' of the family has no tasks"),
    ({}, {"split": "eval"}, "unknown split 'eval'"),
    ({}, {"num_workers": -1}, "num_workers must be a whole number of at least 0, got -1"),
    ({}, {"num_workers": 0, "executor": "ray"}, "num_workers 0 collects in this process: set executor to local"),
    ({}, {"shard_transitions": -1}, "shard_transitions must be a whole number of at least 1"),
    ({}, {"max_piece_steps": 2.0}, "max_piece_steps must be a whole number of at least 1"),
    *(({}, {"part": part}, "part must be K/N") for part in ("0/2", "3/2", "two", (2, 1))),
    ({}, {"address": "auto"}, "set executor to ray"),
    ({}, {"executor": "dask"}, "executor must be local or ray"),
]


def test_settings_that_fail_everywhere_are_refused_before_the_first_job(tmp_path):
    for family, changes, message in REFUSALS:
        with pytest.raises(ValueError, match=message):
            collect(TaskFamily(**{**ROOM, **family}), output_dir=tmp_path / "histories", **{**QUICK, **changes})
    assert not (tmp_path / "histories").exists()


UNIT = spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_spaces_that_no_model_can_be_made_for_are_refused():
    for observations, actions, message in (
        (UNIT, spaces.MultiBinary(3), "write a MultiBinary space as MultiDiscrete"),
        (UNIT, spaces.Box(-1, 1, (2, 2), np.float32), "action_space: a Box must have one dimension"),
        (UNIT, spaces.Box(-np.inf, 1, (2,), np.float32), "finite bounds"),
        (UNIT, spaces.Box(0, 10, (1,), np.int64), r"action space .* holds integers.*make it MultiDiscrete.*wrappers"),
        (UNIT, spaces.Discrete(3, start=1), "action space .* starts at 0"),
        (UNIT, spaces.MultiDiscrete([[2, 2], [3, 3]]), "action space .* fits no model"),
        (UNIT, spaces.Dict({"a": spaces.Discrete(2)}), "action space .* fits no model"),
        (spaces.Box(0, 1, (4, 4), np.float32), UNIT, "must be a vector or an image"),
        (spaces.Box(0, 1, (), np.float32), UNIT, "observation space .* has no numbers"),
        (spaces.Box(0, 255, (3, 84, 84), np.uint8), UNIT, r"channels first.*ad_hf\.envs\.making\.ChannelsLast\]$"),
        (spaces.Box(0, 1, (4, 10, 10), np.float32), UNIT, "channels first"),
        (spaces.Text(5), UNIT, "observation space .* fits no model"),
        (spaces.Box(0, 1, (3,), np.float16), UNIT, "dtype must be one of"),
        (spaces.Discrete(10**12), UNIT, "n must be from 1 to"),
        (spaces.MultiDiscrete([2**31 - 1] * 99), UNIT, r"would take 13,606,456,394,304 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            check_spaces(TaskFamily(**ROOM), observations, actions)
    for space in (
        spaces.Box(0, 1, (6,), np.bool_),
        spaces.Box(0, 1, (10, 10, 4), np.bool_),
        spaces.Box(0, 255, (84, 84, 3), np.uint8),
        spaces.Box(0, 255, (4, 4, 4), np.uint8),
        spaces.MultiBinary(3),
    ):
        assert check_spaces(TaskFamily(**ROOM), space, UNIT) == (space_to_json(space), space_to_json(UNIT))


def test_files_of_the_user_are_not_replaced(tmp_path):
    for number, (name, message) in enumerate(
        [
            *((name, "is no folder") for name in (".", "default", ".incomplete", ".incomplete/default")),
            ("README.md/text", "is a folder, where the dataset's card is to be"),
            ("default/thesis.txt", "holds no learning histories"),
        ]
    ):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
        with pytest.raises(ValueError, match=message):
            collect(TaskFamily(**ROOM), **QUICK, output_dir=tmp_path / str(number))
        assert path.read_text() == "precious"


class Bits(gym.Env):
    """Shows truth values, pays the action, and tells an info under a number."""

    observation_space, action_space = spaces.Box(0, 1, (3,), np.bool_), spaces.Discrete(2)

    def __init__(self, bit=0):
        self.bit = bit

    def _see(self):
        return self.np_random.random(3) < 0.5, {0: self.bit}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._see()

    def step(self, action):
        self.steps += 1
        seen, info = self._see()
        return seen, int(action), self.steps == 4, False, info


gym.register("Bits-v0", f"{__name__}:Bits")


class Lost(Bits):
    """Cannot be reset."""

    def __init__(self, goal):
        super().__init__()

    def reset(self, *, seed=None, options=None):
        raise KeyError("lost")


gym.register("Lost-v0", f"{__name__}:Lost")


def test_truth_values_numpy_numbers_and_infos_under_numbers_are_collected(tmp_path):
    """From the collection to a model that acts on what it sees."""
    family = TaskFamily(f"{__name__}:Bits-v0", [{"bit": np.int64(1)}], {})
    folder = collect(
        family,
        algorithm="A2C",
        n_envs=np.int64(2),
        total_timesteps=np.int32(20),
        hyperparameters={"learning_rate": np.float64(0.01), "n_steps": np.int64(5)},
        seeds=np.arange(2),
        output_dir=tmp_path,
        num_workers=1,
    )
    metadata = read_metadata(folder)
    assert metadata.seeds == [0, 1]
    assert metadata.source["hyperparameters"] == {"learning_rate": 0.01, "n_steps": 5}
    assert json.loads((folder / "default" / "metadata.json").read_text())["tasks"][0]["kwargs"] == {"bit": 1}
    row = ad_hf.load_histories(folder, "train")[0][0]
    assert np.unique(row["observations"]).tolist() == [0, 1]
    model = ad_hf.ADModel(ad_hf.config_from_dataset(folder, hidden_size=8, num_hidden_layers=1, context_length=8))
    envs = gym.vector.SyncVectorEnv([Bits], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    assert model.rollout(envs, num_episodes=2).episode_returns.shape == (1, 2)
