"""What a rollout returns is what the environments lived through, and what the model made of it."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from context_reference import none_action
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rollout_environments import CART_POLE, COUNTING, DARK_ROOM, GOALS, MODES, Counting, cart_poles, dark_rooms

from ad_hf.envs.dark_room import DarkRoomEnv
from ad_hf.model.rollout_ad import RolloutOutput

STEPS = ("observations", "actions", "rewards", "terminations", "truncations")


@pytest.mark.parametrize(
    "limits", [{"num_episodes": 4}, {"max_steps": 50}, {"num_episodes": 4, "max_steps": 60}], ids=str
)
@pytest.mark.parametrize("mode", MODES)
def test_steps_are_those_that_each_environment_lived_through(make_model, mode, limits):
    envs = cart_poles(mode)
    output = make_model(**CART_POLE).rollout(envs, seed=1, output_steps=True, **limits)

    num_episodes, max_steps = limits.get("num_episodes", 10**9), limits.get("max_steps", 10**9)
    assert isinstance(output, RolloutOutput)
    types = [output[name].dtype for name in (*STEPS, "final_observations")]
    assert types == [np.float32, np.int64, np.float64, bool, bool, np.float32]
    spaces = (output.observation_space, output.action_space)
    assert spaces == (CART_POLE["observation_space"], CART_POLE["action_space"])
    for env, diary in enumerate(envs.envs):
        returns, lengths, finals = diary.episodes()
        number = min(sum(lengths[:num_episodes]) if len(lengths) >= num_episodes else max_steps, max_steps)
        assert output.num_steps[env] == number
        *columns, reached = diary.columns(number)
        for name, expected in zip(STEPS, columns):
            np.testing.assert_array_equal(output[name][env, :number], expected, err_msg=name)
        finished = sum(np.cumsum(lengths[:num_episodes]) <= number)
        assert output.episode_returns[env, :finished].tolist() == returns[:finished]
        assert output.episode_lengths[env, :finished].tolist() == lengths[:finished]
        assert np.isnan(output.episode_returns[env, finished:]).all()
        assert (output.episode_lengths[env, finished:] == 0).all()
        under_way = number > sum(lengths[:finished])
        last = [reached[-1]] if under_way else []
        np.testing.assert_array_equal(output.final_observations[env, : finished + under_way], finals[:finished] + last)
    time = output.num_steps.max()
    assert all(output[name].shape[:2] == (3, time) for name in STEPS)
    assert len(np.unique(output.episode_lengths)) > 2  # which then did not all end at the same steps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["native", "single environments side by side"])
def test_frames_are_pictures_of_what_was_seen(make_model, mode, kind):
    if kind == "native":
        envs = dark_rooms(mode, render_mode="rgb_array")
    else:
        makers = [lambda goal=goal: gym.make("ad_hf/DarkRoom-v0", size=3, goal=goal, max_episode_steps=5,
                                             render_mode="rgb_array") for goal in GOALS]  # fmt: skip
        envs = SyncVectorEnv(makers, autoreset_mode=mode)
    output = make_model(**DARK_ROOM).rollout(envs, max_steps=13, output_steps=True, output_frames=True)

    assert output.frames.shape == (4, 13, 48, 48, 3)
    for env, goal in enumerate(GOALS):
        room = DarkRoomEnv(3, tuple(goal), render_mode="rgb_array")
        for step in range(13):
            if step % 5 == 0:
                room.reset()
            np.testing.assert_array_equal(output.frames[env, step], room.render())
            room.step(output.actions[env, step])


def test_frames_of_environments_that_render_nothing_are_refused(make_model):
    model = make_model(**DARK_ROOM)
    makers = [lambda: gym.make("ad_hf/DarkRoom-v0", size=3)] * 2
    for envs in (dark_rooms(), SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)):
        with pytest.raises(ValueError, match="render_mode='rgb_array'"):
            model.rollout(envs, num_episodes=1, output_frames=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("make_envs", "settings"), [(cart_poles, CART_POLE), (dark_rooms, DARK_ROOM)])
def test_logits_and_log_probs_are_the_models_on_the_recorded_history(make_model, mode, make_envs, settings):
    model, way = make_model(**settings, context_length=100), {"temperature": 2.0, "epsilon": 0.1}
    kept = {"output_steps": True, "output_logits": True, "output_log_probs": True}
    output = model.rollout(make_envs(mode), max_steps=80, **kept, **way)

    parts = [torch.from_numpy(output[name]) for name in STEPS]
    observations, actions, rewards, ends = *parts[:3], parts[3] | parts[4]
    previous = [part.roll(1, dims=1) for part in (actions, rewards, ends)]
    for part, first in zip(previous, (none_action(model.config.action_space), 0.0, True)):
        part[:, 0] = first
    with torch.no_grad():
        logits = model(observations, *previous).logits
    np.testing.assert_allclose(output.logits, logits, atol=1e-4)
    probabilities = 0.9 * (logits / 2.0).softmax(-1) + 0.1 / logits.shape[-1]
    np.testing.assert_allclose(output.log_probs, probabilities.gather(2, actions[..., None])[..., 0].log(), atol=1e-4)
    assert previous[1][previous[2]][1:].any()  # a reward led to the start of an episode


def test_only_what_was_asked_for_is_kept(make_model):
    model, always = make_model(**DARK_ROOM), {"episode_returns", "episode_lengths", "num_steps"}
    spaces = {"observation_space", "action_space"}
    for asked, kept in [
        ({}, set()),
        ({"output_steps": True}, {*STEPS, "final_observations", *spaces}),
        ({"output_logits": True}, {"logits"}),
        ({"output_log_probs": True}, {"log_probs"}),
    ]:
        assert set(model.rollout(dark_rooms(), num_episodes=1, **asked)) == always | kept


def test_many_short_episodes_and_steps_are_kept_beyond_any_first_guess(make_model):
    envs = SyncVectorEnv([Counting] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    output = make_model(**COUNTING).rollout(envs, max_steps=162, output_steps=True)
    assert output.episode_lengths.tolist() == [[4] * 40] * 2
    assert output.episode_returns.tolist() == [[2.0] * 40] * 2
    assert output.observations.tolist() == [[step % 8 for step in range(162)]] * 2
    assert output.final_observations.tolist() == [[4, 0] * 20 + [2]] * 2  # two steps of an episode under way


@pytest.mark.parametrize("mode", MODES)
def test_a_rollout_that_is_stopped_returns_what_it_has(make_model, mode):
    seen = []

    def stop(output):
        seen.append(output.num_steps.copy())
        return len(seen) == 7

    output = make_model(**DARK_ROOM).rollout(dark_rooms(mode), num_episodes=9, callback=stop, output_steps=True)

    assert len(seen) == 7
    lived = 6 if mode is AutoresetMode.NEXT_STEP else 7
    assert output.num_steps.tolist() == [lived] * 4
    assert output.observations.shape == (4, lived, 2)
    assert output.episode_lengths.tolist() == [[5] + [0] * 8] * 4
    assert output.final_observations.shape == (4, 2, 2)


def test_the_callback_sees_episodes_as_they_are_finished_and_only_true_stops(make_model):
    finished = []

    def watch(output):
        finished.append(int((~np.isnan(output.episode_returns)).sum()))
        return [None, False, 1, "stop"][len(finished) % 4]

    make_model(**DARK_ROOM).rollout(dark_rooms(), num_episodes=3, callback=watch)

    assert len(finished) == 3 * 5
    assert finished[:5] == [0, 0, 0, 0, 4]
    assert finished[-2:] == [8, 12]
