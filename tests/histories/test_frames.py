"""Image observations: stored as one binary per piece, and in batches what they were when they were recorded."""

import json
import re

import gymnasium as gym
import numpy as np
import pyarrow
import pytest
from datasets import load_dataset
from gymnasium import spaces
from history_files import (
    of_histories,
    open_dataset,
    slowly_kept_steps,
    windows_of_folder,
    write_dataset,
)
from image_room import SHAPE

import ad_hf
from ad_hf.envs.task_family import FamilyConfig
from ad_hf.histories.frames import compress_frames, decompress_frames, has_frames
from ad_hf.histories.schema import history_features
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.windows import WindowBatches
from ad_hf.histories.writer import history_table, piece_steps
from ad_hf.recipe import Recipe
from ad_hf.sources.recorder import RecordedSteps
from ad_hf.training.config import ModelConfig, TrainingConfig

IMAGES = spaces.Box(0, 255, SHAPE, np.uint8)
ACTIONS = spaces.Discrete(4)
FAMILY = {
    "env_id": "image_room:ImageRoom-v0",
    "tasks": [{"goal": goal} for goal in ([0, 3], [2, 0], [2, 3], [1, 1])],
    "num_validation_tasks": 1,
    "num_test_tasks": 1,
}


def record(num_histories=4, num_steps=90, seed=0):
    """Noise, whose first pixel says the history and the step; episodes of 3 to 8 steps."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, size=(num_histories, num_steps, *SHAPE), dtype=np.uint8)
    frames[:, :, 0, 0, 0] = np.arange(num_histories)[:, None]
    frames[:, :, 0, 0, 1] = np.arange(num_steps)
    ends = np.zeros((num_histories, num_steps), dtype=bool)
    for history in range(num_histories):
        borders = np.cumsum(rng.integers(3, 9, size=num_steps)) - 1
        ends[history, borders[borders < num_steps]] = True
    episodes = [int(row.sum()) + int(not row[-1]) for row in ends]
    return RecordedSteps(
        observations=frames,
        actions=rng.integers(0, 4, size=(num_histories, num_steps)),
        rewards=rng.normal(size=(num_histories, num_steps)),
        terminations=ends,
        truncations=np.zeros_like(ends),
        final_observations=[rng.integers(0, 256, size=(count, *SHAPE), dtype=np.uint8) for count in episodes],
    )


RECORDED = record()


def make_table(max_piece_steps, recorded=RECORDED):
    return history_table(recorded, history_features(IMAGES, ACTIONS), 0, 0, max_piece_steps)


def write(folder, table, **settings):
    return write_dataset(folder, [table], IMAGES, ACTIONS, of_histories(1), **settings)


def from_memory(folder, context_length=11, **settings):
    return WindowBatches(windows_of_folder(folder, context_length, **settings), 4)


def streamed(folder, context_length=11, **settings):
    return StreamedBatches(HistoryStream(open_dataset(folder), "train", DataConfig(**settings), context_length), 4)


def epoch_of(batches):
    state = batches.state_dict()
    return state["epoch"] if "epoch" in state else state["places"][0][0]


READERS = pytest.mark.parametrize("read", [from_memory, streamed])


def slowly_kept(number, keep_every_episode=1, max_episodes=None):
    history = {name: getattr(RECORDED, name)[number] for name in ("rewards", "terminations", "truncations")}
    return slowly_kept_steps(history, keep_every_episode, max_episodes)[0]


@READERS
@pytest.mark.parametrize(
    ("max_piece_steps", "settings"), [(1, {}), (13, {"keep_every_episode": 3}), (1000, {"max_episodes": 9}), (13, {})]
)
def test_batches_hold_the_frames_that_were_recorded(tmp_path, read, max_piece_steps, settings):
    """Whatever the pieces, of which windows cross the borders."""
    table = make_table(max_piece_steps)
    assert (len(table) == 4) == (max_piece_steps == 1000)
    kept = [slowly_kept(number, **settings) for number in range(4)]
    batches = read(write(tmp_path / "data", table), **settings)
    seen = set()
    for batch in batches:
        frames = batch["observations"].numpy()
        assert frames.dtype == np.uint8
        assert frames.shape == (4, 11, *SHAPE)
        for window in frames:
            numbers, steps = window[:, 0, 0, 0].tolist(), window[:, 0, 0, 1].tolist()
            position = kept[numbers[0]].index(steps[0])
            assert set(numbers) == {numbers[0]}
            assert steps == kept[numbers[0]][position : position + 11]
            np.testing.assert_array_equal(window, RECORDED.observations[numbers[0], steps])
            seen.update(zip(numbers, steps))
        if epoch_of(batches) == 3:
            break
    assert len(seen) > 0.75 * sum(map(len, kept))


@READERS
def test_frames_of_histories_shorter_than_a_window_are_padded(tmp_path, read):
    recorded = record(num_histories=4, num_steps=6)
    batch = next(iter(read(write(tmp_path / "data", make_table(4, recorded)))))
    assert batch["observations"].shape == (4, 6, *SHAPE)
    mixed = record(num_histories=1, num_steps=40, seed=1)
    mixed.observations[:, :, 0, 0, 0] = 9
    others = history_table(mixed, history_features(IMAGES, ACTIONS), 5, 0, 10)
    table = pyarrow.concat_tables([make_table(4, recorded), others])
    for batch, _ in zip(read(write(tmp_path / "mixed", table)), range(6)):
        lengths = batch["attention_mask"].sum(dim=1) if "attention_mask" in batch else [11] * 4
        for window, length in zip(batch["observations"].numpy(), lengths):
            number, steps = window[0, 0, 0, 0], window[:length, 0, 0, 1]
            source = mixed.observations[0] if number == 9 else recorded.observations[number]
            np.testing.assert_array_equal(window[:length], source[steps])


def test_images_are_stored_as_frames_in_small_pieces_and_other_observations_are_not():
    others = [spaces.Box(0, 255, (12, 16), np.uint8), spaces.Box(0.0, 1.0, SHAPE, np.float32), spaces.Discrete(3)]
    for space in (IMAGES, *others):
        assert has_frames(space) == (space is IMAGES) == (piece_steps(space) <= 100)
        assert piece_steps(space) <= 100 or piece_steps(space) > 1000


def test_no_frames_are_no_bytes():
    none = np.empty((0, *SHAPE), dtype=np.uint8)
    assert compress_frames(none) == b""
    assert decompress_frames(b"", 0, SHAPE).shape == (0, *SHAPE)


DAMAGES = [
    b"this is no zstd frame",
    b"",
    compress_frames(RECORDED.observations[1, :10])[:-40],
    compress_frames(np.full((9, *SHAPE), 7, dtype=np.uint8)),
    compress_frames(np.full((11, *SHAPE), 7, dtype=np.uint8)),
    compress_frames(np.zeros(10 * 12 * 16 * 3 + 288, dtype=np.uint8)),  # half a frame too many
]


@READERS
def test_damaged_frames_are_refused_by_row_and_column(tmp_path, read):
    for number, damage in enumerate(DAMAGES):
        rows = make_table(1000, record(num_histories=3, num_steps=10)).to_pylist()
        rows[1]["observations"] = damage
        table = pyarrow.Table.from_pylist(rows, schema=history_features(IMAGES, ACTIONS).arrow_schema)
        batches = read(write(tmp_path / str(number), table))
        with pytest.raises(ValueError, match=r"row 1\b.*column observations: .*10 frames of shape \(12, 16, 3\)"):
            next(batch for batch in batches if epoch_of(batches) == 2)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Histories of a source that sees images."""
    return ad_hf.collect(
        ad_hf.TaskFamily(**FAMILY),
        "PPO",
        n_envs=2,
        total_timesteps=320,
        hyperparameters={"policy": "MlpPolicy", "n_steps": 16, "batch_size": 16, "n_epochs": 1},
        output_dir=tmp_path_factory.mktemp("frames") / "histories",
        num_workers=0,
        max_piece_steps=30,
    )


def test_a_collection_holds_what_the_environment_showed(collected):
    rows = load_dataset(str(collected), split="train")
    metadata = json.loads((collected / "default" / "metadata.json").read_text())
    assert metadata["observation_space"]["shape"] == list(SHAPE)
    assert len(rows) > 2 * 2 * 2
    steps = 0
    envs = {}
    for row in rows:
        count = len(row["rewards"])
        frames = decompress_frames(row["observations"], count, SHAPE)
        ends = np.array(row["truncations"])
        finals = iter(decompress_frames(row["final_observations"], int(ends.sum()) + int(not ends[-1]), SHAPE))
        if row["piece"] == 0:
            envs[row["history_id"]] = gym.make(FAMILY["env_id"], **FAMILY["tasks"][row["task_id"]])
        env = envs[row["history_id"]]
        observation, _ = env.reset()  # pieces begin with an episode
        for step in range(count):
            np.testing.assert_array_equal(frames[step], observation)
            observation, reward, _, truncated, _ = env.step(row["actions"][step])
            assert reward == row["rewards"][step]
            assert truncated == row["truncations"][step]
            if truncated:
                np.testing.assert_array_equal(next(finals), observation)
                observation, _ = env.reset()
        steps += count
    assert steps == 2 * 320


def test_the_snippet_on_a_card_decodes_the_frames_of_a_row(collected):
    card = (collected / "README.md").read_text()
    (snippet,) = re.findall(r"`(numpy\.frombuffer\(.*\))`", card)
    rows = load_dataset(str(collected), split="train")
    for row in (rows[0], rows[len(rows) - 1]):
        names = {"numpy": np, "pyarrow": pyarrow, "row": row}
        decoded = eval(snippet, names)
        np.testing.assert_array_equal(decoded, decompress_frames(row["observations"], len(row["rewards"]), SHAPE))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_model_trains_on_frames(collected, tmp_path, streaming):
    recipe = Recipe(
        family=FamilyConfig(**FAMILY),
        model=ModelConfig(hidden_size=16, intermediate_size=16, context_length=16, num_hidden_layers=1),
        training=TrainingConfig(
            max_steps=4, batch_size=4, eval_steps=4, eval_episodes=2, logging_steps=1, mixed_precision="no"
        ),
    )
    model = ad_hf.train(recipe, collected, tmp_path / "run", streaming=streaming)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert len({line["loss"] for line in lines}) == 4
    assert 0 <= lines[-1]["validation_return"] <= 7
    assert model.config.observation_space["shape"] == list(SHAPE)
