"""What import paths name, from where it may be imported, and why it cannot be."""

import sys

import pytest

from ad_hf.envs.imports import import_callable
from ad_hf.envs.recipes import add_import_folders

MODULES = {
    "imports_fine.py": "SIZE = 3\n\nclass Room:\n    pass\n",
    "imports_missing.py": "import no_such_dependency\n",
    "imports_raising.py": "\nsize = 1 / 0\n",
    "imports_broken.py": "def f(:\n",
    "imports_package/__init__.py": "",
    "imports_package/deep.py": "import imports_raising\n",
}
MUST_BE = r"^data\.labels must be the import path of a function or class, such as my_module\.MyClass, got "
REFUSALS = {
    "no_such_env.Room": r"^data\.labels '.*': No module named 'no_such_env': put no_such_env\.py beside",
    "imports_missing.f": r"ModuleNotFoundError: .* 'no_such_dependency' \(.*imports_missing\.py, line 1\)",
    "imports_raising.f": r"ZeroDivisionError: division by zero \(.*imports_raising\.py, line 2\)",
    "imports_broken.f": r"SyntaxError: .*\(imports_broken\.py, line 1\)",
    "imports_package.deep.f": r"module imports_package\.deep cannot .* by zero \(.*imports_raising\.py, line 2\)",
    "imports_package.shallow.f": rf"{MUST_BE}.*: module 'imports_package' has no attribute 'shallow'",
    "imports_fine.Rom": rf"{MUST_BE}.*: module 'imports_fine' has no attribute 'Rom'",
    "imports_fine.Room.f": rf"{MUST_BE}.*: <class 'imports_fine\.Room'> has no attribute 'f'",
    "imports_fine.SIZE": rf"{MUST_BE}'imports_fine\.SIZE', which is of type int",
    "imports_fine": rf"{MUST_BE}'imports_fine', which is of type module",
    "imports fine": rf"{MUST_BE}'imports fine'$",
    "": rf"{MUST_BE}''$",
    3: rf"{MUST_BE}3$",
}


@pytest.fixture
def path(monkeypatch):
    """The places of modules, which are restored, and the modules of these tests forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield sys.path
    for name in [name for name in sys.modules if name.startswith("imports_")]:
        del sys.modules[name]


def write_modules(folder):
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_failed_import_says_its_cause(path, tmp_path):
    write_modules(tmp_path)
    path.append(str(tmp_path))
    for name, message in REFUSALS.items():
        with pytest.raises(ValueError, match=message):
            import_callable(name, "data.labels")
    assert import_callable("imports_fine.Room", "data.labels").__module__ == "imports_fine"


def test_modules_beside_a_recipe_and_in_the_working_directory_come_last(path, tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
    (beside / "mine.yaml").touch()
    monkeypatch.chdir(here)
    before = list(path)
    for recipe, added in (
        ("dark_room", [here]),
        (beside / "mine.yaml", [here, beside]),
        ("../beside/mine.yaml", [here, beside]),
    ):
        add_import_folders(recipe)
        assert path == [*before, *map(str, added)]
    path[:] = before
    add_import_folders(beside / "mine.yaml")
    assert path == [*before, str(beside), str(here)]


@pytest.mark.parametrize(
    "downloaded",
    [
        "default/train-00000-of-00001.parquet",
        "run.json",
        "model.safetensors",
        "model/model-00001-of-00002.safetensors",
    ],
)
def test_code_that_came_along_with_a_dataset_a_run_or_a_model_is_not_found(
    downloaded, path, tmp_path, monkeypatch, caplog
):
    """Neither beside a recipe that the user names nor in the working directory."""
    write_modules(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / downloaded).parent.mkdir(exist_ok=True)
    (tmp_path / downloaded).touch()
    monkeypatch.chdir(tmp_path)
    before = list(path)
    add_import_folders("recipe.yaml")
    assert path == before
    assert "modules in it are not imported" in caplog.text
