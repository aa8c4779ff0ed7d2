"""What runs leave, for the tests of training."""

import json

import torch
from safetensors.torch import load_file


def metrics(run):
    """The lines of metrics.jsonl, but for the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def losses(run):
    return [line["loss"] for line in metrics(run)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same_weights(folder, other):
    found, expected = weights(folder), weights(other)
    return found.keys() == expected.keys() and all(
        torch.equal(weight, expected[name]) for name, weight in found.items()
    )


def assert_ended_alike(run, expected):
    """Bit for bit."""
    assert metrics(run) == metrics(expected)
    assert same_weights(run / "model", expected / "model")
