"""Collections in the process itself: the files that workers leave, in a process that stays as it was."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from faulty import SMALL, Faulty, contents, make_family
from torch.distributions import Distribution

from ad_hf import CollectionError
from ad_hf.collection.collect import collect
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.schema import read_metadata

FAULTS = [None, "step", None, "exit", None]
A2C = {"algorithm": "A2C", "hyperparameters": {"n_steps": 5, "policy_kwargs": {"net_arch": [8]}}}
SETTINGS = {**SMALL, **A2C, "seeds": [0, 1], "shard_transitions": 120}


def state_of_the_process():
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return *numbers, torch.get_num_threads(), Distribution._validate_args


def test_files_are_those_of_workers_and_the_process_stays_as_it_was(tmp_path):
    """Though environments fail, or mean to end their process."""
    family, folders = make_family(FAULTS), [tmp_path / name for name in ("workers", "here")]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for folder, num_workers in zip(folders, (2, 0)):
            before = state_of_the_process()
            with pytest.raises(CollectionError, match="4 of 10 tasks and seeds failed"):
                collect(family, **SETTINGS, output_dir=folder, num_workers=num_workers)
            assert state_of_the_process() == before
    finally:
        torch.set_num_threads(threads)
    assert {each["error"] for each in read_metadata(folders[1]).failures} >= {"SystemExit: bye"}
    assert contents(folders[1]) == contents(folders[0])


def test_ctrl_c_ends_it_and_the_next_call_goes_on(tmp_path, capsys):
    cured = tmp_path / "cured"
    family = make_family([None, "interrupt", None], cured=str(cured))
    settings = {**SETTINGS, "shard_transitions": 10_000, "num_workers": 0}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            collect(family, **settings, output_dir=tmp_path / "histories")
    finished = contents(tmp_path / "histories", "part-*")
    assert len(finished) == 2
    cured.touch()
    collect(family, **settings, output_dir=tmp_path / "histories")
    assert len(read_metadata(tmp_path / "histories").progress["rows"]) == 6
    assert "/360" in capsys.readouterr().err  # the bar counts transitions


def test_what_workers_cannot_see_is_refused_in_one_line_and_learnt_here(tmp_path):
    gym.register("OnlyHere-v0", Faulty, max_episode_steps=5)
    for settings, message in (
        ({}, "^worker processes do not know the environment OnlyHere-v0, .* collect with num_workers=0$"),
        ({"optimal_return": lambda **task: 1.0}, r"^worker processes cannot import .*lambda.*num_workers=0$"),
    ):
        family, folder = TaskFamily("OnlyHere-v0", [{"goal": 1}], **settings), tmp_path / str(len(settings))
        with pytest.raises(ValueError, match=message):
            collect(family, **SMALL, output_dir=folder, num_workers=1)
        assert collect(family, **SMALL, output_dir=folder, num_workers=0) == folder
