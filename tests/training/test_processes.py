"""Several processes train as one does: the same batches, losses and checkpoints, whole weights or sharded ones."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from history_files import windows_of_folder
from safetensors.torch import load_file

import ad_hf
from ad_hf.histories.windows import WindowBatches
from ad_hf.pipeline import collect_recipe
from ad_hf.training.checkpoints import list_checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
PLAIN, SHARDED = REPOSITORY / "scripts" / "train.py", Path(__file__).with_name("fsdp_on_cpus.py")
STEPS = ["--training.max_steps", "50", "--training.eval_steps", "25", "--training.optimizer", "adamw"]


def command(script, recipe, dataset, run, *settings):
    """Two processes, started by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    options = ["--recipe", recipe, "--dataset", dataset, "--output_dir", run, *settings]
    return list(map(str, [*torchrun, *options]))


def train(*arguments):
    """Train in two processes; returns what they printed."""
    done = subprocess.run(
        command(*arguments),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """Fifty updates in one process."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    ad_hf.train(ad_hf.load_recipe(tiny_recipe_file, STEPS), tiny_histories, run)
    return run


@pytest.mark.parametrize("script", [PLAIN, SHARDED], ids=["DDP", "FSDP"])
def test_two_processes_train_as_one_does(alone, tiny_recipe_file, tiny_histories, tmp_path, script):
    """The loss of each of fifty updates, to 1e-4; both ways leave checkpoints and models of whole weights."""
    run = tmp_path / "run"
    printed = train(script, tiny_recipe_file, tiny_histories, run, *STEPS)
    assert f"processes: 2 ({'FSDP' if script == SHARDED else 'MULTI_CPU'})" in printed
    assert printed.count("best on the validation tasks") == 1
    assert len(losses(run)) == 50
    assert np.abs(np.subtract(losses(run), losses(alone))).max() < 1e-4
    for folder in ("checkpoint-25", "model"):
        found, expected = weights(run / folder), weights(alone / folder)
        assert {name: weight.shape for name, weight in found.items()} == {
            name: weight.shape for name, weight in expected.items()
        }
    assert all(
        torch.allclose(weight, weights(alone / "checkpoint-25")[name], atol=1e-3)
        for name, weight in weights(run / "checkpoint-25").items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("script", [PLAIN, SHARDED], ids=["DDP", "FSDP"])
def test_two_processes_that_were_asked_to_end_go_on(tiny_recipe_file, tiny_histories, tmp_path, script, optimizer):
    """One of them gets the signal, both end with one checkpoint; resumed, all is as without, bit for bit."""
    settings = ["--training.max_steps", "30", "--training.eval_steps", "30", "--training.optimizer", optimizer]
    settings += ["--model.dropout", "0.2", "--resume", "latest"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    train(script, tiny_recipe_file, tiny_histories, whole, *settings)
    with subprocess.Popen(
        command(script, tiny_recipe_file, tiny_histories, stopped, *settings),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        deadline, file = time.monotonic() + 120, stopped / "metrics.jsonl"
        while not (file.is_file() and file.read_text().count("\n") >= 3) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    (checkpoint,) = list_checkpoints(stopped)
    step = json.loads((checkpoint / "training_state.json").read_text())["step"]
    assert 3 <= step < 30, said[-2000:]
    train(script, tiny_recipe_file, tiny_histories, stopped, *settings)
    assert losses(stopped) == losses(whole)
    found, expected = weights(stopped / "model"), weights(whole / "model")
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("script", [PLAIN, SHARDED], ids=["DDP", "FSDP"])
def test_two_processes_that_diverge_end_together(tiny_recipe_file, tiny_histories, tmp_path, script):
    settings = ["--training.learning_rate", "1e37", "--training.warmup_ratio", "1.0", "--training.optimizer", "adamw"]
    settings += ["--training.logging_steps", "100", "--training.save_steps", "2"]
    done = subprocess.run(
        command(script, tiny_recipe_file, tiny_histories, tmp_path / "run", *settings),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("training diverged: the loss or its gradient is not finite at update 3") == 2
    assert list_checkpoints(tmp_path / "run") == [tmp_path / "run" / "checkpoint-2"]


def test_each_window_is_seen_once_an_epoch_whatever_the_number_of_processes(tiny_histories):
    windows = windows_of_folder(tiny_histories, 24, seed=3)
    order = windows.epoch_order(0)
    for processes in (1, 2, 4):
        seen = [WindowBatches(windows, 8, rank, processes)._choices() for rank in range(processes)]
        chosen = [next(choices)[0] for _ in range(len(order) // 8) for choices in seen]
        assert sum(map(len, chosen)) == len(order) // 8 * 8
        assert [tuple(window) for part in chosen for window in part] == [
            tuple(window) for window in order[: len(order) // 8 * 8]
        ]
        assert len({tuple(window) for part in chosen for window in part}) == len(order) // 8 * 8


@pytest.fixture
def poles(tmp_path):
    """A recipe for histories of three episodes of CartPole each, of very different lengths, and those histories."""
    recipe = tmp_path / "poles.yaml"
    recipe.write_text(
        """
        family:
          env_id: CartPole-v1
          env_kwargs: {max_episode_steps: 60}
          tasks: [{gravity: 5.0}, {gravity: 9.8}, {gravity: 15.0}]
          attributes: [gravity]
        source: {algorithm: A2C, n_envs: 8, total_timesteps: 3200}
        data: {max_episodes: 3}
        model: {hidden_size: 16, num_hidden_layers: 1, intermediate_size: 32, context_length: 150}
        training: {max_steps: 6, batch_size: 8, logging_steps: 1, mixed_precision: "no"}
        """
    )
    return recipe, collect_recipe(ad_hf.load_recipe(recipe), tmp_path / "poles", num_workers=1)


def test_padded_windows_weigh_as_their_steps_do(poles, tmp_path):
    """Whichever process or pass has the short ones, the loss of an update is the mean over all of its steps."""
    file, histories = poles
    recipe = ad_hf.load_recipe(file)
    windows = windows_of_folder(histories, 150, max_episodes=3)
    assert len({int(length) for _, length in windows.epoch_order(0)}) > 5
    ad_hf.train(recipe, histories, tmp_path / "alone")
    recipe.training = replace(recipe.training, gradient_accumulation_steps=4)
    ad_hf.train(recipe, histories, tmp_path / "accumulated")
    train(PLAIN, file, histories, tmp_path / "two")
    for run in ("accumulated", "two"):
        assert losses(tmp_path / run) == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
