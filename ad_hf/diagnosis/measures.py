"""What decides whether a model can learn in context from histories, as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium import spaces
from scipy.spatial import KDTree
from scipy.stats import mannwhitneyu

from ad_hf.diagnosis.sample import Sample, Windows, curves_of, values_of
from ad_hf.envs.spaces import LARGEST, categories
from ad_hf.envs.task_family import SPLITS
from ad_hf.evaluation.curves import bootstrap_means, interval

SIGNIFICANT = 0.025  # of a test on one side, as 95% on both
FEWEST_VALUES = 4  # on either side of a test: of three, none is significant
EQUAL = 1e-9  # part of a value's range up to which two values are rounded forms of one
NEAR = 0.01  # part of a value's range: a hundredth of it is the same task to any policy
CROWDED = 0.05  # of the usual distance between training tasks, which in a dense family is small itself

MOST_CURVES = 100  # of tasks, in the picture; as many stand for the distance between training tasks


@dataclass
class TaskNumbers:
    """
    Tasks.

    Attributes:
        splits (`dict[str, int]`):
            Tasks of each split.
        distinct (`int`):
            Training tasks that differ from each other.
        nearest (`float`, *optional*):
            Distance of a held-out task to the nearest training task, as a part of the range of the values of that
            keyword argument which differs most: the median. `None` if tasks have no keyword arguments.
        near (`list[list[int]]`):
            Ids of held-out tasks and of a training task that is nearly the same.
        equal (`int`):
            How many of them are the same but for rounding.
    """

    splits: dict[str, int]
    distinct: int
    nearest: float | None
    near: list[list[int]]
    equal: int


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers, names and truth values in a task's keyword arguments, each with its place."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, each in items:
            yield from _leaves(each, f"{path}.{name}")
    else:
        yield path, value


def task_points(tasks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """
    Keyword arguments as points (num_tasks, num_values): numbers as parts of their range over all tasks, and anything
    else as one of several whole numbers, so that two that differ are at least the range apart.
    """
    rows = [dict(_leaves(kwargs)) for kwargs in tasks]
    points = []
    for name in sorted(set().union(*rows)):
        values = [row.get(name) for row in rows]
        if all(isinstance(value, int | float) and abs(value) < LARGEST for value in values):
            column = np.array(values, dtype=np.float64)
            points.append((column - column.min()) / (np.ptp(column) or 1.0))
        else:
            points.append(np.unique([repr(value) for value in values], return_inverse=True)[1].astype(np.float64))
    return np.stack(points, axis=1) if points else np.zeros((len(rows), 0))


def measure_tasks(tasks: Sequence[Mapping[str, Any]]) -> TaskNumbers:
    """The numbers of the tasks of `metadata.json`."""
    of_splits = np.array([task["split"] for task in tasks])
    counts = {split: int((of_splits == split).sum()) for split in SPLITS}
    ids, points = np.array([task["task_id"] for task in tasks]), task_points([task["kwargs"] for task in tasks])
    if not points.shape[1]:
        return TaskNumbers(counts, counts["train"], None, [], 0)
    is_train = of_splits == "train"
    own, others = points[is_train], points[~is_train]
    distinct = len(np.unique(np.round(own / EQUAL), axis=0))
    if not len(others):
        return TaskNumbers(counts, distinct, None, [], 0)
    tree = KDTree(own)
    some = own[:: -(-len(own) // MOST_CURVES)]
    gaps = tree.query(some, k=2, p=np.inf)[0][:, 1]  # infinite for a task alone
    distances, places = tree.query(others, p=np.inf)
    limit = max(EQUAL, min(NEAR, CROWDED * float(np.median(gaps))))
    near = np.flatnonzero(distances <= limit)
    pairs = np.stack([ids[~is_train][near], ids[is_train][places[near]]], axis=1).tolist()
    return TaskNumbers(counts, distinct, float(np.median(distances)), pairs, int((distances <= EQUAL).sum()))


@dataclass
class HistoryNumbers:
    """
    Histories that were read, before and after the recipe's selection.

    Attributes:
        read, kept (`int`):
            Histories that were read, and those of which a step is trained on.
        is_all (`bool`):
            Whether these are all there are.
        per_task (`float`):
            Histories of a task that was read, which are its streams.
        steps, kept_steps, episodes, kept_episodes (`float`):
            Of a history: medians.
        alike (`float`):
            Share of histories whose actions and rewards are, step by step, those of a history of another task.
        of_steps (`bool`):
            Whether a history is one episode, as of a bandit, so that "returns" below are rewards of steps.
    """

    read: int
    kept: int
    is_all: bool
    per_task: float
    steps: float
    kept_steps: float
    episodes: float
    kept_episodes: float
    alike: float
    of_steps: bool


def _alike(sample: Sample) -> float:
    steps = [
        blake2b(sample.actions[start:stop].tobytes() + sample.rewards[start:stop].tobytes()).digest()
        for start, stop in pairwise(sample.offsets.tolist())
    ]
    owners: dict[bytes, set[int]] = {}
    for key, task in zip(steps, sample.tasks.tolist()):
        owners.setdefault(key, set()).add(task)
    return float(np.mean([len(owners[key]) > 1 for key in steps]))


def measure_histories(sample: Sample, kept: Sample, is_all: bool) -> HistoryNumbers:
    """The numbers of a sample and of its selected steps."""
    return HistoryNumbers(
        read=len(sample.lengths),
        kept=len(kept.lengths),
        is_all=is_all,
        per_task=len(sample.lengths) / len(np.unique(sample.tasks)),
        steps=float(np.median(sample.lengths)),
        kept_steps=float(np.median(kept.lengths)),
        episodes=float(np.median(sample.counts)),
        kept_episodes=float(np.median(kept.counts)),
        alike=_alike(sample),
        of_steps=bool(np.median(sample.counts) < 2),
    )


@dataclass
class ReturnNumbers:
    """
    Whether the source improves.

    Attributes:
        first, last (`float`):
            Mean over tasks of the return of the first tenth of a history's episodes, and of the last.
        lowest, highest (`float`):
            Return of an episode.
        interval (`list[float]`, *optional*):
            Of the rise between them: 95%, over tasks. `None` for a single task.
        tasks (`int`):
            Tasks whose source is tested: the last half of the returns against the first tenth (Mann-Whitney).
        improving (`int`):
            Tasks whose source improves by this test, of which 1 in 40 would do so by chance.
        histories (`float`):
            Share of histories that end higher than they begin: half of them do so by chance.
        curves (`list[list[float]]`):
            Of each task, or of 100 of them, the mean return by how much of its histories has passed.
    """

    first: float
    last: float
    lowest: float
    highest: float
    interval: list[float] | None
    tasks: int
    improving: int
    histories: float
    curves: list[list[float]]

    @property
    def rise(self) -> float:
        """The rise of the source."""
        return self.last - self.first

    @property
    def rises(self) -> bool:
        """Whether that is more than chance, as far as the interval tells."""
        return self.rise > 0 and (self.interval is None or self.interval[0] > 0)


def measure_returns(sample: Sample, of_steps: bool) -> ReturnNumbers:
    """The numbers of the returns of a sample, all of its episodes counted."""
    curves = curves_of(sample, of_steps)
    has_curve = np.isfinite(curves).all(axis=1)
    curves, tasks = curves[has_curve], sample.tasks[has_curve]
    if not len(curves):
        return ReturnNumbers(0.0, 0.0, 0.0, 0.0, None, 0, 0, 0.0, [])
    rises = curves[:, -2:].mean(axis=1) - curves[:, :2].mean(axis=1)
    ids, numbers = np.unique(tasks, return_inverse=True)
    sums = np.zeros((len(ids), curves.shape[1]))
    np.add.at(sums, numbers, curves)
    of_tasks = sums / np.bincount(numbers)[:, None]
    first, last = of_tasks[:, :2].mean(axis=1), of_tasks[:, -2:].mean(axis=1)
    bounds = interval(bootstrap_means([(last - first)[None, None]])) if len(ids) > 1 else None
    tests = _tests_of_tasks(sample, of_steps)
    values, _ = values_of(sample, of_steps)
    return ReturnNumbers(
        first=float(first.mean()),
        last=float(last.mean()),
        lowest=float(values.min()),
        highest=float(values.max()),
        interval=None if bounds is None else [float(bound) for bound in bounds],
        tasks=len(tests),
        improving=sum(probability < SIGNIFICANT for probability in tests),
        histories=float((rises > 0).mean()),
        curves=of_tasks[:: -(-len(ids) // MOST_CURVES)].tolist(),
    )


def _tests_of_tasks(sample: Sample, of_steps: bool) -> list[float]:
    """How likely each task's last values would be so much above its first ones by chance, where there are enough."""
    values, counts = values_of(sample, of_steps)
    stops = np.cumsum(counts)
    tests = []
    for task in np.unique(sample.tasks):
        own = np.flatnonzero((sample.tasks == task) & (counts > 1))
        first, last = [], []
        for start, stop in zip((stops - counts)[own], stops[own]):
            # A tenth, unless that is too few for a test.
            width = max(1, (stop - start) // 10, min((stop - start) // 4, -(-FEWEST_VALUES // len(own))))
            first.append(values[start : start + width])
            last.append(values[stop - (stop - start) // 2 : stop])
        if sum(map(len, first)) >= FEWEST_VALUES:
            test = mannwhitneyu(np.concatenate(last), np.concatenate(first), alternative="greater")
            tests.append(float(test.pvalue))
    return tests


@dataclass
class WindowNumbers:
    """
    What a window of the recipe's context_length shows.

    Attributes:
        learning (`list[float]`):
            The part of a history, from 0 to 1 and in episodes, in which the source makes the middle 80% of its rise;
            all of it if the source does not rise.
        learning_windows (`float`):
            Share of windows whose middle is in that part. It is larger where episodes become shorter.
        episodes (`float`):
            Episodes that end in such a window: the mean.
        episode_length (`float`, *optional*):
            Steps of an episode in that part: the mean.
        rise (`float`, *optional*):
            Return of the last whole episode of such a window less the first: the mean. `None` where none holds two
            episodes.
        share (`float`, *optional*):
            `rise` as a part of the source's rise, 1 at most: the first episode of a window may be worse than the
            first tenth of a history, in which the source has learnt already. `None` if the source does not rise.
        places, rises (`list[float]`):
            The rise by the place of windows in their histories, for the picture.
    """

    learning: list[float]
    learning_windows: float
    episodes: float
    episode_length: float | None
    rise: float | None
    share: float | None
    places: list[float]
    rises: list[float]


def measure_windows(windows: Windows, kept: Sample, returns: ReturnNumbers, of_steps: bool) -> WindowNumbers:
    """The numbers of the windows of selected steps."""
    curves = curves_of(kept, of_steps)
    curve = curves[np.isfinite(curves).all(axis=1)].mean(axis=0) if np.isfinite(curves).any() else np.zeros(2)
    begin, end = curve[:2].mean(), curve[-2:].mean()
    low, high = 0.0, 1.0
    if end > begin and returns.rises:
        low, high = (float(np.argmax(curve >= begin + part * (end - begin))) / len(curve) for part in (0.1, 0.9))
    # Windows have their middles where there is room for them.
    low = min(low, float(np.quantile(windows.places, 0.9)))
    high = max(high + 1 / len(curve), float(np.quantile(windows.places, 0.1)))
    has_rise = np.isfinite(windows.rises)
    learning = (windows.places >= low) & (windows.places <= high)
    chosen = windows.rises[has_rise & learning]
    rise = float(chosen.mean()) if len(chosen) else None
    bins = np.minimum((windows.places * len(curve)).astype(int), len(curve) - 1)
    shown = [place for place in range(len(curve)) if (has_rise & (bins == place)).any()]
    return WindowNumbers(
        learning=[low, min(1.0, high)],
        learning_windows=float(learning.mean()),
        episodes=float(windows.episodes[learning].mean()),
        episode_length=_episode_length(kept, low, high),
        rise=rise,
        share=min(1.0, rise / returns.rise) if rise is not None and returns.rises else None,
        places=[(place + 0.5) / len(curve) for place in shown],
        rises=[float(windows.rises[has_rise & (bins == place)].mean()) for place in shown],
    )


def _episode_length(kept: Sample, low: float, high: float) -> float | None:
    """Mean length of the episodes in a part of their histories, if any ends there."""
    episodes, counts = kept.episodes, kept.counts
    firsts = np.cumsum(counts) - counts
    places = (np.arange(len(episodes.owners)) - firsts[episodes.owners]) / counts[episodes.owners]
    lengths = (episodes.stops - episodes.starts)[(places >= low) & (places <= high)]
    return float(lengths.mean()) if len(lengths) else None


@dataclass
class RewardNumbers:
    """How sparse rewards are: the share of steps whose reward is not 0, and of episodes without any such step."""

    steps: float
    empty_episodes: float | None


def measure_rewards(sample: Sample) -> RewardNumbers:
    """The numbers of the rewards of a sample."""
    episodes = sample.episodes
    counts = np.append(0, np.cumsum(sample.rewards != 0))
    empty = counts[episodes.stops] == counts[episodes.starts]
    return RewardNumbers(float((sample.rewards != 0).mean()), float(empty.mean()) if len(empty) else None)


@dataclass
class ActionNumbers:
    """
    Which actions the source takes, by dimension of the action space.

    Attributes:
        shares (`list[list[float]]`):
            Of discrete actions, the share of steps of each category.
        constant (`list[int]`):
            Of continuous actions, the dimensions that never vary.
        at_bounds (`list[float]`):
            Of continuous actions, the share of steps at a bound of the space.
    """

    shares: list[list[float]]
    constant: list[int]
    at_bounds: list[float]


def measure_actions(actions: np.ndarray, space: spaces.Space) -> ActionNumbers:
    """The numbers of actions (num_steps, ...) of a space."""
    columns = actions.reshape(len(actions), -1)
    sizes = categories(space)
    if sizes is not None:
        counts = [np.bincount(column, minlength=size) for column, size in zip(columns.T, sizes.tolist())]
        return ActionNumbers([(count / len(actions)).tolist() for count in counts], [], [])
    assert isinstance(space, spaces.Box)
    bounds = np.stack([space.low, space.high]).reshape(2, -1)
    slack = 1e-3 * np.where(np.isfinite(bounds).all(axis=0), np.ptp(bounds, axis=0), 0.0)
    at_bounds = ((columns <= bounds[0] + slack) | (columns >= bounds[1] - slack)).mean(axis=0)
    return ActionNumbers([], np.flatnonzero(np.ptp(columns, axis=0) == 0).tolist(), at_bounds.tolist())
