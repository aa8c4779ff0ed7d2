"""Several processes train as one does: the same batches, losses and checkpoints, whole weights or sharded ones."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from history_files import windows_of_folder
from training_runs import assert_ended_alike, losses, training, weights

import ad_hf
from ad_hf.pipeline import collect_recipe
from ad_hf.training.run_folder import checkpoint_step, list_checkpoints

PLAIN, SHARDED = ("-m", "ad_hf", "train"), (Path(__file__).with_name("fsdp_on_cpus.py"),)
STEPS = ["--training.max_steps", "50", "--training.eval_steps", "25", "--training.optimizer", "adamw"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
both_ways = pytest.mark.parametrize("script", [PLAIN, SHARDED], ids=["DDP", "FSDP"])


def command(script, recipe, dataset, *settings):
    """Two processes, started by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *script]
    return [*torchrun, "--recipe", recipe, "--dataset", dataset, *settings]


def train(script, recipe, dataset, run, *settings, fails=False):
    """Train in two processes; returns what they printed."""
    arguments = [sys.executable, *command(script, recipe, dataset, *settings), "--output_dir", run]
    done = subprocess.run(
        list(map(str, arguments)), env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """Fifty updates in one process."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    ad_hf.train(ad_hf.load_recipe(tiny_recipe_file, STEPS), tiny_histories, run)
    return run


@both_ways
def test_two_processes_train_as_one_does(alone, tiny_recipe_file, tiny_histories, tmp_path, script):
    """The loss of each of fifty updates, to 1e-4; both ways leave checkpoints and models of whole weights."""
    printed = train(script, tiny_recipe_file, tiny_histories, tmp_path, *STEPS)
    assert f"processes: 2 ({'FSDP' if script == SHARDED else 'MULTI_CPU'})" in printed
    assert printed.count("best on the validation tasks") == 1
    assert len(losses(tmp_path)) == 50
    assert np.abs(np.subtract(losses(tmp_path), losses(alone))).max() < 1e-4
    for folder, tolerance in (("checkpoint-25", 1e-3), ("model", np.inf)):
        own, expected = weights(tmp_path / folder), weights(alone / folder)
        assert {name: weight.shape for name, weight in own.items()} == {
            name: weight.shape for name, weight in expected.items()
        }
        assert all((weight - expected[name]).abs().max() <= tolerance for name, weight in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@both_ways
def test_two_processes_that_were_asked_to_end_go_on(tiny_recipe_file, tiny_histories, tmp_path, script, optimizer):
    """One of them gets the signal, both end with one checkpoint; resumed, all is as without, bit for bit."""
    settings = ["--training.max_steps", "30", "--training.eval_steps", "30", "--training.optimizer", optimizer]
    settings += ["--model.dropout", "0.2", "--resume", "latest"]
    stopped, whole, start = tmp_path / "stopped", tmp_path / "whole", (script, tiny_recipe_file, tiny_histories)
    train(*start, whole, *settings)
    with training(command(*start, *settings), stopped, 3, env=ENVIRONMENT) as process:
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=120)[0]
    (checkpoint,) = list_checkpoints(stopped)
    assert 3 <= checkpoint_step(checkpoint) < 30, printed[-2000:]
    train(*start, stopped, *settings)
    assert_ended_alike(stopped, whole)


@pytest.mark.slow
@both_ways
def test_two_processes_train_adapters_as_one_does_and_go_on(
    tiny_recipe_file, tiny_run, tiny_histories, tmp_path, script
):
    settings = ["--init_from", tiny_run, "--training.trainable", "lora", "--training.save_steps", "6"]
    settings += ["--training.max_steps", "12", "--training.eval_steps", "12", "--resume", "latest"]
    start = script, tiny_recipe_file, tiny_histories
    train(*start, tmp_path / "two", *settings)
    overrides = ["--training.init_from", str(tiny_run), *settings[2:-2]]
    ad_hf.train(ad_hf.load_recipe(tiny_recipe_file, overrides), tiny_histories, tmp_path / "one")
    assert np.abs(np.subtract(losses(tmp_path / "two"), losses(tmp_path / "one"))).max() < 1e-4
    assert weights(tmp_path / "two" / "model").keys() == weights(tiny_run / "model").keys()
    shutil.copytree(tmp_path / "two" / "checkpoint-6", tmp_path / "resumed" / "checkpoint-6")
    shutil.copy(tmp_path / "two" / "metrics.jsonl", tmp_path / "resumed")
    train(*start, tmp_path / "resumed", *settings)
    assert_ended_alike(tmp_path / "resumed", tmp_path / "two")


@pytest.mark.slow
@both_ways
def test_two_processes_carry_a_memory_as_one_does_and_go_on(tiny_recipe_file, tiny_histories, tmp_path, script):
    """Each has rows of its own."""
    settings = ["--training.truncated_bptt", "true", "--model.layer_types", "[linear_attention,sliding_attention]"]
    settings += ["--training.save_steps", "16", "--training.max_steps", "30", "--training.eval_steps", "30"]
    settings += ["--training.gradient_accumulation_steps", "2", "--training.optimizer", "adamw"]
    start, resume = (script, tiny_recipe_file, tiny_histories), ["--resume", "latest"]
    train(*start, tmp_path / "two", *settings, *resume)
    ad_hf.train(ad_hf.load_recipe(tiny_recipe_file, settings), tiny_histories, tmp_path / "one")
    assert np.abs(np.subtract(losses(tmp_path / "two"), losses(tmp_path / "one"))).max() < 1e-4
    shutil.copytree(tmp_path / "two" / "checkpoint-16", tmp_path / "resumed" / "checkpoint-16")
    shutil.copy(tmp_path / "two" / "metrics.jsonl", tmp_path / "resumed")
    train(*start, tmp_path / "resumed", *settings, *resume)
    assert_ended_alike(tmp_path / "resumed", tmp_path / "two")


@pytest.mark.slow
@both_ways
def test_two_processes_that_diverge_end_together(tiny_recipe_file, tiny_histories, tmp_path, script):
    settings = ["--training.learning_rate", "1e37", "--training.warmup_ratio", "1.0", "--training.optimizer", "adamw"]
    settings += ["--training.logging_steps", "100", "--training.save_steps", "2"]
    printed = train(script, tiny_recipe_file, tiny_histories, tmp_path, *settings, fails=True)
    assert printed.count("training diverged: the loss or its gradient is not finite at update 3") == 2
    assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-2"]


POLES = """
family: {env_id: CartPole-v1, env_kwargs: {max_episode_steps: 60}, attributes: [gravity],
         tasks: [{gravity: 5.0}, {gravity: 9.8}, {gravity: 15.0}]}
source: {algorithm: A2C, n_envs: 8, total_timesteps: 3200}
data: {max_episodes: 3}
model: {hidden_size: 16, num_hidden_layers: 1, intermediate_size: 32, context_length: 60}
training: {max_steps: 6, batch_size: 8, logging_steps: 1, mixed_precision: "no"}
"""


def test_padded_windows_weigh_as_their_steps_do(tmp_path):
    """Whichever process or pass has the short ones, the loss of an update is the mean over all of its steps."""
    (file := tmp_path / "poles.yaml").write_text(POLES)
    recipe = ad_hf.load_recipe(file)
    histories = collect_recipe(recipe, tmp_path / "poles", num_workers=1)  # three episodes of very different lengths
    windows = windows_of_folder(histories, 60, max_episodes=3)
    assert 60 in (lengths := {int(length) for _, length in windows.epoch_order(0)})  # passes with padding and without
    assert len(lengths) > 3
    ad_hf.train(recipe, histories, tmp_path / "alone")
    recipe.training = replace(recipe.training, gradient_accumulation_steps=4)
    ad_hf.train(recipe, histories, tmp_path / "accumulated")
    train(PLAIN, file, histories, tmp_path / "two")
    for run in ("accumulated", "two"):
        assert losses(tmp_path / run) == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
