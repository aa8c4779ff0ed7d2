"""The card of a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ad_hf.evaluation.card import eval_results, model_results
from ad_hf.evaluation.headlines import evidence_words, learns_cell, pace_lines, streams_words, verdict_words
from ad_hf.evaluation.summary import SUMMARY_FILE
from ad_hf.evaluation.upgrades import upgrade
from ad_hf.histories.schema import is_synthetic, source_label
from ad_hf.hub.model_files import (
    CONFIG_FILE,
    EVAL_RESULTS_FILE,
    FAMILIES_FILE,
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

JSON_FILES = (CONFIG_FILE, "run.json", SUMMARY_FILE, REPORT_FILE, FAMILIES_FILE)  # the sources of a model's card


def model_card(files: Mapping[str, Content], name: str, old: str | None = None, license: str | None = None) -> str:
    """
    The text of a model's card, made of its configuration and the files of its run.

    Args:
        files (`Mapping[str, Path | bytes]`):
            The files beside it, by name: see [`~ad_hf.hub.model_files.model_files`].
        name (`str`):
            The Hub id or folder for `from_pretrained`.
        old (`str`, *optional*):
            The card so far; see [`merge_card`].
        license (`str`, *optional*):
            By default that of the card so far, else Apache-2.0.

    Raises:
        ValueError: naming a file with a missing or wrong entry.
    """
    with card_of(*(str(files[each]) for each in (*JSON_FILES, "recipe.yaml") if isinstance(files.get(each), Path))):
        config = _json_of(files, CONFIG_FILE) or {}
        run, evaluation = _json_of(files, "run.json"), evaluation_of(files)
        families = (_json_of(files, FAMILIES_FILE) or {"families": {}})["families"]
        evaluations = [*families.values()] if evaluation is None else [evaluation]
        trained_on, recipe = (run or {}).get("dataset"), files.get("recipe.yaml")
        is_on_hub = bool(trained_on and trained_on["revision"] and HUB_ID.fullmatch(trained_on["name"]))
        base = (run or {}).get("init_from")
        base_is_on_hub = bool(base and base["revision"] and HUB_ID.fullmatch(base["name"]))
        tasks = [] if evaluation is None else _some_tasks(evaluation)
        env_id = (run or {}).get("env_id") or (evaluation or {}).get("env_id")
        title = f"Algorithm Distillation on {env_id}" if env_id else "Algorithm Distillation"
        tags = [
            "reinforcement-learning",
            "in-context-reinforcement-learning",
            "algorithm-distillation",
            "transformers",
        ]
        data = ModelCardData(
            license=LICENSE,
            model_name=title,
            pipeline_tag="reinforcement-learning",
            library_name="ad-hf",
            tags=[*tags, env_id] if env_id else tags,
            datasets=[trained_on["name"]] if trained_on and is_on_hub else None,
            base_model=base["name"] if base and base_is_on_hub else None,
            base_model_relation="finetune" if base_is_on_hub else None,
            eval_results=[result for each in evaluations for result in model_results(each)] or None,
        )
        source = (evaluation or {}).get("source")
        algorithm = source["algorithm"] if source else (trained_on or {}).get("source") or ""
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
            evaluation=evaluation,
            families=families,
            words={
                each.__name__: each for each in (evidence_words, learns_cell, pace_lines, streams_words, verdict_words)
            },
            recipe=read_text(recipe) if isinstance(recipe, Path) else None,
            trained_on=trained_on,
            is_on_hub=is_on_hub,
            base=base,
            base_is_on_hub=base_is_on_hub,
            is_synthetic=is_synthetic(algorithm),
            source_label=source_label(algorithm),
            pictures=[picture for picture in ("learning_curve.png", "paths.gif", "replay.gif") if picture in files],
        )
        return merge_card(old, data.to_dict(), text, license)


def eval_results_file(files: Mapping[str, Content]) -> dict[str, Content]:
    """The file of results that the Hub reads, by its path in the repository of a model with these files, if any."""
    with card_of(SUMMARY_FILE, REPORT_FILE):
        evaluation = evaluation_of(files)
        text = None if evaluation is None else eval_results(evaluation)
    return {} if text is None else {EVAL_RESULTS_FILE: text.encode()}


def evaluation_of(files: Mapping[str, Content]) -> dict[str, Any] | None:
    """The evaluation among the files of a model, as an `evaluation.json` is now, if there is one."""
    results = _json_of(files, SUMMARY_FILE) or _json_of(files, REPORT_FILE)
    return None if results is None else upgrade(results)


def _json_of(files: Mapping[str, Content], name: str) -> dict[str, Any] | None:
    content = files.get(name)
    if content is None:
        return None
    return read_json(content) if isinstance(content, Path) else parse_json(content.decode(), name)


def _family_settings(run: dict[str, Any], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of a run's environments, for its family; most runs have only `env_kwargs`."""
    env_kwargs = run.get("env_kwargs", {})
    attributes = [name for name in run.get("attributes", []) if any(name in kwargs for kwargs in (env_kwargs, *tasks))]
    others = {"wrappers": run.get("wrappers"), "attributes": attributes}
    return {"env_kwargs": env_kwargs, **{name: value for name, value in others.items() if value}}


def _some_tasks(evaluation: dict[str, Any], count: int = 3) -> list[dict[str, Any]]:
    """Keyword arguments of a few held-out tasks of the model, from all over the list."""
    split = evaluation.get("split_seed")
    tasks = [task["kwargs"] for task in evaluation["tasks"] if split in (None, task.get("split_seed"))]
    return tasks[:: max(1, len(tasks) // count)][:count]


def write_model_card(run: str | Path) -> Path:
    """
    Write the README.md of the model of a run, with the run's recipe, data and results beside it.

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
