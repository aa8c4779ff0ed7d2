"""SIGTERM and Ctrl-C: a run that is asked to end saves a checkpoint, and goes on as if it had not been."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from training_runs import assert_ended_alike, metrics, shortened, state_of, training

import ad_hf
from ad_hf.training import loop
from ad_hf.training.interruption import Interruption
from ad_hf.training.run_folder import list_checkpoints
from ad_hf.training.trainer import Trainer


def of_twelve(recipe_file):
    """Twelve updates with dropout, a validation after every sixth, and no checkpoint that was not asked for."""
    recipe = shortened(recipe_file, max_steps=12, eval_steps=6, save_steps=100, save_total_limit=5)
    recipe.model = replace(recipe.model, dropout=0.2)
    return recipe


@pytest.fixture
def recipe(tiny_recipe_file):
    return of_twelve(tiny_recipe_file)


@pytest.fixture(scope="module")
def whole(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """A run that was left alone."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    ad_hf.train(of_twelve(tiny_recipe_file), tiny_histories, run)
    return run


def signalled_at(monkeypatch, owner, name, number, times):
    """Send this process a signal at some call of a function of a module or class."""
    calls, function = [], getattr(owner, name)

    def calling(*args, **kwargs):
        calls.append(None)
        if len(calls) == times:
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
        ad_hf.train(recipe, tiny_histories, tmp_path)
    assert time.monotonic() - start < 60
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]
    state = state_of(tmp_path / "checkpoint-6")
    assert state["unvalidated"]["loss"] > 0
    assert state["best"] is None


def test_a_second_ctrl_c_ends_at_once_and_other_threads_are_left_alone():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    handlers = []

    def enter():
        with Interruption():
            handlers.append(signal.getsignal(signal.SIGTERM))

    (thread := threading.Thread(target=enter)).start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_says_how_to_go_on_and_exits_as_shells_expect(
    tiny_recipe_file, tiny_histories, tmp_path, number, status
):
    """With worker processes of a stream, which are sent the signal as well, as by a terminal or a cluster."""
    command = ["-m", "ad_hf.cli", "train", "--recipe", tiny_recipe_file, "--streaming", "--data.num_workers", 1]
    command += ["--dataset", tiny_histories, "--training.max_steps", 100_000, "--training.eval_steps", 50_000]
    restored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with training(command, tmp_path / "run", 4, start_new_session=True, **restored) as process:
        os.killpg(process.pid, number)
        printed = process.communicate(timeout=60)[0]
    assert process.returncode == status, printed[-2000:]
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert f"saved {checkpoint}, from which --resume latest goes on" in printed
    assert "Traceback" not in printed
