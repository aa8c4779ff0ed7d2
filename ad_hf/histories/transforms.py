"""Which steps of each history a model is trained on."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np


def episode_numbers(ends: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """
    Number of each step's episode in its history, from 0.

    Args:
        ends (`np.ndarray` of shape `(num_steps,)`):
            Whether each step ended its episode; histories stand one after another.
        offsets (`np.ndarray` of shape `(num_histories + 1,)`):
            First step of each history, and the number of all steps.
    """
    starts = np.zeros(len(ends), dtype=np.int64)
    starts[1:] = ends[:-1]
    starts[offsets[:-1][np.diff(offsets) > 0]] = 1
    numbers = np.cumsum(starts)
    return numbers - np.repeat(numbers[np.minimum(offsets[:-1], len(ends) - 1)], np.diff(offsets))


NO_HISTORY = "no history got better by data.min_improvement: set it lower, or leave it out"


class Selection(NamedTuple):
    """
    Which steps of histories are trained on.

    Attributes:
        keep_every_episode (`int`, *optional*, defaults to 1), max_episodes, last_episodes (`int`, *optional*):
            `every`, `first` and `last` of [`keep_episodes`].
        min_improvement (`float`, *optional*):
            Of [`improvements`], before episodes are dropped: other histories are left out.
    """

    keep_every_episode: int = 1
    max_episodes: int | None = None
    last_episodes: int | None = None
    min_improvement: float | None = None


def improvements(rewards: np.ndarray, ends: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """
    By how much histories got better: mean return of the last ten episodes, less that of the first ten.

    Args:
        rewards (`np.ndarray` of shape `(num_steps,)`):
            What each step brought; histories stand one after another.
        ends (`np.ndarray` of shape `(num_steps,)`):
            Whether each step ended its episode; steps after a history's last end are left out.
        offsets (`np.ndarray` of shape `(num_histories + 1,)`):
            First step of each history, and the number of all steps.

    Returns:
        `np.ndarray` of shape `(num_histories,)`: of histories of less than twenty episodes, from their first half to
        their second; 0 for those of fewer than two.
    """
    totals = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    stops = np.flatnonzero(ends) + 1
    found = np.zeros(len(offsets) - 1)
    for history, (start, stop) in enumerate(pairwise(offsets)):
        own = stops[np.searchsorted(stops, start, side="right") : np.searchsorted(stops, stop, side="right")]
        count = min(10, len(own) // 2)
        if count:
            borders = np.concatenate([[start], own])
            first, last = totals[borders[count]] - totals[start], totals[borders[-1]] - totals[borders[-1 - count]]
            found[history] = (last - first) / count
    return found


def keep_episodes(
    ends: np.ndarray, offsets: np.ndarray, every: int = 1, first: int | None = None, last: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Subsample episodes, which makes the improvement from one to the next steeper (paper, "data efficiency").

    Args:
        ends (`np.ndarray` of shape `(num_steps,)`):
            Whether each step ended its episode.
        offsets (`np.ndarray` of shape `(num_histories + 1,)`):
            First step of each history, and the number of all steps.
        every (`int`, *optional*, defaults to 1):
            Keep of the episodes that are left the first, and from there every so many, and the last.
        first (`int`, *optional*):
            Before that, cut each history after so many episodes.
        last (`int`, *optional*):
            Then drop all but so many of its last episodes, for expert distillation (paper, section 4).

    Returns:
        The kept steps (num_steps,) as a mask and the kept histories' offsets.
    """
    if min(every, 1 if first is None else first, 1 if last is None else last) < 1:
        raise ValueError(
            f"expected to keep every 1st episode or fewer, and at least 1, got every={every}, first={first}, "
            f"last={last}"
        )
    lengths = np.diff(offsets)
    numbers = episode_numbers(ends, offsets)
    last_numbers = np.zeros(len(lengths), dtype=np.int64)
    last_numbers[lengths > 0] = numbers[offsets[1:][lengths > 0] - 1]
    if first is not None:
        last_numbers = np.minimum(last_numbers, first - 1)
    first_numbers = np.zeros_like(last_numbers) if last is None else np.maximum(0, last_numbers - last + 1)
    begin, end = np.repeat(first_numbers, lengths), np.repeat(last_numbers, lengths)
    kept = (numbers >= begin) & (numbers <= end) & (((numbers - begin) % every == 0) | (numbers == end))
    before = np.concatenate([[0], np.cumsum(kept)])
    return kept, before[offsets]
