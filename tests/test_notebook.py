"""The notebook leads from an environment to a learning curve, in small, and shows what it printed in full."""

import json
import shlex
from pathlib import Path

import nbformat

from ad_hf.cli import main

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "your_own_environment.ipynb"
SMALL = {
    "family": {"num_train_tasks": 3, "num_validation_tasks": 1, "num_test_tasks": 2},
    "source": {"n_envs": 4, "total_timesteps": 800},
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16},
    "training": {"max_steps": 2, "batch_size": 2, "eval_steps": 2, "eval_episodes": 4},
    "rollout": {"num_episodes": 12},
}


def run(source, names):
    """Run a cell: Python, `%%writefile`, and lines that begin with `!ad-hf`."""
    if source.startswith("%%writefile "):
        head, _, content = source.partition("\n")
        Path(head.split()[1]).write_text(content)
        return
    lines = source.splitlines()
    exec("\n".join(line for line in lines if not line.startswith("!")), names)
    for line in lines:
        if line.startswith("!ad-hf "):
            assert main(shlex.split(line)[1:]) == 0


def test_the_notebook_leads_to_a_learning_curve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = [f"--{part}.{name}={value}" for part, values in SMALL.items() for name, value in values.items()]
    names = {}
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "install" not in tags:
            run(f"CHANGES = {changes}" if "parameters" in tags else cell.source, names)
    assert names["out"].episode_returns.shape == (2, 12)
    assert json.loads(Path("run/evaluation.json").read_text())["agents"].keys() == {"AD", "source", "random"}
    assert Path("run/learning_curve.png").is_file()
    assert "learning_curve.png" in Path("run/model/README.md").read_text()


def test_the_notebook_shows_that_the_model_learns():
    """In a file that a page of a repository still renders."""
    outputs = [output for cell in nbformat.read(NOTEBOOK, 4).cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "learns in its context: episodes 51 to 60 minus the first: +" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert NOTEBOOK.stat().st_size < 200_000
