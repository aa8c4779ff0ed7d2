"""The `data` section: which steps of learning histories are trained on, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass

from ad_hf.settings import check_settings, setting


@dataclass
class Selection:
    """The steps of histories that are trained on.

    Args:
        keep_every_episode: Keep only every k-th episode of each history, and the last.
        max_episodes: Before that, cut each history after so many episodes.
        last_episodes: Then drop all but so many of its last ones: expert distillation.
        min_improvement: Leave out histories whose mean return rose by less, from the first ten episodes to the last.
        labels: Import path of a function of observations and an environment's keyword arguments that returns the
            actions to learn, instead of those that were taken, such as ad_hf.envs.dark_room.optimal_actions.
    """

    keep_every_episode: int = setting(1, least=1)
    max_episodes: int | None = setting(None, least=1)
    last_episodes: int | None = setting(None, least=1)
    min_improvement: float | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "data")


@dataclass
class DataConfig(Selection):
    """The `data` section: which steps of the histories are trained on.

    Args:
        buffer_megabytes: Of a streamed dataset, histories that are mixed at a time; twice as much is in memory.
        num_workers: Of a streamed dataset, processes that read and decode beside each training process.
        keep_in_memory: Of a dataset that is not streamed, whether each process holds it in memory. By default all
            processes share memory-mapped files in the cache of datasets, which is as fast where there is room.
    """

    buffer_megabytes: int = setting(32, least=1)
    num_workers: int = setting(0, least=0)
    keep_in_memory: bool | None = None
