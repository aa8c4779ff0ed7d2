"""Models by name, with the recipes of their runs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ad_hf.hub.model_files import model_folder
from ad_hf.model.modeling_ad import ADModel
from ad_hf.storage.repositories import explained, find_repository

RECIPE_FILE = "recipe.yaml"


def load_model(name: str | Path, trust_remote_code: bool = False) -> tuple[ADModel, dict[str, Any]]:
    """
    A model, and its name and revision for an evaluation.

    Args:
        name (`str` or `Path`):
            Folder of the model or of its run, or a Hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether its configuration may name code, as an attention kernel of the Hub, that is fetched and run.

    Raises:
        OSError: if there is no model, or its files are damaged.
        ValueError: for weights that do not fit the configuration, or are not finite.
    """
    repository = find_repository(name, "model")
    path = str(model_folder(name)) if repository.revision is None else repository.name
    options: dict[str, Any] = {"revision": repository.revision} if repository.revision else {}
    with explained(f"loading the model {repository}") if repository.revision else nullcontext():
        model = ADModel.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    return model, repository.to_json()


def run_recipe(name: str | Path) -> Path | None:
    """The recipe of the run of a model, given as for [`load_model`], if there is one."""
    repository = find_repository(name, "model")
    folder = repository.download([RECIPE_FILE])
    places = [folder] if repository.revision is not None else [folder, model_folder(folder), folder.parent]
    return next((place / RECIPE_FILE for place in places if (place / RECIPE_FILE).is_file()), None)
