"""Other actions to learn than the source's, as a DPT does (https://huggingface.co/papers/2306.14892)."""

from __future__ import annotations

import numpy as np

from ad_hf.envs.imports import import_callable
from ad_hf.envs.spaces import outside, storage_dtype
from ad_hf.histories.frames import has_frames
from ad_hf.histories.schema import HistoryMetadata


class StepLabels:
    r"""
    The action to learn at each step of a history, by a function of the observation and of the task.

    The model still sees the source's observations, actions and rewards, but learns the function's actions, such as the
    optimal ones. So it can do at once what a source takes a history to learn, and explores as far as the tasks that
    remain possible ask for different actions.

    Args:
        function (`str`):
            Import path of a function of observations (num_steps, ...) and, by name, the environment's keyword
            arguments that returns actions (num_steps, ...), such as `"ad_hf.envs.dark_room.optimal_actions"`.
        metadata ([`~ad_hf.histories.schema.HistoryMetadata`]):
            The dataset's tasks and spaces.

    Raises:
        ValueError: if there is no such function, and for observations that are images.
    """

    def __init__(self, function: str, metadata: HistoryMetadata) -> None:
        self.path = function
        self._function = import_callable(function, "data.labels")
        observation_space, self._space = metadata.spaces
        if has_frames(observation_space):
            raise ValueError("data.labels: observations that are images say too little of where an agent is")
        self._kwargs = {task["task_id"]: {**metadata.env_kwargs, **task["kwargs"]} for task in metadata.tasks}

    def __call__(self, task_ids: np.ndarray, lengths: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """
        Actions (num_steps, ...) for observations (num_steps, ...) of rows, by the task and length (num_rows,) of each.

        Raises:
            ValueError: if the function fails or returns something else.
        """
        labels = np.empty((len(observations), *(self._space.shape or ())), storage_dtype(self._space))
        tasks = np.repeat(task_ids, lengths)
        for task_id in np.unique(tasks):
            steps = tasks == task_id
            kwargs = self._kwargs[int(task_id)]
            try:
                actions = np.asarray(self._function(observations[steps], **kwargs))
            except Exception as error:  # a function may raise anything
                raise ValueError(f"data.labels: {self.path} failed for the task {kwargs}: {error}") from error
            if actions.shape != labels[steps].shape or outside(actions, self._space, is_action=True).any():
                raise ValueError(
                    f"{self.path} gave {actions.dtype} of shape {actions.shape} for {int(steps.sum())} of "
                    f"{len(tasks)} steps, expected as many elements of {self._space}"
                )
            labels[steps] = actions
        return labels
