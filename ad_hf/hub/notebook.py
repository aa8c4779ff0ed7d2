"""A notebook beside a model on the Hub: the example of its card, and a learning curve."""

from __future__ import annotations

import json
import re
from typing import Any

from ad_hf.storage.cards import WRITTEN

NOTEBOOK_FILE = "notebook.ipynb"  # where the Hub looks for the notebook of a model
MARK = "`ad-hf push model` writes this notebook anew. Delete this line to keep your changes."
EXAMPLE = re.compile(r"^(`{3,})python\n(.*?)\n\1$", re.DOTALL | re.MULTILINE)
EPISODES = """\
import matplotlib.pyplot as plt

returns = out.episode_returns.mean(axis=0)
plt.plot(range(1, len(returns) + 1), returns)
plt.xlabel("episode")
plt.ylabel("mean return in these tasks")"""
STEPS = """\
import matplotlib.pyplot as plt

envs = family.make_vec(family.tasks(), num_envs=30 * len(tasks))
out = model.rollout(envs, num_episodes=1, seed=0, output_steps=True)
rewards = out.rewards.mean(axis=0)
plt.plot(range(1, len(rewards) + 1), rewards)
plt.xlabel("step")
plt.ylabel("mean reward in these tasks")"""


def model_notebook(card: str, name: str, by_step: bool) -> str | None:
    """
    The text of a model's notebook.

    Args:
        card (`str`):
            The text of the model's card.
        name (`str`):
            The Hub id of the model.
        by_step (`bool`):
            Whether the model learns from step to step, in a single episode.

    Returns:
        `str`: JSON of the notebook; `None` if the card has no example of a rollout.
    """
    ours = WRITTEN.search(card)
    example = EXAMPLE.search(ours[0]) if ours else None
    if example is None or "model.rollout(envs" not in example[2]:
        return None
    cells = {
        "title": f"# [{name}](https://huggingface.co/{name})\n\n{MARK}",
        "install": "%pip install -q ad_hf",
        "example": example[2],
        "question": "Does it learn in its context? The weights are frozen: if the curve rises, it does.",
        "curve": STEPS if by_step else EPISODES,
    }
    notebook = {
        "cells": [_cell(identity, source) for identity, source in cells.items()],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _cell(identity: str, source: str) -> dict[str, Any]:
    cell = {"id": identity, "metadata": {}, "source": source.splitlines(keepends=True)}
    if identity in ("title", "question"):
        return {"cell_type": "markdown", **cell}
    return {"cell_type": "code", "execution_count": None, "outputs": [], **cell}
