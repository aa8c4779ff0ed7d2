"""A disk that is full or read-only: a clear error, and the last good checkpoint stays."""

import resource

import pytest
from training_runs import same_weights, shortened

import ad_hf
from ad_hf.training import loop
from ad_hf.training.run_folder import list_checkpoints


@pytest.fixture(scope="module")
def recipe(tiny_recipe_file):
    """Eight updates, a checkpoint after every second, all of them kept."""
    return shortened(tiny_recipe_file, max_steps=8, eval_steps=8, save_steps=2, save_total_limit=10)


@pytest.fixture(scope="module")
def whole(recipe, tiny_histories, tmp_path_factory):
    """A run with room enough."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    ad_hf.train(recipe, tiny_histories, run)
    return run


@pytest.fixture
def goes_on(recipe, tiny_histories, whole):
    """Whether a run ends, once there is room again, as if there had always been some."""

    def end(run):
        ad_hf.train(recipe, tiny_histories, run, resume="latest")
        return same_weights(run / "model", whole / "model")

    return end


def test_a_full_disk(recipe, tiny_histories, disk, whole, goes_on):
    folder, mount = disk
    size = sum(file.stat().st_size for file in (whole / "checkpoint-2").iterdir())
    mount(f"remount,size={int(1.6 * size) >> 10}k")
    expected = r"checkpoint-4 could not be written .*; the last good one is .*checkpoint-2: make room.*--resume latest"
    with pytest.raises(OSError, match=expected):
        ad_hf.train(recipe, tiny_histories, folder / "run")
    (checkpoint,) = list_checkpoints(folder / "run")
    assert checkpoint.name == "checkpoint-2"
    ad_hf.ADModel.from_pretrained(checkpoint)
    assert not list((folder / "run").glob(".*"))
    mount("remount,size=16m")
    assert goes_on(folder / "run")


def test_files_that_may_not_grow(recipe, tiny_histories, tmp_path, whole, goes_on):
    """As under a quota, and wherever no disk can be mounted."""
    largest = max(file.stat().st_size for file in (whole / "checkpoint-2").iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint-2 could not be written .*no checkpoint was written before"):
            ad_hf.train(recipe, tiny_histories, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list_checkpoints(tmp_path / "run")
    assert goes_on(tmp_path / "run")


def test_a_folder_that_became_read_only(recipe, tiny_histories, disk, goes_on, monkeypatch):
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
    assert goes_on(folder / "run")
