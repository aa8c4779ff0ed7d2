"""Runs and what they leave, for the tests of training."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import torch
from safetensors.torch import load_file

import ad_hf


def shortened(recipe_file, **training):
    """A recipe with other settings of training."""
    recipe = ad_hf.load_recipe(recipe_file)
    recipe.training = replace(recipe.training, eval_episodes=2, **training)
    return recipe


def metrics(run):
    """The lines of metrics.jsonl, but for the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def losses(run):
    return [line["loss"] for line in metrics(run)]


def state_of(checkpoint):
    return json.loads((checkpoint / "training_state.json").read_text())


def weights(folder):
    return load_file(folder / "model.safetensors")


def same_weights(folder, other):
    """Whether two models are the same, bit for bit."""
    own, expected = weights(folder), weights(other)
    return own.keys() == expected.keys() and all(torch.equal(own[name], expected[name]) for name in own)


def assert_ended_alike(run, expected):
    assert metrics(run) == metrics(expected)
    assert same_weights(run / "model", expected / "model")
    assert (run / "verdict.json").read_text() == (expected / "verdict.json").read_text()


@contextmanager
def training(command, run, updates, **settings):
    """A process of `ad-hf train` that has logged some updates; it must end in the block."""
    command = [sys.executable, *map(str, command), "--output_dir", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings) as process:
        deadline, file = time.monotonic() + 120, run / "metrics.jsonl"
        while not (file.is_file() and file.read_text().count("\n") >= updates) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield process
        finally:
            process.kill()
