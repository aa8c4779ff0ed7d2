"""An environment of a notebook's cell, of IPython and of code from the standard input: collect, train, roll out."""

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from test_readme import python_blocks

WORLDS = Path(__file__).parent / "worlds"
TINY = """
import ad_hf

options = "--source.n_envs 2 --source.total_timesteps 120 --family.num_train_tasks 2 --family.num_test_tasks 2"
options += " --family.num_validation_tasks 1 --model.hidden_size 16 --model.num_hidden_layers 1 --training.max_steps 2"
options += " --model.intermediate_size 16 --model.context_length 40 --training.batch_size 2 --training.eval_episodes 2"
text = ad_hf.load_recipe("my_recipe.yaml", options.split()).to_yaml()
with open("my_recipe.yaml", "w") as file:
    file.write(text)
"""
WITH_WORKERS = """
family = ad_hf.TaskFamily("WalledRoom-v0", [{"goal": 0}])
try:
    ad_hf.collect(family, "A2C", output_dir="of_workers", num_workers=1)
except ValueError as error:
    print("refused:", error)
"""


@pytest.fixture
def cells(tmp_path):
    """Those of somebody who follows the guide, in small: the environment, workers in vain, and the guide's code."""
    (tmp_path / "my_recipe.yaml").write_text((WORLDS / "walled_room.yaml").read_text())
    (guide,) = python_blocks("docs/your_own_environment.md", "In a notebook")
    return [(WORLDS / "walled_room.py").read_text(), TINY, WITH_WORKERS, guide]


def run(command, folder, code=None):
    """The output of a process, which must end well; its file of settings is its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, *command], input=code, cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(output, folder, reason):
    """Workers were refused in one line, and a model learnt and acted."""
    assert f"refused: worker processes {reason}" in output
    assert output.count("num_workers=0") == 1
    assert (folder / "run" / "model" / "config.json").is_file()
    assert "rollout: (2, 60)" in output


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
    check("".join(output.get("text", "") for output in outputs), tmp_path, "do not know the environment WalledRoom-v0")
