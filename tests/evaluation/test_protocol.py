"""Returns as rows, and what is said of them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset
from PIL import Image

import ad_hf
from ad_hf.evaluation.evaluate import Evaluation, evaluate
from ad_hf.evaluation.protocol import (
    AgentReturns,
    agents_of,
    evaluation_rows,
    random_rows,
    read_rows,
    source_rows,
    summarize,
    write_rows,
)
from ad_hf.evaluation.report import source_curves
from ad_hf.evaluation.results import agents_table, evaluation_summary, write_evaluation


@pytest.fixture
def made_up(dark_room_family):
    """Evaluations of two trainings that learn the tasks in so many episodes, and never learn them."""
    tasks = dark_room_family.tasks("test")
    optimal = dark_room_family.optimal_returns(tasks)

    def make(speed, seed):
        progress = np.minimum(1, np.arange(40) / speed)
        noise = np.random.default_rng(seed).normal(scale=0.01, size=(3, len(tasks), 40))
        return Evaluation(tasks, np.abs(optimal[:, None] * progress + noise), np.full((3, len(tasks), 40), 4), seed)

    return make


def rows_of(made_up, family, agent="AD", speeds=(10, 12), split=0):
    return pa.concat_tables(
        evaluation_rows(made_up(speed, seed), family, agent, split, seed) for seed, speed in enumerate(speeds)
    )


def test_rows_hold_the_returns_of_each_rollout_in_each_task(dark_room_family, dark_room_model):
    result = evaluate(dark_room_model, dark_room_family, num_episodes=5, num_seeds=2)

    rows = evaluation_rows(result, dark_room_family, "AD", training_seed=7)

    assert len(rows) == 2 * 3
    for row in rows.to_pylist():
        index = [task.task_id for task in result.tasks].index(row["task_id"])
        assert row["returns"] == result.returns[row["rollout"], index].tolist()
        assert json.loads(row["task"]) == result.tasks[index].kwargs
        assert (row["agent"], row["training_seed"], row["streams"]) == ("AD", 7, 1)


def test_returns_come_back_from_rows_in_any_order(made_up, dark_room_family, tmp_path):
    rows = rows_of(made_up, dark_room_family)
    write_rows(tmp_path / "returns.parquet", rows.take(np.random.default_rng(0).permutation(len(rows))))

    (agent,) = agents_of(read_rows(tmp_path / "returns.parquet"))

    np.testing.assert_array_equal(agent.returns[0], np.stack([made_up(10, 0).returns, made_up(12, 1).returns]))
    np.testing.assert_array_equal(agent.env_steps, 4.0 * np.arange(1, 41))
    np.testing.assert_array_equal(agent.optimal, dark_room_family.optimal_returns(dark_room_family.tasks("test")))


def test_splits_have_models_of_their_own(made_up, dark_room_family):
    rows = [rows_of(made_up, dark_room_family, split=split, speeds=(10,)) for split in (0, 3)]

    agent = AgentReturns(pa.concat_tables(rows))

    assert agent.splits == [0, 3]
    assert [block.shape for block in agent.returns] == [(1, 3, 3, 40)] * 2
    assert len(agent.tasks) == len(agent.optimal) == 6


def test_missing_and_doubled_rows_are_refused(made_up, dark_room_family):
    rows = rows_of(made_up, dark_room_family)

    with pytest.raises(ValueError, match="17 rows, 17 of them different, for 2 trainings x 3 rollouts x 3 tasks"):
        AgentReturns(rows.slice(1))
    with pytest.raises(ValueError, match="18 rows, 17 of them different"):
        AgentReturns(pa.concat_tables([rows.slice(1), rows.slice(1, 1)]))


def test_another_table_is_refused(tmp_path):
    pa.parquet.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    (tmp_path / "no.parquet").write_text("no")

    with pytest.raises(ValueError, match="expected the columns agent, split_seed"):
        read_rows(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"no\.parquet: it is no parquet file, or a damaged one"):
        read_rows(tmp_path / "no.parquet")


ROW = {"agent": "AD", "split_seed": 0, "training_seed": None, "rollout": 0, "task_id": 0, "task": "{}", "streams": 1}
ROW |= {"optimal_return": None, "returns": [1.0, 2.0], "lengths": [4.0, 4.0]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"agent": None}, "column agent has rows without a value"),
        ({"returns": None}, "column returns has rows without a value"),
        ({"returns": []}, "one episode or more"),
        ({"lengths": [4.0]}, "as many lengths as returns"),
        ({"returns": [1.0, float("nan")]}, "column returns has numbers that are not finite"),
        ({"returns": [1.0, None]}, "column returns has numbers that are not finite"),
        ({"task": "{"}, "a task is not JSON"),
        ({"task": "[]"}, "a task must hold a mapping"),
        ({"rollout": "first"}, "is no table of returns"),
    ],
)
def test_rows_that_are_no_returns_are_refused(changed, told, tmp_path):
    pa.parquet.write_table(pa.Table.from_pylist([{**ROW, **changed}]), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=rf"rows\.parquet.*{told}"):
        read_rows(tmp_path / "rows.parquet")


def test_a_summary_tells_of_levels_shares_regret_and_steps(made_up, dark_room_family):
    rows = [rows_of(made_up, dark_room_family, speeds=(10, 10)), random_rows(dark_room_family, num_episodes=40)]

    found = summarize(agents_of(pa.concat_tables(rows)))["AD"]

    assert (found["num_models"], found["num_rollouts"], found["num_tasks"]) == (2, 3, 3)
    assert found["at"]["1"]["return"] == pytest.approx(0, abs=0.02)
    assert found["at"]["40"]["episodes"] == [31, 40]
    assert found["at"]["40"]["of_optimal"] == pytest.approx(1, abs=0.01)
    low, high = found["at"]["40"]["mean_share_interval"]
    assert low <= found["at"]["40"]["mean_share"] <= high
    assert found["at"]["40"]["iqm"] == pytest.approx(1, abs=0.01)
    # It misses 1, 0.9, ... of the optimum in the first ten of forty episodes.
    assert found["regret"]["of_optimal"] == pytest.approx(5.5 / 40, abs=0.01)
    assert found["learns"]["verdict"] == "learns"
    assert found["learns"]["difference"] == pytest.approx(found["optimal_return"], rel=0.01)
    # The first five episodes whose mean reaches 0.9 and more of the optimum end with the 13th, of four steps.
    assert found["steps_to"]["90%"]["gain_of"] == "optimum"
    assert found["steps_to"]["90%"]["env_steps"] == 52
    assert found["steps_to"]["50%"]["env_steps"] < 52


def test_steps_are_compared_with_the_sources_which_counts_all_of_its_streams(made_up, dark_room_family, tmp_path):
    histories = ad_hf.collect(
        dark_room_family,
        "A2C",
        n_envs=2,
        total_timesteps=2 * 4 * 30,
        split="test",
        output_dir=tmp_path / "histories",
        num_workers=1,
    )
    curves = source_curves(histories)
    rows = pa.concat_tables([rows_of(made_up, dark_room_family), source_rows(curves, dark_room_family)])

    agents = {agent.agent: agent for agent in agents_of(rows)}

    np.testing.assert_array_equal(agents["source"].env_steps, curves.env_steps)
    np.testing.assert_array_equal(agents["source"].returns[0][0], curves.returns)
    curves.returns[..., 20:] = 2.0  # it gets better than random play, and later than AD
    rows = [rows_of(made_up, dark_room_family), source_rows(curves, dark_room_family), random_rows(dark_room_family)]
    for comparable in (True, False):
        found = summarize(agents_of(pa.concat_tables(rows)), comparable)
        for share, steps in found["AD"]["steps_to"].items():
            assert steps["level"] == found["source"]["steps_to"][share]["level"]
            assert steps["ratio"] == (steps["source"] / steps["env_steps"] if comparable else None)


def test_histories_of_another_split_are_refused(dark_room_family, tmp_path):
    histories = ad_hf.collect(
        dark_room_family, "A2C", n_envs=2, total_timesteps=80, split="test", output_dir=tmp_path / "h", num_workers=1
    )
    tasks = [task.kwargs for task in dark_room_family.all_tasks]
    other = ad_hf.TaskFamily("ad_hf/DarkRoom-v0", tasks, dark_room_family.env_kwargs, num_test_tasks=1, split_seed=5)

    with pytest.raises(
        ValueError, match=r"are not for testing in the family of the model's recipe.*family\.split_seed"
    ):
        source_rows(source_curves(histories), other)


def test_random_actions_reach_what_is_expected_of_them(dark_room_family):
    (agent,) = agents_of(random_rows(dark_room_family, num_episodes=200, num_seeds=2))

    assert agent.returns[0].shape == (1, 2, 3, 200)
    assert (agent.env_steps == 4 * np.arange(1, 201)).all()
    assert 0 < agent.at(200)["of_optimal"] < 0.6
    again = agents_of(random_rows(dark_room_family, num_episodes=200, num_seeds=2))[0]
    np.testing.assert_array_equal(agent.returns[0], again.returns[0])


def test_an_evaluation_is_a_dataset_with_a_card_pictures_and_a_summary(made_up, dark_room_family, tmp_path):
    rows = [rows_of(made_up, dark_room_family), rows_of(made_up, dark_room_family, "ED", (1000, 1000))]
    rows.append(random_rows(dark_room_family, num_episodes=40))
    folder = tmp_path / "evaluation"

    found = write_evaluation(folder, pa.concat_tables(rows), {"env_id": "ad_hf/DarkRoom-v0"})

    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    assert list(found["agents"]) == ["AD", "ED", "random"]
    loaded = load_dataset(str(folder), split="test")
    assert len(loaded) == 2 * 3 * 3 * 2 + 5 * 3
    assert loaded[0]["returns"] == made_up(10, 0).returns[0, 0].tolist()
    for name in ("learning_curves.png", "rooms.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 300
    card = (folder / "README.md").read_text()
    assert "| AD | 2 | 3 | 3 | 0.0" in card.replace("-0.0", "0.0")
    assert "rooms.png" in card
    table = agents_table(found)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| AD", "| ED", "| random"]
    assert "steps_to" in found["agents"]["ED"]
    assert "steps_to" not in found["agents"]["random"]
    assert [line.split(" | ")[4].split(":")[0] for line in table.splitlines()[2:]] == ["yes", "yes", "-"]
    assert table.endswith(" | - | - |")
    assert "AD: " in evaluation_summary(found, [folder / "evaluation.json"])
