"""What a user has who installs the wheel and has no clone."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["--source.n_envs", "4", "--source.total_timesteps", "800", "--source.hyperparameters.batch_size", "64"]
SHORT = ["--model.context_length", "40", "--training.max_steps", "4", "--training.eval_steps", "4"]
SHORT += ["--training.eval_episodes", "2"]
FEW = ["--family.random.num_tasks", "3", "--family.num_validation_tasks", "1", "--family.num_test_tasks", "1"]


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
    (packages,) = environment.glob("lib/python*/site-packages")
    target = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, wheel]
    subprocess.run(list(map(str, target)), check=True, timeout=300)
    # The dependencies are those of this interpreter, in which the clone may be installed as well, further back.
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
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
