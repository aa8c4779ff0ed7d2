"""The card of a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ad_hf.evaluation.headlines import evidence_words, learns_cell, pace_lines, streams_words, verdict_words
from ad_hf.evaluation.upgrades import upgrade_evaluation, upgrade_report
from ad_hf.histories.schema import is_synthetic, source_label
from ad_hf.hub.model_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    REPORT_FILE,
    Content,
    own_results,
    run_files,
    weights_digest,
)
from ad_hf.model.modeling_ad import ADModel
from ad_hf.settings import parse_json, read_json
from ad_hf.storage.cards import CARD, LICENSE, card_of, merge_card, render_card
from ad_hf.storage.files import atomic_path, files_in, read_text, write_text
from ad_hf.storage.repositories import HUB_ID

JSON_FILES = (CONFIG_FILE, "run.json", REPORT_FILE, EVALUATION_FILE)  # that a model's card is made of


def model_card(files: Mapping[str, Content], name: str, old: str | None = None, license: str | None = None) -> str:
    """
    The text of a model's card, made of its configuration and the files of its run.

    Args:
        files (`Mapping[str, Path | bytes]`):
            What lies beside it, by name: see [`~ad_hf.hub.model_files.model_files`].
        name (`str`):
            What `from_pretrained` takes: a Hub id or a folder.
        old (`str`, *optional*):
            The card so far; see [`merge_card`].
        license (`str`, *optional*):
            By default that of the card so far, else Apache-2.0.

    Raises:
        ValueError: for files that hold something else than they should, with their names.
    """
    with card_of(*(str(files[each]) for each in (*JSON_FILES, "recipe.yaml") if isinstance(files.get(each), Path))):
        return _model_card(files, name, old, license)


def _model_card(files: Mapping[str, Content], name: str, old: str | None, license: str | None) -> str:
    config = _json_of(files, CONFIG_FILE) or {}
    run, report, evaluation = (_json_of(files, each) for each in JSON_FILES[1:])
    report = None if report is None else upgrade_report(report)
    evaluation = None if evaluation is None else upgrade_evaluation(evaluation)
    trained_on, recipe = (run or {}).get("dataset"), files.get("recipe.yaml")
    is_on_hub = bool(trained_on and trained_on["revision"] and HUB_ID.fullmatch(trained_on["name"]))
    tasks = [{}] if report is None else _some_tasks(report)
    env_id = (run or {}).get("env_id") or (report or {}).get("env_id")
    title = f"Algorithm Distillation on {env_id}" if env_id else "Algorithm Distillation"
    tags = ["reinforcement-learning", "in-context-reinforcement-learning", "algorithm-distillation", "transformers"]
    data = ModelCardData(
        license=LICENSE,
        model_name=title,
        pipeline_tag="reinforcement-learning",
        library_name="ad-hf",
        tags=[*tags, env_id] if env_id else tags,
        datasets=[trained_on["name"]] if trained_on and is_on_hub else None,
        eval_results=_protocol_results(evaluation)
        if evaluation
        else None
        if report is None
        else _eval_results(report),
    )
    source = (report or {}).get("source") or {"algorithm": (trained_on or {}).get("source")}
    text = render_card(
        "model_cards",
        "ad_model.md",
        title=title,
        name=name,
        is_hub_id=not Path(name).is_dir(),
        env_id=env_id,
        settings=_family_settings(run or {}, tasks),
        tasks=tasks,
        config=config,
        run=run,
        report=report,
        evaluation=evaluation,
        learns=_tested(report, evaluation),
        words={
            each.__name__: each for each in (evidence_words, learns_cell, pace_lines, streams_words, verdict_words)
        },
        recipe=read_text(recipe) if isinstance(recipe, Path) else None,
        trained_on=trained_on,
        is_on_hub=is_on_hub,
        is_synthetic=is_synthetic(source["algorithm"]),
        source_label=source_label(source["algorithm"]),
        pictures=[picture for picture in ("learning_curve.png", "replay.gif") if picture in files],
    )
    return merge_card(old, data.to_dict(), text, license)


def _json_of(files: Mapping[str, Content], name: str) -> dict[str, Any] | None:
    content = files.get(name)
    if content is None:
        return None
    return read_json(content) if isinstance(content, Path) else parse_json(content.decode(), name)


def _family_settings(run: dict[str, Any], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a family of these tasks is told to make the environments of a run; most runs have neither of the others."""
    env_kwargs = run.get("env_kwargs", {})
    attributes = [name for name in run.get("attributes", []) if any(name in given for given in (env_kwargs, *tasks))]
    others = {"wrappers": run.get("wrappers"), "attributes": attributes}
    return {"env_kwargs": env_kwargs, **{name: value for name, value in others.items() if value}}


def _some_tasks(report: dict[str, Any], count: int = 3) -> list[dict[str, Any]]:
    """Keyword arguments of a few tasks of a report, from all over its list."""
    tasks = report["tasks"][:: max(1, len(report["tasks"]) // count)][:count]
    return [task["kwargs"] for task in tasks]


def _tested(report: dict[str, Any] | None, evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """The test of whether a model learns in its context: of it alone, or else of all trainings of which it is one."""
    own = None if report is None else report["learns"]
    if evaluation is not None and (own is None or own["verdict"] is None):
        return evaluation["agents"][evaluation["agent"]]["learns"]
    return own


def _eval_results(report: dict[str, Any]) -> list[EvalResult]:
    first, last = report["final_episodes"]
    low, high = report["test_return_final_interval"]
    dataset = report.get("dataset") or {}
    shared: dict[str, Any] = {
        "task_type": "reinforcement-learning",
        "task_name": "in-context reinforcement learning",
        "dataset_type": report["env_id"],
        "dataset_name": f"{report['env_id']}, {report['num_test_tasks']} held-out tasks",
        "dataset_split": "test",
        "dataset_revision": dataset.get("revision"),
        "dataset_args": {
            "tasks": report["num_test_tasks"],
            "rollouts_per_task": report["num_rollout_seeds"],
            "rollout_seed": report["rollout_seed"],
            "episodes": last,
            "training_seed": report.get("seeds", {}).get("training"),
        },
    }
    return [
        EvalResult(
            metric_type="mean_reward",
            metric_name=f"mean return of episodes {first} to {last}",
            metric_value=f"{report['test_return_final']:.2f} +/- {(high - low) / 2:.2f}",
            **shared,
        )
    ]


def _protocol_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    """The return that `ad-hf evaluate` found for all trainings of which a model is one."""
    agent = evaluation["agents"][evaluation["agent"]]
    last = list(agent["at"].values())[-1]
    low, high = last["return_interval"]
    return [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="in-context reinforcement learning",
            dataset_type=evaluation["env_id"],
            dataset_name=f"{evaluation['env_id']}, {agent['num_tasks']} held-out tasks",
            dataset_split="test",
            dataset_args={
                "tasks": agent["num_tasks"],
                "trainings": agent["num_models"],
                "rollouts_per_training_and_task": agent["num_rollouts"],
                "episodes": last["episodes"][1],
            },
            metric_type="mean_reward",
            metric_name=f"mean return of episodes {last['episodes'][0]} to {last['episodes'][1]}",
            metric_value=f"{last['return']:.2f} +/- {(high - low) / 2:.2f}",
        )
    ]


def write_model_card(run: str | Path) -> Path:
    """
    Write the README.md of the model of a run, with the run's recipe, data, report and pictures beside it.

    Args:
        run (`str` or `Path`):
            Folder of the run, with the model in `model/`. Text that people wrote into its README.md stays.
    """
    model = Path(run) / "model"
    files = own_results(run_files(model), lambda: weights_digest(ADModel.from_pretrained(model)))
    card = model / CARD
    text = model_card({**files_in(model, [CONFIG_FILE]), **files}, str(model), read_text(card))
    for name, path in files.items():
        if path.parent != model:
            with atomic_path(model / name) as temporary:
                shutil.copyfile(path, temporary)
    write_text(card, text)
    return card
