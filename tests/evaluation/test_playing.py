"""Evaluation on a split: whose returns stand where, and that the seed decides them."""

from time import process_time

import numpy as np
import pytest

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.rollouts import EpisodeProgress, evaluate
from ad_hf.model.rollout_ad import RolloutConfig, RolloutOutput


@pytest.mark.parametrize(("split", "num_tasks"), [("test", 3), ("validation", 2)])
def test_each_return_is_that_of_a_rollout_on_its_task_alone(dark_room_family, dark_room_model, split, num_tasks):
    result = evaluate(dark_room_model, dark_room_family, split, num_episodes=6, num_seeds=2, seed=10)

    assert (result.tasks, result.seed) == (dark_room_family.tasks(split), 10)
    assert result.returns.shape == result.lengths.shape == (2, num_tasks, 6)
    assert (result.lengths == 4).all()
    for run in range(2):
        for index, task in enumerate(result.tasks):
            alone = dark_room_model.rollout(
                dark_room_family.make_vec([task]), num_episodes=6, seed=10 + run * len(result.tasks) + index
            )
            np.testing.assert_array_equal(result.returns[run, index], alone.episode_returns[0])


def test_the_model_acts_as_its_own_rollout_config_says(dark_room_family, dark_room_model):
    dark_room_model.rollout_config = RolloutConfig(do_sample=False)
    returns = evaluate(dark_room_model, dark_room_family, num_episodes=3, num_seeds=2).returns

    np.testing.assert_array_equal(returns[0], returns[1])


def test_rollouts_begin_with_the_prompts_of_their_environments(dark_room_family, dark_room_model):
    steps = {"observations": np.full((6, 2), 1), "actions": np.full(6, 3), "rewards": np.full(6, 4.0)}
    prompt = {**steps, "episode_starts": np.arange(6) % 4 == 0}
    prompts = [prompt, None, prompt, None, prompt, prompt]

    returns = evaluate(dark_room_model, dark_room_family, num_episodes=9, num_seeds=2, prompt=prompts).returns

    envs = dark_room_family.make_vec(dark_room_family.tasks("test"), num_envs=6)
    expected = dark_room_model.rollout(envs, num_episodes=9, prompt=prompts).episode_returns
    plain = evaluate(dark_room_model, dark_room_family, num_episodes=9, num_seeds=2).returns.reshape(6, 9)
    np.testing.assert_array_equal(returns.reshape(6, 9), expected)
    np.testing.assert_array_equal(plain[[1, 3]], expected[[1, 3]])
    assert (plain[[0, 2, 4, 5]] != expected[[0, 2, 4, 5]]).any()


def test_a_rollout_of_so_many_steps_gives_the_episodes_that_every_environment_finished(
    dark_room_family, dark_room_model
):
    result = evaluate(dark_room_model, dark_room_family, rollout_config=RolloutConfig(max_steps=11), progress=True)
    assert result.returns.shape == (3, 3, 2)  # of 4 steps each, and a third that was not finished
    alike = evaluate(dark_room_model, dark_room_family, num_episodes=2, rollout_config=RolloutConfig(max_steps=11))
    np.testing.assert_array_equal(result.returns, alike.returns)
    with pytest.raises(ValueError, match="finished no episode in 3 steps"):
        evaluate(dark_room_model, dark_room_family, rollout_config=RolloutConfig(max_steps=3))


def test_progress_counts_every_episode_and_shows_the_mean_return(dark_room_family, dark_room_model, capsys):
    evaluate(dark_room_model, dark_room_family, num_episodes=4, num_seeds=2, progress=True)

    shown = capsys.readouterr().err
    assert "rollout on test tasks: 100%" in shown
    assert "24.0/24.0" in shown
    assert "mean return of episode 4: " in shown


def test_progress_tells_the_mean_return_of_an_episode_that_every_environment_has_finished():
    unfinished = np.nan
    returns = np.array([[1.0, 2.0, 9.0], [3.0, 5.0, unfinished], [2.0, unfinished, unfinished]])
    with EpisodeProgress("rollout", total=9, visible=True) as progress:
        for values, expected in (
            (np.full((3, 3), unfinished), (0, "")),
            (returns, (6, "mean return of episode 1: 2.00")),
            (np.nan_to_num(returns, nan=8.0), (9, "mean return of episode 3: 8.33")),
        ):
            progress.show(RolloutOutput(episode_returns=values))
            assert (progress.n, progress.postfix or "") == expected


def test_progress_looks_at_the_returns_a_few_times_a_second_only():
    """A rollout calls it at every step, 20,000 times a second if need be."""
    output = RolloutOutput(episode_returns=np.ones((100, 1000)))
    with EpisodeProgress("rollout", total=100_000, visible=True) as progress:
        progress(output)
        start = process_time()
        for _ in range(10_000):
            progress(output)
        seconds = process_time() - start
        assert seconds < 0.1  # looking every time would take a second
        assert progress.n == 100_000


def test_a_family_without_tasks_in_the_split_is_refused(dark_room_model):
    family = TaskFamily("ad_hf/DarkRoom-v0", [{"goal": [0, 0]}], {"size": 3}, native_vector=True)
    with pytest.raises(ValueError, match="no test tasks"):
        evaluate(dark_room_model, family)
