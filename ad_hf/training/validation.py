"""Rollouts on validation tasks, by which the model of a run is chosen."""

from __future__ import annotations

from typing import Any

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.evaluate import evaluate
from ad_hf.model.modeling_ad import ADModel
from ad_hf.training.config import TrainingConfig
from ad_hf.training.interruption import Interruption
from ad_hf.training.metrics import CURVE


class _StoppedError(Exception):
    """A validation was interrupted."""


def validate(
    model: ADModel, family: TaskFamily, config: TrainingConfig, interruption: Interruption
) -> dict[str, Any] | None:
    """
    Roll a model out on the validation tasks.

    Returns:
        `dict`: the mean return of the last episodes, of the first, and of each; `None` if it was interrupted.
    """

    def stop_if_asked(_: Any) -> None:
        if interruption.signal is not None:
            raise _StoppedError

    try:
        evaluation = evaluate(
            model,
            family,
            "validation",
            num_episodes=config.eval_episodes,
            num_seeds=config.eval_repeats,
            seed=config.seed,
            callback=stop_if_asked,
        )
    except _StoppedError:
        return None
    curve = evaluation.returns.mean(axis=(0, 1))
    return {
        "validation_return": float(evaluation.final_returns.mean()),
        "validation_return_first": float(curve[0]),
        CURVE: [round(float(value), 4) for value in curve],
    }
