"""Training that diverges, and what cannot be trained: a clear end, and no checkpoint without sense."""

import pytest
import torch
from accelerate import Accelerator
from training_runs import shortened, weights

import ad_hf
from ad_hf import cli
from ad_hf.training.divergence import Divergence, TrainingDivergedError
from ad_hf.training.run_folder import list_checkpoints

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("losses", "norms", "scaled", "first"),
    [
        ([1.0, 2.0], [1.0, 2.0], False, None),
        ([1.0, NAN, 1.0, NAN], [1.0] * 4, False, 2),
        ([1.0, 1.0, 1.0], [1.0, 1.0, INF], False, 3),
        ([-INF], [None], False, 1),
        ([1.0, 1.0], [INF, 1.0], True, None),  # a scaler skips updates whose gradient is infinite
        ([1.0, INF], [INF, 1.0], True, 2),
    ],
)
def test_the_first_update_that_is_not_finite_is_noted(losses, norms, scaled, first):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu") if scaled else None
    divergence = Divergence(accelerator)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        divergence.note(step, torch.tensor(loss), None if norm is None else torch.tensor(norm))
    assert divergence.first() == first


@pytest.mark.parametrize(
    ("logging_steps", "save_steps"), [(1, 1), (100, 1), (100, 100)], ids=["logged", "saved", "at the end"]
)
def test_a_run_that_diverges_ends_with_its_last_good_checkpoint(
    tiny_recipe_file, tiny_histories, tmp_path, logging_steps, save_steps
):
    """Wherever the loss is looked at first. The learning rate rises: the first updates are sound."""
    rising = {"max_steps": 8, "eval_steps": 8, "optimizer": "adamw", "learning_rate": 1e37, "warmup_ratio": 1.0}
    saving = {"logging_steps": logging_steps, "save_steps": save_steps, "save_total_limit": 9}
    with pytest.raises(TrainingDivergedError, match=r"at update \d, where the learning rate was \d.*e\+3\d") as ended:
        ad_hf.train(shortened(tiny_recipe_file, **rising, **saving), tiny_histories, tmp_path)
    step, checkpoints = ended.value.step, list_checkpoints(tmp_path)
    assert f"at update {step}" in str(ended.value)
    assert "lower training.learning_rate" in str(ended.value)
    assert all(path.name != f"checkpoint-{step}" for path in checkpoints)
    assert ended.value.checkpoint == (checkpoints[-1] if checkpoints else None)
    assert (f"the last good one is {checkpoints[-1]}" if checkpoints else "no checkpoint was written") in str(
        ended.value
    )
    for path in checkpoints:
        assert all(weight.isfinite().all() for weight in weights(path).values())
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert not (tmp_path / "model").exists()


def test_the_command_line_says_in_one_line_what_cannot_be_trained(tiny_recipe_file, tiny_histories, tmp_path, capsys):
    start = ["train", "--recipe", str(tiny_recipe_file), "--dataset", str(tiny_histories)]
    huge = "1000000000000"
    for settings, expected in (
        (["--training.learning_rate", "1e37"], "training diverged"),
        (["--training.batch_size", huge], f"a batch of training.batch_size {huge}, of which"),
        (["--training.batch_size", huge, "--training.gradient_accumulation_steps", "2"], "of which 500000000000"),
        (["--model.hidden_size", huge], "hidden_size and intermediate_size would take"),
        (["--model.num_hidden_layers", huge], "a model with this num_hidden_layers"),
        (["--model.intermediate_size", huge], "bytes, and this machine has"),
    ):
        assert cli.main([*start, "--output_dir", str(tmp_path / "run"), *settings]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert "Traceback" not in error


@pytest.mark.parametrize("name", ["model", "checkpoint-10"])
def test_files_and_folders_of_the_user_are_not_replaced(tiny_recipe, tiny_histories, tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / ".notes.old").mkdir()
    for start in (ad_hf.quickstart, lambda *arguments: ad_hf.train(arguments[0], tiny_histories, arguments[1])):
        with pytest.raises(FileExistsError, match=f"{name} is a file"):
            start(tiny_recipe, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, ".notes.old"}
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} holds other files"):
        ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
