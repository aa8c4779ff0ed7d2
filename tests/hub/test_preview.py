"""The preview of a dataset: what a person sees of its histories, and that nothing foreign runs for it."""

from dataclasses import replace
from io import BytesIO

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from history_files import of_histories, write_dataset
from PIL import Image

from ad_hf.envs.dark_room import AGENT
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.schema import history_features
from ad_hf.histories.writer import history_table
from ad_hf.hub.preview import GAP, NUM_FRAMES, preview_table
from ad_hf.sources.recorder import RecordedSteps

FILMS = ("first_episode", "last_episode")


def rows_of(dataset, **options):
    """The rows of a preview."""
    return pq.read_table(BytesIO(preview_table(dataset, **options))).to_pylist()


def test_a_preview_shows_real_returns_and_the_very_episodes_of_a_history(tiny_histories):
    dataset = HistoryDataset.open(tiny_histories)
    assert preview_table(dataset) == preview_table(dataset)
    rows, size = rows_of(dataset), dataset.metadata.env_kwargs["size"]
    assert {row["task_split"] for row in rows} == {"train", "validation", "test"}
    histories = {row["history_id"]: row for split in dataset.splits for row in dataset.load(split)}
    for row in rows:
        history = histories[row["history_id"]]
        stops = np.flatnonzero(np.logical_or(history["terminations"], history["truncations"])) + 1
        returns = [sum(history["rewards"][start:stop]) for start, stop in zip([0, *stops], stops)]
        assert (row["episodes"], row["first_return"], row["last_return"]) == (len(returns), returns[0], returns[-1])
        pictures = {name: Image.open(BytesIO(row[name]["bytes"])) for name in ("learning_curve", *FILMS)}
        for name, start, stop in zip(FILMS, (0, stops[-2]), (stops[0], stops[-1])):
            side, film = pictures[name].height, np.asarray(pictures[name])
            frames = [film[:, left : left + side] for left in range(0, film.shape[1], side + GAP)]
            assert len(frames) == NUM_FRAMES
            for time, frame in zip(np.linspace(start, stop, NUM_FRAMES).astype(int)[:-1], frames):
                x, y = history["observations"][time]
                middle = (np.array([size - 1 - y, x]) + 0.5) * side / size
                assert tuple(frame[tuple(middle.astype(int))]) == AGENT
    assert len({row["learning_curve"]["bytes"] for row in rows}) > 1


class Drawn(gym.Env):
    """An environment that fails, and counts how often somebody has tried it."""

    made = 0
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, **kwargs):
        type(self).made += 1
        raise RuntimeError("no display")


@pytest.mark.parametrize("trust", [False, True])
def test_an_environment_that_is_unknown_or_cannot_be_made_has_a_curve_alone(tiny_histories, monkeypatch, trust):
    monkeypatch.setattr(Drawn, "made", 0)
    gym.register("Preview/Drawn-v0", Drawn)
    try:
        dataset = HistoryDataset.open(tiny_histories)
        name = "Preview/Drawn-v0" if trust else "test_preview:Preview/Drawn-v0"
        rows = rows_of(replace(dataset, metadata=replace(dataset.metadata, env_id=name)), trust_remote_code=trust)
    finally:
        del gym.registry["Preview/Drawn-v0"]
    assert Drawn.made == trust  # one task is enough to learn it
    assert len(rows) > 1
    assert all(row["learning_curve"] and not row["first_episode"] for row in rows)


def test_observations_that_are_pictures_are_shown_as_they_are(tmp_path):
    num_steps, both = 40, (spaces.Box(0, 255, (12, 16, 1), np.uint8), spaces.Discrete(2))
    frames = np.arange(num_steps, dtype=np.uint8)[None, :, None, None, None] * np.ones((1, 1, 12, 16, 1), np.uint8)
    ends = np.arange(num_steps)[None] % 10 == 9
    recorded = RecordedSteps(
        *(frames, np.zeros((1, num_steps), int), np.ones((1, num_steps)), ends, np.zeros_like(ends)),
        final_observations=[frames[0, 9::10]],
    )
    table = history_table(recorded, history_features(*both), 0, 0, max_piece_steps=10)
    (row,) = rows_of(HistoryDataset.open(write_dataset(tmp_path / "pictures", [table], *both, of_histories(1))))
    for name, start in zip(FILMS, (0, 30)):
        film = np.asarray(Image.open(BytesIO(row[name]["bytes"])))
        width = (film.shape[1] + GAP) // NUM_FRAMES
        assert film[5, 5::width].tolist() == [[time] * 3 for time in np.linspace(start, start + 9, 6).astype(int)]


def test_very_long_episodes_are_not_acted_again(tiny_histories, monkeypatch):
    dataset = HistoryDataset.open(tiny_histories)
    monkeypatch.setattr("ad_hf.hub.preview.MOST_STEPS", dataset.metadata.env_kwargs["max_episode_steps"] - 1)
    assert all(row["learning_curve"] and not row["first_episode"] for row in rows_of(dataset))
