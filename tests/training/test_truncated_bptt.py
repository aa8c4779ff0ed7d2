"""Training by truncated backpropagation through time: windows that follow on each other are one long window."""

import itertools
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from history_files import make_table, open_dataset, windows_of_folder, write_dataset
from safetensors.torch import load_file, save_file
from training_runs import assert_ended_alike, losses, training

import ad_hf
from ad_hf.histories.selection import DataConfig
from ad_hf.training.run_folder import list_checkpoints
from ad_hf.training.validation import FixedWindows

MIXED = {"layer_types": ["linear_attention", "sliding_attention"], "sliding_window": 5}


@pytest.fixture
def recipe(tiny_recipe):
    """Histories of 300 steps, in windows of 24."""
    tiny_recipe.training = replace(tiny_recipe.training, truncated_bptt=True, eval_episodes=2)
    tiny_recipe.model = replace(tiny_recipe.model, **MIXED)
    return tiny_recipe


def losses_in_one_window(model, windows, walk):
    """The mean loss of each batch of a walk, in passes over all steps that a row has gone through since it began."""
    losses, starts = [], None
    for tiles, begins in walk:
        starts = tiles[:, 0] if starts is None else np.where(begins, tiles[:, 0], starts)
        before = tiles[:, 0] - starts
        batch = windows.batch(np.stack([starts, before + tiles[:, 1]], axis=1))
        labels, mask = batch.pop("labels").long(), batch.get("attention_mask")
        ignored = torch.arange(labels.shape[1]) < torch.from_numpy(before)[:, None]
        labels = labels.masked_fill(ignored if mask is None else ignored | (mask == 0), -100)
        with torch.no_grad():
            losses.append(float(model.eval()(**batch, labels=labels, num_items_in_batch=(labels != -100).sum()).loss))
    return losses


@pytest.mark.parametrize("passes", [1, 2])
def test_losses_are_those_of_one_window_over_all_steps_since_a_row_began(recipe, tiny_histories, tmp_path, passes):
    """Of weights that do not move; past the ends of histories, whose last windows are padded."""
    still = {"learning_rate": 1e-12, "max_steps": 30, "eval_steps": 30, "gradient_accumulation_steps": passes}
    recipe.training = replace(recipe.training, **still)
    recipe.model = replace(recipe.model, initializer_range=0.3)
    model = ad_hf.train(recipe, tiny_histories, tmp_path / "run")
    windows = windows_of_folder(tiny_histories, 24)
    walk = list(itertools.islice(windows.walk(8), 30))
    expected = losses_in_one_window(model, windows, walk)
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)
    alone = losses_in_one_window(model, windows, [(tiles, np.ones(8, bool)) for tiles, _ in walk])
    assert (np.abs(np.subtract(alone, expected)) > 1e-3).mean() > 0.9  # but for the first, without a memory


def test_the_loss_on_validation_histories_is_of_whole_ones(tmp_path):
    folder = write_dataset(tmp_path / "data", [make_table([40, 7, 33, 15, 150])])
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "context_length": 24}
    model = ad_hf.ADModel(ad_hf.config_from_dataset(folder, **sizes, **MIXED))
    fixed = FixedWindows(open_dataset(folder), "train", DataConfig(), False, 24, 0, 32, walks=True)
    windows = windows_of_folder(folder, 24)
    walk = list(itertools.islice(windows.walk(32, whole=True), 7))  # as many as the longest has
    measured = fixed.losses(model).reshape(7, 32, 2)
    assert np.array_equal(measured[..., 1], np.stack([tiles[:, 1] for tiles, _ in walk]))
    means = [np.average(values, weights=counts) for values, counts in measured.transpose(0, 2, 1)]
    assert means == pytest.approx(losses_in_one_window(model, windows, walk), abs=1e-5)


@pytest.fixture
def resumable(recipe):
    """Forty updates of two passes, with a checkpoint after every seventh."""
    settings = {"max_steps": 40, "eval_steps": 40, "save_steps": 7, "gradient_accumulation_steps": 2}
    return replace(recipe, training=replace(recipe.training, **settings))


def test_a_resumed_run_ends_as_an_uninterrupted_one(resumable, tiny_histories, tmp_path):
    """With what its layers carried, in the places where its rows were: bit for bit."""
    ad_hf.train(resumable, tiny_histories, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-35", tmp_path / "run" / "checkpoint-35")
    shutil.copy(tmp_path / "whole" / "metrics.jsonl", tmp_path / "run")
    ad_hf.train(resumable, tiny_histories, tmp_path / "run", resume="latest")
    assert_ended_alike(tmp_path / "run", tmp_path / "whole")
    file = tmp_path / "run" / "checkpoint-35" / "training.safetensors"
    saved = load_file(file)
    carried = [name for name in saved if name.startswith("carry/")]
    assert {name.split("/")[2] for name in carried} == {"0", "1"}  # of each pass
    save_file(saved | {name: torch.zeros_like(saved[name]) for name in carried}, file)
    ad_hf.train(resumable, tiny_histories, tmp_path / "run", resume="latest")
    forgetful, expected = (losses(tmp_path / name)[35:] for name in ("run", "whole"))
    assert all(loss != other for loss, other in zip(forgetful, expected, strict=True))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(resumable, tiny_histories, tmp_path):
    (file := tmp_path / "recipe.yaml").write_text(resumable.to_yaml())
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = ["-m", "ad_hf.cli", "train", "--recipe", file, "--dataset", tiny_histories]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with training(command, killed, 15, env=environment) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert list_checkpoints(killed)
    ad_hf.train(resumable, tiny_histories, killed, resume="latest")
    ad_hf.train(resumable, tiny_histories, whole)
    assert_ended_alike(killed, whole)


@pytest.mark.parametrize(
    ("model", "streaming", "expected"),
    [
        (
            {"layer_types": ["linear_attention", "full_attention"], "sliding_window": None},
            False,
            "needs a memory: only",
        ),
        (
            {"backbone_config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}},
            False,
            "needs a memory",
        ),
        (MIXED, True, "train without streaming"),
    ],
    ids=str,
)
def test_what_carries_nothing_is_refused(tiny_recipe, tiny_histories, tmp_path, model, streaming, expected):
    tiny_recipe.training = replace(tiny_recipe.training, truncated_bptt=True)
    tiny_recipe.model = replace(tiny_recipe.model, **model)
    with pytest.raises(ValueError, match=f"training.truncated_bptt .*{expected}"):
        ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run", streaming=streaming)
    assert not (tmp_path / "run").exists()
