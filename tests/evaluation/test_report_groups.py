"""Reports of a family whose tasks are of several kinds, and whose histories are one episode: bandits."""

import numpy as np
import pytest

import ad_hf
from ad_hf.envs.adversarial_bandit import draw_arm_means, optimal_return, random_return
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.evaluate import Evaluation, evaluate
from ad_hf.evaluation.report import normalized_return, source_curves, write_report

KINDS = ("even", "odd")
STREAMS = 3


@pytest.fixture(scope="module")
def bandits():
    kinds = {"train": (["odd"], range(4, 8)), "test": (KINDS, range(4))}
    return TaskFamily(
        "ad_hf/AdversarialBandit-v0",
        {
            split: [{"rewarding": kind, "task_seed": seed} for kind in of_split for seed in seeds]
            for split, (of_split, seeds) in kinds.items()
        },
        {"num_arms": 5, "max_episode_steps": 30},
        optimal_return=optimal_return,
        random_return=random_return,
        native_vector=True,
        report_by="rewarding",
    )


@pytest.fixture(scope="module")
def pulls(bandits, tmp_path_factory):
    return ad_hf.collect(
        bandits,
        "UCB",
        n_envs=STREAMS,
        total_timesteps=STREAMS * 30,
        tasks_per_job=4,
        split="test",
        output_dir=tmp_path_factory.mktemp("histories") / "pulls",
        num_workers=1,
    )


@pytest.fixture(scope="module")
def evaluation(bandits, pulls):
    model = ad_hf.ADModel(ad_hf.config_from_dataset(pulls, hidden_size=8, num_hidden_layers=1, context_length=30))
    return evaluate(model, bandits, num_episodes=1, num_seeds=2, seed=3)


def test_rollouts_of_one_episode_keep_the_reward_of_each_step(evaluation):
    assert evaluation.step_rewards.shape == (2, 8, 30)
    np.testing.assert_array_equal(evaluation.step_rewards.sum(axis=2), evaluation.returns[..., 0])


def test_rollouts_of_several_episodes_keep_returns_alone(bandits, pulls):
    model = ad_hf.ADModel(ad_hf.config_from_dataset(pulls, hidden_size=8, num_hidden_layers=1, context_length=30))
    assert evaluate(model, bandits, num_episodes=2, num_seeds=1).step_rewards is None


def test_streams_that_learn_each_for_itself_are_not_counted_together(pulls):
    curves = source_curves(pulls)
    assert curves.returns.shape == (STREAMS, 8, 1)
    assert curves.env_steps.tolist() == [30]
    assert curves.streams_per_learner == 1
    np.testing.assert_allclose(curves.step_rewards.sum(axis=2), curves.returns[..., 0])


def test_report_has_curves_by_step_where_a_history_is_one_episode(tmp_path, evaluation, bandits, pulls):
    report = write_report(tmp_path, evaluation, bandits, pulls, {})

    assert report["curves"]["of"] == "reward of a step"
    steps = np.arange(1, 31)
    for name, rewards in (("ad", evaluation.step_rewards), ("source", source_curves(pulls).step_rewards)):
        np.testing.assert_allclose(report["curves"][name]["mean"], rewards.mean(axis=(0, 1)), atol=1e-4)
        np.testing.assert_array_equal(report["curves"][name]["env_steps"], steps)
    end = source_curves(pulls).step_rewards[..., -3:].mean()  # the last tenth
    random = report["random_return"] / 30
    for share, entry in zip((0.5, 0.9), report["env_steps_to"].values()):
        assert entry["level"] == pytest.approx(random + share * (end - random))
    assert report["learns"]["of"] == "steps"
    assert (report["learns"]["first"], report["learns"]["last"]) == ([1, 3], [28, 30])
    assert report["learns"]["verdict"] == "does not learn"  # its weights are random
    assert report["test_return_final"] == pytest.approx(evaluation.returns.mean())


def test_report_groups_tasks_by_an_argument(tmp_path, evaluation, bandits, pulls):
    groups = write_report(tmp_path, evaluation, bandits, pulls, {})["groups"]

    assert set(groups) == {"all", *KINDS}
    source = source_curves(pulls).returns
    for kind in KINDS:
        chosen = [index for index, task in enumerate(evaluation.tasks) if task.kwargs["rewarding"] == kind]
        means = [draw_arm_means(kind, evaluation.tasks[index].kwargs["task_seed"], 5) for index in chosen]
        own = evaluation.returns[:, chosen].mean()
        random, best = 30 * np.mean(means), 30 * np.max(means, axis=1).mean()
        learnt = source[:, chosen].mean()
        assert groups[kind]["num_tasks"] == 4
        assert groups[kind]["return"] == pytest.approx(own)
        assert groups[kind]["random"] == pytest.approx(random)
        assert groups[kind]["optimal"] == pytest.approx(best)
        assert groups[kind]["source"] == pytest.approx(learnt)
        assert groups[kind]["normalized"] == pytest.approx((own - random) / (learnt - random))
    assert groups["all"]["num_tasks"] == 8
    assert groups["all"]["return"] == pytest.approx(evaluation.returns.mean())


def test_nothing_is_normalized_without_a_random_return_or_a_source():
    known = {"return": np.ones(2), "random": np.zeros(2), "source": np.full(2, 4.0), "optimal": None}
    assert normalized_return(known) == 0.25
    for missing in ("random", "source"):
        assert normalized_return({**known, missing: None}) is None


def test_episodes_of_different_lengths_have_no_curve_by_step(tmp_path, bandits):
    returns = np.ones((2, 8, 1))
    evaluation = Evaluation(bandits.tasks("test"), returns, returns.astype(int) * 7, seed=0)
    report = write_report(tmp_path, evaluation, bandits, None, {})
    assert report["curves"]["of"] == "return of an episode"
    assert report["curves"]["ad"]["env_steps"] == [7]
