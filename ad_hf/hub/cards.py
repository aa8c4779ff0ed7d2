"""Cards: the README.md of a dataset or model repository."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData, RepoCard
from huggingface_hub.utils import yaml_dump
from jinja2 import UndefinedError

from ad_hf.envs.task_family import SPLITS
from ad_hf.evaluation.headlines import evidence_words, learns_cell, pace_lines, streams_words, verdict_words
from ad_hf.evaluation.upgrades import upgrade_evaluation, upgrade_report
from ad_hf.files import atomic_path, read_text, write_text
from ad_hf.histories.frames import has_frames
from ad_hf.histories.schema import METADATA_FILE, HistoryMetadata, is_synthetic, read_metadata, source_label
from ad_hf.hub.markdown import card_environment
from ad_hf.hub.model_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    REPORT_FILE,
    Content,
    listed,
    own_results,
    run_files,
    weights_digest,
)
from ad_hf.hub.repositories import HUB_ID
from ad_hf.model import ADModel
from ad_hf.settings import parse_json, read_json

CARD = "README.md"
BEGIN = "<!-- ad_hf writes what is between these two lines anew with every push, and keeps all other text. -->"
END = "<!-- Here ends what ad_hf writes. -->"
# From the last beginning before an end: if someone deleted an end, what follows it is not ours.
WRITTEN = re.compile(f"{re.escape(BEGIN)}((?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL)
LICENSE = "apache-2.0"  # of what this package makes, unless another is given or stands in the card
UNKNOWN_LICENSE = "unknown"  # of histories that others made
JSON_FILES = (CONFIG_FILE, "run.json", REPORT_FILE, EVALUATION_FILE)  # that a model's card is made of
# Metadata that is true of one model or dataset alone: where we wrote it, it does not outlast it.
REPLACED_DATA = ("datasets", "model-index")


def template_path(folder: str, name: str) -> Path:
    """A card template: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for parent in (package, package.parent):
        if (parent / folder / name).is_file():
            return parent / folder / name
    raise FileNotFoundError(f"the card template {folder}/{name} is missing from this installation of ad_hf")


def _render(folder: str, file: str, /, **values: Any) -> str:
    path = template_path(folder, file)
    return card_environment(path.parent).get_template(path.name).render(**values)


@contextmanager
def _made_of(*files: str) -> Iterator[None]:
    """Name the files that a card is made of where they hold something else than is expected of them."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, UndefinedError, yaml.YAMLError) as error:
        if any(Path(named).name in str(error) for named in (*files, CARD, "license")):  # what is wrong is told already
            raise
        raise ValueError(
            f"no card can be made of {', '.join(files)}: what is expected there is missing, or something else is "
            f"({type(error).__name__}: {error})"
        ) from error


def _card_text(data: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml_dump(dict(data), sort_keys=False).strip()}\n---\n\n{body.strip()}\n"


def _read_card(card: str) -> RepoCard:
    try:
        loaded = RepoCard(card, ignore_metadata_errors=True)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the metadata at the top of {CARD} is not YAML of names and values: {error}") from error
    configs, tags = (loaded.data.to_dict().get(name, []) for name in ("configs", "tags"))
    if not isinstance(tags, str) and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        raise ValueError(f"the metadata at the top of {CARD}: tags must be a list of words, got {tags!r}")
    if not isinstance(configs, list) or not all(
        isinstance(config, dict) and isinstance(config.get("config_name"), str) for config in configs
    ):
        raise ValueError(
            f"the metadata at the top of {CARD}: configs must be a list of entries with a config_name, got {configs!r}"
        )
    return loaded


def without_configs(card: str) -> str:
    """A dataset's card without what its metadata says of configurations."""
    loaded = _read_card(card)
    data = {name: value for name, value in loaded.data.to_dict().items() if name != "configs"}
    return _card_text(data, loaded.text)


def merge_card(old: str | None, data: Mapping[str, Any], text: str, license: str | None = None) -> str:
    """
    A card with new metadata and text, which keeps what people wrote into the old one.

    Args:
        old (`str`, *optional*):
            The card so far. Its text outside of the two lines that enclose ours stays where it is; if it has no such
            lines, ours comes after it, and what it says of results and datasets is not ours either.
        data (`Mapping`):
            Metadata. Entries of the old card that are not in it stay; tags are joined; configurations are replaced by
            name.
        text (`str`):
            What we write.
        license (`str`, *optional*):
            Takes the place of that in the old card, which takes the place of that in `data`.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"license must be a name that the Hub knows, such as apache-2.0, mit or other, got {license!r}"
        )
    for line in (BEGIN, END):  # in a recipe or a name, for they would be taken for ours
        text = text.replace(line, line.replace("--", "- -"))
    section = f"{BEGIN}\n\n{text.strip()}\n\n{END}"
    merged = dict(data)
    body = section
    if old is not None and old.strip():
        card = _read_card(old)
        found = WRITTEN.search(card.text)
        before = card.data.to_dict()
        kept = {name: value for name, value in before.items() if found is None or name not in REPLACED_DATA}
        merged = {**kept, **data}
        if "license" in kept:
            # Someone may have put a line above ours, which YAML would take for the last word.
            lines = re.findall(r"^license: *([\w.+-]+) *$", old.removesuffix(card.text), re.MULTILINE)
            theirs = [each for each in lines if each not in (LICENSE, UNKNOWN_LICENSE)]
            merged["license"] = theirs[0] if len(lines) > 1 and theirs else kept["license"]
        if "tags" in before and "tags" in data:
            tags = [before["tags"]] if isinstance(before["tags"], str) else before["tags"]
            merged["tags"] = [*tags, *(tag for tag in data["tags"] if tag not in tags)]
        if "configs" in before and "configs" in data:
            configs = {config["config_name"]: config for config in (*before["configs"], *data["configs"])}
            merged["configs"] = [configs[name] for name in sorted(configs)]
        if found:
            body = card.text[: found.start()] + section + card.text[found.end() :]
        elif card.text.strip():
            body = f"{card.text.strip()}\n\n{section}"
    if license is not None:
        merged["license"] = license
    return _card_text(merged, body)


def dataset_config(folder: Path, metadata: HistoryMetadata, config_name: str) -> dict[str, Any]:
    """What a dataset card's YAML says of a configuration, whose files are in a folder: which belong to which split."""
    splits = [
        {"split": split, "path": f"{config_name}/{split}-*.parquet"}
        for split in SPLITS
        if any(folder.glob(f"{split}-*.parquet"))
    ]
    # The fingerprint keeps datasets' cache, which knows a local folder by its name and these lines alone, from taking
    # one dataset for another.
    description = f"{source_label(metadata.source['algorithm'])}, fingerprint {metadata.fingerprint}"
    return {"config_name": config_name, "data_files": splits, "description": description}


def dataset_card(
    metadata: Mapping[str, HistoryMetadata],
    configs: list[dict[str, Any]],
    name: str,
    old: str | None = None,
    license: str | None = None,
) -> str:
    """
    The text of a dataset's card.

    Args:
        metadata (`Mapping[str, HistoryMetadata]`):
            Of every configuration of the dataset.
        configs (`list[dict]`):
            What [`dataset_config`] says of those configurations that are new.
        name (`str`):
            What `load_dataset` takes: a Hub id or a folder.
        old (`str`, *optional*):
            The card so far; see [`merge_card`].
        license (`str`, *optional*):
            By default that of the card so far, else Apache-2.0, or `unknown` for histories that were imported.
    """
    env_ids = sorted({config.env_id for config in metadata.values()})
    title = f"Learning histories of {', '.join(env_ids)}"
    synthetic = {config_name: is_synthetic(config.source["algorithm"]) for config_name, config in metadata.items()}
    rows = sum(split["histories"] for config in metadata.values() for split in config.statistics.values())
    imported = any(config.source.get("n_envs") is None for config in metadata.values())
    data = DatasetCardData(
        license=UNKNOWN_LICENSE if imported else LICENSE,
        pretty_name=title,
        task_categories=["reinforcement-learning"],
        size_categories=[_size_category(rows)] if rows else None,
        tags=[
            *("in-context-reinforcement-learning", "algorithm-distillation"),
            *(["synthetic"] if any(synthetic.values()) else []),
            *env_ids,
        ],
        configs=configs,
    )
    text = _render(
        "dataset_cards",
        "learning_histories.md",
        title=title,
        name=name,
        configs=[
            {
                "name": config_name,
                "metadata": config,
                "is_synthetic": synthetic[config_name],
                "source": config.source,
                "source_label": source_label(config.source["algorithm"]),
                "splits": config.statistics,
                "has_frames": has_frames(config.spaces[0]),
                "num_tasks": {split: sum(task["split"] == split for task in config.tasks) for split in SPLITS},
            }
            for config_name, config in sorted(metadata.items())
        ],
    )
    return merge_card(old, data.to_dict(), text, license)


def _size_category(rows: int) -> str:
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
    return next((name for bound, name in bounds if rows < bound), "10M<n<100M")


def write_dataset_card(dataset: str | Path) -> Path:
    """
    Write the README.md of a learning-history dataset, whose YAML tells `datasets` which files belong to which split.

    Args:
        dataset (`str` or `Path`):
            Folder with one sub-folder per configuration, as [`~ad_hf.collect`] leaves it. Text that people wrote into
            its README.md stays.
    """
    dataset = Path(dataset)
    names = sorted(path.parent.name for path in dataset.glob(f"[!.]*/{METADATA_FILE}"))
    metadata = {name: read_metadata(dataset, name) for name in names}
    configs = [dataset_config(dataset / name, metadata[name], name) for name in names]
    card = dataset / CARD
    with _made_of(*(str(dataset / name / METADATA_FILE) for name in names), str(card)):
        text = dataset_card(metadata, configs, dataset.name, read_text(card))
    write_text(card, text)
    return card


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
    with _made_of(*(str(files[each]) for each in (*JSON_FILES, "recipe.yaml") if isinstance(files.get(each), Path))):
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
    text = _render(
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
    text = model_card({**listed(model, [CONFIG_FILE]), **files}, str(model), read_text(card))
    for name, path in files.items():
        if path.parent != model:
            with atomic_path(model / name) as temporary:
                shutil.copyfile(path, temporary)
    write_text(card, text)
    return card


def evaluation_card(
    folder: Path, name: str, found: Mapping[str, Any], old: str | None = None, license: str | None = None
) -> str:
    """
    The text of the card of an evaluation, with which it is a dataset of returns.

    Args:
        folder (`Path`):
            Of the evaluation's files.
        name (`str`):
            What `load_dataset` takes: a Hub id or a folder.
        found (`Mapping`):
            What its `evaluation.json` holds.
        old (`str`, *optional*):
            The card so far; see [`merge_card`].
        license (`str`, *optional*):
            By default that of the card so far, else Apache-2.0.

    Raises:
        ValueError: for an `evaluation.json` that holds something else than it should.
    """
    with _made_of(str(folder / "evaluation.json")):
        return _evaluation_card(folder, name, found, old, license)


def _evaluation_card(folder: Path, name: str, found: Mapping[str, Any], old: str | None, license: str | None) -> str:
    title = f"In-context reinforcement learning on {found['env_id']}: returns"
    data = DatasetCardData(
        license=LICENSE,
        pretty_name=title,
        task_categories=["reinforcement-learning"],
        tags=["in-context-reinforcement-learning", "algorithm-distillation", "evaluation", found["env_id"]],
        configs=[{"config_name": "default", "data_files": [{"split": "test", "path": "returns.parquet"}]}],
    )
    pictures = [picture for picture in ("learning_curves.png", "rooms.png") if (folder / picture).is_file()]
    text = _render(
        "dataset_cards",
        "evaluation.md",
        title=title,
        name=name,
        found=upgrade_evaluation(dict(found)),
        pictures=pictures,
        words={each.__name__: each for each in (learns_cell, pace_lines)},
    )
    return merge_card(old, data.to_dict(), text, license)
