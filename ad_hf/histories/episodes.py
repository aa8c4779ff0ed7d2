"""Rows of learning histories as episodes, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from gymnasium import spaces

from ad_hf.histories.frames import decompress_frames, has_frames
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.steps import Steps
from ad_hf.histories.writer import to_storage


class Episode(NamedTuple):
    """An episode of N steps: observations (N + 1, ...), actions (N, ...), rewards, terminations, truncations (N,)."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


def _elements(column: pa.ChunkedArray, row: int, space: spaces.Space, count: int) -> np.ndarray:
    """Elements (count, ...) of one row of a column."""
    if has_frames(space):
        return decompress_frames(column[row].as_buffer(), count, space.shape or ())
    values = column[row].values
    while not pa.types.is_primitive(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(-1, *(space.shape or ()))


def episodes_of_row(table: pa.Table, row: int, metadata: HistoryMetadata, name: str) -> Iterator[Episode]:
    """The episodes of a row of a table of histories, an unfinished last one included."""
    observation_space, action_space = metadata.spaces
    rewards, terminations, truncations = (
        table[column][row].values.to_numpy(zero_copy_only=False)
        for column in ("rewards", "terminations", "truncations")
    )
    stops = np.flatnonzero(terminations | truncations) + 1
    if len(rewards) == 0:
        raise ValueError(f"{name}: row {row} (history {table['history_id'][row].as_py()!r}) has no steps")
    if not len(stops) or stops[-1] < len(rewards):
        stops = np.append(stops, len(rewards))
    observations = _elements(table["observations"], row, observation_space, len(rewards))
    finals = _elements(table["final_observations"], row, observation_space, len(stops))
    if len(finals) != len(stops):
        raise ValueError(
            f"{name}: row {row} (history {table['history_id'][row].as_py()!r}), column final_observations: "
            f"{len(finals)} observations for {len(stops)} episodes, each of which needs its last one in Minari"
        )
    actions = _elements(table["actions"], row, action_space, len(rewards))
    for start, stop, final in zip([0, *stops[:-1]], stops, finals):
        steps = slice(start, stop)
        yield Episode(
            # In the dtypes of the spaces, and not in the smallest ones: as environments give them.
            np.concatenate([observations[steps], final[None]]).astype(observation_space.dtype),
            actions[steps].astype(action_space.dtype),
            rewards[steps],
            terminations[steps],
            truncations[steps],
        )


def join_episodes(episodes: Iterable[Episode], space: spaces.Space, action_space: spaces.Space, name: str) -> Steps:
    """Episodes one after another."""
    observations, actions, rewards, terminations, truncations = zip(*episodes)
    return Steps(
        to_storage(np.concatenate([part[:-1] for part in observations]), space, f"{name}, observations"),
        to_storage(np.concatenate(actions), action_space, f"{name}, actions", is_action=True),
        np.concatenate(rewards).astype(np.float64),
        np.concatenate(terminations).astype(bool),
        np.concatenate(truncations).astype(bool),
        to_storage(np.stack([part[-1] for part in observations]), space, f"{name}, observations"),
    )


def pieces_of_episodes(episodes: Iterable[Episode], max_piece_steps: int) -> Iterator[list[Episode]]:
    """As many whole episodes at a time as fit, at least one."""
    waiting: list[Episode] = []
    steps = 0
    for episode in episodes:
        if waiting and steps + len(episode.rewards) > max_piece_steps:
            yield waiting
            waiting, steps = [], 0
        waiting.append(episode)
        steps += len(episode.rewards)
    yield waiting
