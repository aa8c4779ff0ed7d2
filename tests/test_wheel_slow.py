"""What a user has who installs the wheel without any extra and has no clone."""

import json
import os
import re
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ad_hf.storage.files import link_or_copy

ROOT = Path(__file__).parent.parent
SMALL = ["--source.n_envs", "4", "--source.total_timesteps", "800", "--source.hyperparameters.batch_size", "64"]
SHORT = ["--model.context_length", "40", "--training.max_steps", "4", "--training.eval_steps", "4"]
SHORT += ["--training.eval_episodes", "2"]
FEW = ["--family.random.num_tasks", "3", "--family.num_validation_tasks", "1", "--family.num_test_tasks", "1"]


def required(names, found):
    """The distributions that some need, without extras, by name; all are installed here."""
    for name in names:
        if name not in found:
            found[name] = distribution(name)
            needs = [Requirement(each) for each in found[name].requires or ()]
            required(
                [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})], found
            )
    return found


def install(environment, wheel):
    """Put a wheel and what it requires, without extras, into an environment; returns the folder."""
    (packages,) = environment.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, wheel]
    subprocess.run(list(map(str, pip)), check=True, timeout=300)
    (metadata,) = packages.glob("ad_hf-*.dist-info/METADATA")
    needs = [Requirement(each) for each in re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(), re.MULTILINE)]
    for each in required([need.name for need in needs if need.marker is None], {}).values():
        for file in each.files:
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    link_or_copy(file.locate(), target)
    return packages


@pytest.mark.slow
def test_a_wheel_alone_collects_trains_in_two_processes_and_rolls_out_in_an_empty_folder(tmp_path):
    wheels, folder, environment = tmp_path / "wheels", tmp_path / "empty", tmp_path / "venv"
    folder.mkdir()
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        wheels,
        ROOT,
    ]
    subprocess.run(list(map(str, wheel)), check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")
    venv.create(environment, with_pip=False, symlinks=True)
    packages = install(environment, wheel)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}

    def run(*words):
        command = [environment / "bin" / "python", "-m", *words]
        done = subprocess.run(
            list(map(str, command)),
            **{"cwd": folder, "env": {**variables, "OMP_NUM_THREADS": "1"}, "timeout": 300},
            **{"capture_output": True, "text": True, "check": False},
        )
        assert done.returncode == 0, (words, done.stderr[-3000:])
        return done.stdout

    (folder / "where.py").write_text("import ad_hf; print(ad_hf.__file__)")
    assert str(packages) in run("where")
    assert "env_id: CartPole-v1" in run("ad_hf", "recipes", "cartpole")
    listed = run("ad_hf", "recipes")
    assert all(path.stem in listed for path in (ROOT / "ad_hf" / "recipes").glob("*.yaml"))
    told = run("ad_hf", "quickstart", *SMALL[:4], *SHORT, "--rollout.num_episodes", "3")
    quick = folder / "runs" / "quickstart"
    evaluation = json.loads((quick / "evaluation.json").read_text())
    assert f"return on {evaluation['agents']['AD']['num_tasks']} held-out tasks" in told
    assert {"learning_curve.png", "replay.gif", "returns.parquet"} < {path.name for path in quick.iterdir()}
    for written, place in (
        ("model", folder),
        ("histories", quick),
    ):  # where their examples run
        example, *_ = re.findall(r"```python\n(.*?)```", (quick / written / "README.md").read_text(), re.DOTALL)
        # After a stream that was not read to its end, pyarrow may abort at exit (apache/arrow#45214).
        leave = "import sys; sys.stdout.flush(); os._exit(0)"
        (folder / "example.py").write_text(f"import os; os.chdir({str(place)!r})\n{example}\n{leave}\n")
        assert run("example")
    (folder / "single.yaml").write_text(run("ad_hf", "accelerate-config", "single"))
    run("ad_hf", "init", "CartPole-v1", "pole.yaml")
    recipe = ["--recipe", "pole.yaml", *FEW]
    run("ad_hf", "collect", *recipe, *SMALL, "--output_dir", "histories")
    train = ["ad_hf", "train", *recipe, *SHORT, "--dataset", "histories", "--output_dir"]
    run(*train, "alone")
    run("accelerate.commands.launch", "--config_file", "single.yaml", "--cpu", "-m", *train, "launched")
    two = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    run(*two, *train, "two")
    for name in ("alone", "launched", "two"):
        assert (folder / name / "model" / "model.safetensors").is_file()
    out = run(
        "ad_hf", "rollout", *recipe, "--model", "launched", "--output_dir", "seen", "--rollout.num_episodes", "3"
    )
    assert "return on 1 held-out tasks" in out
