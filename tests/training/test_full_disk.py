"""A disk that is full or read-only: a clear error, and the last good checkpoint stays."""

import resource
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import ad_hf
from ad_hf.training import loop
from ad_hf.training.checkpoints import list_checkpoints


def with_checkpoints(recipe):
    """Eight updates, a checkpoint after every second, all of them kept."""
    recipe.training = replace(
        recipe.training, max_steps=8, eval_steps=8, save_steps=2, save_total_limit=10, eval_episodes=2
    )
    return recipe


@pytest.fixture
def recipe(tiny_recipe):
    return with_checkpoints(tiny_recipe)


@pytest.fixture(scope="module")
def whole(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """A run with room enough."""
    recipe = with_checkpoints(ad_hf.load_recipe(tiny_recipe_file))
    run = tmp_path_factory.mktemp("runs") / "whole"
    ad_hf.train(recipe, tiny_histories, run)
    return run


def assert_goes_on(recipe, histories, run, whole):
    """With room again, the same run ends as if there had always been some."""
    ad_hf.train(recipe, histories, run, resume="latest")
    found, expected = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_a_full_disk(recipe, tiny_histories, disk, whole):
    folder, mount = disk
    size = sum(file.stat().st_size for file in (whole / "checkpoint-2").iterdir())
    mount(f"remount,size={int(1.6 * size) >> 10}k")
    with pytest.raises(
        OSError, match=r"checkpoint-4 could not be written .*; the last good one is .*checkpoint-2"
    ) as e:
        ad_hf.train(recipe, tiny_histories, folder / "run")
    assert "make room" in str(e.value)
    assert "--resume latest" in str(e.value)
    found = list_checkpoints(folder / "run")
    assert [path.name for path in found] == ["checkpoint-2"]
    ad_hf.ADModel.from_pretrained(found[0])
    assert not list((folder / "run").glob(".*"))
    mount("remount,size=16m")
    assert_goes_on(recipe, tiny_histories, folder / "run", whole)


def test_files_that_may_not_grow(recipe, tiny_histories, tmp_path, whole):
    """As under a quota, and wherever no disk can be mounted."""
    largest = max((whole / "checkpoint-2").iterdir(), key=lambda file: file.stat().st_size)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest.stat().st_size - 1, before[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint-2 could not be written .*no checkpoint was written before"):
            ad_hf.train(recipe, tiny_histories, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list_checkpoints(tmp_path / "run")
    assert_goes_on(recipe, tiny_histories, tmp_path / "run", whole)


def test_a_folder_that_became_read_only(recipe, tiny_histories, disk, whole, monkeypatch):
    folder, mount = disk
    save = loop.save_checkpoint

    def lock_and_save(run, step):
        if step == 4:
            mount("remount,ro")
        return save(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", lock_and_save)
        with pytest.raises(OSError, match=r"the last good one is .*checkpoint-2"):
            ad_hf.train(recipe, tiny_histories, folder / "run")
    mount("remount,rw")
    assert [path.name for path in list_checkpoints(folder / "run")] == ["checkpoint-2"]
    assert_goes_on(recipe, tiny_histories, folder / "run", whole)
