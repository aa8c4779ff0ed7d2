"""A disk that fills up in a collection: a clear error, and nothing that was finished is lost."""

import pytest
from faulty import contents

from ad_hf.collection.collect import collect
from ad_hf.envs.task_family import TaskFamily

FAMILY = {
    "env_id": "ad_hf/DarkRoom-v0",
    "grid": {"goal": {"shape": [4, 3]}},
    "env_kwargs": {"size": 4, "max_episode_steps": 10},
    "native_vector": True,
}
SETTINGS = {"algorithm": "TabularQ", "n_envs": 20, "total_timesteps": 40_000, "num_workers": 1}


def test_a_collection_goes_on_when_there_is_room_again_and_a_read_only_folder_is_named(disk, tmp_path):
    folder, mount = disk
    family = TaskFamily(**FAMILY)
    mount("remount,ro")
    with pytest.raises(OSError, match=r"Read-only file system"):
        collect(family, **SETTINGS, output_dir=folder / "histories")
    whole = collect(family, **SETTINGS, output_dir=tmp_path / "whole")
    mount("remount,rw,size=3m")  # parts of some of the twelve tasks
    with pytest.raises(OSError, match=r"histories could not be written to .*make room.*the same call") as error:
        collect(family, **SETTINGS, output_dir=folder / "histories")
    assert "No space left" in str(error.value)
    assert 0 < len(list(folder.rglob("part-*.arrow"))) < 12
    assert not list(folder.rglob("*.tmp"))
    mount("remount,size=64m")
    collect(family, **SETTINGS, output_dir=folder / "histories")
    assert contents(folder / "histories") == contents(whole)
