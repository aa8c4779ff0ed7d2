"""Random learning histories of every kind of space."""

import numpy as np
from gymnasium import spaces

from ad_hf.envs.spaces import storage_dtype
from ad_hf.sources.recorder import RecordedSteps

CELLS, ARROWS = spaces.MultiDiscrete([4, 3]), spaces.Discrete(5)
SPACES = {
    "cells": (CELLS, ARROWS),
    "one number": (spaces.Discrete(300), spaces.MultiDiscrete([2, 3])),
    "bits": (spaces.MultiBinary(4), spaces.MultiBinary(2)),
    "vectors": (spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)),
    "doubles": (spaces.Box(-5, 5, (2,), np.float64), ARROWS),
    "frames": (spaces.Box(0, 255, (32, 40, 3), np.uint8), ARROWS),  # of a size that Minari stores as JPEG
}
# Options of a training of two updates.
TINY = ["--model.hidden_size", "16", "--model.num_attention_heads", "2", "--model.num_hidden_layers", "1"]
TINY += ["--model.intermediate_size", "32", "--model.context_length", "8", "--training.max_steps", "2"]
TINY += ["--training.batch_size", "4", "--training.mixed_precision", "no"]


def elements(space, shape, rng, dtype=None):
    """Random elements of a space, in the dtype that they are stored in or another one."""
    size = (*shape, *(space.shape or ()))
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        return rng.uniform(-1, 1, size).astype(space.dtype)
    high = getattr(space, "nvec", 2)
    high = 256 if isinstance(space, spaces.Box) else space.n if isinstance(space, spaces.Discrete) else high
    return rng.integers(0, high, size).astype(dtype or storage_dtype(space))


def record(both, num_streams=3, num_steps=40, seed=0):
    """Streams with episodes that end in either way, the last one of each unfinished."""
    rng = np.random.default_rng(seed)
    ends = rng.random((num_streams, num_steps)) < 0.2
    ends[:, 3], ends[:, -1] = True, False
    terminations = ends & (rng.random(ends.shape) < 0.5)
    return RecordedSteps(
        observations=elements(both[0], ends.shape, rng),
        actions=elements(both[1], ends.shape, rng),
        rewards=rng.normal(size=ends.shape),
        terminations=terminations,
        truncations=ends & ~terminations,
        final_observations=[elements(both[0], (int(row.sum()) + 1,), rng) for row in ends],
    )


def contents(folder):
    """The bytes of every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
