"""How actions are drawn from logits: the distribution, and a random stream for each environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper


def uniform(seeds: np.ndarray, counters: np.ndarray, dimensions: int) -> np.ndarray:
    """
    Numbers in [0, 1), (rows, dimensions), that depend on a row's own seed and counter alone (SplitMix64).

    A counter-based generator makes a row's actions independent of which rows stand beside it, without a generator
    object, and a Python loop, per environment.
    """
    golden, first, second = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

    def mix(state: np.ndarray) -> np.ndarray:
        state = (state ^ (state >> np.uint64(30))) * first
        state = (state ^ (state >> np.uint64(27))) * second
        return state ^ (state >> np.uint64(31))

    with np.errstate(over="ignore"):
        streams = mix((seeds.astype(np.uint64) + np.uint64(1)) * golden)[:, None]
        steps = counters.astype(np.uint64)[:, None] * np.uint64(dimensions) + np.arange(dimensions, dtype=np.uint64)
        return (mix(streams + (steps + np.uint64(1)) * golden) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def action_probabilities(logits: torch.Tensor, config: Any, do_sample: bool) -> torch.Tensor:
    """
    The distribution that an action is drawn from.

    Args:
        logits (`torch.Tensor` of shape `(rows, n)`):
            Logits of one dimension of the action.
        config ([`RolloutConfig`]):
            Temperature, `top_k`, `top_p` and `epsilon`, all of them set.
        do_sample (`bool`):
            Whether all but the likeliest action are left out.

    Returns:
        `torch.Tensor` of shape `(rows, n)`, float64: probabilities.
    """
    scores = logits.double() / config.temperature
    if not do_sample:  # the first of several that are equally likely
        probabilities = torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
    else:
        if config.top_k:
            scores = TopKLogitsWarper(config.top_k)(None, scores)
        if config.top_p is not None and config.top_p < 1:
            scores = TopPLogitsWarper(config.top_p)(None, scores)
        probabilities = scores.softmax(-1)
    if config.epsilon:
        probabilities = torch.lerp(
            probabilities, torch.full_like(probabilities, 1 / probabilities.shape[1]), config.epsilon
        )
    return probabilities


def draw(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Category (rows,) of each row of probabilities (rows, n) into which its number in [0, 1) (rows,) falls."""
    cumulative = probabilities.cumsum(-1)
    # The last sum may round to just under 1. Divided by it, no number falls beyond the last possible category.
    return (cumulative[:, :-1] / cumulative[:, -1:] <= numbers.unsqueeze(1)).sum(-1)


def choose(
    logits: torch.Tensor,
    sizes: list[int],
    seeds: np.ndarray,
    counters: np.ndarray,
    config: Any,
    do_sample: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Choose actions.

    Args:
        logits (`torch.Tensor` of shape `(rows, sum(sizes))`):
            From the action head.
        sizes (`list[int]`):
            Categories of each dimension of the action.
        seeds, counters (`np.ndarray` of shape `(rows,)`):
            Each row's random stream, and where in it to draw.
        config ([`RolloutConfig`]), do_sample (`bool`):
            As of [`action_probabilities`].

    Returns:
        Categories (rows, dimensions), and the log-probabilities (rows,) with which they were chosen.
    """
    numbers = torch.from_numpy(uniform(seeds, counters, len(sizes)))
    categories = torch.empty(numbers.shape, dtype=torch.long)
    log_probs = torch.zeros(len(numbers), dtype=torch.float64)
    for dimension, part in enumerate(logits.split(sizes, dim=-1)):
        probabilities = action_probabilities(part, config, do_sample)
        categories[:, dimension] = draw(probabilities, numbers[:, dimension])
        log_probs += probabilities.gather(1, categories[:, dimension : dimension + 1]).squeeze(1).log()
    return categories, log_probs.float()


__all__ = ["action_probabilities", "choose", "draw", "uniform"]
