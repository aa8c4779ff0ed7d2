"""Other actions to learn than those that a source took: what a DPT learns (https://huggingface.co/papers/2306.14892)."""

from __future__ import annotations

from pydoc import locate
from typing import Any

import numpy as np

from ad_hf.envs.spaces import outside, storage_dtype
from ad_hf.histories.frames import has_frames
from ad_hf.histories.schema import HistoryMetadata


class StepLabels:
    r"""
    The action to learn at each step of a history, by a function of what is observed and of the task.

    What the model sees stays what the source lived through; what it learns to do there is what the function says, such
    as what would be optimal. It can then do at once what a source takes a history to learn, and explores as far as the
    tasks that are left possible ask for different actions.

    Args:
        function (`str`):
            Import path of a function of observations (num_steps, ...) and, by name, the environment's keyword
            arguments that returns actions (num_steps, ...), such as `"ad_hf.envs.dark_room.optimal_actions"`.
        metadata ([`~ad_hf.histories.schema.HistoryMetadata`]):
            Of the dataset: its tasks and spaces.

    Raises:
        ValueError: if there is no such function, and for observations that are images.
    """

    def __init__(self, function: str, metadata: HistoryMetadata) -> None:
        self.path = function
        self._function: Any = locate(function)
        if not callable(self._function):
            raise ValueError(
                f"data.labels must be the import path of a function of observations and an environment's keyword "
                f"arguments, such as 'ad_hf.envs.dark_room.optimal_actions', got {function!r}"
            )
        observation_space, self._space = metadata.spaces
        if has_frames(observation_space):
            raise ValueError("data.labels: observations that are images say too little of where an agent is")
        self._kwargs = {task["task_id"]: {**metadata.env_kwargs, **task["kwargs"]} for task in metadata.tasks}

    def __call__(self, task_ids: np.ndarray, lengths: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """
        The labels of rows that stand one after another.

        Args:
            task_ids (`np.ndarray` of shape `(num_rows,)`), lengths (`np.ndarray` of shape `(num_rows,)`):
                The task of each row, and its steps.
            observations (`np.ndarray` of shape `(num_steps, ...)`):
                What was seen at these.

        Returns:
            `np.ndarray` of shape `(num_steps, ...)`: actions.

        Raises:
            ValueError: for a function that returns something else.
        """
        labels = np.empty((len(observations), *(self._space.shape or ())), storage_dtype(self._space))
        rows, stops = np.repeat(task_ids, lengths), len(observations)
        for task_id in np.unique(rows):
            chosen = rows == task_id
            kwargs = self._kwargs[int(task_id)]
            try:
                found = np.asarray(self._function(observations[chosen], **kwargs))
            except Exception as error:  # a function may raise anything
                raise ValueError(f"data.labels: {self.path} failed for the task {kwargs}: {error}") from error
            if found.shape != labels[chosen].shape or outside(found, self._space, is_action=True).any():
                raise ValueError(
                    f"{self.path} gave {found.dtype} of shape {found.shape} for {int(chosen.sum())} of {stops} steps, "
                    f"expected as many elements of {self._space}"
                )
            labels[chosen] = found
        return labels
