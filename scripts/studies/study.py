"""
Studies: what a paper's table or figure compares, as a recipe and the settings that are varied.

A study is a YAML file. Its cells are its variants, each with every training seed on every split of the tasks; a cell
that is finished is never run again, and one that was killed goes on from its last checkpoint. Histories are shared by
all cells, and studies, whose recipes collect the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from filelock import FileLock, Timeout

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.returns import (
    ROWS_FILE,
    evaluation_rows,
    join_rows,
    random_rows,
    read_rows,
    source_rows,
    write_rows,
)
from ad_hf.evaluation.rollouts import Evaluation, evaluate
from ad_hf.histories.rollouts import load_prompts
from ad_hf.model.modeling_ad import ADModel
from ad_hf.pipeline import collect_recipe, train
from ad_hf.recipe import Recipe, load_recipe
from ad_hf.sources.learners import has_independent_streams
from ad_hf.storage.files import write_text
from ad_hf.storage.folders import Folder
from studies.rl2 import RL2Config, evaluate_rl2, train_rl2

FULL = "-full"  # what the names of larger settings end in
CELL_FILE = "cell.json"  # settings of a cell, how long it took, and where


class NotFinishedError(ValueError):
    """Too little of a study has been run for its variants to be compared."""


@dataclass
class Variant:
    """
    One of the things that a study compares.

    Args:
        settings (`dict`):
            Settings of the recipe, by their dotted names.
        paper (`float`, *optional*):
            What the paper reports of it.
        model_of (`str`, *optional*):
            Take the model of this variant, as `"main/AD"` with the study that has it, instead of training one.
        prompt (`float`, *optional*):
            Begin each context with a demonstration at this share of the optimum, from the source's histories.
        rl2 (`dict`, *optional*):
            Train RL2 in the environments instead, as a [`~studies.rl2.RL2Config`] says.
        label (`str`, *optional*):
            What it is called in tables.
        series (`str`, *optional*):
            In a study that varies several things, which of them: a line of its own in the picture.
        place (`float`, *optional*):
            Its place on a logarithmic axis, in a study of several series over the same numbers.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    paper: float | None = None
    model_of: str | None = None
    prompt: float | None = None
    rl2: dict[str, Any] | None = None
    label: str | None = None
    series: str | None = None
    place: float | None = None


@dataclass
class Study:
    """
    A study, as its YAML file says; `full` holds what replaces other entries on a machine with a GPU.

    Args:
        name (`str`):
            Of the file; of its larger setting, with `-full` after it.
        title (`str`):
            What it shows.
        recipe (`str`):
            Name of the recipe, or its file. Those in `recipes/` beside the study stay when packaged ones change.
        variants (`dict[str, Variant]`):
            What is compared.
        settings (`dict`):
            Settings of the recipe in all variants, by their dotted names.
        splits (`list[int]`), training_seeds (`list[int]`), num_rollouts (`int`):
            Of each variant: splits of the tasks, trainings on each, and rollouts of each training per test task.
        varied (`str`, *optional*):
            What the variants differ in, where their names are its values.
        measured (`str`, *optional*):
            What the paper's numbers are.
        minutes (`float`, *optional*):
            What the study takes on two CPU cores.
        notes (`str`, *optional*):
            What readers of its table should know.
        look_inside (`str`, *optional*):
            A variant whose paths and attention are drawn.
        baselines (`bool`, *optional*, defaults to `True`):
            Whether to show the source beside; random actions always are.
        versus (`str`, *optional*):
            A variant from which the differences of the others are told, by training and task.
    """

    name: str
    title: str
    recipe: str
    variants: dict[str, Variant]
    settings: dict[str, Any] = field(default_factory=dict)
    splits: list[int] = field(default_factory=lambda: [0])
    training_seeds: list[int] = field(default_factory=lambda: [0])
    num_rollouts: int = 3
    varied: str | None = None
    measured: str = "final return"
    minutes: float | None = None
    notes: str = ""
    look_inside: str | None = None
    baselines: bool = True
    versus: str | None = None

    @property
    def over_numbers(self) -> bool:
        """Whether its series run over the same numbers, and are drawn as lines."""
        return all(variant.place is not None for variant in self.variants.values())


def load_study(path: str | Path, full: bool = False) -> Study:
    """
    Read a study.

    Args:
        path (`str` or `Path`):
            Its YAML file.
        full (`bool`, *optional*, defaults to `False`):
            Whether to take what its entry `full` says in place of its other entries. Its cells are others than those
            of the smaller setting, and models of other studies are taken from their larger setting, too.

    Raises:
        ValueError: for entries that a study does not have, or lacks.
    """
    path = Path(path)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    larger = given.pop("full", {})
    given |= larger if full else {}
    known = {each.name for each in fields(Study)} - {"name"}
    unknown, missing = sorted(set(given) - known), sorted({"title", "recipe", "variants"} - set(given))
    if unknown or missing:
        raise ValueError(
            f"{path}: unknown entries {unknown}, missing entries {missing}: there are {', '.join(sorted(known))}"
        )
    try:
        variants = {str(name): Variant(**(entries or {})) for name, entries in given.pop("variants").items()}
    except TypeError as error:
        raise ValueError(f"{path}: variants: {error}") from error
    if full:
        for variant in variants.values():
            if variant.model_of is not None:
                study, slash, name = variant.model_of.rpartition("/")
                variant.model_of = f"{study}{FULL}/{name}" if slash else name
    return Study(name=path.stem + FULL * full, variants=variants, **given)


@dataclass(frozen=True)
class Cell:
    """A variant with a training seed on a split of the tasks."""

    study: Study
    variant: str
    split: int
    seed: int

    def __str__(self) -> str:
        return f"{self.study.name}: {self.variant}, split {self.split}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where it is, in the folder of all studies."""
        return Path(self.study.name) / self.variant / f"split{self.split}-seed{self.seed}"

    @property
    def model_of(self) -> tuple[str, str] | None:
        """The study and the variant whose model it takes, if it trains none."""
        study, _, variant = (self.study.variants[self.variant].model_of or "").rpartition("/")
        return (study or self.study.name, variant) if variant else None

    @property
    def recipe(self) -> Recipe:
        """Its recipe."""
        settings = {**self.study.settings, **self.study.variants[self.variant].settings}
        settings |= {"family.split_seed": self.split, "training.seed": self.seed}
        overrides = [text for name, value in settings.items() for text in (f"--{name}", _option(value))]
        beside = Path(__file__).parent / self.study.recipe
        return load_recipe(beside if beside.is_file() else self.study.recipe, overrides)

    @property
    def digest(self) -> str:
        """Of all that its returns depend on."""
        variant = self.study.variants[self.variant]
        settings = [asdict(self.recipe), variant.model_of, variant.prompt, variant.rl2, self.study.num_rollouts]
        return _digest(settings)


def source_settings(study: Study) -> dict[str, Any] | None:
    """What metadata of histories say of a study's source, as far as steps depend on it, if it is shown."""
    if not study.baselines:
        return None
    source = cells(study)[0].recipe.source
    independent = has_independent_streams(source.algorithm, source.hyperparameters)
    return {"algorithm": source.algorithm, "n_envs": source.n_envs, "independent_streams": independent}


def _digest(settings: Any) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def cells(study: Study) -> list[Cell]:
    """The cells of a study: every variant once, before any is repeated with another seed or split."""
    return [
        Cell(study, variant, split, seed)
        for seed in study.training_seeds
        for split in study.splits
        for variant in study.variants
    ]


class StudyRunner:
    """
    Runs cells of studies in a folder, which several processes can share: each takes cells that none is at work on.

    Args:
        folder (`str` or `Path`):
            The folder, of all studies.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell's returns are there."""
        return (self.folder / cell.folder / ROWS_FILE).is_file()

    def histories(self, recipe: Recipe) -> Path | str:
        """The histories of a recipe, collected if they are not there yet."""
        digest = _digest([asdict(recipe.family), asdict(recipe.source)])
        env_name = recipe.family.env_id.split("/")[-1]
        folder = self.folder / "histories" / f"{env_name}-{digest}"
        with Folder(folder.parent).locked(folder.name):
            return collect_recipe(recipe, folder)

    def run(self, cell: Cell) -> bool:
        """
        Train and evaluate a cell, from where it is.

        Returns:
            `bool`: whether it is finished; not if another process is at work on it.

        Raises:
            ValueError: for a cell that was begun with other settings.
        """
        folder = self.folder / cell.folder
        if self.is_finished(cell):
            self._check(cell)
            return True
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(folder / ".lock").acquire(timeout=0)
        except Timeout:
            return False
        with held:
            if not (folder / CELL_FILE).is_file():
                write_text(folder / CELL_FILE, json.dumps({"settings": cell.digest, "seconds": 0.0}) + "\n")
            self._check(cell)
            if not self.is_finished(cell):  # by another process, since
                start = time.perf_counter()
                try:
                    self._run(cell)
                finally:  # an interrupted run counts, too
                    details = self.details(cell)
                    details["seconds"] = round(details["seconds"] + time.perf_counter() - start, 1)
                    write_text(folder / CELL_FILE, json.dumps(details) + "\n")
        return True

    def _check(self, cell: Cell) -> None:
        """Refuse what was run with other settings."""
        if self.details(cell)["settings"] != cell.digest:
            raise ValueError(
                f"{self.folder / cell.folder} was run with other settings than the study now says: delete that "
                "folder, or keep runs in another one"
            )

    def _run(self, cell: Cell) -> None:
        folder, recipe = self.folder / cell.folder, cell.recipe
        family, variant = TaskFamily(recipe.family), cell.study.variants[cell.variant]
        if variant.rl2 is not None:
            evaluation, parameters = self._run_rl2(cell, family, recipe)
        else:
            dataset = self.histories(recipe)
            model = self._model(cell, recipe, dataset)
            parameters = model.num_parameters()
            evaluation = self._evaluate(model, family, recipe, dataset, variant, cell.study.num_rollouts)
        rows = evaluation_rows(evaluation, family, cell.variant, cell.split, cell.seed)
        details = {**self.details(cell), "parameters": parameters, "device": _device()}
        write_text(folder / CELL_FILE, json.dumps(details) + "\n")
        write_rows(folder / ROWS_FILE, rows)

    def _run_rl2(self, cell: Cell, family: TaskFamily, recipe: Recipe) -> tuple[Evaluation, int]:
        """Train and evaluate RL2; returns its parameters, too."""
        settings = cell.study.variants[cell.variant].rl2 or {}
        learner = train_rl2(family, self.folder / cell.folder, RL2Config(**settings), cell.seed)
        episodes = recipe.rollout.resolve().num_episodes
        if episodes is None:
            raise ValueError(f"{cell}: rollout.num_episodes says how long RL2 is played, and is not set")
        evaluation = evaluate_rl2(learner, family, episodes, cell.study.num_rollouts)
        return evaluation, sum(weight.numel() for weight in learner.policy.parameters())

    def _model(self, cell: Cell, recipe: Recipe, dataset: str | Path) -> ADModel:
        """The model of a cell, trained or trained to the end if need be."""
        variant, folder = cell.study.variants[cell.variant], self.folder / cell.folder
        if cell.model_of is not None:
            other = self.folder.joinpath(*cell.model_of, cell.folder.name)
            if not (other / ROWS_FILE).is_file():
                raise ValueError(f"{cell} takes the model of {variant.model_of}, of which there is none: run it first")
            return ADModel.from_pretrained(other / "model")
        if not _is_trained(folder, recipe.training.max_steps):
            train(recipe, dataset, folder, resume="latest")
        return ADModel.from_pretrained(folder / "model")

    def _evaluate(
        self,
        model: ADModel,
        family: TaskFamily,
        recipe: Recipe,
        dataset: str | Path,
        variant: Variant,
        num_rollouts: int,
    ) -> Evaluation:
        prompt: list[Mapping[str, np.ndarray]] | None = None
        if variant.prompt is not None:
            tasks = family.tasks("test") * num_rollouts
            optimal = family.optimal_returns(tasks)
            if optimal is None:
                raise ValueError("a prompt at a share of the optimum needs a family that knows it (optimal_return)")
            steps = model.config.context_length
            prompt = list(load_prompts(dataset, tasks, steps, level=variant.prompt * optimal))
        return evaluate(
            model, family, "test", None, num_rollouts, rollout_config=recipe.rollout, progress=True, prompt=prompt
        )

    def rows(self, study: Study) -> tuple[pa.Table, list[Cell]]:
        """
        The returns of a study's finished cells, beside those of its sources and of random actions.

        Returns:
            `tuple`: the rows, and the finished cells. Of variants that are finished on some splits or seeds alone,
            those that all variants have: what is compared is alike.

        Raises:
            NotFinishedError: if no split and seed is finished in all variants.
            ValueError: if a cell was run with other settings.
        """
        finished = [cell for cell in cells(study) if self.is_finished(cell)]
        groups = {(cell.split, cell.seed) for cell in finished}
        whole = {
            group
            for group in groups
            if {cell.variant for cell in finished if (cell.split, cell.seed) == group} == set(study.variants)
        }
        seeds = {seed for _, seed in whole if all((split, seed) in whole for split in {each for each, _ in whole})}
        chosen = [cell for cell in finished if (cell.split, cell.seed) in whole and cell.seed in seeds]
        if not chosen:
            raise NotFinishedError(f"{study.name}: no split and seed is finished in all variants: run more cells")
        for cell in chosen:
            self._check(cell)
        tables = []
        for variant in study.variants:
            tables += [read_rows(self.folder / cell.folder / ROWS_FILE) for cell in chosen if cell.variant == variant]
        tables += self._baselines([cell for cell in chosen if cell.variant == next(iter(study.variants))])
        return join_rows(tables), chosen

    def _baselines(self, chosen: Sequence[Cell]) -> list[pa.Table]:
        """Rows of the sources, if they are shown, and of random actions, for each split."""
        tables = []
        for cell in {each.split: each for each in chosen}.values():
            recipe = cell.recipe
            family = TaskFamily(recipe.family)
            if cell.study.baselines:
                tables.append(source_rows(self.histories(recipe), family, cell.split))
            tables.append(random_rows(family, num_seeds=cell.study.num_rollouts, split_seed=cell.split))
        return tables

    def details(self, cell: Cell) -> dict[str, Any]:
        """
        What is said of a cell: a digest of its `settings`, the `seconds` that it took so far; once it is finished, on
        which `device`, and the `parameters` of its model.
        """
        return json.loads((self.folder / cell.folder / CELL_FILE).read_text(encoding="utf-8"))


def _device() -> str:
    """What this process computes on, for people."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"{count} CPU core" + "s" * (count > 1)


def _is_trained(folder: Path, max_steps: int) -> bool:
    """Whether a run has come to its end."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file() or not (folder / "model" / "config.json").is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return bool(lines) and json.loads(lines[-1])["step"] >= max_steps
