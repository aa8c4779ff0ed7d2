"""What a run learns from: one family and its histories, or a mixture of several, each a group of the model."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate.logging import get_logger

from ad_hf.envs.task_family import FamilyConfig, TaskFamily
from ad_hf.evaluation.returns import source_returns
from ad_hf.evaluation.rollouts import Evaluation, play_at_random
from ad_hf.histories.dataset import NO_HISTORY, HistoryDataset
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.windows import HistoryWindows, WalkedBatches, WindowBatches
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig
from ad_hf.training.compatibility import check_family
from ad_hf.training.config import TrainingConfig
from ad_hf.training.validation import FixedWindows

Batches: TypeAlias = WindowBatches | StreamedBatches
RANDOM_EPISODES = 10  # of each environment, for the level of random play

logger = get_logger(__name__)


@dataclass
class Member:
    """
    One family of a run.

    Args:
        dataset ([`~ad_hf.histories.dataset.HistoryDataset`]):
            Its histories; a `ValueError` if they are of another family.
        family_config ([`FamilyConfig`]), data ([`DataConfig`]), rollout ([`RolloutConfig`]):
            Sections of its recipe.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether histories are read as they are needed.
        name (`str`, *optional*, defaults to `""`):
            Its group of the model; none in a run of a single family.
        weight (`float`, *optional*, defaults to 1.0):
            Its share of the windows of an update, beside those of the others.
        validation ([`TrainingConfig`], *optional*):
            Its own `eval_episodes` and `eval_repeats`; by default those of the run.
    """

    dataset: HistoryDataset
    family_config: FamilyConfig
    data: DataConfig
    rollout: RolloutConfig
    streaming: bool = False
    name: str = ""
    weight: float = 1.0
    validation: TrainingConfig | None = None

    def __post_init__(self) -> None:
        self.family = TaskFamily(self.family_config)
        check_family(self.family, self.dataset)

    def to_json(self) -> dict[str, Any]:
        """The entry of the dataset in a run's files."""
        return {**self.dataset.to_json(), "streaming": self.streaming}

    def plays(self, config: TrainingConfig) -> tuple[int, int]:
        """Episodes of a validation, and environments of each of its tasks."""
        own = self.validation or config
        return own.eval_episodes, own.eval_repeats

    def model(self, whole: ADModel) -> ADModel:
        """The model of this family alone, which shares the weights."""
        if not self.name:
            return whole
        own = whole.group(self.name)
        own.rollout_config = self.rollout
        return own

    def batches(
        self, context_length: int, seed: int, batch_size: int, rank: int, processes: int, passes: int | None = None
    ) -> Batches:
        """
        Batches from memory, from memory-mapped files, or from a stream, for one of some processes; with `passes` of an
        update, windows that follow on each other.
        """
        dataset, data = self.dataset, self.data
        if self.streaming:
            stream = HistoryStream(dataset, "train", data, context_length, seed)
            logger.info(
                f"streaming {stream.num_steps:,} steps, {stream.compressed_bytes / 1e6:.1f} MB, from {dataset}"
            )
            return StreamedBatches(stream, batch_size, rank, processes, data.num_workers)
        histories = dataset.histories("train", data, bool(data.keep_in_memory))
        windows = HistoryWindows(histories, *dataset.metadata.spaces, context_length, seed)
        if passes is None:
            windows.warn_of_short_histories()
        where = "in memory" if data.keep_in_memory else "memory-mapped"
        logger.info(f"{windows.num_histories} histories of {windows.num_steps:,} steps from {dataset}, {where}")
        part = batch_size, rank, processes
        return WindowBatches(windows, *part) if passes is None else WalkedBatches(windows, *part, passes)

    def fixed_windows(self, split: str, *order: Any) -> FixedWindows:
        """Some windows of a split's histories, to measure a loss on; arguments and errors as of [`FixedWindows`]."""
        return FixedWindows(self.dataset, split, self.data, self.streaming, *order)

    def find_validation_windows(self, *order: Any) -> FixedWindows | None:
        """Windows of the validation tasks' histories, if the dataset has any."""
        reason = "it has no histories of validation tasks"
        if "validation" in self.dataset.splits:
            try:
                return self.fixed_windows("validation", *order)
            except FileNotFoundError as error:  # files that training does not need
                reason = str(error)
            except ValueError as error:
                if NO_HISTORY not in str(error):
                    raise
                reason = "no history of a validation task got better by data.min_improvement"
        logger.info(f"there will be no validation_loss of {self.dataset}: {reason}")
        return None

    @cached_property
    def levels(self) -> tuple[float, float]:
        """Returns of random play and of the source's end, on the validation tasks where the histories have these."""
        tasks = self.family.tasks("validation")
        played = play_at_random(self.family, tasks, RANDOM_EPISODES, 1)
        split = "validation" if "validation" in self.dataset.splits else "train"
        source = float(source_returns(self.dataset, split).final_returns.mean())
        random = None if played is None else float(played.returns.mean())
        if random is None or not random < source:
            raise ValueError(
                f"{self.name}: returns have no scale: the source of {self.dataset} ends at {source:.4g}, random play "
                f"is at {random}; leave the family out of the mixture, or collect histories that improve"
            )
        return random, source

    def normalized(self, evaluation: Evaluation) -> np.ndarray:
        """Mean return of each episode of a rollout on validation tasks, with random play as 0 and the source as 1."""
        random, source = self.levels
        return (evaluation.returns.mean(axis=(0, 1)) - random) / (source - random)


def shares_of_batch(batch_size: int, weights: Mapping[str, float], processes: int) -> dict[str, int]:
    """
    Windows of each family in a pass over a batch: in proportion to its weight, each a multiple of the processes.

    Raises:
        ValueError: if not each gets a window in each process.
    """
    units = batch_size // processes
    if batch_size % processes or units < len(weights):
        raise ValueError(
            f"training.batch_size over training.gradient_accumulation_steps, {batch_size}, must be a multiple of "
            f"{processes} processes, with at least one window for each of {len(weights)} families in each"
        )
    quotas = {name: (units - len(weights)) * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: 1 + int(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: (int(quotas[name]) - quotas[name], list(weights).index(name)))
    for name in by_remainder[: units - sum(counts.values())]:
        counts[name] += 1
    return {name: count * processes for name, count in counts.items()}


class MixedBatches:
    """
    Batches of several families at once: the arguments of a model of groups.

    Each family's windows are in an order of their own, a function of the seed alone, and a pass takes the next ones of
    each. The place is that of all of them.
    """

    def __init__(self, parts: Mapping[str, Batches]) -> None:
        self.parts = dict(parts)

    @property
    def epochs(self) -> float:
        """How often the histories have been gone through, the mean over families."""
        return float(np.mean([part.epochs for part in self.parts.values()]))

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch, by family."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def check_state_dict(self, state: Any, rank: int, done: int) -> None:
        """Refuse a state that is not the one after so many batches."""
        if set(state) != set(self.parts):
            raise ValueError(f"batches[{rank}] must have entries {', '.join(self.parts)}, got {', '.join(state)}")
        for name, part in self.parts.items():
            part.check_state_dict(state[name], rank, done)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a [`~MixedBatches.state_dict`]."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def __iter__(self) -> Generator[dict[str, dict[str, torch.Tensor]], None, None]:
        with ExitStack() as stack:
            readers: dict[str, Any] = {name: iter(part) for name, part in self.parts.items()}
            for reader in readers.values():
                stack.enter_context(closing(reader))
            while True:
                batches = {name: next(reader) for name, reader in readers.items()}
                arguments = dict.fromkeys(each for batch in batches.values() for each in batch)
                yield {
                    each: {name: batch[each] for name, batch in batches.items() if each in batch} for each in arguments
                }


def make_batches(
    members: Sequence[Member], context_length: int, config: TrainingConfig, rank: int, processes: int
) -> Batches | MixedBatches:
    """The batches of a run, one for each pass of an update, for one of its processes."""
    order, passes = (context_length, config.seed), config.gradient_accumulation_steps
    batch_size = config.batch_size // passes
    if len(members) == 1:
        return members[0].batches(*order, batch_size, rank, processes, passes if config.truncated_bptt else None)
    counts = shares_of_batch(batch_size, {member.name: member.weight for member in members}, processes)
    logger.info(f"windows of each pass: {', '.join(f'{count} of {name}' for name, count in counts.items())}")
    return MixedBatches(
        {member.name: member.batches(*order, counts[member.name], rank, processes) for member in members}
    )
