"""Returns as rows: of models, of random actions, and of a source from its histories."""

import json
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.returns import (
    evaluation_rows,
    join_rows,
    random_rows,
    read_rows,
    source_returns,
    source_rows,
    write_rows,
)
from ad_hf.evaluation.rollouts import evaluate

N_ENVS = 2


def test_rows_hold_the_returns_of_each_rollout_in_each_task(dark_room_family, dark_room_model, tmp_path):
    result = evaluate(dark_room_model, dark_room_family, num_episodes=5, num_seeds=2)

    rows = evaluation_rows(result, dark_room_family, "AD", training_seed=7)

    assert len(rows) == 2 * 3
    for row in rows.to_pylist():
        index = [task.task_id for task in result.tasks].index(row["task_id"])
        assert row["returns"] == result.returns[row["rollout"], index].tolist()
        assert json.loads(row["task"]) == result.tasks[index].kwargs
        assert (row["agent"], row["training_seed"], row["streams"]) == ("AD", 7, 1)
        assert row["group"] is row["random_return"] is row["step_rewards"] is None
    write_rows(tmp_path / "returns.parquet", rows)
    assert read_rows(tmp_path / "returns.parquet") == rows
    # As the first version wrote them.
    first = rows.drop_columns(["group", "random_return", "step_rewards"])
    pa.parquet.write_table(first, tmp_path / "old.parquet")
    assert read_rows(tmp_path / "old.parquet") == rows


def test_another_table_is_refused(tmp_path):
    pa.parquet.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    (tmp_path / "no.parquet").write_text("no")

    with pytest.raises(ValueError, match="expected the columns agent, split_seed"):
        read_rows(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"no\.parquet: it is no parquet file, or a damaged one"):
        read_rows(tmp_path / "no.parquet")


def test_rows_that_are_no_returns_are_refused(tmp_path):
    row = {"agent": "AD", "split_seed": 0, "training_seed": None, "rollout": 0, "task_id": 0, "task": "{}"}
    row |= {"streams": 1, "optimal_return": None, "returns": [1.0, 2.0], "lengths": [4.0, 4.0]}
    for changed, told in (
        ({"agent": None}, "column agent has rows without a value"),
        ({"returns": None}, "column returns has rows without a value"),
        ({"returns": []}, "one episode or more"),
        ({"lengths": [4.0]}, "as many lengths as returns"),
        ({"returns": [1.0, float("nan")]}, "column returns has numbers that are not finite"),
        ({"returns": [1.0, None]}, "column returns has numbers that are not finite"),
        ({"step_rewards": [1.0, None]}, "column step_rewards has numbers that are not finite"),
        ({"task": "{"}, "a task is not JSON"),
        ({"task": "[]"}, "a task must hold a mapping"),
        ({"rollout": "first"}, "is no table of returns"),
    ):
        pa.parquet.write_table(pa.Table.from_pylist([{**row, **changed}]), tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=rf"rows\.parquet.*{told}"):
            read_rows(tmp_path / "rows.parquet")


def finished_episodes(dataset):
    """(return, length) of each finished episode of each history, by task, counted step by step from the rows."""
    histories = defaultdict(list)
    for row in load_dataset(str(dataset), "default", split="test"):
        histories[row["task_id"], row["history_id"]].append(row)
    episodes = defaultdict(list)
    for (task, _), pieces in histories.items():
        finished, total, length = [], 0.0, 0
        for piece in sorted(pieces, key=lambda row: row["piece"]):
            for reward, *ends in zip(piece["rewards"], piece["terminations"], piece["truncations"]):
                total, length = total + reward, length + 1
                if any(ends):
                    finished.append((total, length))
                    total, length = 0.0, 0
        episodes[task].append(finished)
    return [episodes[task] for task in sorted(episodes)]


def continued(finished, number):
    """So many episodes, of which those that were not finished are the mean of the last ten."""
    rest = number - len(finished)
    return np.concatenate([finished, np.tile(np.mean(finished[-10:], axis=0), (rest, 1))])


def assert_is_recomputed(dataset):
    source, tasks = source_returns(dataset), finished_episodes(dataset)

    most = max(len(finished) for histories in tasks for finished in histories)
    episodes = np.array([[continued(finished, most) for finished in histories] for histories in tasks])
    assert source.returns.shape == (len(tasks[0]), len(tasks), most)
    assert source.streams == N_ENVS
    for index in range(len(tasks)):
        np.testing.assert_allclose(
            sorted(source.returns[:, index].tolist()), sorted(episodes[index, :, :, 0].tolist())
        )
    np.testing.assert_allclose(source.lengths.mean(axis=(0, 1)), episodes[..., 1].mean(axis=(0, 1)))
    return episodes


def test_source_returns_are_those_of_the_rows_over_seeds_streams_and_pieces(room_histories, dark_room_family):
    rows = load_dataset(str(room_histories), "default", split="test")
    assert len(rows) == 3 * 2 * N_ENVS * 3  # tasks, seeds, streams, pieces

    episodes = assert_is_recomputed(room_histories)

    assert episodes.shape == (3, 2 * N_ENVS, 6, 2)
    table, source = source_rows(room_histories, dark_room_family, 5), source_returns(room_histories)
    assert [task.kwargs for task in source.tasks] == [task.kwargs for task in dark_room_family.tasks("test")]
    assert (set(table["agent"].to_pylist()), set(table["split_seed"].to_pylist())) == ({"source"}, {5})
    assert table["returns"].to_pylist() == source.returns.reshape(-1, 6).tolist()
    np.testing.assert_allclose(source.step_rewards.sum(axis=2), source.returns[..., 0])


def test_source_returns_leave_out_episodes_that_were_not_finished(collect_here):
    tasks = [{"sutton_barto_reward": False}, {"sutton_barto_reward": True}]
    settings = {"algorithm": "A2C", "n_envs": N_ENVS, "total_timesteps": N_ENVS * 150, "max_piece_steps": 40}
    poles = collect_here(TaskFamily("CartPole-v1", tasks, num_test_tasks=1), **settings, seeds=(0, 1))
    rows = load_dataset(str(poles), "default", split="test")
    last = [row for row in rows if row["start_step"] + len(row["rewards"]) == 150]
    assert not all(row["terminations"][-1] or row["truncations"][-1] for row in last)

    episodes = assert_is_recomputed(poles)

    assert len(np.unique(episodes[..., 1])) > 1


def test_sources_that_stopped_when_converged_stay_as_they_were(dark_room_family, collect_here):
    settings = {"algorithm": "TabularQ", "n_envs": N_ENVS, "total_timesteps": N_ENVS * 4 * 300}
    histories = collect_here(dark_room_family, **settings, until_converged={"window": 5, "patience": 2})
    tasks = finished_episodes(histories)
    counts = [[len(finished) for finished in streams] for streams in tasks]
    assert len({min(streams) for streams in counts}) > 1  # some stopped before others

    source = source_returns(histories)

    assert source.returns.shape == (N_ENVS, len(tasks), max(map(max, counts)))
    for task, streams in enumerate(tasks):
        returns = sorted(source.returns[:, task].tolist())
        for own, finished in zip(returns, sorted([total for total, _ in stream] for stream in streams)):
            np.testing.assert_allclose(own[: len(finished)], finished)
            np.testing.assert_allclose(own[len(finished) :], np.mean(finished[-10:]))
    np.testing.assert_allclose(source.lengths, 4)


def test_random_actions_are_bounded_and_seeded(dark_room_family):
    rows, again = (random_rows(dark_room_family, num_episodes=20, num_seeds=2) for _ in range(2))
    assert rows == again
    assert (len(rows), set(rows["agent"].to_pylist())) == (2 * 3, {"random"})
    assert {len(returns) for returns in rows["returns"].to_pylist()} == {20}
    few = random_rows(dark_room_family, num_episodes=20, num_seeds=2, max_steps=9)  # of episodes of four steps
    assert {len(returns) for returns in few["returns"].to_pylist()} == {2}
    assert len(random_rows(dark_room_family, max_steps=3)) == 0


def test_rewards_by_step_stay_where_all_models_have_them(dark_room_family, dark_room_model):
    single = evaluate(dark_room_model, dark_room_family, num_episodes=1, num_seeds=1)
    several = evaluate(dark_room_model, dark_room_family, num_episodes=2, num_seeds=1)
    own, other = (evaluation_rows(each, dark_room_family, "AD") for each in (single, several))
    random = random_rows(dark_room_family, 2)
    assert join_rows([own, random])["step_rewards"].null_count == 0
    assert join_rows([own, other, random])["step_rewards"].null_count == len(own) + len(other) + len(random)
    assert join_rows([own, random])["step_rewards"].to_pylist()[:3] == single.step_rewards[0].tolist()
