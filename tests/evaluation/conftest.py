"""Histories and made-up returns of a small room, shared by the tests of evaluations."""

import numpy as np
import pyarrow as pa
import pytest

import ad_hf
from ad_hf.evaluation.returns import evaluation_rows
from ad_hf.evaluation.rollouts import Evaluation


@pytest.fixture(scope="session")
def collect_here(tmp_path_factory):
    """`collect_here(family, **settings)`: a dataset of the split test."""

    def collect(family, **settings):
        folder = tmp_path_factory.mktemp("histories") / "new"
        return ad_hf.collect(family, split="test", output_dir=folder, num_workers=0, **settings)

    return collect


@pytest.fixture(scope="session")
def room_histories(dark_room_family, collect_here):
    """Two seeds of 6 episodes of 4 steps in two streams of each test task, in pieces of two episodes."""
    settings = {"algorithm": "A2C", "n_envs": 2, "total_timesteps": 2 * 24, "hyperparameters": {"n_steps": 2}}
    return collect_here(dark_room_family, **settings, seeds=(0, 1), max_piece_steps=8)


@pytest.fixture(scope="session")
def made_up(dark_room_family):
    """Makes an evaluation that learns the tasks in so many episodes."""
    tasks = dark_room_family.tasks("test")
    optimal = dark_room_family.optimal_returns(tasks)

    def make(speed, seed):
        progress = np.minimum(1, np.arange(40) / speed)
        noise = np.random.default_rng(seed).normal(scale=0.01, size=(3, len(tasks), 40))
        return Evaluation(tasks, np.abs(optimal[:, None] * progress + noise), np.full((3, len(tasks), 40), 4), seed)

    return make


@pytest.fixture(scope="session")
def made_up_rows(made_up, dark_room_family):
    """Makes rows of an agent, with a training for each speed."""

    def make(agent="AD", speeds=(10, 12), split=0):
        return pa.concat_tables(
            evaluation_rows(made_up(speed, seed), dark_room_family, agent, split, seed)
            for seed, speed in enumerate(speeds)
        )

    return make
