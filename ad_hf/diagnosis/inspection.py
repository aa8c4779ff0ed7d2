"""The inspection of a dataset: its numbers, and what in them speaks against a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ad_hf.diagnosis import findings as find
from ad_hf.diagnosis.findings import Finding
from ad_hf.diagnosis.measures import (
    ActionNumbers,
    HistoryNumbers,
    ReturnNumbers,
    RewardNumbers,
    TaskNumbers,
    WindowNumbers,
    measure_actions,
    measure_histories,
    measure_returns,
    measure_rewards,
    measure_tasks,
    measure_windows,
)
from ad_hf.diagnosis.sample import read_sample, windows_of
from ad_hf.histories.dataset import NO_HISTORY, HistoryDataset
from ad_hf.histories.selection import DataConfig


@dataclass
class Inspection:
    """
    What decides whether a model can learn in context from a dataset.

    Attributes:
        dataset (`dict`):
            Name, revision, configuration, source and fingerprint of the dataset; its environment, and whether streams
            of its source share a learner (`independent_streams`: `None` if that is not known).
        context_length (`int`), data (`dict`):
            The settings that windows were made with.
        tasks, histories, returns, windows, rewards, actions:
            The numbers, see [`~ad_hf.diagnosis.measures`].
        findings (`list[Finding]`):
            What speaks against a training: what it is `of`, the `fault`, and `advice`.
    """

    dataset: dict[str, Any]
    context_length: int
    data: dict[str, Any]
    tasks: TaskNumbers
    histories: HistoryNumbers
    returns: ReturnNumbers
    windows: WindowNumbers
    rewards: RewardNumbers
    actions: ActionNumbers
    findings: list[Finding]

    @property
    def verdict(self) -> str:
        """One line: whether anything speaks against a training."""
        if not self.findings:
            return "nothing speaks against training"
        names = ", ".join(dict.fromkeys(finding.of for finding in self.findings))
        return f"{len(self.findings)} finding{'s' * (len(self.findings) > 1)}: {names}"


def inspect_dataset(
    dataset: str | Path | HistoryDataset, data: DataConfig, context_length: int, config_name: str | None = None
) -> Inspection:
    """
    Measure whether a dataset can teach in-context learning, before a training.

    It reads metadata and training histories, without their observations: all of a small dataset, and of a large one
    some 8 million steps from regular distances. Nothing that comes along with the dataset is imported.

    ```python
    recipe = ad_hf.load_recipe("dark_room")
    inspection = inspect_dataset("histories", recipe.data, recipe.model.context_length)
    print(inspection.verdict)
    ```

    Args:
        dataset (`str` or `Path`):
            Folder of a dataset, or its id on the Hub.
        data ([`~ad_hf.histories.selection.DataConfig`]):
            Which steps are to be trained on.
        context_length (`int`):
            Steps of a window.
        config_name (`str`, *optional*):
            Configuration of the dataset; may be left out if there is only one, or one called `default`.

    Returns:
        [`Inspection`]

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if it has no training histories, or `data` leaves none of them.
    """
    opened = HistoryDataset.open(dataset, config_name)
    metadata = opened.metadata
    sample, is_all = read_sample(opened)
    kept = sample.select(data)
    if not len(kept.lengths):
        raise ValueError(f"{opened}: {NO_HISTORY}")
    tasks, histories = measure_tasks(metadata.tasks), measure_histories(sample, kept, is_all)
    of_steps = histories.of_steps
    returns, rewards = measure_returns(sample, of_steps), measure_rewards(sample)
    windows = measure_windows(windows_of(kept, opened, context_length, of_steps), kept, returns, of_steps)
    actions = measure_actions(sample.actions, metadata.spaces[1])
    flat = list(find.of_returns(returns, rewards, of_steps))
    shared = {"env_id": metadata.env_id, "independent_streams": metadata.source.get("independent_streams")}
    return Inspection(
        dataset={**opened.to_json(), **shared},
        context_length=context_length,
        data=asdict(data),
        tasks=tasks,
        histories=histories,
        returns=returns,
        windows=windows,
        rewards=rewards,
        actions=actions,
        findings=[
            *find.of_tasks(tasks, histories.alike),
            *flat,
            *find.of_windows(windows, histories, context_length, data, not flat),
            *find.of_actions(actions),
        ],
    )
