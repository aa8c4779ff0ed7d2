"""Training that diverged, and what cannot be trained: a clear end, and no checkpoint without sense."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import ad_hf
from ad_hf import cli
from ad_hf.training.checkpoints import list_checkpoints
from ad_hf.training.divergence import Divergence, TrainingDivergedError


@pytest.mark.parametrize(
    ("losses", "norms", "first"),
    [
        ([1.0, 2.0], [1.0, 2.0], None),
        ([1.0, float("nan"), 1.0, float("nan")], [1.0] * 4, 2),
        ([1.0, 1.0, 1.0], [1.0, 1.0, float("inf")], 3),
        ([float("-inf")], [None], 1),
    ],
)
def test_the_first_update_that_is_not_finite_is_noted(losses, norms, first):
    divergence = Divergence(Accelerator(cpu=True))
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        divergence.note(step, torch.tensor(loss), None if norm is None else torch.tensor(norm))
    assert divergence.first() == first


def test_an_infinite_gradient_that_a_scaler_skips_is_none():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    divergence = Divergence(accelerator)
    divergence.note(1, torch.tensor(1.0), torch.tensor(float("inf")))
    assert divergence.first() is None
    divergence.note(2, torch.tensor(float("inf")), torch.tensor(1.0))
    assert divergence.first() == 2


@pytest.mark.parametrize(
    ("logging_steps", "save_steps"), [(1, 1), (100, 1), (100, 100)], ids=["logged", "saved", "at the end"]
)
def test_a_run_that_diverges_ends_with_its_last_good_checkpoint(
    tiny_recipe, tiny_histories, tmp_path, logging_steps, save_steps
):
    """Wherever the loss is looked at first. The learning rate rises: the first updates are sound."""
    tiny_recipe.training = replace(
        tiny_recipe.training,
        max_steps=8,
        eval_steps=8,
        optimizer="adamw",
        learning_rate=1e37,
        warmup_ratio=1.0,
        logging_steps=logging_steps,
        save_steps=save_steps,
        save_total_limit=9,
    )
    with pytest.raises(TrainingDivergedError, match=r"at update \d, where the learning rate was \d.*e\+3\d") as ended:
        ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    step, kept = ended.value.step, list_checkpoints(tmp_path / "run")
    assert f"at update {step}" in str(ended.value)
    assert "lower training.learning_rate" in str(ended.value)
    assert all(path.name != f"checkpoint-{step}" for path in kept)
    assert ended.value.checkpoint == (kept[-1] if kept else None)
    assert (f"the last good one is {kept[-1]}" if kept else "no checkpoint was written") in str(ended.value)
    for path in kept:
        assert all(weight.isfinite().all() for weight in load_file(path / "model.safetensors").values())
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert not (tmp_path / "run" / "model").exists()


def command(recipe, histories, run, *settings):
    return cli.main(
        ["train", "--recipe", str(recipe), "--dataset", str(histories), "--output_dir", str(run), *settings]
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["--training.learning_rate", "1e37"], "training diverged"),
        (["--training.batch_size", "1000000000"], "a batch of training.batch_size 1000000000, of which"),
        (
            ["--training.batch_size", "10000000000", "--training.gradient_accumulation_steps", "2"],
            "of which 5000000000",
        ),
        (["--model.hidden_size", "1000000000000"], "hidden_size and intermediate_size would take"),
        (["--model.num_hidden_layers", "1000000000"], "a model with this num_hidden_layers"),
        (["--model.intermediate_size", "1000000000000"], "bytes, and this machine has"),
    ],
    ids=str,
)
def test_the_command_line_says_so_in_one_line(tiny_recipe_file, tiny_histories, tmp_path, capsys, settings, expected):
    assert command(tiny_recipe_file, tiny_histories, tmp_path / "run", *settings) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["model", "checkpoint-10"])
def test_a_file_of_the_user_is_not_replaced(tiny_recipe_file, tiny_histories, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / ".notes.old").mkdir()
    assert command(tiny_recipe_file, tiny_histories, tmp_path) == 2
    assert f"{tmp_path / name} is a file" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match=f"{name} is a file"):
        ad_hf.quickstart(str(tiny_recipe_file), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, ".notes.old"}
    assert (tmp_path / name).read_text() == "mine"


def test_folders_of_the_user_that_are_called_like_ours_are_refused(tiny_recipe, tiny_histories, tmp_path):
    for name in ("model", "checkpoint-3"):
        (tmp_path / name / "run" / name).mkdir(parents=True)
        (tmp_path / name / "run" / name / "notes.txt").write_text(json.dumps(name))
        with pytest.raises(FileExistsError, match=f"{name} holds other files"):
            ad_hf.train(tiny_recipe, tiny_histories, tmp_path / name / "run")
