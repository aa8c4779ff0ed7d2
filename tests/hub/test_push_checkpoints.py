"""A run's checkpoints on the Hub: a machine that is lost takes nothing with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

SETTINGS = ["--training.max_steps", "12", "--training.eval_steps", "6", "--training.save_steps", "100"]


@pytest.fixture
def train(ad_hf_with_hub, tiny_recipe_file, tiny_histories, tmp_path):
    """Run `ad-hf train` in a folder."""

    def run(name, *options, **settings):
        argv = ["train", "--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--output_dir", tmp_path / name]
        return ad_hf_with_hub(*argv, *SETTINGS, *options, **settings)

    return run


def test_checkpoints_and_the_end_are_pushed_to_a_branch_from_which_a_run_goes_on(hub, train, tmp_path):
    """In an empty folder, as on another machine, to the same weights."""
    steps = ["--training.max_steps", "13"]
    done = train("run", "--push_to", "local/model@training", "--push_every", "4", *steps)
    assert "pushed the checkpoint of update 4: " in done.stdout + done.stderr
    files = hub.files("model", "local/model", "training")
    assert files["model.safetensors"] == (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert files["recipe.yaml"] == (tmp_path / "run" / "recipe.yaml").read_bytes()
    step = json.loads(files["checkpoint/training_state.json"])["step"]
    assert step in (8, 12)  # the second or third is left out if the one before is on its way
    assert "checkpoint/training.safetensors" in files
    assert "checkpoint/best/model.safetensors" in files
    assert not [path for path in files if path.endswith((".pt", ".bin", ".pkl"))]
    assert set(hub.files("model", "local/model", "main")) == {".gitattributes"}
    assert not list((tmp_path / "run").glob(".*"))

    shutil.move(tmp_path / "run", tmp_path / "lost")
    done = train("run", "--resume", "local/model@training", *steps)
    assert f"going on after {step} updates" in done.stdout + done.stderr
    found, expected = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("run", "lost"))
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_what_the_hub_refuses_is_known_before_anything_is_trained(hub, train, tmp_path):
    done = train("run", "--push_to", "local/model", "--push_every", "4", token="hf_wrong", check=False)
    assert done.returncode == 2
    assert "set HF_TOKEN" in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_push_that_fails_does_not_end_the_run(hub, train, tmp_path):
    hub.fail("403", times=1, method="POST", path="/commit/")
    done = train("run", "--push_to", "local/model", "--push_every", "12")
    said = done.stdout + done.stderr
    assert "the checkpoint of update 12 was not pushed: " in said
    assert "may do this" in said
    assert "pushed: " in said  # the end, once the Hub takes it
    assert hub.files("model", "local/model")["model.safetensors"]


def test_how_often_to_push_needs_a_place_to_push_to(train):
    done = train("run", "--push_every", "4", check=False)
    assert (done.returncode, "push_every must be at least 1 and needs push_to" in done.stderr) == (2, True)
    done = train("run", "--push_to", "nowhere", check=False)
    assert (done.returncode, "push_to must be user/name or user/name@branch" in done.stderr) == (2, True)
