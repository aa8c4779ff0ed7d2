"""The loss on validation histories: the same windows each time, measured as training's loss, and training goes on."""

import shutil
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from history_files import ACTIONS, OBSERVATIONS, make_table, open_dataset, windows_of_folder, write_dataset
from training_runs import metrics, same_weights

import ad_hf
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.stream import HistoryStream, StreamedBatches
from ad_hf.histories.windows import WindowBatches
from ad_hf.training.validation import NUM_WINDOWS, FixedWindows, mean_loss

BOX = spaces.Box(-1, 1, (2,), np.float32)


def make_model(folder, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "context_length": 24}
    return ad_hf.ADModel(ad_hf.config_from_dataset(folder, **sizes, **settings))


def fixed_windows(folder, streaming=False, batch_size=3, seed=0):
    return FixedWindows(open_dataset(folder), "train", DataConfig(), streaming, 24, seed, batch_size)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_loss_is_that_of_training_without_regularisation(tmp_path, streaming):
    folder = write_dataset(tmp_path / "data", [make_table([40, 7, 33, 15, 100])])
    model = make_model(folder, dropout=0.5, input_mask_probability=0.5, label_smoothing=0.1)
    windows, random = fixed_windows(folder, streaming), torch.get_rng_state()
    losses = windows.losses(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(losses, fixed_windows(folder, streaming).losses(model))
    (batch,) = fixed_windows(folder, streaming, batch_size=100).batches()
    assert losses[:, 1].tolist() == batch["attention_mask"].sum(dim=1).tolist()
    assert {7, 15, 24} <= set(losses[:, 1])
    with torch.no_grad():
        assert mean_loss(losses) == pytest.approx(float(model.eval()(**batch).loss), rel=1e-5)


def test_windows_are_few_and_from_all_over_the_histories(tmp_path):
    folder = write_dataset(tmp_path / "data", [make_table([240] * 50)])
    firsts = {}
    for seed in (0, 0, 1):
        batches = list(fixed_windows(folder, batch_size=50, seed=seed).batches())
        assert [len(batch["labels"]) for batch in batches] == [50, 50, NUM_WINDOWS - 100]
        firsts[seed] = torch.cat([batch["observations"][:, 0] for batch in batches])
        assert len(firsts[seed][:, 0].unique()) > 40
    assert not torch.equal(firsts[0], firsts[1])


@pytest.mark.parametrize(
    ("space", "settings"),
    [(ACTIONS, {}), (spaces.MultiDiscrete([2, 3]), {}), (BOX, {}), (BOX, {"action_distribution": "mixture"})],
    ids=str,
)
def test_the_constant_guess_is_the_best_one(tmp_path, space, settings):
    folder = write_dataset(tmp_path / "data", [make_table([40, 7, 100], action_space=space)], OBSERVATIONS, space)
    head, windows = make_model(folder, **settings).head, fixed_windows(folder)
    constant, labels = windows.constant_loss(head), windows.labels()
    assert len(labels) == windows.losses(make_model(folder, **settings))[:, 1].sum()
    if space is ACTIONS:
        shares = np.bincount(labels) / len(labels)
        assert constant == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-4)
    rng = torch.Generator().manual_seed(0)
    for scale in (0.0, 0.1, 0.3, 1.0, 3.0):
        guess = scale * torch.randn(head.linear.out_features, generator=rng)
        assert float(head.loss(guess.expand(1, len(labels), -1), labels[None], None)) >= constant


def test_training_is_the_same_without_validation_histories(tiny_run, tiny_recipe, tiny_histories, tmp_path, caplog):
    """Byte for byte; and without them, it says so once."""
    fewer = shutil.copytree(tiny_histories, tmp_path / "fewer")
    for shard in fewer.glob("default/validation-*"):
        shard.unlink()
    with caplog.at_level("INFO", "ad_hf"):
        ad_hf.train(tiny_recipe, fewer, tmp_path / "run")
    assert caplog.text.count("there will be no validation_loss") == 1
    assert same_weights(tmp_path / "run" / "model", tiny_run / "model")
    lines = metrics(tiny_run)
    measured = [line["step"] for line in lines if "validation_loss" in line]
    assert measured == [line["step"] for line in lines if "validation_return" in line] == [10, 20]
    for line in lines:
        line.pop("validation_loss", None)
    assert metrics(tmp_path / "run") == lines


@pytest.mark.parametrize("streaming", [False, True])
def test_epochs_are_counted(tmp_path, streaming):
    folder = write_dataset(tmp_path / "data", [make_table([240] * 20)])
    windows = windows_of_folder(folder, 24)
    of_epochs = [windows.tiling(epoch).num_windows for epoch in range(3)]
    batches: Any = WindowBatches(windows, 7)
    if streaming:
        batches = StreamedBatches(HistoryStream(open_dataset(folder), "train", DataConfig(), 24), 7)
    epochs = []
    with closing(iter(batches)) as iterator:
        for _ in range(70):
            next(iterator)
            epochs.append(batches.epochs)
    done = np.append(0, np.cumsum(of_epochs))
    assert epochs == pytest.approx(np.interp(7 * np.arange(1, 71), done, np.arange(4)))


def test_a_run_logs_epochs(tiny_run, tiny_recipe, tiny_histories):
    training, context_length = tiny_recipe.training, tiny_recipe.model.context_length
    count = windows_of_folder(tiny_histories, context_length, training.seed).tiling(0).num_windows
    expected = [step * training.batch_size / count for step in range(1, training.max_steps + 1)]
    assert [line["epoch"] for line in metrics(tiny_run)] == pytest.approx(expected, abs=1e-4)
