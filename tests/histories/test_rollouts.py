"""Rollouts as histories, and histories as prompts: all that was lived through comes back, and whole episodes of it."""

import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import load_dataset
from history_files import windows_of_folder
from random_histories import SPACES, elements

import ad_hf
import ad_hf.histories
from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.histories.frames import decompress_frames, has_frames
from ad_hf.histories.rollouts import from_rollout, load_prompts
from ad_hf.histories.schema import history_features, read_metadata
from ad_hf.histories.steps import STEPWISE

NUM_STEPS = [40, 0, 13, 1, 39]
SPLITS = ["train", "validation", "test"]
TASKS = [Task(number, {"goal": [number, 0]}, split) for number, split in zip((7, 2, 5), SPLITS)]
LAKES = {"env_kwargs": {"max_episode_steps": 12}, "tasks": [{"is_slippery": False}, {"is_slippery": True}]}
COLUMNS = (*STEPWISE, "final_observations")


def random_output(both, num_steps, seed=0, end_probability=0.25):
    """What a rollout returns, with episodes of random lengths that end in either way, and padding that is no data."""
    rng, num_steps = np.random.default_rng(seed), np.array(num_steps)
    ends = rng.random((len(num_steps), num_steps.max())) < end_probability
    ends[:2, -1] = False
    terminations = ends & (rng.random(ends.shape) < 0.5)
    output = SimpleNamespace(
        num_steps=num_steps,
        observations=elements(both[0], ends.shape, rng, both[0].dtype),
        actions=elements(both[1], ends.shape, rng, both[1].dtype),
        rewards=rng.normal(size=ends.shape),
        terminations=terminations,
        truncations=ends & ~terminations,
        final_observations=elements(both[0], (len(ends), int(ends.sum(axis=1).max()) + 1), rng, both[0].dtype),
        observation_space=space_to_json(both[0]),
        action_space=space_to_json(both[1]),
    )
    output.rewards[np.arange(ends.shape[1]) >= num_steps[:, None]] = np.nan
    return output


def roll_out(family, num_envs, **settings):
    """A rollout of a model with random weights."""
    torch.manual_seed(0)
    envs = family.make_vec(family.all_tasks, num_envs)
    both = {"observation_space": envs.single_observation_space, "action_space": envs.single_action_space}
    config = ad_hf.ADConfig(
        **{name: space_to_json(space) for name, space in both.items()},
        **{"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "context_length": 12},
    )
    return ad_hf.ADModel(config).rollout(envs, output_steps=True, **settings), tuple(both.values())


def joined(rows, both):
    """The histories of some rows by their ids, their pieces joined."""
    histories = {}
    for row in rows:
        pieces = histories.setdefault(row["history_id"], [])
        ends = np.logical_or(row["terminations"], row["truncations"])
        assert row["piece"] == len(pieces)
        assert row["start_step"] == sum(len(piece["rewards"]) for piece in pieces)
        assert not pieces or pieces[-1]["truncations"][-1] or pieces[-1]["terminations"][-1]
        if has_frames(both[0]):
            lengths = {"observations": len(ends), "final_observations": int(ends.sum()) + (not ends[-1])}
            row |= {name: decompress_frames(row[name], length, both[0].shape) for name, length in lengths.items()}
        pieces.append({name: np.array(row[name]) for name in COLUMNS})
    return {
        history_id: SimpleNamespace(**{name: np.concatenate([piece[name] for piece in pieces]) for name in COLUMNS})
        for history_id, pieces in histories.items()
    }


def same(history, output, env):
    """Whether a history is all that an environment lived through, and nothing else."""
    num = int(output.num_steps[env])
    ends = (output.terminations | output.truncations)[env, :num]
    finals = output.final_observations[env, : ends.sum() + (not ends[-1])]
    np.testing.assert_array_equal(history.final_observations, finals)
    for name in COLUMNS[:-1]:
        np.testing.assert_array_equal(getattr(history, name), getattr(output, name)[env, :num])
    return True


# --- From a rollout


@pytest.mark.parametrize(("name", "max_piece_steps"), [*((name, 12) for name in SPACES), ("cells", None)])
def test_every_column_of_every_step_comes_back_and_no_padding(name, max_piece_steps):
    both, output = SPACES[name], random_output(SPACES[name], NUM_STEPS)
    rows = ad_hf.histories.from_rollout(output, max_piece_steps=max_piece_steps)
    assert rows.features == history_features(*both)
    found = joined(rows, both)
    assert list(found) == ["0-0-0", "2-0-0", "3-0-0", "4-0-0"]
    assert all(same(found[f"{env}-0-0"], output, env) for env in (0, 2, 3, 4))
    assert any(not (history.terminations | history.truncations)[-1] for history in found.values())
    assert (len(rows) > len(found)) == (max_piece_steps is not None)


def test_environments_of_a_task_are_its_streams():
    output = random_output(SPACES["cells"], [20, 0, 9, 18, 16, 5])
    rows = from_rollout(output, TASKS)
    assert rows["history_id"] == ["7-0-0", "5-0-0", "7-0-1", "2-0-0", "5-0-1"]
    assert rows["task_id"] == [7, 5, 7, 2, 5]
    assert rows["stream"] == [0, 0, 1, 0, 1]
    found = joined(rows, SPACES["cells"])
    assert all(same(history, output, env) for env, history in zip((0, 2, 3, 4, 5), found.values()))


@pytest.mark.parametrize("name", ["cells", "frames"])
def test_what_is_written_is_what_is_returned(name, tmp_path, monkeypatch):
    monkeypatch.setattr("ad_hf.histories.writer.SHARD_TRANSITIONS", 15)
    output = random_output(SPACES[name], [20, 16, 0, 18, 16, 0])
    settings = {"max_piece_steps": 10, "config_name": "own"}
    rows = from_rollout(output, TASKS, "made/Up-v0", {"size": (4, 3)}, tmp_path / "new" / "out", **settings)
    metadata = read_metadata(tmp_path / "new" / "out", "own")
    assert (metadata.env_id, metadata.env_kwargs, metadata.seeds) == ("made/Up-v0", {"size": [4, 3]}, [])
    # No environment of the test task took a step: a split without files could not be loaded.
    assert metadata.tasks == [vars(TASKS[1]), vars(TASKS[0])]
    assert metadata.spaces == SPACES[name]
    assert metadata.source == {"algorithm": "ADModel", "n_envs": 2, "total_timesteps": 38, "hyperparameters": {}}
    for split, task_id in (("train", 7), ("validation", 2)):
        expected = rows.filter(lambda row, task_id=task_id: row["task_id"] == task_id).to_list()
        assert ad_hf.load_histories(tmp_path / "new" / "out", split)[0].to_list() == expected
        assert load_dataset(str(tmp_path / "new" / "out"), split=split).to_list() == expected
        assert metadata.statistics[split]["histories"] == 2
        assert len(list((tmp_path / "new" / "out" / "own").glob(f"{split}-*-of-00002.parquet"))) == 2
    assert "rollout" in (tmp_path / "new" / "out" / "README.md").read_text()
    assert not (tmp_path / "new" / "out" / "recipe.yaml").exists()  # which would split the tasks otherwise


def test_a_rollout_is_a_dataset_with_the_recipe_of_its_family(tmp_path):
    family = TaskFamily("FrozenLake-v1", **LAKES)
    output, both = roll_out(family, 6, num_episodes=4, max_steps=30)
    assert len(set(output.num_steps.tolist())) > 1
    folder = tmp_path / "rollout"
    rows = from_rollout(output, family.all_tasks, family.env_id, family.env_kwargs, folder)
    assert all(same(history, output, env) for env, history in enumerate(joined(rows, both).values()))
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"family": {"env_id": family.env_id, **LAKES}}
    assert ad_hf.load_recipe(folder / "recipe.yaml").family.tasks == LAKES["tasks"]
    config = ad_hf.config_from_dataset(folder, hidden_size=16, num_hidden_layers=1, context_length=8)
    assert config.observation_space == {"type": "Discrete", "n": 16}
    windows = windows_of_folder(folder, 8)
    assert windows.num_histories == 6
    assert windows.num_steps == output.num_steps.sum()
    assert ad_hf.ADModel(config)(**windows.batch(windows.epoch_order(0))).loss.isfinite()


def test_images_of_an_environment_are_stored_as_frames(tmp_path):
    family = TaskFamily("image_room:ImageRoom-v0", tasks=[{"goal": [0, 3]}, {"goal": [2, 0]}])
    output, both = roll_out(family, 2, max_steps=18)
    rows = from_rollout(output, family.all_tasks, family.env_id, output_dir=tmp_path / "out", max_piece_steps=9)
    assert len(rows) == 2 * 3  # episodes of 7, 7 and 4 steps, none of which share a piece
    found = joined(ad_hf.load_histories(tmp_path / "out", "train")[0], both)
    assert all(same(history, output, env) for env, history in enumerate(found.values()))
    prompts = load_prompts(tmp_path / "out", [1, 0], num_steps=14, split="train")
    np.testing.assert_array_equal(prompts[0]["observations"], output.observations[1, :14])  # and not the last four
    np.testing.assert_array_equal(prompts[1]["observations"], output.observations[0, :14])


def test_what_is_no_rollout_is_refused_and_leaves_nothing(tmp_path):
    output = random_output(SPACES["cells"], [12, 7])
    out = {"output_dir": tmp_path / "out"}
    outside = random_output(SPACES["cells"], [12, 7])
    outside.actions[1, 3] = 5
    cases = [
        (SimpleNamespace(num_steps=None, observations=None), {}, "output_steps=True"),
        (output, {"tasks": TASKS}, "3 tasks for a rollout of 2 environments"),
        (output, {"tasks": []}, "0 tasks"),
        (output, {"tasks": [TASKS[0], Task(7, {}, "train")]}, "task_ids of their own"),
        (output, {"tasks": [Task(0, {}, "dev")]}, "expected a split of train, validation, test"),
        (output, {"env_kwargs": {"size": {1, 2}}, **out}, "stored as JSON"),
        (output, {"max_piece_steps": 0, **out}, "max_piece_steps must be at least 1"),
        (outside, out, "environment 1, actions: 5 at step 3"),
    ]
    for rollout, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            from_rollout(rollout, **settings)
    assert not list(tmp_path.iterdir())
    from_rollout(output, **out)
    with pytest.raises(ValueError, match="exists already"):
        from_rollout(output, **out)


# --- Prompts

STREAMS = 4  # of each of three test tasks
LENGTHS = [90, 70, 81, 64, 85, 77, 90, 60, 66, 88, 72, 90]


@pytest.fixture(scope="module", params=["vectors", "frames"])
def demonstrations(request, tmp_path_factory):
    """Folders with the same histories, in pieces of few steps and whole, and what the histories are made of."""
    output, folder = random_output(SPACES[request.param], LENGTHS, seed=3), tmp_path_factory.mktemp("demonstrations")
    tasks = [Task(number, {"goal": [number, 0]}, "test") for number in (4, 0, 9)]
    patch = pytest.MonkeyPatch()
    patch.setattr("ad_hf.histories.writer.SHARD_TRANSITIONS", 200)
    for name, steps in (("pieces", 15), ("whole", 1000)):
        from_rollout(output, tasks, output_dir=folder / name, max_piece_steps=steps)
    patch.undo()
    histories = {task.task_id: range(index, len(LENGTHS), 3) for index, task in enumerate(tasks)}
    return SimpleNamespace(
        pieces=folder / "pieces", whole=folder / "whole", output=output, envs=histories, tasks=tasks
    )


def place(prompt, demonstrations, task_id):
    """The environment, the first step and the step after the last of a prompt, in all of whose columns it is."""
    output, length = demonstrations.output, len(prompt["rewards"])
    for env in demonstrations.envs[task_id]:
        first = int(np.argmax(output.rewards[env] == prompt["rewards"][0]))
        if np.array_equal(output.rewards[env, first : first + length], prompt["rewards"]):
            for name, values in prompt.items():
                np.testing.assert_array_equal(values, getattr(output, name)[env, first : first + length])
                assert values.dtype == getattr(output, name).dtype
            return env, first, first + length
    raise AssertionError("the prompt is no part of any history of the task")


def fitting_runs(output, env, num_steps):
    """(first step, step after the last, mean return) of every run of whole episodes that cannot be made longer."""
    ends = np.flatnonzero((output.terminations | output.truncations)[env, : output.num_steps[env]]) + 1
    borders = [0, *ends.tolist()]
    pairs = itertools.combinations(range(len(borders)), 2)
    fits = {(i, j) for i, j in pairs if j == i + 1 or borders[j] - borders[i] <= num_steps}
    for i, j in sorted((i, j) for i, j in fits if not {(i - 1, j), (i, j + 1)} & fits):
        first, stop = max(borders[i], borders[j] - num_steps), borders[j]
        yield first, stop, output.rewards[env, borders[i] : stop].sum() / (j - i)


@pytest.mark.parametrize(
    ("num_steps", "level"), [(3, None), (3, -1.0), (20, [0.3, 2.5, -4.0, 0.0]), (20, None), (1000, -1.0)]
)
def test_prompts_are_the_runs_of_episodes_that_come_closest(demonstrations, num_steps, level):
    tasks = [9, 4, 9, 0]
    prompts = load_prompts(demonstrations.pieces, tasks, num_steps, level)
    for prompt, task_id, wanted in zip(prompts, tasks, level if isinstance(level, list) else [level] * 4):
        env, start, stop = place(prompt, demonstrations, task_id)
        assert 0 < stop - start <= num_steps
        runs = list(fitting_runs(demonstrations.output, env, num_steps))
        best = runs[-1] if wanted is None else min(runs, key=lambda run: abs(run[2] - wanted))
        assert (start, stop) == best[:2]


def test_a_task_s_histories_are_used_up_before_one_is_used_again(demonstrations):
    folder, tasks = demonstrations.whole, [4] * (STREAMS + 2) + [0, 9]
    prompts = load_prompts(folder, tasks, 30)
    envs = [place(prompt, demonstrations, task_id)[0] for prompt, task_id in zip(prompts, tasks)]
    assert len(set(envs[:STREAMS])) == STREAMS
    assert len(set(envs[STREAMS:6])) == 2
    again = load_prompts(folder, [*demonstrations.tasks[:1] * (STREAMS + 2), 0, np.int64(9)], 30)
    in_pieces = load_prompts(demonstrations.pieces, tasks, 30, None, "test", "default", 0)
    for prompt, *others in zip(prompts, again, in_pieces):
        for other, name in itertools.product(others, prompt):
            np.testing.assert_array_equal(prompt[name], other[name])
    orders = set()
    for seed in range(5):
        drawn = load_prompts(folder, [4] * STREAMS, 30, seed=seed)
        orders.add(tuple(place(prompt, demonstrations, 4)[0] for prompt in drawn))
    assert len(orders) > 1


def test_what_a_source_did_last_is_the_prompt(tiny_histories, tiny_recipe):
    tasks = TaskFamily(tiny_recipe.family).tasks("test")
    rows, _ = ad_hf.load_histories(tiny_histories, "test")
    for task, prompt in zip(tasks, load_prompts(tiny_histories, tasks, num_steps=20)):
        lasts = [row["observations"][-18:] for row in rows if row["task_id"] == task.task_id]  # episodes of 6 steps
        assert prompt["observations"].tolist() in lasts
        assert prompt["observations"].dtype == prompt["actions"].dtype == np.int64
        assert prompt["terminations"].dtype == prompt["truncations"].dtype == np.bool_
        assert np.flatnonzero(prompt["truncations"]).tolist() == [5, 11, 17]


def test_prompts_that_cannot_be_had(demonstrations, tmp_path):
    cases = [
        ([0], {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ([0, 4, 9], {"level": [1.0, 2.0]}, "one for each of the 3 tasks"),
        ([0, 4, 9], {"level": [[1.0]]}, "one for each of the 3 tasks"),
        ([0, 4, 9], {"level": np.nan}, "one for each of the 3 tasks"),
        ([0, 7], {}, r"split test: there are no histories of task 7; .* 0, 4, 9: "),
        ([0], {"split": "train"}, "no split 'train': expected one of test"),
        ([Task(4, {"goal": [0, 0]}, "test")], {}, r"its task 4 is .*'goal': .4, 0.*, and not .*'goal': .0, 0"),
    ]
    for tasks, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            load_prompts(demonstrations.whole, tasks, **{"num_steps": 10, **settings})
    endless = random_output(SPACES["cells"], [10], end_probability=0.0)
    from_rollout(endless, output_dir=tmp_path / "endless")
    with pytest.raises(ValueError, match="without a finished episode"):
        load_prompts(tmp_path / "endless", [0], 10, split="train")
    shard = next(demonstrations.pieces.rglob("*.parquet"))
    rows = pq.read_table(shard)
    shutil.copytree(demonstrations.pieces, tmp_path / "gap")
    pq.write_table(rows.filter(pc.not_equal(rows["piece"], 1)), tmp_path / "gap" / "default" / shard.name)
    with pytest.raises(ValueError, match=r"column start_step: .*the pieces of a history must stand next to"):
        load_prompts(tmp_path / "gap", rows["task_id"].to_pylist()[:1] * STREAMS, 10)
