"""Which steps of each history a model is trained on."""

from __future__ import annotations

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
