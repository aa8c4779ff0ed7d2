"""Reports: intervals, the source's own curves, and the numbers that are promised in `report.json`."""

import json
from collections import defaultdict

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

import ad_hf
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.curves import Curve, bootstrap_curve, steps_to_level
from ad_hf.evaluation.evaluate import Evaluation, evaluate
from ad_hf.evaluation.report import source_curves, write_report

N_ENVS = 2


@pytest.fixture(scope="module")
def room_histories(dark_room_family, tmp_path_factory):
    """Two seeds of 6 episodes of 4 steps per stream, in pieces of two episodes."""
    return ad_hf.collect(
        dark_room_family,
        "A2C",
        n_envs=N_ENVS,
        total_timesteps=N_ENVS * 24,
        hyperparameters={"n_steps": 2},
        seeds=(0, 1),
        split="test",
        output_dir=tmp_path_factory.mktemp("histories") / "rooms",
        num_workers=1,
        max_piece_steps=8,
    )


@pytest.fixture(scope="module")
def pole_histories(tmp_path_factory):
    """Episodes of different lengths, in pieces, and at the end of a history one that is not finished."""
    family = TaskFamily(
        "CartPole-v1", [{"sutton_barto_reward": False}, {"sutton_barto_reward": True}], num_test_tasks=1
    )
    return ad_hf.collect(
        family,
        "A2C",
        n_envs=N_ENVS,
        total_timesteps=N_ENVS * 150,
        hyperparameters={"n_steps": 5},
        seeds=(0, 1),
        split="test",
        output_dir=tmp_path_factory.mktemp("histories") / "poles",
        num_workers=1,
        max_piece_steps=40,
    )


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


def assert_is_recomputed(dataset):
    curves = source_curves(dataset)
    returns, steps = curves.returns, curves.env_steps

    tasks = finished_episodes(dataset)
    shortest = min(len(finished) for histories in tasks for finished in histories)
    episodes = np.array([[finished[:shortest] for finished in histories] for histories in tasks])
    assert returns.shape == (len(tasks[0]), len(tasks), shortest)
    for index in range(len(tasks)):
        assert sorted(returns[:, index].tolist()) == sorted(episodes[index, :, :, 0].tolist())
    np.testing.assert_allclose(steps, N_ENVS * episodes[..., 1].mean(axis=(0, 1)).cumsum())
    return episodes


def test_source_returns_are_those_of_the_rows_over_seeds_streams_and_pieces(room_histories):
    rows = load_dataset(str(room_histories), "default", split="test")
    assert len(rows) == 3 * 2 * N_ENVS * 3  # tasks, seeds, streams, pieces

    episodes = assert_is_recomputed(room_histories)

    assert episodes.shape == (3, 2 * N_ENVS, 6, 2)
    assert source_curves(room_histories).env_steps.tolist() == [8, 16, 24, 32, 40, 48]


def test_source_returns_leave_out_episodes_that_were_not_finished(pole_histories):
    rows = load_dataset(str(pole_histories), "default", split="test")
    last = [row for row in rows if row["start_step"] + len(row["rewards"]) == 150]
    assert not all(row["terminations"][-1] or row["truncations"][-1] for row in last)

    episodes = assert_is_recomputed(pole_histories)

    assert len(np.unique(episodes[..., 1])) > 1


def test_sources_that_stopped_when_converged_stay_as_they_were(dark_room_family, tmp_path):
    histories = ad_hf.collect(
        dark_room_family,
        "TabularQ",
        n_envs=N_ENVS,
        total_timesteps=N_ENVS * 4 * 300,
        until_converged={"window": 5, "patience": 2},
        split="test",
        output_dir=tmp_path / "converged",
        num_workers=1,
    )
    tasks = finished_episodes(histories)
    counts = [[len(finished) for finished in streams] for streams in tasks]
    assert len({min(streams) for streams in counts}) > 1  # some stopped before others

    curves = source_curves(histories)

    assert curves.returns.shape == (N_ENVS, len(tasks), max(map(max, counts)))
    for task, streams in enumerate(tasks):
        found = sorted(curves.returns[:, task].tolist())
        for own, finished in zip(found, sorted([total for total, _ in stream] for stream in streams)):
            np.testing.assert_allclose(own[: len(finished)], finished)
            np.testing.assert_allclose(own[len(finished) :], np.mean(finished[-10:]))
    np.testing.assert_allclose(np.diff(curves.env_steps), 4)


def test_bootstrap_mean_is_over_runs_and_tasks_and_lies_in_its_interval():
    returns = np.random.default_rng(0).normal(size=(3, 8, 20)).cumsum(axis=2)
    steps = np.arange(20.0)

    curve = bootstrap_curve(returns, steps)

    np.testing.assert_allclose(curve.mean, returns.mean(axis=(0, 1)))
    assert (curve.low < curve.mean).all()
    assert (curve.mean < curve.high).all()
    np.testing.assert_array_equal(curve.env_steps, steps)


def test_bootstrap_interval_shrinks_with_more_tasks_as_one_over_the_root():
    rng = np.random.default_rng(0)

    def width(num_tasks):
        curve = bootstrap_curve(rng.normal(size=(2, num_tasks, 50)), np.arange(50))
        return (curve.high - curve.low).mean()

    assert width(10) / width(160) == pytest.approx(4, rel=0.2)


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    tasks = rng.normal(size=(1, 40, 2000))  # every column is an experiment of its own
    curve = bootstrap_curve(tasks + 0.5 * rng.normal(size=(3, 40, 2000)), np.arange(2000))

    assert np.mean((curve.low < 0) & (curve.high > 0)) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("shape", [(8, 1, 300), (1, 8, 300)], ids=["runs", "tasks"])
def test_bootstrap_counts_the_spread_of_runs_and_of_tasks(shape):
    curve = bootstrap_curve(np.random.default_rng(0).normal(size=shape), np.arange(300))

    assert (curve.high - curve.low).mean() == pytest.approx(2 * 1.96 / np.sqrt(8), rel=0.15)


def test_bootstrap_of_equal_returns_has_no_width():
    curve = bootstrap_curve(np.full((3, 4, 5), 2.5), np.arange(5))

    for bound in (curve.mean, curve.low, curve.high):
        np.testing.assert_allclose(bound, 2.5)


def test_bootstrap_is_reproducible():
    returns = np.random.default_rng(0).normal(size=(2, 5, 4))
    first, second, other = (bootstrap_curve(returns, np.arange(4), seed=seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first.low, second.low)
    assert (first.low != other.low).any()


def curve_of(mean, steps_per_episode=10):
    mean = np.array(mean, dtype=float)
    return Curve(steps_per_episode * np.arange(1, len(mean) + 1), mean, mean, mean)


@pytest.mark.parametrize(
    ("mean", "level", "steps"),
    [
        ([0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5], 5, 100),  # the average over 5 episodes trails
        ([0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5], 4, 90),
        ([5, 5, 5, 5, 5, 5], 5, 50),
        ([5, 0, 0, 0, 0, 0, 0, 0], 4.5, None),  # one lucky episode is no level
        ([0, 0, 0, 0, 0, 0], 1, None),
        ([9, 0, 0, 0, 0, 5, 5, 5, 5, 5], 4.5, 100),
        ([1, 3], 2, 20),  # fewer than 5 episodes: all of them
        ([4], 4, 10),
    ],
)
def test_steps_to_a_level(mean, level, steps):
    assert steps_to_level(curve_of(mean), level) == steps


@pytest.fixture
def evaluation(dark_room_model, dark_room_family):
    return evaluate(dark_room_model, dark_room_family, num_episodes=25, num_seeds=2, seed=5)


def read_strictly(path):
    """JSON without NaN and Infinity, which it does not have."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_report_holds_what_it_promises(tmp_path, evaluation, dark_room_family, room_histories):
    details = {"seconds": {"collect": 1.5, "train": 2.5}, "env_id": "ad_hf/DarkRoom-v0", "seeds": {"training": 0}}

    report = write_report(tmp_path, evaluation, dark_room_family, room_histories, details)

    assert read_strictly(tmp_path / "report.json") == report
    final = evaluation.returns[..., -10:]
    optimal = dark_room_family.optimal_returns(evaluation.tasks)
    source = source_curves(room_histories).returns
    assert report["test_return_final"] == pytest.approx(final.mean())
    assert report["test_return_final_interval"][0] < report["test_return_final"]
    assert report["test_return_final"] < report["test_return_final_interval"][1]
    assert report["test_return_first"] == pytest.approx(evaluation.returns[..., 0].mean())
    assert report["optimal_return"] == pytest.approx(optimal.mean())
    assert report["fraction_of_optimal"] == pytest.approx(final.mean() / optimal.mean())
    assert report["source_return_final"] == pytest.approx(source.mean())  # of its 6 episodes
    assert report["source"]["algorithm"] == "A2C"  # as the histories say
    assert report["source"]["n_envs"] == N_ENVS
    assert report["final_episodes"] == [16, 25]
    assert report["num_test_tasks"] == 3
    assert report["num_rollout_seeds"] == 2
    assert report["rollout_seed"] == 5
    assert {name: report[name] for name in details} == details
    for index, (task, entry) in enumerate(zip(evaluation.tasks, report["tasks"], strict=True)):
        assert entry["task_id"] == task.task_id
        assert entry["kwargs"] == task.kwargs
        assert entry["return"] == pytest.approx(final[:, index].mean())
        assert entry["optimal"] == optimal[index]
    for package in ("ad_hf", "torch", "transformers", "datasets", "accelerate", "gymnasium", "stable_baselines3"):
        assert report["versions"][package]


def test_report_times_both_curves_to_shares_of_the_sources_gain(
    tmp_path, evaluation, dark_room_family, room_histories
):
    source = source_curves(room_histories)
    source.returns[..., -10:] += 2.0  # it gets better than random play
    report = write_report(tmp_path, evaluation, dark_room_family, room_histories, {}, source)

    curves = {
        "ad": bootstrap_curve(evaluation.returns, 4.0 * np.arange(1, 26)),
        "source": bootstrap_curve(source.returns, source.env_steps),
    }
    random = np.mean([task["random"] for task in report["tasks"]])
    assert report["random_return"] == pytest.approx(random)
    assert 0 < random < report["source_return_final"]
    assert report["random_episodes"] == 3 * 2 * 10  # tasks, rollouts, episodes
    assert list(report["env_steps_to"]) == ["50%", "90%"]
    for share, steps in zip((0.5, 0.9), report["env_steps_to"].values()):
        assert steps["gain_of"] == "source"
        assert steps["level"] == pytest.approx(random + share * (report["source_return_final"] - random))
        for name, curve in curves.items():
            assert steps[name] == steps_to_level(curve, steps["level"])
    for name, curve in curves.items():
        np.testing.assert_allclose(report["curves"][name]["mean"], curve.mean, atol=1e-4)
        np.testing.assert_allclose(report["curves"][name]["env_steps"], curve.env_steps)


def test_report_without_histories_is_of_the_model_alone(tmp_path, evaluation, dark_room_family, room_histories):
    report = write_report(tmp_path / "alone", evaluation, dark_room_family, None, {"seconds": {"rollout": 1.0}})
    with_source = write_report(tmp_path / "both", evaluation, dark_room_family, room_histories, report["seconds"])

    assert read_strictly(tmp_path / "alone" / "report.json") == report
    assert (tmp_path / "alone" / "learning_curve.png").is_file()
    for name in ("source", "source_return_final", "dataset"):
        assert report[name] is None
        assert with_source[name] is not None
    assert report["curves"]["source"] is None
    assert report["curves"]["ad"] == with_source["curves"]["ad"]
    assert {steps["gain_of"] for steps in report["env_steps_to"].values()} == {"optimum"}
    for steps in report["env_steps_to"].values():
        assert steps["source"] is steps["ratio"] is None
    for name in ("test_return_final", "test_return_first", "optimal_return", "learns", "random_return"):
        assert report[name] == with_source[name]
    for task, other in zip(report["tasks"], with_source["tasks"], strict=True):
        assert task == {**other, "source": None}


def test_report_draws_a_picture(tmp_path, evaluation, dark_room_family, room_histories):
    write_report(tmp_path, evaluation, dark_room_family, room_histories, {})

    with Image.open(tmp_path / "learning_curve.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning_curve.png", "report.json"]


def test_report_makes_its_folder(tmp_path, evaluation, dark_room_family, room_histories):
    write_report(tmp_path / "runs" / "new", evaluation, dark_room_family, room_histories, {})
    assert (tmp_path / "runs" / "new" / "report.json").is_file()


def test_report_without_a_known_optimum_says_so(tmp_path, evaluation, dark_room_family, room_histories):
    family = TaskFamily(
        dark_room_family.env_id,
        [task.kwargs for task in dark_room_family.all_tasks],
        dark_room_family.env_kwargs,
        num_test_tasks=3,
        native_vector=True,
    )
    report = write_report(tmp_path, evaluation, family, room_histories, {})

    assert report["optimal_return"] is None
    assert report["fraction_of_optimal"] is None
    assert all(task["optimal"] is None for task in report["tasks"])
    read_strictly(tmp_path / "report.json")


def test_report_of_fewer_than_ten_episodes_names_those_it_has(tmp_path, evaluation, dark_room_family, room_histories):
    short = Evaluation(evaluation.tasks, evaluation.returns[..., :4], evaluation.lengths[..., :4], seed=0)
    report = write_report(tmp_path, short, dark_room_family, room_histories, {})

    assert report["final_episodes"] == [1, 4]
    assert report["test_return_final"] == pytest.approx(short.returns.mean())
