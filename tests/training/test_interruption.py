"""SIGTERM and Ctrl-C: a run that is asked to end saves a checkpoint, and goes on as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import ad_hf
from ad_hf.training import loop
from ad_hf.training.checkpoints import list_checkpoints
from ad_hf.training.interruption import Interruption
from ad_hf.training.trainer import Trainer


def shortened(recipe):
    """Twelve updates with dropout, a validation after every sixth, and no checkpoint that was not asked for."""
    recipe.training = replace(
        recipe.training, max_steps=12, eval_steps=6, save_steps=100, eval_episodes=3, save_total_limit=5
    )
    recipe.model = replace(recipe.model, dropout=0.2)
    return recipe


@pytest.fixture
def recipe(tiny_recipe):
    return shortened(tiny_recipe)


@pytest.fixture(scope="module")
def whole(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """A run that was left alone."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    ad_hf.train(shortened(ad_hf.load_recipe(tiny_recipe_file)), tiny_histories, run)
    return run


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def assert_ended_alike(run, expected):
    assert metrics(run) == metrics(expected)
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (run, expected))
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def signalled_at(monkeypatch, owner, name, number, times):
    """Send this process a signal at some call of a function of a module or class."""
    called, function = [], getattr(owner, name)

    def calling(*args, **kwargs):
        called.append(None)
        if len(called) == times:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, calling)


@pytest.mark.parametrize(
    ("number", "owner", "name", "times", "step"),
    [
        (signal.SIGTERM, Trainer, "update", 1, 1),
        (signal.SIGINT, Trainer, "update", 9, 9),
        (signal.SIGINT, loop, "evaluate", 1, 6),
        (signal.SIGTERM, loop, "evaluate", 2, 12),
    ],
    ids=["first update", "ninth update", "first validation", "last validation"],
)
def test_a_run_that_is_asked_to_end_goes_on_as_if_it_had_not(
    recipe, whole, tiny_histories, tmp_path, monkeypatch, number, owner, name, times, step
):
    """Wherever the signal comes: metrics and weights end bit for bit as those of a run that was left alone."""
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalled_at(patch, owner, name, number, times)
        with pytest.raises(ad_hf.TrainingInterrupted, match="from which --resume latest goes on") as stopped:
            ad_hf.train(recipe, tiny_histories, tmp_path / "run")
    assert (stopped.value.signal, stopped.value.step) == (number, step)
    assert list_checkpoints(tmp_path / "run") == [stopped.value.checkpoint]
    assert signal.getsignal(number) == before
    assert isinstance(stopped.value, KeyboardInterrupt)
    ad_hf.train(recipe, tiny_histories, tmp_path / "run", resume="latest")
    assert_ended_alike(tmp_path / "run", whole)


def test_a_validation_is_not_waited_for(recipe, tiny_histories, tmp_path, monkeypatch):
    """Machines that are taken away give some seconds, a validation can take minutes."""
    recipe.training = replace(recipe.training, eval_episodes=1_000_000)
    signalled_at(monkeypatch, loop, "evaluate", signal.SIGTERM, 1)
    start = time.monotonic()
    with pytest.raises(ad_hf.TrainingInterrupted):
        ad_hf.train(recipe, tiny_histories, tmp_path / "run")
    assert time.monotonic() - start < 60
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "training_state.json").read_text())
    assert state["unvalidated"]["loss"] > 0
    assert state["best"] is None


def test_a_second_ctrl_c_ends_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_left_alone_in_other_threads():
    found = []

    def enter():
        with Interruption():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_says_how_to_go_on_and_exits_as_shells_expect(
    tiny_recipe_file, tiny_histories, tmp_path, number, status
):
    """With worker processes of a stream, which are sent the signal as well, as by a terminal or a cluster."""
    command = [sys.executable, "-m", "ad_hf.cli", "train", "--recipe", str(tiny_recipe_file), "--streaming"]
    command += ["--data.num_workers", "1", "--dataset", str(tiny_histories), "--training.max_steps", "100000"]
    command += ["--training.eval_steps", "50000", "--output_dir", str(tmp_path / "run")]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline, file = time.monotonic() + 120, tmp_path / "run" / "metrics.jsonl"
        while not (file.is_file() and len(file.read_text().splitlines()) > 3) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said[-2000:]
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert f"saved {checkpoint}, from which --resume latest goes on" in said
    assert "Traceback" not in said
