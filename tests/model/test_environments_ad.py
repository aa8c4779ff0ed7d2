"""Environments of every kind and autoreset mode, which live through the same, and those that are refused."""

import logging

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from rollout_environments import CART_POLE, COUNTING, DARK_ROOM, GOALS, MODES, Counting, cart_poles, dark_rooms

from ad_hf.envs.spaces import space_to_json
from ad_hf.model.rollout_ad import RolloutOutput

PAIRS = {
    "observation_space": {"type": "Box", "shape": [2], "low": [-9.0] * 2, "high": [9.0] * 2, "dtype": "float32"},
    "action_space": {"type": "Discrete", "n": 5},
}
PAIR = spaces.Box(-9, 9, (2,), np.float32)
ALL = {f"output_{name}": True for name in ("steps", "log_probs", "logits")}
made: list[Counting] = []


def counting(**kwargs):
    """What the registered id makes, and keeps for the test to look at."""
    made.append(Counting(**kwargs))
    return made[-1]


@pytest.fixture
def counting_id():
    made.clear()
    gym.register("ad_hf_tests/Counting-v0", entry_point=counting, disable_env_checker=True, order_enforce=False)
    yield "ad_hf_tests/Counting-v0"
    del gym.registry["ad_hf_tests/Counting-v0"]


def assert_same_output(found: RolloutOutput, expected: RolloutOutput) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("log_probs", "logits"):  # up to rounding, which depends on who acts beside whom
            np.testing.assert_allclose(found[name], value, atol=1e-5)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            assert found[name].dtype == value.dtype, name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize(
    "limit", [{"num_episodes": 6}, {"max_steps": 33}, {"num_episodes": 3, "max_steps": 70}], ids=str
)
@pytest.mark.parametrize(
    ("make_envs", "settings", "wanted"),
    [(dark_rooms, DARK_ROOM, {"output_frames": True}), (cart_poles, CART_POLE, {})],
    ids=["native dark rooms", "cart poles that end at different steps"],
)
def test_every_autoreset_mode_gives_the_same_rollout(make_model, make_envs, settings, wanted, limit):
    model = make_model(**settings)
    more = {"render_mode": "rgb_array"} if wanted else {}
    outputs = [model.rollout(make_envs(mode, **more), seed=3, **ALL, **wanted, **limit) for mode in MODES]

    assert len(np.unique(outputs[0].episode_returns)) > 1
    for output in outputs[1:]:
        assert_same_output(output, outputs[0])


@pytest.mark.parametrize("mode", MODES)
def test_environments_that_reuse_their_buffers_are_recorded_rightly(make_model, mode):
    model, wanted = make_model(**CART_POLE), {"num_episodes": 5, "seed": 3, **ALL}
    expected = model.rollout(cart_poles(mode), **wanted)
    assert_same_output(model.rollout(cart_poles(mode, copy=False), **wanted), expected)


def test_environments_in_processes_of_their_own_give_the_same_rollout(make_model):
    model, wanted = make_model(**CART_POLE), {"num_episodes": 4, "seed": 3, **ALL}
    envs = AsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3)
    try:
        assert_same_output(model.rollout(envs, **wanted), model.rollout(cart_poles(), **wanted))
    finally:
        envs.close()


def test_a_single_environment_is_rolled_out_and_environments_stay_open(make_model):
    model, env, wanted = make_model(**CART_POLE), gym.make("CartPole-v1"), {"num_episodes": 4, "seed": 3, **ALL}
    assert_same_output(model.rollout(env, **wanted), model.rollout(cart_poles(num_envs=1), **wanted))

    counter, envs = Counting(), SyncVectorEnv([Counting] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    make_model(**COUNTING).rollout(counter, num_episodes=2)
    assert (counter.steps, counter.closed) == (8, 0)
    assert make_model(**COUNTING).rollout(counter, num_episodes=1).episode_lengths.tolist() == [[4]]
    make_model(**COUNTING).rollout(envs, num_episodes=2)
    assert not envs.closed
    assert [env.closed for env in envs.envs] == [0, 0]


def test_the_id_of_an_environment_makes_one_or_several_and_closes_them(make_model, counting_id):
    model = make_model(**COUNTING)
    for kwargs, number in [(None, 1), ({"at": 99}, 1), ([{}, {"at": 99}, {}], 3), (({"at": 99},) * 2, 2), ([{}], 1)]:
        made.clear()
        output = model.rollout(counting_id, num_episodes=2, env_kwargs=kwargs)
        assert output.episode_lengths.tolist() == [[4, 4]] * number
        assert [env.closed > 0 for env in made] == [True] * number
        given = [{}] * number if kwargs is None else [kwargs] if isinstance(kwargs, dict) else kwargs
        assert [env.at for env in made] == [each.get("at", 0) for each in given]


def test_each_environment_of_an_id_is_its_own_task(make_model):
    model, wanted = make_model(**DARK_ROOM), {"num_episodes": 4, "seed": 3, **ALL}
    kwargs = [{"goal": goal, "size": 3, "max_episode_steps": 5} for goal in GOALS]
    output = model.rollout("ad_hf/DarkRoom-v0", env_kwargs=kwargs, **wanted)
    assert_same_output(output, model.rollout(dark_rooms(), **wanted))


@pytest.mark.parametrize("failure", ["reward", "callback", "interrupt", "spaces"])
def test_environments_that_were_made_are_closed_when_a_rollout_fails(make_model, counting_id, failure):
    def fail(output):
        raise KeyboardInterrupt if failure == "interrupt" else RuntimeError("stop")

    bad = {"at": 3, "bad": {"reward": np.nan}} if failure == "reward" else {}
    model = make_model(**DARK_ROOM if failure == "spaces" else COUNTING).train()
    with pytest.raises((ValueError, RuntimeError, KeyboardInterrupt)):
        model.rollout(counting_id, env_kwargs=[{}, bad], callback=None if failure == "reward" else fail)
    assert [env.closed > 0 for env in made] == [True, True]
    assert model.training
    assert torch.is_grad_enabled()


REFUSED_ENVS = [
    (3, None, "envs must be a gymnasium VectorEnv, an Env or the id of one, got 3"),
    (None, None, "envs must be"),
    ([Counting()], None, "envs must be"),
    (Counting(), {"at": 3}, "env_kwargs are for environments that are made from an id"),
    ("CartPole-v1", [], r"env_kwargs must be keyword arguments, or a list .* got \[\]"),
    ("CartPole-v1", [None], "env_kwargs must be"),
    ("CartPole-v1", [{}, 3], "env_kwargs must be"),
    ("CartPole-v1", 5, "env_kwargs must be"),
    ("CartPole-v1", "size", "env_kwargs must be"),
    ("Nope-v0", None, "the environment 'Nope-v0' could not be made: .*Nope"),
    ("nosuchmodule:X-v0", None, "the environment 'nosuchmodule:X-v0' could not be made: .*nosuchmodule"),
    ("", None, "the environment '' could not be made"),
    ("CartPole-v1", {"nosuch": 1}, "the environment 'CartPole-v1' could not be made with env_kwargs .*nosuch"),
]


def test_what_is_no_environment_is_refused_by_name(make_model):
    model = make_model(**COUNTING)
    for envs, env_kwargs, message in REFUSED_ENVS:
        with pytest.raises(ValueError, match=message):
            model.rollout(envs, env_kwargs=env_kwargs, num_episodes=1)


class FromOne(gym.ActionWrapper):
    """Numbers the actions from 1."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Discrete(env.action_space.n, start=1)


def test_environments_of_other_spaces_or_without_a_mode_are_refused(make_model):
    pendulum, silent = gym.make("Pendulum-v1"), dark_rooms()
    silent.unwrapped.metadata = {}
    angles, torque = map(space_to_json, (pendulum.observation_space, pendulum.action_space))
    narrow = torque | {"low": [-1.0], "high": [1.0]}
    nine, cells = {"type": "Discrete", "n": 9}, {"type": "MultiDiscrete", "nvec": [9, 9]}
    for envs, settings, message in (
        (dark_rooms(), {**DARK_ROOM, "observation_space": cells}, r"observation_space.*\[3 3\].*\[9, 9\]"),
        (dark_rooms(), {**DARK_ROOM, "observation_space": nine}, "observation_space"),
        (dark_rooms(), {**DARK_ROOM, "action_space": nine}, r"action_space.*Discrete\(5\).*9"),
        (dark_rooms(), {**DARK_ROOM, "action_space": {"type": "MultiDiscrete", "nvec": [5]}}, "action_space"),
        (FromOne(gym.make("CartPole-v1")), CART_POLE, "action_space"),
        (pendulum, {"observation_space": angles, "action_space": narrow}, "action_space"),
        (silent, DARK_ROOM, "autoreset_mode"),
    ):
        with pytest.raises(ValueError, match=message):
            make_model(**settings).rollout(envs, num_episodes=1)


def misbehaving(mode, at, bad, space=None):
    """Three environments, of which the second returns something bad in some step."""
    makers = [lambda number=number: Counting(at, bad if number == 1 else None, space) for number in range(3)]
    return SyncVectorEnv(makers, autoreset_mode=mode)


BAD_VALUES = [
    (PAIR, {"observation": np.array([0, np.nan], np.float32)}, r"observations of environment 1 .*\[0.0, nan\]"),
    (PAIR, {"observation": np.array([-np.inf, 0], np.float32)}, r"observations of environment 1 .* \[-inf, 0.0\]"),
    (None, {"observation": 8}, "observations of environment 1 are no element of .*'n': 8.*: 8"),
    (None, {"observation": -1}, "observations of environment 1 are no element of .*'n': 8.*: -1"),
    (None, {"reward": np.nan}, "rewards of environment 1 are not finite in float32: nan"),
    (None, {"reward": -np.inf}, "rewards of environment 1 are not finite in float32: -inf"),
    # Those that gymnasium cannot stack.
    (PAIR, {"observation": np.zeros(3, np.float32)}, ""),
    (PAIR, {"observation": np.float32(0)}, ""),
    (PAIR, {"observation": None}, ""),
    (None, {"observation": np.array([1, 2])}, ""),
    (None, {"observation": 2.5}, ""),
    (None, {"reward": np.zeros(2)}, ""),
    (None, {"reward": "much"}, ""),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [0, 3, 4], ids=["at reset", "on the way", "at an end"])
def test_bad_values_are_refused_by_environment_and_step(make_model, mode, at):
    models = {True: make_model(**COUNTING), False: make_model(**PAIRS)}
    for space, bad, message in BAD_VALUES:
        step = max(at, int("reward" in bad))  # a reset brings none
        with pytest.raises(ValueError, match=rf"step {step}\b.*{message}"):
            models[space is None].rollout(misbehaving(mode, step, bad, space), num_episodes=3)


class Odd(VectorEnv):
    """Two environments of SAME_STEP mode with episodes of three steps, which return what they are told to."""

    num_envs, steps = 2, 0
    single_observation_space, single_action_space = spaces.MultiDiscrete([3, 3]), spaces.Discrete(5)
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, reset=None, **returned):
        self.at_reset, self.returned = reset, returned

    def reset(self, *, seed=None, options=None):
        return (np.zeros((2, 2), dtype=int), {}) if self.at_reset is None else self.at_reset

    def step(self, actions):
        self.steps += 1
        ended = np.full(2, self.steps % 3 == 0)
        result = {
            "observations": np.zeros((2, 2), dtype=int),
            "rewards": np.ones(2),
            "terminations": ended,
            "truncations": np.zeros(2, dtype=bool),
            "infos": {"final_obs": np.ones((2, 2), dtype=int)} if ended.any() else {},
            **self.returned,
        }
        return tuple(value for value in result.values() if value is not Ellipsis)


RETURNED = [
    *(
        ({name: values}, f"step 1: {name}")
        for name in ("terminations", "truncations")
        for values in (None, np.zeros(3, dtype=bool), np.array([0.5, 0.5]), "no", [None, True])
    ),
    ({"reset": np.zeros((2, 2), dtype=int)}, "step 0: reset must return a tuple of 2"),
    ({"reset": (np.zeros(3, int), {})}, r"step 0: observations must be .*\(2, 2\), got int64 .*\(3,\)"),
    ({"observations": np.zeros((2, 3), int)}, r"step 1: observations .* \(2, 2\), got int64 of shape \(2, 3\)"),
    ({"observations": np.zeros((5, 2), int)}, r"step 1: observations .* \(2, 2\), got int64 of shape \(5, 2\)"),
    ({"observations": np.full((2, 2), "a")}, "step 1: observations"),
    ({"observations": [[0, 0], [0]]}, "observations must be an array of numbers"),
    ({"observations": None}, "step 1: observations must be numbers of shape"),
    ({"rewards": np.zeros((2, 1))}, r"step 1: rewards must be .* \(2,\), got float64 of shape \(2, 1\)"),
    ({"rewards": 1.0}, r"step 1: rewards must be numbers of shape \(2,\), got float64 of shape \(\)"),
    *(({"rewards": np.array(values)}, "step 1: rewards") for values in ([0.0, None], ["a", "b"])),
    ({"rewards": [1.0, [2.0]]}, "rewards must be an array of numbers"),
    ({"infos": ...}, "step 1: step must return a tuple of 5"),
    ({"infos": {"final_obs": np.full((2, 2), 9)}}, r"step 3: final_obs of environment 0 are no element of .*\[9, 9\]"),
    ({"infos": {"final_obs": np.zeros(2, dtype=int)}}, "step 3: final_obs must be"),
]


def test_what_environments_return_is_checked_by_name_and_step(make_model):
    model = make_model(**DARK_ROOM)
    for returned, message in RETURNED:
        with pytest.raises(ValueError, match=message):
            model.rollout(Odd(**returned), num_episodes=2, output_steps=True)


@pytest.mark.parametrize("infos", [{}, None, {"final_obs": None}, {"final_obs": np.array([None, None])}])
def test_last_observations_may_be_missing_where_no_steps_are_kept(make_model, infos):
    model = make_model(**DARK_ROOM)
    assert (model.rollout(Odd(infos=infos), num_episodes=2).episode_lengths == 3).all()
    with pytest.raises(ValueError, match=r"step 3: infos hold no final_obs of environments.*output_steps"):
        model.rollout(Odd(infos=infos), num_episodes=2, output_steps=True)


def test_arguments_of_a_rollout_are_checked_by_name_and_may_be_of_numpy(make_model):
    model = make_model(**DARK_ROOM)
    for arguments, message in (
        ({"callback": 3}, "callback must be a function"),
        ({"rollout_config": {"num_episodes": 1}}, "rollout_config must be a RolloutConfig"),
        ({"rollout_config": 5}, "rollout_config must be a RolloutConfig"),
        ({"num_episodes": 10**13}, r"num_episodes=10000000000000 .* [\d,]+ bytes"),
        ({"seed": 2**63 - 1}, "seed .* num_envs must be at most"),
    ):
        with pytest.raises(ValueError, match=message):
            model.rollout(Odd(), **arguments)
    plain = model.rollout(Odd(), num_episodes=2, seed=1, temperature=0.5)
    numpy = model.rollout(Odd(), num_episodes=np.int32(2), seed=np.int64(1), temperature=np.float32(0.5))
    assert (plain.episode_returns == numpy.episode_returns).all()
    model.head.linear.bias.data[0] = torch.nan
    for do_sample in (True, False):
        with pytest.raises(ValueError, match="logits are not finite for environment 0"):
            model.rollout(Odd(), num_episodes=2, do_sample=do_sample)


def test_environments_that_never_end_are_warned_of_once(make_model, caplog, monkeypatch):
    monkeypatch.setattr("ad_hf.model.rollout_ad.LONG", 50)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    never = Odd(terminations=np.zeros(2, dtype=bool))
    steps = iter(range(120))
    make_model(**DARK_ROOM).rollout(never, num_episodes=1, callback=lambda _: next(steps) == 110)
    assert sum("has not ended after 50 steps" in record.message for record in caplog.records) == 1
