"""The recipe of a model or a dataset, where the user names none: what came along with it, read as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ad_hf.envs.foreign import check_family_section
from ad_hf.envs.recipes import read_recipe, recipe_names, recipes_of
from ad_hf.envs.task_family import FamilyConfig, TaskFamily, comparable
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.hub.models import RECIPE_FILE, run_recipe
from ad_hf.recipe import Recipe, load_foreign_recipe, load_recipe, make_recipe
from ad_hf.settings import make_section
from ad_hf.training.compatibility import check_tasks

# Settings of a family that may hold import paths.
MAY_NAME_CODE = ("env_id", "wrappers", "stratify_by", "optimal_return", "random_return", "random", "splits")
# Of a family, what is true of the environment, whichever its tasks are, as long as it is wrapped alike.
OF_ENVIRONMENT = ("native_vector", "optimal_return", "random_return", "source_observation")


def recipe_of_model(
    name: str | Path,
    dataset: str | Path | None = None,
    config_name: str | None = None,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> tuple[Recipe, str]:
    """
    The recipe of the run of a model, or that of a dataset if it came without, and one line about where it is from.

    Args:
        name (`str` or `Path`):
            Folder of the model or of its run, or a Hub id.
        dataset (`str` or `Path`, *optional*):
            Histories of its source.
        config_name (`str`, *optional*):
            Configuration of the dataset.
        overrides (`Sequence[str]`, *optional*):
            Settings that take the place of the recipe's, as of [`load_recipe`].
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether the recipe may name any code; else only its sections `family` and `rollout` are read.

    Raises:
        ValueError: if there is none, and for one that names other code, with the setting.
    """
    path = run_recipe(name)
    if path is None:
        if dataset is None:
            raise ValueError(f"{name} comes without the recipe of its run: give one with --recipe")
        return recipe_of_dataset(HistoryDataset.open(dataset, config_name), overrides, trust_remote_code)
    if names := read_recipe(path).get("mixture", {}).get("recipes"):
        raise ValueError(f"{name} has learnt several families: name one by --recipe, of {', '.join(map(str, names))}")
    if trust_remote_code:
        recipe = load_recipe(path, overrides)
    else:
        recipe = load_foreign_recipe(path, f"the model {name}", overrides)
    return recipe, f"recipe: the one of the model {name}, since --recipe names none"


def seed_of_run(name: str | Path, default: int) -> int:
    """The seed of the training of a model, given as for [`recipe_of_model`], if it came with the recipe of its run."""
    path = run_recipe(name)
    section = None if path is None else read_recipe(path).get("training")
    seed = section.get("seed") if isinstance(section, dict) else None
    return seed if type(seed) is int else default


def check_unseen(name: str | Path, family: FamilyConfig, trust_remote_code: bool = False) -> None:
    """
    Refuse a family whose test tasks the run of a model has trained or validated on.

    The run's recipe says which these are, unless it names code that is neither known nor named by `family`.

    Raises:
        ValueError: with the number of such tasks.
    """
    path = run_recipe(name)
    sections = {} if path is None else read_recipe(path)
    mixed = [each for each in sections.get("mixture", {}).get("recipes", []) if each in recipe_names()]
    for section in [sections.get("family"), *(read_recipe(each)["family"] for each in mixed)]:
        if section:
            _check_unseen(name, section, family, trust_remote_code)


def _check_unseen(name: str | Path, section: dict[str, Any], family: FamilyConfig, trust_remote_code: bool) -> None:
    """Refuse the same for one family that the run has trained on."""
    own = asdict(family)
    if not trust_remote_code and any(section.get(each, own[each]) != own[each] for each in MAY_NAME_CODE):
        try:
            check_family_section(section, f"the model {name}")
        except ValueError:
            return
    ran, tested = TaskFamily(make_section(FamilyConfig, section, "family")), TaskFamily(family)
    if ran.env_settings != tested.env_settings:
        return
    seen = {comparable(task.kwargs) for task in ran.tasks() if task.split != "test" and task.kwargs}
    count = sum(comparable(task.kwargs) in seen for task in tested.tasks("test"))
    if count:
        raise ValueError(
            f"{count} of {len(tested.tasks('test'))} test tasks are training or validation tasks of the run of {name}"
            ": take others that it has not seen, such as that run's own test tasks, the default without --recipe"
        )


def recipe_of_dataset(
    dataset: HistoryDataset, overrides: Sequence[str] = (), trust_remote_code: bool = False
) -> tuple[Recipe, str]:
    """
    A recipe that fits a dataset, and one line about where it is from.

    Its section `family` is the one of the `recipe.yaml` beside the histories, else made from their `metadata.json`.
    The other sections are those of the packaged recipe of the same environment; only with `trust_remote_code` are
    they the ones of `recipe.yaml`, where it has them.

    Args:
        dataset ([`~ad_hf.histories.dataset.HistoryDataset`]):
            Learning histories.
        overrides (`Sequence[str]`, *optional*):
            Settings that take the place of the recipe's, as of [`load_recipe`].
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether what came along may name any code, environments that are not registered included.

    Raises:
        ValueError: if no packaged recipe has the environment, and for names that may not come along.
    """
    packaged, beside = _packaged(dataset.metadata), _sections_beside(dataset)
    if packaged is not None and not beside and _fits(packaged, dataset, overrides):
        return load_recipe(packaged, overrides), f"recipe: {packaged}, which {dataset} was collected with"
    family = beside.get("family") or _family(dataset.metadata, packaged)
    if not trust_remote_code:
        beside = {}
    if packaged is None and "model" not in beside:
        env_id = dataset.metadata.env_id
        raise ValueError(
            f"{dataset} comes without a recipe to train by, and none of the package is for {env_id}: name the one it "
            f"was collected with by --recipe, or write one with `ad-hf init {env_id}`"
        )
    if not trust_remote_code:
        check_family_section(family, f"the dataset {dataset}")
    sections = {**(read_recipe(packaged) if packaged else {}), **beside, "family": family}
    others = f"{RECIPE_FILE} beside it" if beside else f"the packaged recipe {packaged}"
    origin = f"recipe: environment, tasks and splits of {dataset}, other settings of {others}"
    return make_recipe(str(dataset), sections, overrides), f"{origin}, since --recipe names none"


def recipe_to_inspect(
    dataset: HistoryDataset, overrides: Sequence[str] = (), trust_remote_code: bool = False
) -> tuple[Recipe, str]:
    """The sections `data` and `model` of [`recipe_of_dataset`], or their defaults: no environment is made of these."""
    packaged, beside = _packaged(dataset.metadata), _sections_beside(dataset) if trust_remote_code else {}
    sections = {**(read_recipe(packaged) if packaged else {}), **beside}
    whose = RECIPE_FILE if "model" in beside else f"the packaged recipe {packaged}" if packaged else "the defaults"
    recipe = make_recipe(str(dataset), {name: sections.get(name, {}) for name in ("data", "model")}, overrides)
    return recipe, f"recipe: windows by {whose}, since --recipe names none"


def _packaged(metadata: HistoryMetadata) -> str | None:
    """The packaged recipe of an environment; of several, the one with most of its keyword arguments in common."""
    families = recipes_of(metadata.env_id)

    def in_common(name: str) -> int:
        kwargs = families[name].get("env_kwargs", {})
        return sum(metadata.env_kwargs.get(each) == value for each, value in kwargs.items())

    return max(families, key=in_common, default=None)


def _fits(packaged: str, dataset: HistoryDataset, overrides: Sequence[str]) -> bool:
    """Whether a dataset is one of a packaged recipe."""
    try:
        check_tasks(TaskFamily(load_recipe(packaged, overrides).family), dataset)
    except ValueError:
        return False
    return True


def _sections_beside(dataset: HistoryDataset) -> dict[str, Any]:
    """The sections of the recipe beside a dataset, if there is one."""
    if RECIPE_FILE not in dataset.repository.files():
        return {}
    return read_recipe(dataset.repository.download([RECIPE_FILE]) / RECIPE_FILE)


def _family(metadata: HistoryMetadata, packaged: str | None) -> dict[str, Any]:
    """The section `family` of the tasks in a dataset's metadata."""
    tasks = sorted(metadata.tasks, key=lambda task: task["task_id"])
    family: dict[str, Any] = {name: getattr(metadata, name) for name in ("env_id", "env_kwargs")}
    family |= {name: getattr(metadata, name) for name in ("wrappers", "attributes") if getattr(metadata, name)}
    family["splits"] = {}
    for task in tasks:
        family["splits"].setdefault(task["split"], []).append(task["kwargs"])
    family["task_ids"] = {
        split: [task["task_id"] for task in tasks if task["split"] == split] for split in family["splits"]
    }
    known = read_recipe(packaged)["family"] if packaged else {}
    if all(known.get(name, []) == family.get(name, []) for name in ("wrappers", "attributes")):
        family |= {name: known[name] for name in OF_ENVIRONMENT if name in known}
    return family
