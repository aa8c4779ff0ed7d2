"""Checkpoints: a run that was interrupted ends as one that was not, or says why it cannot go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ad_hf
from ad_hf.training.checkpoints import find_checkpoint, list_checkpoints


@pytest.fixture
def recipe(tiny_recipe):
    """Ten updates, a checkpoint after every fourth, and regularisation that draws random numbers."""
    tiny_recipe.training = replace(
        tiny_recipe.training, max_steps=10, eval_steps=10, save_steps=4, save_total_limit=10, eval_episodes=2
    )
    tiny_recipe.model = replace(tiny_recipe.model, dropout=0.2, attention_dropout=0.1, input_mask_probability=0.1)
    return tiny_recipe


@pytest.fixture(scope="module")
def interrupted(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """A run that stopped after its checkpoint of update 4; tests copy it, or only read it."""
    recipe = ad_hf.load_recipe(tiny_recipe_file)
    recipe.training = replace(
        recipe.training, max_steps=10, eval_steps=10, save_steps=4, save_total_limit=2, eval_episodes=2
    )
    run = tmp_path_factory.mktemp("runs") / "interrupted"
    ad_hf.train(recipe, tiny_histories, run)
    shutil.rmtree(run / "checkpoint-8")
    return run


def train(recipe, dataset, run, **settings):
    ad_hf.train(recipe, dataset, run, **settings)


def metrics(run):
    """The lines of metrics.jsonl, but for the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def assert_ended_alike(run, expected):
    assert metrics(run) == metrics(expected)
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (run, expected))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def stopped_after(step, run, folder, lines=None):
    """What a run leaves that was stopped some updates after a checkpoint."""
    folder.mkdir(parents=True)
    shutil.copytree(run / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    written = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(written[: step if lines is None else lines]))
    return folder


@pytest.mark.parametrize(
    ("training", "streaming"),
    [
        ({}, False),
        ({}, True),
        ({"optimizer": "adamw", "gradient_accumulation_steps": 2}, False),
        ({"gradient_accumulation_steps": 4, "mixed_precision": "bf16"}, True),
    ],
    ids=str,
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(recipe, tiny_histories, tmp_path, training, streaming):
    """Bit for bit, from every checkpoint, in another folder."""
    recipe.training = replace(recipe.training, **training)
    whole = tmp_path / "whole"
    train(recipe, tiny_histories, whole, streaming=streaming)
    assert [path.name for path in list_checkpoints(whole)] == ["checkpoint-4", "checkpoint-8"]
    assert len({line["loss"] for line in metrics(whole)}) == 10
    for step in (4, 8):
        run = stopped_after(step, whole, tmp_path / f"after-{step}", lines=9)
        train(recipe, tiny_histories, run, streaming=streaming, resume="latest")
        assert_ended_alike(run, whole)
        state, other = (
            json.loads((path / "checkpoint-8" / "training_state.json").read_text()) for path in (run, whole)
        )
        assert state == other


def test_the_state_of_random_numbers_goes_on(recipe, tiny_histories, tmp_path):
    """With dropout alone, the losses after a checkpoint depend on it."""
    train(recipe, tiny_histories, tmp_path / "whole")
    run = stopped_after(4, tmp_path / "whole", tmp_path / "run")
    saved = load_file(run / "checkpoint-4" / "training.safetensors")
    saved["random/0/cpu"] = torch.Generator().manual_seed(99).get_state()
    save_file(saved, run / "checkpoint-4" / "training.safetensors")
    train(recipe, tiny_histories, run, resume="latest")
    assert metrics(run)[:4] == metrics(tmp_path / "whole")[:4]
    losses, expected = ([line["loss"] for line in metrics(folder)[4:]] for folder in (run, tmp_path / "whole"))
    assert all(loss != other for loss, other in zip(losses, expected, strict=True))


def test_the_best_model_so_far_is_in_the_checkpoint(recipe, tiny_histories, tmp_path):
    """So that it is the run's, in whichever folder that goes on, if no later one is better; and not otherwise."""
    recipe.training = replace(recipe.training, eval_steps=2)
    whole = tmp_path / "whole"
    train(recipe, tiny_histories, whole)
    checkpoint = whole / "checkpoint-8"
    state = json.loads((checkpoint / "training_state.json").read_text())
    scores = {line["step"]: line["validation_return"] for line in metrics(whole) if "validation_return" in line}
    best = max((step for step in scores if step <= 8), key=lambda step: (scores[step], -step))
    assert state["best"] == [scores[best], best]
    shutil.rmtree(whole / "model")  # as in another place
    for score, kept in ((1e9, True), (-1e9, False)):
        (checkpoint / "training_state.json").write_text(json.dumps({**state, "best": [score, 8]}))
        for run, resume in ((whole, "latest"), (tmp_path / f"other{score}", checkpoint)):
            train(recipe, tiny_histories, run, resume=resume)
            weights, best_weights = (
                load_file(folder / "model.safetensors") for folder in (run / "model", checkpoint / "best")
            )
            assert all(torch.equal(weight, best_weights[name]) for name, weight in weights.items()) == kept


def test_without_a_checkpoint_resuming_starts_anew(recipe, tiny_histories, tmp_path):
    train(recipe, tiny_histories, tmp_path / "whole")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 123.0}\n')  # stopped before a checkpoint
    for run in (tmp_path / "nothing", tmp_path / "run"):
        train(recipe, tiny_histories, run, resume="latest")
        assert_ended_alike(run, tmp_path / "whole")


def test_only_the_newest_checkpoints_are_kept(recipe, tiny_histories, tmp_path):
    recipe.training = replace(recipe.training, max_steps=11, save_steps=1, save_total_limit=2, eval_steps=20)
    train(recipe, tiny_histories, tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-9", "checkpoint-10"]
    assert find_checkpoint("latest", tmp_path / "run") == tmp_path / "run" / "checkpoint-10"


def test_a_checkpoint_is_a_model_beside_the_state_of_its_training_without_a_pickle(interrupted):
    checkpoint = interrupted / "checkpoint-4"
    names = {path.name for path in checkpoint.iterdir() if path.suffix != ".py"}
    assert names == {
        *("config.json", "rollout_config.json", "model.safetensors"),
        *("training.safetensors", "training_state.json"),
    }
    model = ad_hf.ADModel.from_pretrained(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    tensors = load_file(checkpoint / "training.safetensors")
    momenta = {name for name in tensors if name.endswith(("/exp_avg", "/momentum_buffer"))}
    assert {name.split("/")[1] for name in momenta} == set(weights)


def test_another_dataset_is_refused(interrupted, tiny_recipe_file, tiny_histories, tmp_path):
    other = Path(shutil.copytree(tiny_histories, tmp_path / "other"))
    metadata = json.loads((other / "default" / "metadata.json").read_text())
    metadata["fingerprint"] = ""  # as of a dataset that was changed by hand
    (other / "default" / "metadata.json").write_text(json.dumps(metadata))
    recipe = ad_hf.load_recipe(interrupted / "recipe.yaml")
    before = (interrupted / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"dataset fingerprint was '[0-9a-f]{16}', now it is ''"):
        train(recipe, other, interrupted, resume="latest")
    with pytest.raises(ValueError, match="dataset streaming was False, now it is True"):
        train(recipe, tiny_histories, interrupted, resume="latest", streaming=True)
    assert (interrupted / "metrics.jsonl").read_bytes() == before


def test_the_same_dataset_in_another_place_is_not_refused(interrupted, tiny_histories, tmp_path):
    moved = Path(shutil.copytree(tiny_histories, tmp_path / "moved"))
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    train(ad_hf.load_recipe(interrupted / "recipe.yaml"), moved, run, resume="latest")
    assert_ended_alike(run, interrupted)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("training", {"learning_rate": 1e-3}, r"training\.learning_rate was 0\.003, now it is 0\.001"),
        ("training", {"max_steps": 20}, r"training\.max_steps was 10, now it is 20"),
        ("training", {"seed": 1}, r"training\.seed was 0, now it is 1"),
        ("model", {"hidden_size": 32}, r"model\.hidden_size was 16, now it is 32"),
        ("data", {"keep_every_episode": 2}, r"data\.keep_every_episode was 1, now it is 2"),
    ],
    ids=str,
)
def test_another_setting_is_refused_by_name(interrupted, tiny_histories, section, change, named):
    recipe = ad_hf.load_recipe(interrupted / "recipe.yaml")
    setattr(recipe, section, replace(getattr(recipe, section), **change))
    before = {path: path.stat().st_mtime_ns for path in interrupted.rglob("*")}
    with pytest.raises(ValueError, match=f"checkpoint-4 cannot be resumed: setting {named}"):
        train(recipe, tiny_histories, interrupted, resume="latest")
    assert {path: path.stat().st_mtime_ns for path in interrupted.rglob("*")} == before


def test_settings_that_change_no_update_may_change(interrupted, tiny_histories, tmp_path):
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    recipe = ad_hf.load_recipe(interrupted / "recipe.yaml")
    recipe.training = replace(recipe.training, logging_steps=3, save_steps=7, save_total_limit=5)
    train(recipe, tiny_histories, run, resume="latest")
    expected = {line["step"]: line for line in metrics(interrupted)}
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 6, 9, 10]
    assert all(line == expected[line["step"]] for line in metrics(run))
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-4", "checkpoint-7"]


def test_another_number_of_processes_is_refused(interrupted, tiny_histories, tmp_path):
    """As is the checkpoint of one by two of them: each needs a place and random numbers of its own."""
    run = Path(shutil.copytree(interrupted, tmp_path / "run"))
    state = json.loads((run / "checkpoint-4" / "training_state.json").read_text())
    state["batches"] *= 2
    (run / "checkpoint-4" / "training_state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="of a run of 2 processes, this one has 1"):
        train(ad_hf.load_recipe(run / "recipe.yaml"), tiny_histories, run, resume="latest")


def test_a_folder_that_is_no_checkpoint_is_refused(interrupted, tiny_histories, tmp_path):
    recipe = ad_hf.load_recipe(interrupted / "recipe.yaml")
    for folder in (tmp_path, interrupted / "model", tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="is no checkpoint: expected `latest`, a folder with"):
            train(recipe, tiny_histories, tmp_path / "run", resume=folder)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_run_can_be_named(interrupted, tiny_histories, tmp_path):
    recipe = ad_hf.load_recipe(interrupted / "recipe.yaml")
    train(recipe, tiny_histories, tmp_path / "run", resume=interrupted / "checkpoint-4")
    assert metrics(tmp_path / "run") == metrics(interrupted)[4:]


def test_a_checkpoint_that_was_not_finished_is_none(interrupted, tmp_path):
    """A process that is killed while it writes leaves a hidden folder, which nothing takes for a checkpoint."""
    shutil.copytree(interrupted / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / ".checkpoint-8.123.tmp").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize(
    ("lines", "torn"), [(7, ""), (4, '{"step": 5, "lo'), (3, '{"step": 4, "loss": 1.2'), (10, "")], ids=str
)
def test_no_update_is_logged_twice_and_a_torn_line_is_dropped(interrupted, tiny_histories, tmp_path, lines, torn):
    run = stopped_after(4, interrupted, tmp_path / "run", lines)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(torn)
    train(ad_hf.load_recipe(interrupted / "recipe.yaml"), tiny_histories, run, resume="latest")
    expected = metrics(interrupted)
    assert metrics(run) == (expected if lines > 3 else expected[:3] + expected[4:])


def test_a_run_that_is_killed_goes_on(tiny_recipe_file, tiny_histories, tmp_path):
    """SIGKILL at some moment after a checkpoint, then the same command with `--resume latest`."""
    command = [sys.executable, "-m", "ad_hf.cli", "train", "--recipe", str(tiny_recipe_file), "--streaming"]
    command += ["--dataset", str(tiny_histories), "--training.max_steps", "120", "--training.save_steps", "7"]
    command += ["--training.eval_steps", "60", "--training.eval_episodes", "2", "--resume", "latest"]
    # As many threads as here: sums over another number of them differ in their last bits.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        [*command, "--output_dir", str(killed)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not list_checkpoints(killed) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert 7 <= len((killed / "metrics.jsonl").read_text().splitlines()) < 120

    changes = ["--training.max_steps", "120", "--training.save_steps", "7", "--training.eval_steps", "60"]
    recipe = ad_hf.load_recipe(tiny_recipe_file, [*changes, "--training.eval_episodes", "2"])
    train(recipe, tiny_histories, killed, streaming=True, resume="latest")
    train(recipe, tiny_histories, whole, streaming=True)
    assert_ended_alike(killed, whole)
    leftovers = {path.name for path in killed.iterdir()} - {path.name for path in whole.iterdir()}
    assert all(name.startswith(".checkpoint-") for name in leftovers)
