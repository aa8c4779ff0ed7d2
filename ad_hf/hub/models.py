"""Models by name, with what their runs say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ad_hf.hub.model_files import model_folder
from ad_hf.model.modeling_ad import ADModel
from ad_hf.storage.repositories import explained, find_repository

RECIPE_FILE = "recipe.yaml"


def load_model(name: str | Path, trust_remote_code: bool = False) -> tuple[ADModel, dict[str, Any]]:
    """
    A model, and what a report says about where it is from.

    Args:
        name (`str` or `Path`):
            Folder of the model or of its run, or a Hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether its configuration may name code, as an attention kernel of the Hub, that is fetched and run.

    Raises:
        OSError: if there is no model, or its files are damaged.
        ValueError: for weights that are not those of the model, or not finite.
    """
    repository = find_repository(name, "model")
    if repository.revision is None:
        model = ADModel.from_pretrained(model_folder(name), trust_remote_code=trust_remote_code)
        return model, repository.to_json()
    with explained(f"loading the model {repository}"):
        model = ADModel.from_pretrained(
            repository.name, revision=repository.revision, trust_remote_code=trust_remote_code
        )
        return model, repository.to_json()


def run_recipe(name: str | Path) -> Path:
    """
    The recipe of the run that a model is from, which lies beside the model or in the folder above it.

    Args:
        name (`str` or `Path`):
            Folder of a model or of its run, or a Hub id.

    Raises:
        ValueError: if there is none.
    """
    repository = find_repository(name, "model")
    folder = repository.download([RECIPE_FILE])
    places = [folder] if repository.revision is not None else [folder, model_folder(folder), folder.parent]
    for place in places:
        if (place / RECIPE_FILE).is_file():
            return place / RECIPE_FILE
    raise ValueError(f"{name} comes without the recipe of its run: give one with --recipe")
