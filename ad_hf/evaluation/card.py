"""The files of an evaluation, the card that makes them a dataset of returns, and the results in models' cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData, EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ad_hf.evaluation.headlines import is_comparable, learns_cell, pace_lines
from ad_hf.evaluation.returns import ROWS_FILE, write_rows
from ad_hf.evaluation.summary import CURVES_FILE, PICTURES, ROOMS_FILE, SUMMARY_FILE, last_of, summarize
from ad_hf.evaluation.upgrades import upgrade
from ad_hf.histories.schema import VERSIONED_PACKAGES, package_versions
from ad_hf.storage.cards import LICENSE, card_of, merge_card, render_card
from ad_hf.storage.files import atomic_path, local_path, write_text
from ad_hf.storage.repositories import HUB_ID


def write_evaluation(output_dir: str | Path, rows: pa.Table, details: Mapping[str, Any]) -> dict[str, Any]:
    """
    Write `returns.parquet`, `evaluation.json`, `learning_curve.png` and, where tasks are cells of a room, `rooms.png`.

    Args:
        output_dir (`str` or `Path`):
            Folder to write to.
        rows (`pa.Table`):
            Returns of all agents; see [`~ad_hf.evaluation.returns`].
        details (`Mapping`):
            Further entries of `evaluation.json`, among them `env_id` and, if a source is among the agents, `source`
            from the metadata of its histories: `algorithm`, `n_envs` and `independent_streams`.

    Returns:
        `dict`: the content of `evaluation.json`.
    """
    output_dir = local_path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(output_dir / ROWS_FILE, rows)
    source = details.get("source")
    evaluation = {
        **details,
        **summarize(rows, source is None or is_comparable(source)),
        "versions": package_versions((*VERSIONED_PACKAGES, "accelerate", "huggingface_hub", "transformers")),
    }
    draw_evaluation(output_dir, evaluation)
    write_text(output_dir / SUMMARY_FILE, json.dumps(evaluation, indent=2) + "\n")
    return evaluation


def draw_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Draw the `learning_curve.png` and, where tasks are cells of a room, the `rooms.png` of an `evaluation.json`."""
    from ad_hf.evaluation.pictures import plot_curves, plot_rooms, rooms_of  # only here is matplotlib needed

    with atomic_path(folder / CURVES_FILE) as path:
        plot_curves(path, evaluation)
    (folder / ROOMS_FILE).unlink(missing_ok=True)  # an earlier evaluation's
    if rooms_of(evaluation):
        with atomic_path(folder / ROOMS_FILE) as path:
            plot_rooms(path, evaluation)


def evaluation_card(
    folder: Path, name: str, evaluation: Mapping[str, Any], old: str | None = None, license: str | None = None
) -> str:
    """
    The text of an evaluation's card, which makes it a dataset of returns.

    Args:
        folder (`Path`):
            Folder of the evaluation's files.
        name (`str`):
            The argument of `load_dataset`: a Hub id or a folder.
        evaluation (`Mapping`):
            The content of its `evaluation.json`.
        old (`str`, *optional*):
            The card so far; see [`merge_card`].
        license (`str`, *optional*):
            By default that of the card so far, else Apache-2.0.

    Raises:
        ValueError: naming a missing or wrong entry of `evaluation.json`.
    """
    with card_of(str(folder / SUMMARY_FILE)):
        title = f"In-context reinforcement learning on {evaluation['env_id']}: returns"
        data = DatasetCardData(
            license=LICENSE,
            pretty_name=title,
            task_categories=["reinforcement-learning"],
            tags=["in-context-reinforcement-learning", "algorithm-distillation", "evaluation", evaluation["env_id"]],
            configs=[{"config_name": "default", "data_files": [{"split": "test", "path": ROWS_FILE}]}],
        )
        text = render_card(
            "dataset_cards",
            "evaluation.md",
            title=title,
            name=name,
            evaluation=upgrade(evaluation),
            pictures=[picture for picture in PICTURES if (folder / picture).is_file()],
            words={each.__name__: each for each in (learns_cell, pace_lines)},
        )
        return merge_card(old, data.to_dict(), text, license)


def model_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The results in the card of a model, from the newest evaluation of it."""
    agent, datasets = evaluation["agents"][evaluation["agent"]], evaluation["datasets"]
    last = last_of(agent)
    (first, episodes), (low, high) = last["episodes"], last["return_interval"]
    return [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="in-context reinforcement learning",
            dataset_type=evaluation["env_id"],
            dataset_name=f"{evaluation['env_id']}, {agent['num_tasks']} held-out tasks",
            dataset_split="test",
            dataset_revision=datasets[0]["revision"] if len(datasets) == 1 else None,
            dataset_args={
                "tasks": agent["num_tasks"],
                "trainings": agent["num_models"],
                "rollouts_per_training_and_task": agent["num_rollouts"],
                "episodes": episodes,
            },
            metric_type="mean_reward",
            metric_name=f"mean return of episodes {first} to {episodes}",
            metric_value=f"{last['return']:.2f} +/- {(high - low) / 2:.2f}",
        )
    ]


def eval_results(evaluation: Mapping[str, Any]) -> str | None:
    """
    The results of [`model_results`] as the text of a file in `.eval_results/`, from which the Hub's model pages and
    leaderboards take them; `None` unless the tasks are those of one dataset on the Hub, at a commit of it.
    """
    datasets = evaluation["datasets"]
    if len(datasets) != 1 or not datasets[0]["revision"] or not HUB_ID.fullmatch(datasets[0]["name"]):
        return None
    agent, random = evaluation["agents"][evaluation["agent"]], evaluation["random_return"]
    (result,), first = model_results(evaluation), next(iter(agent["at"].values()))["return"]
    entry = EvalResultEntry(
        dataset_id=datasets[0]["name"],
        dataset_revision=datasets[0]["revision"],
        task_id=datasets[0].get("config_name", "default"),
        value=round(last_of(agent)["return"], 2),
        notes=f"{result.metric_name} in {agent['num_tasks']} test tasks: {result.metric_value}, after {first:.2f} in "
        f"the first episode{'' if random is None else f' ({random:.2f} by random play)'}",
    )
    return yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
