"""What a model attends to: past episodes, and past rewards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import PercentFormatter

from ad_hf.envs.spaces import space_from_json
from ad_hf.envs.task_family import Task, TaskFamily
from ad_hf.evaluation.style import AD_COLOUR, INK, SUBTITLE, clean, new_figure, save
from ad_hf.histories.windows import none_action
from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_ad import RolloutConfig, RolloutOutput


@dataclass
class Attention:
    """
    What a model attends to, at each step of a window.

    Attributes:
        weights (`np.ndarray` of shape `(layers, batch, heads, time, time)`):
            Share of its attention that a step (fourth axis) gives to another (fifth), which is not later.
        episodes (`np.ndarray` of shape `(batch, time)`):
            Number of each step's episode, from 0.
        rewards (`np.ndarray` of shape `(batch, time)`):
            What each step brought, which the model sees at the next.
    """

    weights: np.ndarray
    episodes: np.ndarray
    rewards: np.ndarray

    def by_episode(self) -> np.ndarray:
        """Attention of the last episode's steps to each episode (layers, episodes), mean over heads, steps, batch."""
        last = self.episodes.max()
        masses = np.zeros((self.weights.shape[0], last + 1))
        for index, episodes in enumerate(self.episodes):
            given = self.weights[:, index][:, :, episodes == last].mean(axis=(1, 2))  # (layers, time)
            for episode in range(last + 1):
                masses[:, episode] += given[:, episodes == episode].sum(axis=1)
        return masses / len(self.episodes)

    def to_rewarded(self) -> tuple[np.ndarray, float]:
        """
        Attention of the last episode's steps to those past steps that saw a reward come.

        Returns:
            `tuple`: the share (layers,), and the share that such steps are of all past steps, which even attention
            would give them.
        """
        seen = np.roll(self.rewards, 1, axis=1) > 0
        seen[:, 0] = False
        past = self.episodes < self.episodes.max()
        given = np.zeros(self.weights.shape[0])
        for index, episodes in enumerate(self.episodes):
            rows = self.weights[:, index][:, :, episodes == episodes.max()].mean(axis=(1, 2))
            given += rows[:, seen[index] & past[index]].sum(axis=1) / rows[:, past[index]].sum(axis=1)
        return given / len(self.episodes), float((seen & past).sum() / past.sum())


def record_episodes(
    model: ADModel, family: TaskFamily, tasks: Sequence[Task], num_episodes: int, config: RolloutConfig | None = None
) -> RolloutOutput:
    """A rollout with all steps, of so many episodes in each of some tasks."""
    with closing(family.make_vec(tasks)) as envs:
        return model.rollout(envs, config, num_episodes=num_episodes, output_steps=True)


def attention_of(model: ADModel, output: RolloutOutput) -> Attention:
    """
    What a model attends to in a rollout's steps, which must be as many in all environments, and fit into its context.

    Raises:
        ValueError: where they do not, and for a model without our own blocks (`backbone_config`).
    """
    steps = np.asarray(output.num_steps)
    if (steps != steps[0]).any() or steps[0] > model.config.context_length:
        raise ValueError(
            f"expected rollouts of equally many steps, {model.config.context_length} at most, got {steps.tolist()}"
        )
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        raise ValueError(
            "the attention of a backbone from transformers is not recorded here: give a model of our blocks"
        )
    with torch.no_grad():
        found = model.eval()(**_inputs(model, output), output_attentions=True).attentions
    ends = np.asarray(output.terminations) | np.asarray(output.truncations)
    episodes = np.cumsum(ends, axis=1) - ends
    return Attention(torch.stack(found).float().cpu().numpy(), episodes, np.asarray(output.rewards))


def _inputs(model: ADModel, output: RolloutOutput) -> dict[str, torch.Tensor]:
    """The steps of a rollout from an empty context, as what the model takes."""
    actions, rewards = np.asarray(output.actions), np.asarray(output.rewards, dtype=np.float32)
    ends = np.asarray(output.terminations) | np.asarray(output.truncations)
    previous = {"previous_actions": actions, "previous_rewards": rewards, "episode_starts": ends}
    nothing = none_action(space_from_json(model.config.action_space or {}))
    inputs: dict[str, Any] = {"observations": torch.from_numpy(np.asarray(output.observations))}
    for (name, values), first in zip(previous.items(), (nothing, 0.0, True)):
        shifted = np.roll(values, 1, axis=1)
        shifted[:, 0] = first
        inputs[name] = torch.from_numpy(shifted)
    return {name: values.to(model.device) for name, values in inputs.items()}


def plot_attention(path: str | Path, attention: Attention) -> None:
    """
    Attention over past episodes, as a PNG: of the last episode's steps to each episode by layer, and to rewards.

    Args:
        path (`str` or `Path`):
            The file to write, whatever its suffix.
        attention ([`Attention`]):
            What a model attended to.
    """
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    masses = attention.by_episode()
    image = left.imshow(masses, aspect="auto", cmap="cividis", vmin=0)
    left.set_yticks(range(len(masses)), [f"layer {layer + 1}" for layer in range(len(masses))])
    left.set_xticks(range(masses.shape[1]), [str(episode + 1) for episode in range(masses.shape[1])])
    left.set_xlabel("episode in the context that is attended to")
    clean(left, f"Attention of the steps of episode {masses.shape[1]}", width=44)
    left.grid(visible=False)
    figure.colorbar(image, ax=left, format=PercentFormatter(1)).set_label("share of the attention", fontsize=SUBTITLE)
    given, even = attention.to_rewarded()
    right.plot(given, range(len(given)), "o", color=AD_COLOUR, markersize=8, label="the model's")
    right.axvline(even, color=INK, linestyle="--", linewidth=1.2, label="even attention's")
    right.set_yticks(range(len(given)), [])
    right.invert_yaxis()
    right.set(xlim=(0, 1), xlabel="share to steps that saw a reward")
    right.xaxis.set_major_formatter(PercentFormatter(1))
    clean(right, "To past rewards", columns=2, width=24)
    save(figure, path)
