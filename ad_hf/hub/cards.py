"""Cards: the README.md of a dataset or model repository."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from ad_hf.envs.task_family import SPLITS
from ad_hf.files import write_text
from ad_hf.histories.schema import METADATA_FILE, read_metadata


def template_path(folder: str, name: str) -> Path:
    """A card template: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for parent in (package, package.parent):
        if (parent / folder / name).is_file():
            return parent / folder / name
    raise FileNotFoundError(f"the card template {folder}/{name} is missing from this installation of ad_hf")


def _fingerprint(folder: Path) -> str:
    """Digest of the contents of a configuration's shards, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*.parquet")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def write_dataset_card(dataset: str | Path) -> Path:
    """
    Write the README.md of a learning-history dataset, whose YAML tells `datasets` which files belong to which split.

    Args:
        dataset (`str` or `Path`):
            Folder with one sub-folder per configuration, as [`~ad_hf.collect`] leaves it.
    """
    dataset = Path(dataset)
    names = sorted(path.parent.name for path in dataset.glob(f"[!.]*/{METADATA_FILE}"))
    metadata = {name: read_metadata(dataset, name) for name in names}
    data_files: list[dict[str, Any]] = []
    for name in names:
        splits = [
            {"split": split, "path": f"{name}/{split}-*.parquet"}
            for split in SPLITS
            if any((dataset / name).glob(f"{split}-*.parquet"))
        ]
        # The fingerprint keeps datasets' cache, which knows a local folder by its name and these lines alone, from
        # taking one dataset for another.
        description = f"{metadata[name].source['algorithm']}, fingerprint {_fingerprint(dataset / name)}"
        data_files.append({"config_name": name, "data_files": splits, "description": description})
    env_ids = sorted({config.env_id for config in metadata.values()})
    title = f"Learning histories of {', '.join(env_ids)}"
    card_data = DatasetCardData(
        pretty_name=title,
        task_categories=["reinforcement-learning"],
        tags=["in-context-reinforcement-learning", "algorithm-distillation", *env_ids],
        configs=data_files,
    )
    card = DatasetCard.from_template(
        card_data,
        template_path=str(template_path("dataset_cards", "learning_histories.md")),
        title=title,
        folder=dataset.name,
        configs=[{"name": name, "metadata": config} for name, config in metadata.items()],
    )
    write_text(dataset / "README.md", str(card))
    return dataset / "README.md"


def write_model_card(model: str | Path, recipe_yaml: str, report: dict[str, Any]) -> Path:
    """
    Write the README.md of a model, with its results as a `model-index`.

    Args:
        model (`str` or `Path`):
            Folder of the model.
        recipe_yaml (`str`):
            The complete recipe that it was trained with.
        report (`dict`):
            The report of its rollouts on test tasks.
    """
    model, env_id = Path(model), report["env_id"]
    title = f"Algorithm Distillation on {env_id}"
    low, high = report["test_return_final_interval"]
    card_data = ModelCardData(
        model_name=title,
        pipeline_tag="reinforcement-learning",
        library_name="ad_hf",
        tags=[
            *("reinforcement-learning", "in-context-reinforcement-learning", "algorithm-distillation", "transformers"),
            env_id,
        ],
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                task_name="in-context reinforcement learning",
                dataset_type=env_id,
                dataset_name=f"{env_id}, {report['num_test_tasks']} held-out tasks",
                metric_type="mean_reward",
                metric_name=f"mean return of episodes {report['final_episodes'][0]} to {report['final_episodes'][1]}",
                metric_value=f"{report['test_return_final']:.2f} +/- {(high - low) / 2:.2f}",
            )
        ],
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(template_path("model_cards", "ad_model.md")),
        title=title,
        env_id=env_id,
        folder=model.name,
        source=report["source"],
        report=report,
        recipe=recipe_yaml,
    )
    write_text(model / "README.md", str(card))
    return model / "README.md"
