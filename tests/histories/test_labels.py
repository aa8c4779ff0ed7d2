"""Other actions to learn, and histories that are left out: in memory, memory-mapped and streamed alike."""

import pickle

import datasets
import numpy as np
import pytest
from history_files import take, windows_of_folder

import ad_hf
from ad_hf.envs.dark_room import walk
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.labels import StepLabels
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.windows import WindowBatches
from ad_hf.recipe import load_recipe

OPTIMAL = "ad_hf.envs.dark_room.optimal_actions"


def wrong_actions(observations, **_):
    """Actions that there are not."""
    return np.full(len(observations), 7)


@pytest.fixture
def opened(tiny_histories, tmp_path, monkeypatch):
    """The tiny histories, with a cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return HistoryDataset.open(tiny_histories)


def test_labels_are_what_the_function_says_of_what_is_seen_in_the_task(opened):
    windows, plain = windows_of_folder(opened, 24, labels=OPTIMAL), windows_of_folder(opened, 24)
    first = np.stack([windows.offsets[:-1], np.full(windows.num_histories, 24)], axis=1)
    batch, taken = windows.batch(first), plain.batch(first)

    kwargs = {task["task_id"]: task["kwargs"]["goal"] for task in opened.metadata.tasks}
    goals = [kwargs[row["task_id"]] for row in opened.load("train") if row["piece"] == 0]
    assert len(goals) == windows.num_histories
    expected = walk(batch["observations"].numpy().reshape(-1, 2).astype(int), np.repeat(goals, 24, axis=0))
    np.testing.assert_array_equal(batch["labels"].numpy().ravel(), expected)
    # The actions that are seen stay those that were taken.
    np.testing.assert_array_equal(batch["previous_actions"], taken["previous_actions"])
    np.testing.assert_array_equal(taken["previous_actions"][:, 1:], taken["labels"][:, :-1])
    assert (batch["labels"] != taken["labels"]).any()


def test_a_stream_has_the_labels_too_also_as_workers_get_it(opened):
    streams = [HistoryStream(opened, "train", DataConfig(labels=labels), 24) for labels in (OPTIMAL, None)]
    streams[0] = pickle.loads(pickle.dumps(streams[0]))
    batch, plain = (take(StreamedBatches(stream, 16), 1)[0] for stream in streams)
    np.testing.assert_array_equal(batch["observations"], plain["observations"])
    assert (batch["labels"] != plain["labels"]).any()


def test_if_none_got_better_by_that_much_it_is_said(tiny_recipe_file, tiny_histories, tmp_path):
    recipe = load_recipe(tiny_recipe_file, ["--data.min_improvement", "100"])
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"no history got better by data\.min_improvement: set it lower"):
            ad_hf.train(recipe, tiny_histories, tmp_path / str(streaming), streaming=streaming)


def test_a_model_learns_the_labels(tiny_recipe_file, tiny_histories, tmp_path):
    overrides = [f"--data.labels={OPTIMAL}", "--training.max_steps=120", "--training.eval_steps=120"]
    model = ad_hf.train(load_recipe(tiny_recipe_file, overrides), tiny_histories, tmp_path)
    opened = HistoryDataset.open(tiny_histories)
    losses = {}
    for name, labels in (("optimal", OPTIMAL), ("taken", None)):
        (batch,) = take(WindowBatches(windows_of_folder(opened, 24, labels=labels), 64), 1)
        losses[name] = model(**batch).loss.item()

    assert losses["optimal"] < losses["taken"]


def test_what_is_no_function_of_actions_is_refused(opened):
    with pytest.raises(ValueError, match=r"data\.labels must be the import path .* got 'ad_hf\.nothing'"):
        StepLabels("ad_hf.nothing", opened.metadata)
    with pytest.raises(
        ValueError, match=r"wrong_actions gave int64 of shape .* expected as many elements of Discrete"
    ):
        windows_of_folder(opened, 24, labels=f"{__name__}.wrong_actions")
