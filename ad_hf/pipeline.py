"""From nothing to an agent that learns unseen tasks in its context: collect, train, report."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import PartialState

from ad_hf.collection.collect import collect
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.evaluate import evaluate
from ad_hf.evaluation.headlines import OF_RETURN, evidence_words, is_comparable, pace_lines, verdict_words
from ad_hf.evaluation.protocol import SUMMARY_FILE, evaluation_rows, random_rows, source_rows
from ad_hf.evaluation.replay import REPLAY_FILES, can_be_seen, write_replay
from ad_hf.evaluation.report import source_curves, write_report
from ad_hf.evaluation.results import write_evaluation
from ad_hf.evaluation.video import check_formats
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.hub.model_card import write_model_card
from ad_hf.hub.model_files import weights_digest
from ad_hf.hub.models import load_model, run_recipe
from ad_hf.model.modeling_ad import ADModel
from ad_hf.recipe import Recipe, load_foreign_recipe, load_recipe
from ad_hf.storage.files import local_path, writable_folder, write_text
from ad_hf.training.compatibility import check_tasks
from ad_hf.training.loop import run
from ad_hf.training.machine import keep_freed_memory, train_on_cpu
from ad_hf.training.run_folder import check_run_folder, find_checkpoint
from ad_hf.training.trainer import Trainer

LONGEST_WAIT = timedelta(hours=6)  # of other processes, for the one that validates


def peak_memory_gigabytes() -> float | None:
    """Largest resident memory so far: of this process, or of its largest child process if that was larger."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(max(peaks) * unit / 1e9, 2)


def collect_recipe(
    recipe: Recipe, output_dir: str | Path, num_workers: int | None = None, **settings: Any
) -> Path | str:
    """Collect the histories that a recipe's `family` and `source` sections describe; see [`~ad_hf.collect`]."""
    return collect(
        TaskFamily(recipe.family), recipe.source, output_dir=output_dir, num_workers=num_workers, **settings
    )


def train(
    recipe: Recipe | str | Path,
    dataset: str | Path,
    output_dir: str | Path,
    config_name: str | None = None,
    streaming: bool = False,
    resume: str | Path | None = None,
    push_to: str | None = None,
    push_every: int | None = None,
) -> ADModel:
    r"""
    Train a model on learning histories.

    Writes `recipe.yaml` (complete), `run.json` (which data, at which revision), `metrics.jsonl`, `training.png`,
    `checkpoint-N/` and `model/`, the model that did best on the validation tasks, into `output_dir`. Start it with
    `accelerate launch scripts/train.py` to train on several processes.

    SIGTERM and Ctrl-C save a checkpoint first; killed at any other moment, a run loses the updates after its last
    one. With `resume` it goes on, and ends as it would have, bit for bit on the same machine.

    Args:
        recipe ([`Recipe`], `str` or `Path`):
            Settings: a recipe, its name, or a YAML file.
        dataset (`str` or `Path`):
            Folder of a dataset that [`collect`] wrote, or its id on the Hub, with `@revision` if need be.
        output_dir (`str` or `Path`):
            Folder of the run.
        config_name (`str`, *optional*):
            Configuration of the dataset; may be left out if there is only one, or one called `default`.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the histories as they are needed, in memory that does not grow with the dataset, instead of all.
        resume (`str` or `Path`, *optional*):
            `"latest"`, to go on from the newest checkpoint in `output_dir` if there is one, a checkpoint's folder, or
            a repository that checkpoints were pushed to.
        push_to (`str`, *optional*):
            Repository on the Hub, as `user/name` or `user/name@branch`, for the model, and until it is done for its
            newest checkpoint.
        push_every (`int`, *optional*):
            Updates between such pushes, in the background; without, only an interrupted run's checkpoint and the end.

    Returns:
        [`ADModel`]: the best model.

    Raises:
        FileNotFoundError: for an unknown recipe, dataset or checkpoint.
        OSError: if a checkpoint cannot be written, with the last good one; if files of others are in the place of
            the model and checkpoints.
        TrainingDivergedError: if a loss, a gradient or a weight is not finite, with the update; a `ValueError`.
        TrainingInterrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved; a `KeyboardInterrupt`.
        ValueError: if the dataset is of other tasks than the recipe's family, or split otherwise, or malformed; if the
            checkpoint is of another dataset or recipe, or damaged; if model or batches do not fit in memory.
    """
    if push_every is not None and (push_to is None or push_every < 1):
        raise ValueError(f"push_every must be at least 1 and needs push_to, got {push_every} and {push_to!r}")
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    output_dir = local_path(output_dir)
    check_run_folder(output_dir, resume is not None)
    keep_freed_memory()
    state = PartialState(cpu=train_on_cpu(), timeout=LONGEST_WAIT)
    opened = HistoryDataset.open(dataset, config_name)
    with state.main_process_first():
        checkpoint = None if resume is None else find_checkpoint(resume, output_dir)
    sections = recipe.family, recipe.data, recipe.model, recipe.training, recipe.rollout
    run(Trainer(output_dir, opened, *sections, streaming), recipe.to_yaml(), checkpoint, push_to, push_every)
    return load_model(output_dir / "model")[0]


def evaluate_recipe(
    recipe: Recipe,
    model: ADModel,
    dataset: str | Path | None,
    output_dir: str | Path,
    num_seeds: int = 3,
    details: dict[str, Any] | None = None,
    config_name: str | None = None,
    replay_formats: Sequence[str] = ("gif",),
) -> dict[str, Any]:
    r"""
    Roll a model out on the test tasks of a recipe's family and write `report.json`, `learning_curve.png` and, where
    the environments can be seen, a replay; of a run, they and a card go into the model's folder, too.

    Args:
        recipe ([`Recipe`]):
            Whose `family` and `rollout` sections say on which tasks and how.
        model ([`ADModel`]):
            The model.
        dataset (`str` or `Path`, *optional*):
            Histories of the source on the same tasks; without any, the report is of the model alone.
        output_dir (`str` or `Path`):
            Folder to write to.
        num_seeds (`int`, *optional*, defaults to 3):
            Rollouts per task.
        details (`dict`, *optional*):
            Further entries of the report.
        config_name (`str`, *optional*):
            Configuration of the dataset.
        replay_formats (`Sequence[str]`, *optional*, defaults to `("gif",)`):
            Of `replay.gif` and `replay.mp4`, those to write: `"gif"`, `"mp4"`, both or none.

    Returns:
        `dict`: the report.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ImportError: for an MP4 without the package av.
        ValueError: for another format, and if the model is for other spaces than the family has.
    """
    check_formats(replay_formats)
    opened = None if dataset is None else HistoryDataset.open(dataset, config_name)
    family, output_dir = TaskFamily(recipe.family), writable_folder(output_dir)
    if opened is not None:
        check_tasks(family, opened, "test")
    learnt = None if opened is None else source_curves(opened)  # what cannot be read is found out before a rollout
    shown = bool(replay_formats) and can_be_seen(family)
    start = time.perf_counter()
    evaluation = evaluate(model, family, "test", num_seeds=num_seeds, rollout_config=recipe.rollout, progress=True)
    seconds = {**(details or {}).get("seconds", {}), "rollout": round(time.perf_counter() - start, 1)}
    report = write_report(
        output_dir,
        evaluation,
        family,
        opened,
        {
            "env_id": family.env_id,
            "peak_memory_gigabytes": peak_memory_gigabytes(),
            "seeds": {
                "split": recipe.family.split_seed,
                "source": None if opened is None else opened.metadata.seeds,
                "training": recipe.training.seed,
            },
            "weights_digest": weights_digest(model),
            **(details or {}),
            "seconds": seconds,
        },
        learnt,
    )
    for name in REPLAY_FILES:  # of the rollout that was reported there before
        (output_dir / name).unlink(missing_ok=True)
    if shown:
        num_episodes = evaluation.returns.shape[2]
        write_replay(output_dir, model, family, num_episodes, recipe.rollout, replay_formats, progress=True)
    if (output_dir / "model" / "config.json").is_file():
        with _if_writable(output_dir):
            for name in REPLAY_FILES:
                (output_dir / "model" / name).unlink(missing_ok=True)
            write_model_card(output_dir)
    return report


@contextmanager
def _if_writable(run: Path) -> Iterator[None]:
    """Warn where the card of a run's model cannot be written: the results are there, and the run may be read-only."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"the card of the model in {run} does not tell of these results: {error}", stacklevel=3)


@dataclass
class EvaluatedModel:
    """
    A model, and how it came about.

    Args:
        model ([`ADModel`]):
            The model.
        recipe ([`Recipe`]):
            Of its run: its family's test tasks are played, as its `rollout` section says.
        dataset (`str` or `Path`, *optional*):
            Histories of its source on these tasks.
        origin (`dict`, *optional*):
            Where it is from, for `evaluation.json`.
        run (`Path`, *optional*):
            Folder of its run, to whose model's card the results are added.
    """

    model: ADModel
    recipe: Recipe
    dataset: str | Path | None = None
    origin: dict[str, Any] | None = None
    run: Path | None = None

    @classmethod
    def load(
        cls,
        name: str | Path,
        dataset: str | Path | None = None,
        recipe: str | Path | None = None,
        overrides: Sequence[str] = (),
        trust_remote_code: bool = False,
    ) -> EvaluatedModel:
        """
        A model by the folder of its run or a Hub id, with a recipe and overrides.

        Args:
            name (`str` or `Path`):
                The model.
            dataset (`str` or `Path`, *optional*):
                Histories of its source.
            recipe (`str` or `Path`, *optional*):
                Name or file of a recipe, the user's own. By default that of the model's run, which comes along with
                the model: its sections `family` and `rollout` are read, and names in them have to be known ones.
            overrides (`Sequence[str]`, *optional*):
                Settings of the recipe, as on a command line.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether what comes along may name code that is imported and run.

        Raises:
            ValueError: for a recipe that comes along and asks for more, naming the setting.
        """
        model, origin = load_model(name, trust_remote_code)
        folder = local_path(name)
        runs = [path for path in (folder, folder.parent) if (path / "model" / "config.json").is_file()]
        run = next((folder for folder in runs if (folder / "run.json").is_file()), None)
        if recipe is not None:
            read = load_recipe(recipe, overrides)
        elif trust_remote_code:
            read = load_recipe(run_recipe(name), overrides)
        else:
            read = load_foreign_recipe(run_recipe(name), f"the model {name}", overrides)
        return cls(model, read, dataset, origin, run)

    @property
    def agent(self) -> str:
        """What it is called: AD; ED if it was trained on the ends of histories alone, DPT if on other actions."""
        if self.recipe.data.labels is not None:
            return "DPT"
        return "AD" if self.recipe.data.last_episodes is None else "ED"


def evaluate_models(
    models: Sequence[EvaluatedModel],
    output_dir: str | Path,
    num_seeds: int = 5,
    details: dict[str, Any] | None = None,
) -> dict[str, Any]:
    r"""
    Roll several models out on the test tasks of their families, by the protocol of
    [`~ad_hf.evaluation.protocol`], beside their source and random actions.

    Args:
        models (`Sequence[EvaluatedModel]`):
            The models: trainings of one recipe with several seeds and splits, or of several recipes.
        output_dir (`str` or `Path`):
            Folder of `evaluation.json`, `returns.parquet`, `learning_curves.png`, `rooms.png` where tasks are cells
            of a room, and a card, with which it is a dataset of its own. The cards of the models tell of it, too.
        num_seeds (`int`, *optional*, defaults to 5):
            Rollouts of each model per task.
        details (`dict`, *optional*):
            Further entries of `evaluation.json`.

    Returns:
        `dict`: what `evaluation.json` holds.
    """
    output_dir = writable_folder(output_dir)
    _check_different(models)
    tables, start = [], time.perf_counter()
    families = [TaskFamily(each.recipe.family) for each in models]
    learnt: dict[int, tuple[dict[str, Any], pa.Table]] = {}
    for each, family in zip(models, families):  # histories that cannot be read are found out before a rollout
        split = each.recipe.family.split_seed
        if each.dataset is None:
            continue
        opened = HistoryDataset.open(each.dataset)
        check_tasks(family, opened, "test")
        if split not in learnt:
            learnt[split] = opened.metadata.source, source_rows(source_curves(opened), family, split)
    known = set()
    for each, family in zip(models, families):
        split = each.recipe.family.split_seed
        evaluation = evaluate(
            each.model, family, "test", num_seeds=num_seeds, rollout_config=each.recipe.rollout, progress=True
        )
        tables.append(evaluation_rows(evaluation, family, each.agent, split, each.recipe.training.seed))
        if split in known:
            continue
        known.add(split)
        tables.append(random_rows(family, num_seeds=num_seeds, split_seed=split))
        if split in learnt:
            tables.append(learnt[split][1])
    details = {"env_id": models[0].recipe.family.env_id, "models": [each.origin for each in models], **(details or {})}
    if learnt:  # of several sources, one that is not comparable, if there is any
        details["source"] = min((source for source, _ in learnt.values()), key=is_comparable)
    details["seconds"] = round(time.perf_counter() - start, 1)
    found = write_evaluation(output_dir, pa.concat_tables(tables), details)
    for each in models:
        if each.run is not None:
            own = {**found, "agent": each.agent, "weights_digest": weights_digest(each.model)}
            with _if_writable(each.run):
                write_text(each.run / SUMMARY_FILE, json.dumps(own, indent=2) + "\n")
                write_model_card(each.run)
    return found


def _check_different(models: Sequence[EvaluatedModel]) -> None:
    """Refuse models that an evaluation could not tell apart: it would count one training twice."""
    known: dict[Any, EvaluatedModel] = {}
    for each in models:
        seeds = each.recipe.family.split_seed, each.recipe.training.seed
        first = known.setdefault((each.agent, *seeds), each)
        if first is not each:
            names = [(model.origin or {}).get("name", "one that has no name") for model in (first, each)]
            raise ValueError(
                f"the models {names[0]} and {names[1]} are the same training: both are {each.agent} with "
                f"family.split_seed {seeds[0]} and training.seed {seeds[1]}; give trainings of different seeds"
            )


def quickstart(
    recipe: Recipe | str = "dark_room",
    output_dir: str | Path = "runs/quickstart",
    num_seeds: int = 3,
    num_workers: int | None = None,
    dataset: str | Path | None = None,
    config_name: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    r"""
    Collect learning histories, train a model on them, and report how it learns test tasks in its context.

    Args:
        recipe ([`Recipe`] or `str`, *optional*, defaults to `"dark_room"`):
            What to do.
        output_dir (`str` or `Path`, *optional*, defaults to `"runs/quickstart"`):
            Folder of the run: `histories/`, `model/`, `report.json`, `learning_curve.png`, `replay.gif`. Histories
            that are there already are not collected again.
        num_seeds (`int`, *optional*, defaults to 3):
            Rollouts per test task.
        num_workers (`int`, *optional*):
            Worker processes of the collection, by default one per core.
        dataset (`str` or `Path`, *optional*):
            Histories to take instead of collecting any: a folder, or a Hub id.
        config_name (`str`, *optional*):
            Configuration in it.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            As of [`~ad_hf.collect`].

    Returns:
        `dict`: the report.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    output_dir = local_path(output_dir)
    check_run_folder(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    histories: str | Path
    histories = dataset or collect_recipe(
        recipe, output_dir / "histories", num_workers, trust_remote_code=trust_remote_code
    )
    collected = time.perf_counter()
    model = train(recipe, histories, output_dir, config_name)
    trained = time.perf_counter()
    seconds = {"collect": round(collected - begin, 1), "train": round(trained - collected, 1)}
    report = evaluate_recipe(recipe, model, histories, output_dir, num_seeds, {"seconds": seconds}, config_name)
    return report


def summary(report: dict[str, Any], output_dir: str | Path) -> str:
    """A report in a few lines."""
    first, last = report["final_episodes"]
    low, high = report["test_return_final_interval"]
    of_source, learns = report["source_return_final"], report["learns"]
    plain, share = report["fraction_of"] == OF_RETURN, report["fraction_of_optimal"]
    bests = {
        "random actions": report["random_return"],
        "the best possible": None if plain else report["optimal_return"],
    }
    others = [f"{who}: {value:.2f}" for who, value in bests.items() if value is not None]
    if share is not None and not plain:
        others.append(f"of that gain: {share:.2f}")
    lines = [
        f"return on {report['num_test_tasks']} held-out tasks, episodes {first} to {last}: "
        f"{report['test_return_final']:.2f} (95% interval {low:.2f} to {high:.2f})"
        + (f" of {report['optimal_return']:.2f} possible" if plain else ""),
        f"in the first episode: {report['test_return_first']:.2f}"
        + ("" if of_source is None else f"; the source's final return: {of_source:.2f}"),
        "; ".join(others),
        ": ".join(words for words in (verdict_words(learns), evidence_words(learns)) if words is not None),
        *pace_lines(report["env_steps_to"], "ad"),
    ]
    lines = [line for line in lines if line]
    written = {"picture": "learning_curve.png", "replay": "replay.gif", "video": "replay.mp4", "report": "report.json"}
    files = {what: Path(output_dir) / name for what, name in written.items()}
    lines.append("   ".join(f"{what}: {file}" for what, file in files.items() if file.is_file()))
    return "\n".join(lines)
