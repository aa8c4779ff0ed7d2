"""Rollouts: what the context is given, whom seeds are for, and gymnasium's own environments as they are."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from context_reference import LLAMA, random_history
from rollout_environments import CART_POLE, DARK_ROOM, cart_poles, dark_rooms

from ad_hf.envs.spaces import space_to_json


def settings_for(env_id):
    """Settings of a model for an environment of gymnasium's."""
    env = gym.make(env_id)
    spaces = {
        "observation_space": space_to_json(env.observation_space),
        "action_space": space_to_json(env.action_space),
    }
    env.close()
    return spaces


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Taxi-v4", "Pendulum-v1", "Acrobot-v1"])
@pytest.mark.parametrize(
    "kind", [{}, {"sliding_window": 8}, {"backbone_config": LLAMA}], ids=["own", "sliding", "llama"]
)
def test_environments_of_gymnasium_run_as_they_are(make_model, env_id, kind):
    model = make_model(**settings_for(env_id), **kind)
    wanted = {"max_steps": 40, "output_steps": True, "seed": 5}

    output = model.rollout(env_id, **wanted)

    env = gym.make(env_id)  # which, told the same actions, does the same
    seen, _ = env.reset(seed=5)
    for step in range(40):
        np.testing.assert_array_equal(output.observations[0, step], seen)
        assert env.action_space.contains(output.actions[0, step])
        seen, reward, terminated, truncated, _ = env.step(output.actions[0, step])
        assert output.rewards[0, step] == reward
        assert (output.terminations[0, step], output.truncations[0, step]) == (terminated, truncated)
        if terminated or truncated:
            seen, _ = env.reset()
    assert output.num_steps.tolist() == [40]
    assert len(np.unique(output.actions[0])) > 1
    np.testing.assert_array_equal(model.rollout(gym.make(env_id), **wanted).observations, output.observations)


def test_native_vector_environments_of_gymnasium_run_as_they_are(make_model):
    envs = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    output = make_model(**CART_POLE).rollout(envs, num_episodes=5)
    assert (output.episode_returns == output.episode_lengths).all()  # a step that resets pays nothing, and is none
    assert len(np.unique(output.episode_lengths)) > 3


def test_an_environments_rollout_does_not_depend_on_the_others(make_model):
    model = make_model(**CART_POLE)
    together = model.rollout(cart_poles(num_envs=4), num_episodes=5, seed=10)

    for env in (0, 3):
        alone = model.rollout(cart_poles(num_envs=1), num_episodes=5, seed=10 + env)
        np.testing.assert_array_equal(alone.episode_returns[0], together.episode_returns[env])


def test_same_seed_same_rollout_whatever_torchs_and_numpys_own_generators(make_model):
    model = make_model(**DARK_ROOM)
    outputs = []
    for global_seed, seed in [(0, 5), (1, 5), (1, 6)]:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        outputs.append(model.rollout(dark_rooms(), num_episodes=10, seed=seed).episode_returns)

    assert (outputs[0] == outputs[1]).all()
    assert (outputs[1] != outputs[2]).any()


def test_rollouts_begin_with_prompts(make_model):
    model, wanted = make_model(**DARK_ROOM), {"num_episodes": 4, "output_logits": True, "do_sample": False}
    rng = np.random.default_rng(0)
    histories = [random_history(model, time, rng) for time in (4, 30, 0, 13)]
    output = model.rollout(dark_rooms(), prompt=histories, **wanted)

    plain = model.rollout(dark_rooms(), **wanted)
    for env, history in enumerate(histories):
        alone = model.rollout(dark_rooms(), prompt=history, **wanted)
        np.testing.assert_allclose(output.logits[env], alone.logits[env], atol=1e-5)
        differs = np.abs(output.logits[env] - plain.logits[env]).max() > 1e-2
        assert differs == (env != 2)  # whose history is empty


def test_a_rollouts_own_steps_are_a_prompt_that_goes_on_where_it_ended(make_model):
    model, wanted = make_model(**DARK_ROOM), {"output_steps": True, "output_logits": True, "do_sample": False}
    whole = model.rollout(dark_rooms(), num_episodes=8, **wanted)
    first = model.rollout(dark_rooms(), num_episodes=5, **wanted)
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    prompts = [{name: first[name][env] for name in names} for env in range(4)]

    rest = model.rollout(dark_rooms(), num_episodes=3, prompt=prompts, **wanted)

    np.testing.assert_allclose(rest.logits, whole.logits[:, 25:], atol=1e-4)
    np.testing.assert_array_equal(rest.actions, whole.actions[:, 25:])
    np.testing.assert_array_equal(rest.episode_returns, whole.episode_returns[:, 5:])


def test_acts_in_evaluation_mode_and_restores_the_models_mode(make_model):
    def interrupt(_):
        modes.append(model.training)
        raise KeyboardInterrupt

    model, modes = make_model(**DARK_ROOM, dropout=0.5), []
    for training in (True, False):
        model.train(training).rollout(dark_rooms(), num_episodes=1, callback=lambda _: modes.append(model.training))
        assert model.training == training
        with pytest.raises(KeyboardInterrupt):
            model.rollout(dark_rooms(), num_episodes=1, callback=interrupt)
        assert model.training == training
    assert modes
    assert not any(modes)
