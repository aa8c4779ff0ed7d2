"""Environments that are not in the package, by the guide alone: on a command line, in a notebook and elsewhere."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

import ad_hf
from ad_hf.cli import main
from ad_hf.evaluation.returns import ROWS_FILE, read_rows
from ad_hf.histories.schema import read_metadata

ROOT = Path(__file__).parent.parent
WORLDS = ROOT / "tests" / "worlds"
GUIDE = (ROOT / "docs" / "guides" / "your_own_environment.md").read_text(encoding="utf-8")
TINY = {
    "source": {"n_envs": 2, "total_timesteps": 200},
    "family": {"num_train_tasks": 2, "num_validation_tasks": 1, "num_test_tasks": 2},
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "context_length": 40},
    "training": {"max_steps": 2, "batch_size": 2, "eval_episodes": 2},
    "rollout": {"num_episodes": 4},
}
WITH_WORKERS = """
import ad_hf

family = ad_hf.TaskFamily("WalledRoom-v0", [{"goal": 0}])
try:
    ad_hf.collect(family, "A2C", output_dir="of_workers", num_workers=1)
except ValueError as error:
    print("refused:", error)
"""


def code_of_the_guide(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def write_world(folder, world):
    """The files that a user of the guide writes, with a recipe that is done in seconds."""
    folder.mkdir(exist_ok=True)
    shutil.copy(WORLDS / f"{world}.py", folder)
    recipe = Path(shutil.copy(WORLDS / f"{world}.yaml", folder))
    options = [f"--{section}.{name}={value}" for section, values in TINY.items() for name, value in values.items()]
    recipe.write_text(ad_hf.load_recipe(recipe, options).to_yaml())


@pytest.fixture
def path(monkeypatch):
    """The places of modules, which a command adds to."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for world in WORLDS.glob("*.py"):
        sys.modules.pop(world.stem, None)


def test_the_guide_shows_the_files_of_the_walled_room():
    environment, _ = code_of_the_guide("python")
    assert environment == (WORLDS / "walled_room.py").read_text()
    (recipe,) = code_of_the_guide("yaml")
    assert recipe == (WORLDS / "walled_room.yaml").read_text()


@pytest.mark.parametrize("world", ["walled_room", pytest.param("key_lock", marks=pytest.mark.slow)])
def test_the_commands_of_the_guide_lead_to_a_curve(world, path, tmp_path, monkeypatch):
    """From another folder: the module is found beside the recipe, by workers, too."""
    write_world(tmp_path / "beside", world)
    monkeypatch.chdir(tmp_path)
    commands = [line for block in code_of_the_guide("bash") for line in block.splitlines()]
    verbs = [shlex.split(command)[1] for command in commands]
    assert verbs == ["collect", "inspect", "train", "rollout"]
    for command in commands:
        words = shlex.split(command.replace("walled_room.yaml", f"beside/{world}.yaml"))[1:]
        assert main([*words, *(["--num_workers", "1"] if words[0] == "collect" else [])]) == 0
    assert read_metadata("histories").env_id.startswith(f"{world}:")
    rows = read_rows(Path("run") / ROWS_FILE)
    assert "AD" in rows["agent"].to_pylist()
    assert Path("run", "learning_curve.png").is_file()


def run(command, folder, code=None):
    """The output of a process, which must end well."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, *command], input=code, cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def cells(tmp_path):
    """The guide's notebook: the environment in a cell of its own, workers in vain, collect, train and roll out."""
    write_world(tmp_path, "walled_room")
    environment, rest = code_of_the_guide("python")
    return [environment, WITH_WORKERS, rest]


def check(output, folder, reason):
    """Workers were refused in one line, and a model learnt and acted."""
    assert f"refused: worker processes {reason}" in output
    assert output.count("num_workers=0") == 1
    assert (folder / "run" / "model" / "config.json").is_file()
    *_, returns, verdict = output.splitlines()
    assert np.isfinite(list(map(float, returns.strip("[]").split()))).tolist() == [True] * 4
    assert verdict == json.loads((folder / "run" / "verdict.json").read_text())["line"]


def test_code_from_the_standard_input(cells, tmp_path):
    check(run(["-"], tmp_path, "\n".join(cells)), tmp_path, "import the main script, and <stdin> is not a file")


@pytest.mark.slow
def test_ipython(cells, tmp_path):
    output = run(["-m", "IPython", "--colors=NoColor", "-c", "\n".join(cells)], tmp_path)
    check(output, tmp_path, "do not know the environment WalledRoom-v0")


@pytest.mark.slow
def test_a_notebook(cells, tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    check(text, tmp_path, "do not know the environment WalledRoom-v0")
