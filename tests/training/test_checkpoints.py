"""Checkpoints: a run that was interrupted ends as one that was not, or says why it cannot go on."""

import json
import os
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import assert_ended_alike, metrics, same_weights, shortened, state_of, training, weights

import ad_hf
from ad_hf.training import loop
from ad_hf.training.run_folder import find_checkpoint, list_checkpoints


def of_ten(recipe_file, **training):
    """Ten updates, a checkpoint after every fourth, and regularisation that draws random numbers."""
    recipe = shortened(recipe_file, **{"max_steps": 10, "eval_steps": 10, "save_steps": 4, **training})
    recipe.training.save_total_limit = 10
    recipe.model = replace(recipe.model, dropout=0.2, attention_dropout=0.1, input_mask_probability=0.1)
    return recipe


@pytest.fixture
def recipe(tiny_recipe_file):
    return of_ten(tiny_recipe_file)


@pytest.fixture(scope="module")
def whole(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """A run that was left alone, with checkpoints of updates 4 and 8; tests only read it."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    ad_hf.train(of_ten(tiny_recipe_file), tiny_histories, run)
    return run


def stopped(run, folder, step=4, lines=None):
    """The folder of a run that was stopped some updates after a checkpoint."""
    folder.mkdir(parents=True)
    shutil.copytree(run / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    written = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(written[: step if lines is None else lines]))
    return folder


@pytest.mark.parametrize(
    ("settings", "streaming"),
    [
        ({}, True),
        ({"optimizer": "adamw", "gradient_accumulation_steps": 2}, False),
        ({"gradient_accumulation_steps": 4, "mixed_precision": "bf16"}, True),
    ],
    ids=str,
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(tiny_recipe_file, tiny_histories, tmp_path, settings, streaming):
    """Bit for bit, from every checkpoint, in another folder."""
    recipe, whole = of_ten(tiny_recipe_file, **settings), tmp_path / "whole"
    ad_hf.train(recipe, tiny_histories, whole, streaming=streaming)
    assert [path.name for path in list_checkpoints(whole)] == ["checkpoint-4", "checkpoint-8"]
    assert len({line["loss"] for line in metrics(whole)}) == 10
    for step in (4, 8):
        run = stopped(whole, tmp_path / f"after-{step}", step, lines=9)
        ad_hf.train(recipe, tiny_histories, run, streaming=streaming, resume="latest")
        assert_ended_alike(run, whole)
        assert state_of(run / "checkpoint-8") == state_of(whole / "checkpoint-8")


def test_the_state_of_random_numbers_goes_on(recipe, whole, tiny_histories, tmp_path):
    """With dropout alone, the losses after a checkpoint depend on it."""
    run = stopped(whole, tmp_path / "run")
    saved = load_file(run / "checkpoint-4" / "training.safetensors")
    saved["random/0/cpu"] = torch.Generator().manual_seed(99).get_state()
    save_file(saved, run / "checkpoint-4" / "training.safetensors")
    ad_hf.train(recipe, tiny_histories, run, resume="latest")
    assert metrics(run)[:4] == metrics(whole)[:4]
    assert all(line["loss"] != other["loss"] for line, other in zip(metrics(run)[4:], metrics(whole)[4:], strict=True))


def test_the_best_model_so_far_is_in_the_checkpoint(tiny_recipe_file, tiny_histories, tmp_path):
    """So that it is the run's, in whichever folder that goes on, if no later one is better; and not otherwise."""
    recipe, whole = of_ten(tiny_recipe_file, eval_steps=2), tmp_path / "whole"
    ad_hf.train(recipe, tiny_histories, whole)
    checkpoint = whole / "checkpoint-8"
    state = state_of(checkpoint)
    scores = {line["step"]: line["validation_return"] for line in metrics(whole) if "validation_return" in line}
    best = max((step for step in scores if step <= 8), key=lambda step: (scores[step], -step))
    assert state["best"] == [scores[best], best]
    shutil.rmtree(whole / "model")  # as in another place
    for score, kept in ((1e9, True), (-1e9, False)):
        (checkpoint / "training_state.json").write_text(json.dumps({**state, "best": [score, 8]}))
        for run, resume in ((whole, "latest"), (tmp_path / f"other{score}", checkpoint)):
            ad_hf.train(recipe, tiny_histories, run, resume=resume)
            assert same_weights(run / "model", checkpoint / "best") == kept


def test_without_a_checkpoint_resuming_starts_anew(recipe, whole, tiny_histories, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 123.0}\n')  # stopped before a checkpoint
    ad_hf.train(recipe, tiny_histories, tmp_path, resume="latest")
    assert_ended_alike(tmp_path, whole)


def test_only_the_newest_checkpoints_are_kept(recipe, tiny_histories, tmp_path):
    recipe.training = replace(recipe.training, max_steps=11, save_steps=1, save_total_limit=2, eval_steps=20)
    ad_hf.train(recipe, tiny_histories, tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-9", "checkpoint-10"]
    assert find_checkpoint("latest", tmp_path / "run") == tmp_path / "run" / "checkpoint-10"


def test_a_checkpoint_is_a_model_beside_the_state_of_its_training_without_a_pickle(whole):
    checkpoint = whole / "checkpoint-4"
    names = {path.name for path in checkpoint.iterdir() if path.suffix != ".py"}
    assert names == {
        *("config.json", "rollout_config.json", "model.safetensors"),
        *("training.safetensors", "training_state.json"),
    }
    own, loaded = weights(checkpoint), ad_hf.ADModel.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in loaded.items())
    tensors = load_file(checkpoint / "training.safetensors")
    momenta = {name for name in tensors if name.endswith(("/exp_avg", "/momentum_buffer"))}
    assert {name.split("/")[1] for name in momenta} == set(own)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("training", {"learning_rate": 1e-3}, r"setting training\.learning_rate was 0\.003, now it is 0\.001"),
        ("training", {"max_steps": 20}, r"setting training\.max_steps was 10, now it is 20"),
        ("training", {"seed": 1}, r"setting training\.seed was 0, now it is 1"),
        ("model", {"hidden_size": 32}, r"setting model\.hidden_size was 16, now it is 32"),
        ("data", {"keep_every_episode": 2}, r"setting data\.keep_every_episode was 1, now it is 2"),
        ("streaming", True, "dataset streaming was False, now it is True"),
        ("fingerprint", "", "dataset fingerprint was '[0-9a-f]{16}', now it is ''"),
        ("processes", 2, "is of a run of 2 processes, this one has 1"),
    ],
    ids=str,
)
def test_another_run_is_refused_by_what_differs(recipe, whole, tiny_histories, tmp_path, section, change, named):
    run, dataset = stopped(whole, tmp_path / "run"), tiny_histories
    if section == "fingerprint":  # of a dataset that was changed by hand
        dataset = Path(shutil.copytree(tiny_histories, tmp_path / "other"))
        metadata = json.loads((dataset / "default" / "metadata.json").read_text())
        (dataset / "default" / "metadata.json").write_text(json.dumps({**metadata, "fingerprint": change}))
    elif section == "processes":
        state = state_of(run / "checkpoint-4")
        (run / "checkpoint-4" / "training_state.json").write_text(json.dumps({**state, "batches": [{}] * change}))
    elif section != "streaming":
        setattr(recipe, section, replace(getattr(recipe, section), **change))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ValueError, match=f"checkpoint-4 (cannot be resumed: )?{named}"):
        ad_hf.train(recipe, dataset, run, resume="latest", streaming=section == "streaming")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_place_of_the_data_and_settings_that_change_no_update_may_change(recipe, whole, tiny_histories, tmp_path):
    run, moved = stopped(whole, tmp_path / "run"), shutil.copytree(tiny_histories, tmp_path / "moved")
    recipe.training = replace(recipe.training, logging_steps=3, save_steps=7, save_total_limit=5)
    ad_hf.train(recipe, moved, run, resume="latest")
    expected = {line["step"]: line for line in metrics(whole)}
    assert metrics(run) == [expected[step] for step in (1, 2, 3, 4, 6, 9, 10)]
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-4", "checkpoint-7"]


def test_folders_that_are_not_checkpoints_are_refused_and_others_can_be_named(recipe, whole, tiny_histories, tmp_path):
    for folder in (tmp_path, whole / "model", tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="is no checkpoint: expected `latest`, a folder with"):
            ad_hf.train(recipe, tiny_histories, tmp_path / "run", resume=folder)
    assert not (tmp_path / "run").exists()
    ad_hf.train(recipe, tiny_histories, tmp_path / "run", resume=whole / "checkpoint-4")
    assert metrics(tmp_path / "run") == metrics(whole)[4:]


def test_a_checkpoint_that_was_not_finished_is_none(whole, tmp_path):
    """A process that is killed while it writes leaves a hidden folder, which nothing takes for a checkpoint."""
    shutil.copytree(whole / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / ".checkpoint-8.123.tmp").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize(("lines", "torn"), [(7, ""), (4, '{"step": 5, "lo'), (3, '{"step": 4, "loss": 1.2')], ids=str)
def test_no_update_is_logged_twice_and_a_torn_line_is_dropped(recipe, whole, tiny_histories, tmp_path, lines, torn):
    run = stopped(whole, tmp_path / "run", lines=lines)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(torn)
    ad_hf.train(recipe, tiny_histories, run, resume="latest")
    expected = metrics(whole)
    if lines > 3:
        assert_ended_alike(run, whole)
    else:
        assert metrics(run) == expected[:3] + expected[4:]


def test_a_run_that_is_killed_goes_on(tiny_recipe_file, tiny_histories, tmp_path):
    """SIGKILL at some moment after a checkpoint, then the same command with `--resume latest`."""
    changes = ["--training.max_steps", "120", "--training.save_steps", "7", "--training.eval_steps", "60"]
    changes += ["--training.eval_episodes", "2"]
    command = ["-m", "ad_hf.cli", "train", "--recipe", tiny_recipe_file, "--streaming", "--dataset", tiny_histories]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # As many threads as here: sums over another number of them differ in their last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with training([*command, *changes, "--resume", "latest"], killed, 8, env=environment) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert list_checkpoints(killed)
    assert 8 <= len((killed / "metrics.jsonl").read_text().splitlines()) < 120
    recipe = ad_hf.load_recipe(tiny_recipe_file, changes)
    ad_hf.train(recipe, tiny_histories, killed, streaming=True, resume="latest")
    ad_hf.train(recipe, tiny_histories, whole, streaming=True)
    assert_ended_alike(killed, whole)
    leftovers = {path.name for path in killed.iterdir()} - {path.name for path in whole.iterdir()}
    assert all(name.startswith(".checkpoint-") for name in leftovers)


def test_a_full_disk(recipe, whole, tiny_histories, disk):
    """The error is clear, the last good checkpoint stays, and with room the run ends as with room from the start."""
    folder, mount = disk
    size = sum(file.stat().st_size for file in (whole / "checkpoint-4").iterdir())
    mount(f"remount,size={int(1.6 * size) >> 10}k")
    expected = r"checkpoint-8 could not be written .*; the last good one is .*checkpoint-4: make room.*--resume latest"
    with pytest.raises(OSError, match=expected):
        ad_hf.train(recipe, tiny_histories, folder / "run")
    assert [path.name for path in list_checkpoints(folder / "run")] == ["checkpoint-4"]
    assert not list((folder / "run").glob(".*"))
    mount("remount,size=16m")
    ad_hf.train(recipe, tiny_histories, folder / "run", resume="latest")
    assert_ended_alike(folder / "run", whole)


def test_files_that_may_not_grow(recipe, whole, tiny_histories, tmp_path):
    """As under a quota, and wherever no disk can be mounted."""
    largest = max(file.stat().st_size for file in (whole / "checkpoint-4").iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written .*no checkpoint was written before"):
            ad_hf.train(recipe, tiny_histories, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list_checkpoints(tmp_path)


def test_a_folder_that_became_read_only(recipe, whole, tiny_histories, disk, monkeypatch):
    folder, mount = disk
    save = loop.save_checkpoint

    def lock_and_save(trainer, step):
        if step == 8:
            mount("remount,ro")
        return save(trainer, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", lock_and_save)
        with pytest.raises(OSError, match=r"the last good one is .*checkpoint-4"):
            ad_hf.train(recipe, tiny_histories, folder / "run")
    mount("remount,rw")
    ad_hf.train(recipe, tiny_histories, folder / "run", resume="latest")
    assert_ended_alike(folder / "run", whole)
