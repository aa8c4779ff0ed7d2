"""The summary of returns: the numbers that are promised in `evaluation.json`, and the files beside it."""

import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset
from PIL import Image
from studies.pictures import agents_table

import ad_hf
from ad_hf.envs.adversarial_bandit import draw_arm_means, optimal_return, random_return
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.card import evaluation_card, write_evaluation
from ad_hf.evaluation.returns import evaluation_rows, random_rows, read_rows, source_returns, source_rows, write_rows
from ad_hf.evaluation.rollouts import Evaluation, evaluate
from ad_hf.evaluation.summary import AgentReturns, describe, last_of, summarize
from ad_hf.pipeline import EvaluatedModel, evaluate_models


def summary_of(*tables, comparable=True):
    """The entries of `evaluation.json`, which hold neither NaN nor Infinity."""
    summary = summarize(pa.concat_tables(tables), comparable)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    return summary


def test_returns_come_back_from_rows_in_any_order(made_up, made_up_rows, dark_room_family, tmp_path):
    rows = made_up_rows()
    write_rows(tmp_path / "returns.parquet", rows.take(np.random.default_rng(0).permutation(len(rows))))

    agent = AgentReturns(read_rows(tmp_path / "returns.parquet"))

    np.testing.assert_array_equal(agent.returns[0], np.stack([made_up(10, 0).returns, made_up(12, 1).returns]))
    np.testing.assert_array_equal(agent.curve(False).env_steps, 4.0 * np.arange(1, 41))
    tasks = dark_room_family.tasks("test")
    assert [task["kwargs"] for task in agent.tasks] == [task.kwargs for task in tasks]
    assert [task["optimal"] for task in agent.tasks] == dark_room_family.optimal_returns(tasks).tolist()


def test_splits_have_models_of_their_own(made_up_rows):
    agent = AgentReturns(pa.concat_tables([made_up_rows(split=split, speeds=(10,)) for split in (0, 3)]))

    assert agent.splits == [0, 3]
    assert [block.shape for block in agent.returns] == [(1, 3, 3, 40)] * 2
    assert len(agent.tasks) == len(agent.by_task(slice(None))) == 6


def test_missing_and_doubled_rows_are_refused(made_up_rows):
    rows = made_up_rows()
    with pytest.raises(ValueError, match="17 rows, 17 of them different, for 2 trainings x 3 rollouts x 3 tasks"):
        AgentReturns(rows.slice(1))
    with pytest.raises(ValueError, match="18 rows, 17 of them different"):
        AgentReturns(pa.concat_tables([rows.slice(1), rows.slice(1, 1)]))


def test_a_summary_tells_of_levels_shares_regret_and_steps(made_up_rows, dark_room_family):
    agent = summary_of(made_up_rows(speeds=(10, 10)), random_rows(dark_room_family, num_episodes=40))["agents"]["AD"]

    assert (agent["num_models"], agent["num_rollouts"], agent["num_tasks"]) == (2, 3, 3)
    assert agent["at"]["1"]["return"] == pytest.approx(0, abs=0.02)
    last = agent["at"]["40"]
    assert last["episodes"] == [31, 40]
    assert last["of_optimal"] == pytest.approx(1, abs=0.01)
    low, high = last["mean_share_interval"]
    assert low <= last["mean_share"] <= high
    assert last["iqm"] == pytest.approx(1, abs=0.01)
    # It misses 1, 0.9, ... of the optimum in the first ten of forty episodes.
    assert agent["regret"]["of_optimal"] == pytest.approx(5.5 / 40, abs=0.01)
    assert agent["learns"]["verdict"] == "learns"
    assert agent["learns"]["difference"] == pytest.approx(agent["optimal_return"], rel=0.01)
    # The first five episodes whose mean reaches 0.9 and more of the optimum end with the 13th, of four steps.
    assert agent["steps_to"]["90%"]["gain_of"] == "optimum"
    assert agent["steps_to"]["90%"]["env_steps"] == 52
    assert agent["steps_to"]["50%"]["env_steps"] < 52


def test_random_actions_reach_what_is_expected_of_them(dark_room_family):
    summary = summary_of(random_rows(dark_room_family, num_episodes=200, num_seeds=2))

    agent = summary["agents"]["random"]
    assert agent["curve"]["env_steps"] == (4.0 * np.arange(1, 201)).tolist()
    assert 0 < agent["at"]["200"]["of_optimal"] < 0.6
    assert not {"learns", "steps_to"} & set(agent)


@pytest.fixture
def evaluation(dark_room_model, dark_room_family):
    return evaluate(dark_room_model, dark_room_family, num_episodes=25, num_seeds=2, seed=5)


def tables_of(evaluation, family, histories=None):
    tables = [evaluation_rows(evaluation, family, "AD"), random_rows(family, num_episodes=10, num_seeds=2)]
    return tables if histories is None else [*tables, source_rows(histories, family)]


def test_a_summary_holds_what_it_promises_of_agents_and_tasks(evaluation, dark_room_family, room_histories):
    summary = summary_of(*tables_of(evaluation, dark_room_family, room_histories))

    final, source = evaluation.returns[..., -10:], source_returns(room_histories).returns
    optimal = dark_room_family.optimal_returns(evaluation.tasks)
    own = summary["agents"]["AD"]
    last = own["at"]["25"]
    assert summary["of"] == "return of an episode"
    assert last["episodes"] == [16, 25]
    assert last["return"] == pytest.approx(final.mean())
    low, high = last["return_interval"]
    assert low < last["return"] < high
    assert last["of_optimal"] == pytest.approx(final.mean() / optimal.mean())
    assert own["at"]["1"]["return"] == pytest.approx(evaluation.returns[..., 0].mean())
    assert last_of(summary["agents"]["source"])["return"] == pytest.approx(source.mean())  # of its 6 episodes
    assert summary["optimal_return"] == pytest.approx(optimal.mean())
    assert summary["random_return"] == pytest.approx(np.mean([task["random"] for task in summary["tasks"]]))
    for index, (task, entry) in enumerate(zip(evaluation.tasks, summary["tasks"], strict=True)):
        assert (entry["task_id"], entry["kwargs"], entry["optimal"]) == (task.task_id, task.kwargs, optimal[index])
        assert entry["returns"]["AD"] == pytest.approx(final[:, index].mean())
        assert entry["returns"]["source"] == pytest.approx(source[:, index].mean())


def test_without_a_source_or_an_optimum_the_rest_is_said(evaluation, dark_room_family, room_histories):
    whole = summary_of(*tables_of(evaluation, dark_room_family, room_histories))
    alone = summary_of(*tables_of(evaluation, dark_room_family))
    assert {steps["gain_of"] for steps in alone["agents"]["AD"]["steps_to"].values()} == {"optimum"}
    assert all(steps["source"] is steps["ratio"] is None for steps in alone["agents"]["AD"]["steps_to"].values())
    for name in ("at", "curve", "learns", "regret"):
        assert alone["agents"]["AD"][name] == whole["agents"]["AD"][name]
    assert alone["groups"]["all"]["normalized"] == {"AD": None}
    tasks = [task.kwargs for task in dark_room_family.all_tasks]
    family = TaskFamily(dark_room_family.env_id, tasks, dark_room_family.env_kwargs, num_test_tasks=3)
    unknown = summary_of(*tables_of(evaluation, family, room_histories))
    assert unknown["optimal_return"] is unknown["agents"]["AD"]["shares_of"] is None
    assert "of_optimal" not in unknown["agents"]["AD"]["at"]["25"]
    assert all(task["optimal"] is None for task in unknown["tasks"])
    bare = summary_of(evaluation_rows(evaluation, family, "AD"))
    assert bare["random_return"] is bare["agents"]["AD"]["steps_to"]["50%"]["level"] is None


def test_of_fewer_than_ten_episodes_the_end_is_all_of_them(evaluation, dark_room_family):
    short = Evaluation(evaluation.tasks, evaluation.returns[..., :4], evaluation.lengths[..., :4], seed=0)
    last = last_of(summary_of(*tables_of(short, dark_room_family))["agents"]["AD"])
    assert last["episodes"] == [1, 4]
    assert last["return"] == pytest.approx(short.returns.mean())


KINDS, STREAMS = ("even", "odd"), 3


@pytest.fixture(scope="module")
def bandits():
    """Tasks of two kinds, whose histories are one episode, and whose random return is known."""
    kinds = {"train": (["odd"], range(4, 8)), "test": (KINDS, range(4))}
    return TaskFamily(
        "ad_hf/AdversarialBandit-v0",
        splits={
            split: [{"rewarding": kind, "task_seed": seed} for kind in of_split for seed in seeds]
            for split, (of_split, seeds) in kinds.items()
        },
        env_kwargs={"num_arms": 5, "max_episode_steps": 30},
        optimal_return=optimal_return,
        random_return=random_return,
        native_vector=True,
        report_by="rewarding",
    )


@pytest.fixture(scope="module")
def pulls(bandits, collect_here):
    return collect_here(bandits, algorithm="UCB", n_envs=STREAMS, total_timesteps=STREAMS * 30, tasks_per_job=4)


@pytest.fixture(scope="module")
def bandit_model(pulls):
    return ad_hf.ADModel(ad_hf.config_from_dataset(pulls, hidden_size=8, num_hidden_layers=1, context_length=30))


@pytest.fixture(scope="module")
def single(bandits, bandit_model):
    return evaluate(bandit_model, bandits, num_episodes=1, num_seeds=2, seed=3)


def test_rollouts_of_one_episode_are_summarized_by_step(single, bandits, bandit_model, pulls):
    assert single.step_rewards.shape == (2, 8, 30)
    np.testing.assert_array_equal(single.step_rewards.sum(axis=2), single.returns[..., 0])
    source = source_returns(pulls)
    assert (source.returns.shape, source.streams) == ((STREAMS, 8, 1), 1)  # each learns for itself

    summary = summary_of(*tables_of(single, bandits, pulls))

    assert summary["of"] == "reward of a step"
    for name, rewards in (("AD", single.step_rewards), ("source", source.step_rewards)):
        np.testing.assert_allclose(summary["agents"][name]["curve"]["mean"], rewards.mean(axis=(0, 1)), atol=1e-4)
        np.testing.assert_array_equal(summary["agents"][name]["curve"]["env_steps"], np.arange(1, 31))
    own = summary["agents"]["AD"]
    end, random = source.step_rewards[..., -3:].mean(), summary["random_return"] / 30  # of the last tenth
    for share, entry in zip((0.5, 0.9), own["steps_to"].values()):
        assert entry["level"] == pytest.approx(random + share * (end - random))
    assert (own["learns"]["of"], own["learns"]["first"], own["learns"]["last"]) == ("steps", [1, 3], [28, 30])
    assert own["learns"]["verdict"] == "does not learn"  # its weights are random
    assert own["at"]["1"]["return"] == pytest.approx(single.returns.mean())
    assert evaluate(bandit_model, bandits, num_episodes=2, num_seeds=1).step_rewards is None


def test_tasks_are_grouped_by_an_argument(single, bandits, pulls):
    groups = summary_of(*tables_of(single, bandits, pulls))["groups"]

    assert set(groups) == {"all", *KINDS}
    for kind in KINDS:
        indices = [index for index, task in enumerate(single.tasks) if task.kwargs["rewarding"] == kind]
        means = [draw_arm_means(kind, single.tasks[index].kwargs["task_seed"], 5) for index in indices]
        own, learnt = single.returns[:, indices].mean(), source_returns(pulls).returns[:, indices].mean()
        random = 30 * np.mean(means)
        assert groups[kind]["num_tasks"] == 4
        assert groups[kind]["returns"]["AD"] == pytest.approx(own)
        assert groups[kind]["returns"]["source"] == pytest.approx(learnt)
        assert groups[kind]["random"] == pytest.approx(random)
        assert groups[kind]["optimal"] == pytest.approx(30 * np.max(means, axis=1).mean())
        assert groups[kind]["normalized"]["AD"] == pytest.approx((own - random) / (learnt - random))
    assert groups["all"]["num_tasks"] == 8
    assert groups["all"]["returns"]["AD"] == pytest.approx(single.returns.mean())


def test_episodes_of_different_lengths_have_no_curve_by_step(bandits):
    returns = np.ones((2, 8, 1))
    summary = summary_of(*tables_of(Evaluation(bandits.tasks("test"), returns, returns.astype(int) * 7, 0), bandits))
    assert summary["of"] == "return of an episode"
    assert summary["agents"]["AD"]["curve"]["env_steps"] == [7]


def test_an_evaluation_is_a_dataset_with_a_card_pictures_and_a_summary(
    made_up, made_up_rows, dark_room_family, tmp_path
):
    random = random_rows(dark_room_family, num_episodes=40)
    rows = pa.concat_tables([made_up_rows(), made_up_rows("ED", (1000, 1000)), random])
    folder = tmp_path / "new" / "evaluation"

    evaluation = write_evaluation(folder, rows, {"env_id": "ad_hf/DarkRoom-v0"})
    (folder / "README.md").write_text(evaluation_card(folder, "evaluation", evaluation))

    assert json.loads((folder / "evaluation.json").read_text()) == evaluation
    assert list(evaluation["agents"]) == ["AD", "ED", "random"]
    for package in ("ad_hf", "torch", "transformers", "datasets", "accelerate", "gymnasium", "stable_baselines3"):
        assert evaluation["versions"][package]
    loaded = load_dataset(str(folder), split="test")
    assert len(loaded) == 2 * 3 * 3 * 2 + 5 * 3
    assert loaded[0]["returns"] == made_up(10, 0).returns[0, 0].tolist()
    for name in ("learning_curve.png", "rooms.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 300
    card = (folder / "README.md").read_text()
    assert "| AD | 2 | 3 | 3 | 0.0" in card.replace("-0.0", "0.0")
    assert "rooms.png" in card
    table = agents_table(evaluation)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| AD", "| ED", "| random"]
    assert [line.split(" | ")[4].split(":")[0] for line in table.splitlines()[2:]] == ["yes", "yes", "-"]
    assert table.endswith(" | - | - |")
    text = describe(evaluation, folder)
    assert "AD: return of 2 trainings on 3 held-out tasks, episodes 31 to 40: " in text
    assert f"summary: {folder / 'evaluation.json'}" in text


def test_models_that_are_the_same_training_are_refused(tiny_recipe, dark_room_model, tmp_path):
    models = [EvaluatedModel(dark_room_model, tiny_recipe, origin={"name": name}) for name in "ab"]
    with pytest.raises(ValueError, match=r"the models a and b are the same training: both are AD with"):
        evaluate_models(models, tmp_path)
