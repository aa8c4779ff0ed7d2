"""What all tests share."""

import atexit
import os
import shutil
import subprocess
import tempfile

# Before anything imports torch or the Hugging Face libraries: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are so small that threads wait for one another
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="ad_hf_tests_")

import pytest
import torch
import yaml

import ad_hf
from ad_hf.envs.dark_room import goal_distance, optimal_return
from ad_hf.envs.task_family import TaskFamily
from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel
from ad_hf.recipe import Recipe, load_recipe

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

TINY = {
    "family": {
        "env_id": "ad_hf/DarkRoom-v0",
        "env_kwargs": {"size": 3, "max_episode_steps": 6},
        "grid": {"goal": {"shape": [3, 3]}},
        "num_validation_tasks": 1,
        "num_test_tasks": 2,
        "stratify_by": "ad_hf.envs.dark_room.goal_distance",
        "optimal_return": "ad_hf.envs.dark_room.optimal_return",
        "native_vector": True,
    },
    "source": {
        "algorithm": "A2C",
        "n_envs": 8,
        "total_timesteps": 2400,
        "hyperparameters": {"n_steps": 6, "learning_rate": 0.003, "gamma": 0.9},
    },
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "context_length": 24,
    },
    "training": {
        "max_steps": 20,
        "batch_size": 8,
        "eval_steps": 10,
        "eval_episodes": 12,
        "logging_steps": 1,
        "mixed_precision": "no",
    },
    "rollout": {"num_episodes": 12},
}


@pytest.fixture(scope="session")
def tiny_recipe_file(tmp_path_factory):
    """A recipe that runs in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def tiny_recipe(tiny_recipe_file) -> Recipe:
    """The tiny recipe, as read from its file."""
    return load_recipe(tiny_recipe_file)


@pytest.fixture(scope="session")
def tiny_histories(tiny_recipe_file, tmp_path_factory):
    """Really collected histories of the tiny recipe."""
    from ad_hf.pipeline import collect_recipe

    return collect_recipe(load_recipe(tiny_recipe_file), tmp_path_factory.mktemp("data") / "histories", num_workers=0)


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """A training run of the tiny recipe."""
    output_dir = tmp_path_factory.mktemp("runs") / "tiny"
    ad_hf.train(tiny_recipe_file, tiny_histories, output_dir)
    return output_dir


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, and a way to mount it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    mount("size=16m")
    yield folder, mount
    while os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def dark_room_family():
    """3 x 3 cells, episodes of 4 steps, 9 goals of which 3 are for testing."""
    return TaskFamily(
        "ad_hf/DarkRoom-v0",
        tasks=[{"goal": [x, y]} for x in range(3) for y in range(3)],
        env_kwargs={"size": 3, "max_episode_steps": 4},
        num_validation_tasks=2,
        num_test_tasks=3,
        stratify_by=goal_distance,
        optimal_return=optimal_return,
        native_vector=True,
    )


@pytest.fixture
def dark_room_model():
    """A small model with random weights."""
    torch.manual_seed(0)
    return ADModel(
        ADConfig(
            observation_space={"type": "MultiDiscrete", "nvec": [3, 3]},
            action_space={"type": "Discrete", "n": 5},
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=32,
            context_length=12,
            initializer_range=0.2,
        )
    )


@pytest.fixture(scope="session")
def page_runtime():
    """The archive of what the demo's page runs on, which npm downloads unless it is in the cache."""
    from ad_hf.export.runtime import archive_path, runtime_files

    try:
        runtime_files()
    except OSError as error:
        pytest.skip(str(error))
    return archive_path()
