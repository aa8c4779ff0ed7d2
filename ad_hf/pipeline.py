"""From nothing to an agent that learns unseen tasks in its context: collect, train, report."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate.logging import get_logger

from ad_hf.collection.collect import collect
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.card import evaluation_card, write_evaluation
from ad_hf.evaluation.episodes import can_be_seen, some_of
from ad_hf.evaluation.headlines import is_comparable
from ad_hf.evaluation.replay import REPLAY_FILES, write_replays
from ad_hf.evaluation.returns import ROWS_FILE, evaluation_rows, join_rows, random_rows, source_rows
from ad_hf.evaluation.rollouts import Evaluation, evaluate
from ad_hf.evaluation.summary import CURVES_FILE, SUMMARY_FILE
from ad_hf.evaluation.video import check_formats
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.hub.model_card import write_model_card
from ad_hf.hub.model_files import CONFIG_FILE, FAMILIES_FILE, weights_digest
from ad_hf.hub.models import load_model
from ad_hf.model.modeling_ad import ADModel
from ad_hf.own_recipe import check_unseen, recipe_of_dataset, recipe_of_model, seed_of_run
from ad_hf.recipe import Recipe, load_recipe
from ad_hf.settings import read_json
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import atomic_path, local_path, writable_folder, write_text
from ad_hf.training.compatibility import check_tasks
from ad_hf.training.loop import run
from ad_hf.training.machine import join_processes
from ad_hf.training.members import Member
from ad_hf.training.run_folder import check_run_folder, find_checkpoint, refuse_run, remove_checkpoints
from ad_hf.training.trainer import Trainer

RANDOM_EPISODES = 10  # of random actions in each environment of an evaluation

logger = logging.getLogger(__name__)


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
    """
    Collect the histories that a recipe's `family` and `source` sections describe; see [`~ad_hf.collect`]. Those of a
    mixture become configurations of one dataset, by the names of its families.
    """
    for name, each in recipe.members().items():
        config_name = {"config_name": name} if name else {}
        family = TaskFamily(each.family)
        folder = collect(
            family, each.source, output_dir=output_dir, num_workers=num_workers, **config_name, **settings
        )
    return folder


def train(
    recipe: Recipe | str | Path | None = None,
    dataset: str | Path | Sequence[str | Path] | None = None,
    output_dir: str | Path | None = None,
    config_name: str | None = None,
    streaming: bool = False,
    resume: str | Path | None = None,
    push_to: str | None = None,
    push_every: int | None = None,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> ADModel:
    r"""
    Train a model on learning histories.

    Writes `recipe.yaml` (complete), `run.json` (which data and initial weights, at which revision), `metrics.jsonl`,
    `training.png`, `checkpoint-N/`, `model/`, the model that did best on the validation tasks, and `verdict.json`,
    whether it learns, into `output_dir`. Start it with `accelerate launch -m ad_hf train` to train on several
    processes.

    SIGTERM and Ctrl-C save a checkpoint first; killed at any other moment, a run loses the updates after its last
    one. With `resume` it goes on, and ends as it would have, bit for bit on the same machine.

    Args:
        recipe ([`Recipe`], `str` or `Path`, *optional*):
            Settings: a recipe, its name, or a YAML file. By default environment, tasks and splits are the dataset's
            own, and the other settings those of the packaged recipe of that environment; a message says so.
        dataset (`str` or `Path`, or a sequence of them):
            Folder of a dataset that [`collect`] wrote, or its id on the Hub, with `@revision` if need be. For a recipe
            of a mixture, one with a configuration for each family, under its name, or as many datasets as families.
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
        overrides (`Sequence[str]`, *optional*):
            Settings that take the place of those of a recipe that is not a [`Recipe`] yet, as on a command line:
            `["--training.max_steps", "100"]`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether a recipe that comes along with the dataset may name any code, which is imported and runs.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to write over another run in `output_dir`, finished or not, and to remove its checkpoints.

    Returns:
        [`ADModel`]: the best model.

    Raises:
        FileExistsError: if `output_dir` holds another run, and neither `resume` nor `overwrite` says what to do.
        FileNotFoundError: for an unknown recipe, dataset or checkpoint.
        OSError: if a checkpoint cannot be written, with the last good one; if files of others are in the place of
            the model and checkpoints.
        TrainingDivergedError: if a loss, a gradient or a weight is not finite, with the update; a `ValueError`.
        TrainingInterrupted: after SIGTERM or Ctrl-C, when a checkpoint is saved; a `KeyboardInterrupt`.
        ValueError: if no recipe is named and none of the package is for the dataset's environment; if the dataset is
            of other tasks than the recipe's family, or split otherwise, or malformed; if the model to start from is of
            other sizes, or its run has trained on test tasks; if the checkpoint is of another dataset or recipe or of
            other weights to start from, or damaged; if model or batches do not fit in memory.
    """
    if push_every is not None and (push_to is None or push_every < 1):
        raise ValueError(f"push_every must be at least 1 and needs push_to, got {push_every} and {push_to!r}")
    if dataset is None or output_dir is None:
        raise TypeError("train needs a dataset and an output_dir")
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    output_dir = local_path(output_dir)
    check_run_folder(output_dir, resume is not None)
    processes = join_processes()
    if recipe is None:
        if not isinstance(dataset, (str, Path)):
            raise ValueError("several datasets need a recipe with a section mixture, of one recipe for each")
        opened = HistoryDataset.open(dataset, config_name)
        recipe, origin = recipe_of_dataset(opened, overrides, trust_remote_code)
        get_logger(__name__).info(origin)
    with processes.main_process_first():
        checkpoint = None if resume is None else find_checkpoint(resume, output_dir)
        init_from = recipe.training.init_from
        base = None
        if init_from is not None:
            for member in recipe.members().values():
                check_unseen(init_from, member.family, trust_remote_code)
            base = load_model(init_from, trust_remote_code)
        if not (overwrite or (resume is not None and _is_run_of(recipe, output_dir))):
            refuse_run(output_dir, checkpoint)
    trainer = Trainer(
        output_dir, _members(recipe, dataset, config_name, streaming), recipe.model, recipe.training, base
    )
    if overwrite and processes.is_main_process:
        remove_checkpoints(output_dir)
    run(trainer, recipe.to_yaml(), checkpoint, push_to, push_every)
    return load_model(output_dir / "model")[0]


def _members(
    recipe: Recipe, dataset: str | Path | Sequence[str | Path], config_name: str | None, streaming: bool
) -> list[Member]:
    """The families of a recipe, with their histories."""
    datasets = [dataset] if isinstance(dataset, (str, Path)) else list(dataset)
    recipes = recipe.members()
    if len(recipes) > 1 and len(datasets) == 1:
        opened = [HistoryDataset.open(datasets[0], name) for name in recipes]
    elif len(datasets) == len(recipes):
        opened = [HistoryDataset.open(each, config_name) for each in datasets]
    else:
        raise ValueError(
            f"the recipe has {len(recipes)} families ({', '.join(recipes)}), and there are {len(datasets)} datasets: "
            "give one for each in this order, or a single one with a configuration of each name"
        )
    weights = recipe.mixture.weights
    return [
        Member(
            *(of, each.family, each.data, each.rollout, streaming, name, weights.get(name, 1.0)),
            validation=each.training if name else None,
        )
        for (name, each), of in zip(recipes.items(), opened)
    ]


def _is_run_of(recipe: Recipe, output_dir: Path) -> bool:
    """Whether a folder holds a run of the same recipe."""
    try:
        return load_recipe(output_dir / "recipe.yaml").to_yaml() == recipe.to_yaml()
    except (FileNotFoundError, ValueError):
        return False


@dataclass
class EvaluatedModel:
    """
    A model to evaluate, and its run.

    Attributes:
        model ([`ADModel`]):
            The model.
        recipe ([`Recipe`]):
            Its sections `family` and `rollout` say on which test tasks and how the model acts.
        dataset (`str` or `Path`, *optional*):
            Histories of its source on these tasks.
        config_name (`str`, *optional*):
            Configuration of the dataset.
        origin (`dict`, *optional*):
            Name and revision of the model, for `evaluation.json`.
        run (`Path`, *optional*):
            Folder of its run, whose model's card gets the results.
        family (`tuple[str, str]`, *optional*):
            Of a group of a model: the name of the group, and the digest of the whole model's weights.
        agent (`str`, *optional*):
            Its name in the results. The default is AD; ED if the model learnt from the ends of histories alone, DPT if
            from the actions of another policy. Models of equal seeds get the name of their folder or repository, too.
    """

    model: ADModel
    recipe: Recipe
    dataset: str | Path | None = None
    config_name: str | None = None
    origin: dict[str, Any] | None = None
    run: Path | None = None
    agent: str = ""
    family: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.agent:
            data = self.recipe.data
            self.agent = "DPT" if data.labels is not None else "AD" if data.last_episodes is None else "ED"

    @property
    def name(self) -> str:
        """The name of the model, as the user gave it."""
        return (self.origin or {}).get("name", "one that has no name")

    @classmethod
    def load(
        cls,
        name: str | Path,
        dataset: str | Path | None = None,
        recipe: str | Path | None = None,
        overrides: Sequence[str] = (),
        trust_remote_code: bool = False,
        config_name: str | None = None,
    ) -> EvaluatedModel:
        """
        A model by the folder of its run or a Hub id, with a recipe and overrides.

        Args:
            name (`str` or `Path`):
                The model.
            dataset (`str` or `Path`, *optional*):
                Histories of its source.
            recipe (`str` or `Path`, *optional*):
                Name or file of the user's own recipe. The default is the recipe that comes along with the model: only
                its sections `family` and `rollout` are read, and it may name only known code. A message says so.
            overrides (`Sequence[str]`, *optional*):
                Settings of the recipe, as on a command line.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether the model and its recipe may name other code, which is imported and runs.
            config_name (`str`, *optional*):
                Configuration of the dataset.

        Raises:
            ValueError: for a recipe that comes along and names other code, with the setting, and for test tasks that
                the model's run has trained or validated on.
        """
        if recipe is not None:
            read = load_recipe(recipe, overrides)
            read.training.seed = seed_of_run(name, read.training.seed)
        else:
            read, whose = recipe_of_model(name, dataset, config_name, overrides, trust_remote_code)
            logger.info(whose)
        if recipe is not None or overrides:  # with which the split may be another one
            check_unseen(name, read.family, trust_remote_code)
        model, origin = load_model(name, trust_remote_code)
        group, own_family = Path(str(recipe)).stem, None
        if group in (model.config.groups or {}):
            own_family, model = (group, weights_digest(model)), model.group(group)
        folder = local_path(name)
        runs = [path for path in (folder, folder.parent) if (path / "model" / "config.json").is_file()]
        run = next((folder for folder in runs if (folder / "run.json").is_file()), None)
        if model.config.groups:
            run = None  # no family of the run
        return cls(model, read, dataset, config_name, origin, run, family=own_family)

    def to_json(self, rollout_seed: int) -> dict[str, Any]:
        """The entry of the model in `evaluation.json`."""
        return {
            **(self.origin or {}),
            "agent": self.agent,
            "split_seed": self.recipe.family.split_seed,
            "training_seed": self.recipe.training.seed,
            "rollout_seed": rollout_seed,
            "weights_digest": weights_digest(self.model),
        }


def evaluate_models(
    models: Sequence[EvaluatedModel],
    output_dir: str | Path,
    num_seeds: int = 5,
    replay_formats: Sequence[str] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    r"""
    Roll models out on the test tasks of their families, beside their source and random actions.

    Args:
        models (`Sequence[EvaluatedModel]`):
            One model, trainings of one recipe with several seeds and splits, or trainings of several recipes. Those
            of the same seeds, as with another learning rate, are agents of their own.
        output_dir (`str` or `Path`):
            Folder for `returns.parquet`, `evaluation.json`, `learning_curve.png`, `rooms.png` where tasks are cells of
            a room, and the replay. In the folder of a run, the card of its model shows them; elsewhere they get a card
            of their own, which makes them a dataset. The runs of the models get the results, too.
        num_seeds (`int`, *optional*, defaults to 5):
            Rollouts of each model per task.
        replay_formats (`Sequence[str]`, *optional*):
            Formats of the replay of the first model: `"gif"`, `"mp4"`, both or none. By default, an earlier replay
            stays.
        seconds (`Mapping`, *optional*):
            Durations of collection and training, for `evaluation.json`.

    Returns:
        `dict`: the content of `evaluation.json`.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ImportError: for an MP4 without the package av.
        ValueError: for another format, models that are the same training, and histories or a model of other tasks.
    """
    check_formats(replay_formats or ())
    _tell_apart(models)
    output_dir, start = writable_folder(output_dir), time.perf_counter()
    is_run = (output_dir / "model" / CONFIG_FILE).is_file()
    if is_run and models[0].family is not None:
        family = models[0].family[0]
        raise ValueError(
            f"{output_dir} is the run of several families, and this evaluation is of one: give it a folder of its "
            f"own, such as {output_dir / family}"
        )
    families = [TaskFamily(each.recipe.family) for each in models]
    sources = _sources_of(models, families)  # histories that cannot be read are refused before a rollout
    is_seen = bool(replay_formats) and can_be_seen(families[0])
    shown = some_of(len(families[0].tasks("test"))) if is_seen else []
    rollouts, rows = _play(models, families, sources, num_seeds, shown)
    entries = [each.to_json(evaluation.seed) for each, evaluation in zip(models, rollouts)]
    own = [{name: entry[name] for name in ("agent", "split_seed", "weights_digest")} for entry in entries]
    datasets = [dataset for dataset, _ in sources.values()]
    details = {
        "env_id": families[0].env_id,
        **(own[0] if len(models) == 1 else {}),
        "models": entries,
        "datasets": [{**dataset.to_json(), "seeds": dataset.metadata.seeds} for dataset in datasets],
        # One of several sources: one that is not comparable, if there is any.
        "source": min((dataset.metadata.source for dataset in datasets), key=is_comparable, default=None),
        "peak_memory_gigabytes": peak_memory_gigabytes(),
        "seconds": {**(seconds or {}), "rollout": round(time.perf_counter() - start, 1)},
    }
    results = write_evaluation(output_dir, rows, details)
    if replay_formats is not None:
        for name in REPLAY_FILES:  # an earlier evaluation's
            for folder in (output_dir, output_dir / "model") if is_run else (output_dir,):
                (folder / name).unlink(missing_ok=True)
    if is_seen:
        write_replays(output_dir, families[0], rollouts[0], replay_formats or ())
    for each, whose in zip(models, own):
        run = output_dir if is_run and len(models) == 1 else each.run
        if run is not None:
            _tell_run(run, output_dir, {**results, **whose}, each.family)
    if not is_run:
        write_text(output_dir / CARD, evaluation_card(output_dir, output_dir.name, results))
    return results


def _play(
    models: Sequence[EvaluatedModel],
    families: Sequence[TaskFamily],
    sources: Mapping[int, tuple[HistoryDataset, pa.Table]],
    num_seeds: int,
    shown: Sequence[int],
) -> tuple[list[Evaluation], pa.Table]:
    """
    Rollouts of each model, of the first with the actions in some tasks, and their rows; for each split, rows of random
    actions and the source, too.
    """
    rollouts: list[Evaluation] = []
    tables, splits = [], set()
    for each, family in zip(models, families):
        config, split = each.recipe.rollout, each.recipe.family.split_seed
        kept = () if rollouts else shown
        evaluation = evaluate(
            each.model, family, num_seeds=num_seeds, rollout_config=config, progress=True, shown=kept
        )
        rollouts.append(evaluation)
        tables.append(evaluation_rows(evaluation, family, each.agent, split, each.recipe.training.seed))
        if split not in splits:
            splits.add(split)
            # For about as many steps as the rollouts took at most.
            most = max(evaluation.lengths.sum(axis=2).max(), RANDOM_EPISODES * evaluation.lengths.max())
            tables.append(random_rows(family, RANDOM_EPISODES, num_seeds, split, int(most)))
            tables += [sources[split][1]] if split in sources else []
    return rollouts, join_rows(tables)


def _sources_of(
    models: Sequence[EvaluatedModel], families: Sequence[TaskFamily]
) -> dict[int, tuple[HistoryDataset, pa.Table]]:
    """The first histories of each split, and the returns of their source."""
    sources: dict[int, tuple[HistoryDataset, pa.Table]] = {}
    for each, family in zip(models, families):
        if each.dataset is None:
            continue
        dataset, split = HistoryDataset.open(each.dataset, each.config_name), each.recipe.family.split_seed
        check_tasks(family, dataset, "test")
        if split not in sources:
            sources[split] = dataset, source_rows(dataset, family, split)
    return sources


def _tell_run(run: Path, output_dir: Path, results: dict[str, Any], family: tuple[str, str] | None) -> None:
    """Put an evaluation into the folder of a run and into its model's card, unless they are read-only."""
    try:
        if family is not None:
            _tell_family(run / FAMILIES_FILE, *family, results)
        else:
            for name in (ROWS_FILE, CURVES_FILE) if run.resolve() != output_dir.resolve() else ():
                with atomic_path(run / name) as path:
                    shutil.copyfile(output_dir / name, path)
            write_text(run / SUMMARY_FILE, json.dumps(results, indent=2) + "\n")
        write_model_card(run)
    except OSError as error:
        warnings.warn(f"the card of the model in {run} does not tell of these results: {error}", stacklevel=3)


def _tell_family(path: Path, name: str, digest: str, results: dict[str, Any]) -> None:
    """Put the evaluation on one family beside those on the others, unless these are of other weights."""
    found = read_json(path) if path.is_file() else {}
    others = found["families"] if found.get("weights_digest") == digest else {}
    families = dict(sorted({**others, name: results}.items()))
    write_text(path, json.dumps({"weights_digest": digest, "families": families}, indent=2) + "\n")


def _tell_apart(models: Sequence[EvaluatedModel]) -> None:
    """Name different trainings of the same seeds apart, as those with other settings; refuse one training twice."""
    groups: dict[Any, list[EvaluatedModel]] = defaultdict(list)
    for each in models:
        groups[each.agent, each.recipe.family.split_seed, each.recipe.training.seed].append(each)
    for (agent, split_seed, training_seed), group in groups.items():
        firsts: dict[str, EvaluatedModel] = {}
        for each in group if len(group) > 1 else ():
            first = firsts.setdefault(weights_digest(each.model), each)
            if first is not each:
                raise ValueError(
                    f"the models {first.name} and {each.name} are the same training: both are {agent} with "
                    f"family.split_seed {split_seed}, training.seed {training_seed} and the same weights"
                )
    kinds = {kind for (kind, *_), group in groups.items() if len(group) > 1}
    for number, each in enumerate(models, start=1):
        if (kind := each.agent) in kinds:  # all of this kind, since it is unknown which belong together
            names = [other.name for other in models]
            each.agent = f"{kind} ({each.name if names.count(each.name) == 1 else number})"


def quickstart(
    recipe: Recipe | str = "dark_room",
    output_dir: str | Path = "runs/quickstart",
    num_seeds: int = 3,
    num_workers: int | None = None,
    dataset: str | Path | None = None,
    config_name: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    r"""
    Collect learning histories, train a model on them, and report how it learns test tasks in its context.

    Args:
        recipe ([`Recipe`] or `str`, *optional*, defaults to `"dark_room"`):
            The settings, or the name or file of a recipe.
        output_dir (`str` or `Path`, *optional*, defaults to `"runs/quickstart"`):
            Folder of the run: `histories/`, `model/`, `returns.parquet`, `evaluation.json`, `learning_curve.png`,
            `replay.gif`. Histories that are there already are not collected again.
        num_seeds (`int`, *optional*, defaults to 3):
            Rollouts per test task.
        num_workers (`int`, *optional*):
            Worker processes of the collection, by default one per core; 0 collects in this process.
        dataset (`str` or `Path`, *optional*):
            Histories to take instead of collecting any: a folder, or a Hub id.
        config_name (`str`, *optional*):
            Configuration in it.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            See [`~ad_hf.collect`].
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to write over the run of another recipe. One of the same recipe is trained and evaluated anew.

    Returns:
        `dict`: the content of `evaluation.json`; of a mixture, that of each family by its name, which lies in a folder
        of that name.

    Raises:
        FileExistsError: if `output_dir` holds the run of another recipe, without `overwrite`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    output_dir = local_path(output_dir)
    check_run_folder(output_dir)
    if not (overwrite or _is_run_of(recipe, output_dir)):
        refuse_run(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    histories: str | Path
    histories = dataset or collect_recipe(
        recipe, output_dir / "histories", num_workers, trust_remote_code=trust_remote_code
    )
    collected = time.perf_counter()
    model = train(recipe, histories, output_dir, config_name, overwrite=True)
    trained = time.perf_counter()
    seconds = {"collect": round(collected - begin, 1), "train": round(trained - collected, 1)}
    if not recipe.mixture.recipes:
        own = EvaluatedModel(model, recipe, histories, config_name)
        return evaluate_models([own], output_dir, num_seeds, ("gif",), seconds)
    results, digest = {}, weights_digest(model)
    for name, each in recipe.members().items():
        own = EvaluatedModel(model.group(name), each, histories, name, run=output_dir, family=(name, digest))
        results[name] = evaluate_models([own], output_dir / name, num_seeds, ("gif",), seconds)
    return results
