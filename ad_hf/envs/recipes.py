"""Recipes: YAML files of the package or of a user, with one section per step of a run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from ad_hf.settings import did_you_mean, excerpt, read_yaml
from ad_hf.storage.files import local_path

logger = logging.getLogger(__name__)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    names = (path.name for path in files("ad_hf.recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def recipes_of(env_id: str) -> dict[str, dict[str, Any]]:
    """The sections `family` of the recipes that come with the package for an environment, by the recipes' names."""
    families = {name: read_recipe(name).get("family", {}) for name in recipe_names()}
    return {name: family for name, family in families.items() if family.get("env_id") == env_id}


def recipe_path(recipe: str | Path) -> Path:
    """The YAML file of a recipe, by name or as a file; a `FileNotFoundError` with all names if there is neither."""
    packaged = Path(str(files("ad_hf.recipes"))) / f"{recipe}.yaml"
    for path in (packaged, local_path(recipe)):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"unknown recipe {str(recipe)!r}{did_you_mean(str(recipe), recipe_names())}: expected one of "
        f"{', '.join(recipe_names())}, or a YAML file"
    )


def add_import_folders(recipe: str | Path) -> None:
    """
    Let the modules beside a recipe's file be imported, and those in the working directory, where nothing else has
    their names. Of a recipe of this package, those in the working directory alone.

    For a recipe that the user names. A folder that holds a dataset, a run or a model is passed over: it may have been
    downloaded, and whatever code is in it runs only where the user says so.
    """
    beside, packaged = (os.path.abspath(str(each)) for each in (recipe_path(recipe).parent, files("ad_hf.recipes")))
    import_from([os.getcwd()] if beside == packaged else [beside, os.getcwd()])


def import_from(folders: Iterable[str]) -> None:
    """Append folders to the path of imports, other than those that may have been downloaded."""
    for name in dict.fromkeys(folders):
        folder = Path(name)
        if not _may_be_downloaded(folder):
            sys.path += [] if name in sys.path else [name]
        elif any(folder.glob("*.py")):
            logger.warning("%s holds a dataset, a run or a model: the modules in it are not imported", folder)


def _may_be_downloaded(folder: Path) -> bool:
    """Whether a folder is that of a dataset, a run or a model."""
    files_of_these = ("*/*-of-*.parquet", "run.json", "model*.safetensors", "model/model*.safetensors")
    return any(next(folder.glob(pattern), None) for pattern in files_of_these)


def read_recipe(recipe: str | Path) -> dict[str, dict[str, Any]]:
    """
    The sections of a recipe as they stand in its file; a section without settings is empty.

    Raises:
        FileNotFoundError: for an unknown recipe.
        ValueError: for a file that is not YAML, or whose sections are not mappings.
    """
    sections = read_yaml(recipe_path(recipe))
    for name, section in sections.items():
        if not isinstance(section, dict | None):
            raise ValueError(f"recipe {recipe}: section {name} must hold settings, got {excerpt(section)}")
    return {name: section or {} for name, section in sections.items()}
