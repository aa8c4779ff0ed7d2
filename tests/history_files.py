"""Learning histories whose values say which history and step they come from, and datasets of them in files."""

from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import spaces

from ad_hf.envs.spaces import space_to_json
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.schema import HistoryMetadata, history_features
from ad_hf.histories.selection import Selection
from ad_hf.histories.steps import HistoryRows, checked_rows, convert_histories, join_histories
from ad_hf.histories.windows import HistoryWindows
from ad_hf.histories.writer import history_table
from ad_hf.sources.recorder import RecordedSteps

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)  # (history, step)
ACTIONS = spaces.Discrete(7)


def make_table(lengths, width=2, max_piece_steps=10_000, seed=0, first_number=0, action_space=ACTIONS):
    """Histories of so many steps as the collection writes them; elements of observations beyond the second are 0."""
    action_space.seed(seed)
    rng = np.random.default_rng(seed)
    features = history_features(spaces.Box(-np.inf, np.inf, (width,), np.float32), action_space)
    tables = []
    for number, length in enumerate(lengths, start=first_number):
        observations = np.zeros((1, length, width), dtype=np.float32)
        observations[0, :, 0], observations[0, :, 1] = number, np.arange(length)
        ends = rng.random((1, length)) < 0.25
        terminations = ends & (rng.random((1, length)) < 0.5)
        num_episodes = int(ends.sum()) + int(not ends[0, -1])
        recorded = RecordedSteps(
            observations=observations,
            actions=np.array([[action_space.sample() for _ in range(length)]]),
            rewards=rng.normal(size=(1, length)),
            terminations=terminations,
            truncations=ends & ~terminations,
            final_observations=[np.zeros((num_episodes, width), dtype=np.float32)],
        )
        tables.append(history_table(recorded, features, number, 0, max_piece_steps))
    return pa.concat_tables(tables)


def make_histories(lengths, seed=0, action_space=ACTIONS):
    """The same as rows, without final observations."""
    rows = make_table(lengths, seed=seed, action_space=action_space).to_pylist()
    return [{**row, "final_observations": []} for row in rows]


def of_histories(count):
    """Cuts a table into row groups of so many histories."""

    def cut(table):
        begins = np.flatnonzero(np.asarray(table["start_step"]) == 0)[::count].tolist()
        for begin, after in zip(begins, [*begins[1:], len(table)]):
            yield table.slice(begin, after - begin)

    return cut


def of_rows(count):
    """Cuts a table into row groups of so many rows, wherever histories begin."""
    return lambda table: (table.slice(first, count) for first in range(0, len(table), count))


def write_shard(path, table, row_groups, **settings):
    """Write one parquet file."""
    with pq.ParquetWriter(path, table.schema, compression="zstd", **settings) as writer:
        for rows in row_groups(table):
            writer.write_table(rows)


def write_dataset(
    folder, tables, observation_space=OBSERVATIONS, action_space=ACTIONS, row_groups=None, split="train", **settings
):
    """A dataset of one split, a shard for each table; returns its folder."""
    config = folder / "default"
    config.mkdir(parents=True)
    for index, table in enumerate(tables):
        name = f"{split}-{index:05d}-of-{len(tables):05d}.parquet"
        write_shard(config / name, table, row_groups or of_histories(3), **settings)
    columns = [table["task_id"] for table in tables if "task_id" in table.schema.names]
    tasks = sorted({task for column in columns for task in column.to_pylist() if task is not None} or {0})
    metadata = HistoryMetadata(
        env_id="test/Histories-v0",
        env_kwargs={},
        tasks=[{"task_id": task, "kwargs": {}, "split": split} for task in tasks],
        observation_space=space_to_json(observation_space),
        action_space=space_to_json(action_space),
        source={"algorithm": "A2C", "n_envs": 1, "total_timesteps": 100, "hyperparameters": {}},
        seeds=[0],
    )
    (config / "metadata.json").write_text(metadata.to_json())
    return folder


def rows_to_table(rows, observation_space=OBSERVATIONS, action_space=ACTIONS):
    """Rows as a table with the columns' types of a learning-history dataset."""
    return pa.Table.from_pylist(rows, schema=history_features(observation_space, action_space).arrow_schema)


def windows_of_table(table, context_length, both=(OBSERVATIONS, ACTIONS), seed=0, **selection):
    """Windows of histories that are not in a file."""
    rows = checked_rows([HistoryRows("the table", 0, table)], *both)
    histories = join_histories(convert_histories(rows, *both, Selection(**selection)))
    return HistoryWindows(histories, *both, context_length, seed)


def windows_of_folder(folder, context_length, seed=0, in_memory=False, **selection):
    """Windows of the split `train` of a dataset."""
    dataset = open_dataset(folder)
    histories = dataset.histories("train", Selection(**selection), in_memory)
    return HistoryWindows(histories, *dataset.metadata.spaces, context_length, seed)


def open_dataset(folder):
    """The dataset in a folder."""
    return HistoryDataset.open(folder)


def steps_of(batch):
    """(history, step) of every step of every window, without the padding."""
    mask = batch.get("attention_mask")
    steps = batch["observations"].long().tolist()
    return [
        [tuple(step[:2]) for index, step in enumerate(window) if mask is None or mask[row, index]]
        for row, window in enumerate(steps)
    ]


def take(batches, count):
    """Some batches of a stream."""
    with closing(iter(batches)) as iterator:
        return [next(iterator) for _ in range(count)]


def slowly_kept_steps(history, every, first):
    """The steps of a history's kept episodes, and those with which these begin."""
    episodes = [[]]
    for step in range(len(history["rewards"])):
        episodes[-1].append(step)
        if history["terminations"][step] or history["truncations"][step]:
            episodes.append([])
    episodes = [episode for episode in episodes if episode][:first]
    kept = [episode for index, episode in enumerate(episodes) if index % every == 0 or index == len(episodes) - 1]
    return [step for episode in kept for step in episode], {episode[0] for episode in kept}
