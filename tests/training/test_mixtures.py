"""One model of several families: what an update draws, exact resume, several processes, and how it is judged."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from training_runs import assert_ended_alike, losses, metrics, training, weights
from transformers import AutoModel

import ad_hf
from ad_hf.export.onnx_files import export_onnx
from ad_hf.pipeline import EvaluatedModel, collect_recipe, evaluate_models, quickstart
from ad_hf.recipe import load_recipe
from ad_hf.training.members import shares_of_batch

CART = {
    "family": {
        "env_id": "CartPole-v1",
        "env_kwargs": {"max_episode_steps": 12},
        "grid": {"gravity": [3.0, 6.0, 9.0, 12.0, 15.0, 18.0]},
        **{"attributes": ["gravity"], "num_validation_tasks": 2, "num_test_tasks": 2},
    },
    "source": {"algorithm": "PPO", "n_envs": 2, "total_timesteps": 512, "hyperparameters": {"n_steps": 64}},
    "rollout": {"num_episodes": 4, "top_p": 0.9},
    "training": {"seed": 3},  # of its own trainings
}


@pytest.fixture(scope="module")
def mixture(tiny_recipe_file, tmp_path_factory):
    """A recipe of two families and their histories, as configurations of one dataset."""
    folder = tmp_path_factory.mktemp("mixture")
    tiny = yaml.safe_load(tiny_recipe_file.read_text())
    (folder / "room.yaml").write_text(tiny_recipe_file.read_text())
    (folder / "cart.yaml").write_text(yaml.safe_dump(CART))
    recipe = {
        "mixture": {"recipes": [str(folder / "room.yaml"), str(folder / "cart.yaml")], "weights": {"room": 3.0}},
        **{"model": tiny["model"], "training": {**tiny["training"], "batch_size": 8}},
    }
    (folder / "mixed.yaml").write_text(yaml.safe_dump(recipe))
    collect_recipe(load_recipe(folder / "mixed.yaml"), folder / "histories", num_workers=0)
    return folder


STEPS = ["--training.max_steps", "12", "--training.eval_steps", "6", "--training.eval_episodes", "2"]
STEPS += ["--training.logging_steps", "1", "--training.mixed_precision", "no", "--training.save_steps", "2"]


@pytest.fixture(scope="module")
def run(mixture):
    """Twelve updates without an interruption."""
    ad_hf.train(mixture / "mixed.yaml", mixture / "histories", mixture / "run", overrides=STEPS)
    return mixture / "run"


def test_a_run_tells_of_each_family_and_of_their_mean(mixture, run):
    lines = metrics(run)
    assert {"loss/room", "loss/cart"} <= set(lines[0])
    last = lines[-1]
    for family in ("room", "cart"):
        assert {f"validation_{each}/{family}" for each in ("return", "loss", "curve")} <= set(last)
    assert isinstance(last["validation_return"], float)
    verdict = json.loads((run / "verdict.json").read_text())
    assert set(verdict["groups"]) == {"room", "cart"}
    assert all(each["losses"]["train"]["loss"] > 0 for each in verdict["groups"].values())
    told = json.loads((run / "run.json").read_text())
    assert told["groups"]["cart"]["env_id"] == "CartPole-v1"


def test_the_mean_return_has_random_play_at_zero_and_the_source_at_one(mixture):
    from ad_hf.histories.dataset import HistoryDataset
    from ad_hf.training.members import Member

    recipe = load_recipe(mixture / "room.yaml")
    dataset = HistoryDataset.open(mixture / "histories", "room")
    member = Member(dataset, recipe.family, recipe.data, recipe.rollout, name="room")
    random, source = member.levels

    class Played:
        returns = np.array([[[random, source, (random + source) / 2]]])

    assert np.allclose(member.normalized(Played), [0, 1, 0.5])


def test_the_model_acts_as_each_family_with_that_familys_settings(mixture, run):
    model = AutoModel.from_pretrained(run / "model")
    assert set(model.config.groups) == {"room", "cart"}
    out = model.rollout("CartPole-v1", num_episodes=1)
    assert out.episode_returns.shape == (1, 1)
    own = EvaluatedModel.load(run, recipe=mixture / "cart.yaml", dataset=mixture / "histories", config_name="cart")
    assert own.model.config.groups is None
    assert own.model.config.observation_mean is not None
    assert own.run == run
    assert own.to_json(0)["training_seed"] == 0  # of the run
    with pytest.raises(ValueError, match=r"several families: name one by --recipe, of .*room.yaml"):
        EvaluatedModel.load(run)


def test_a_group_is_exported_and_the_card_tells_of_all(mixture, run, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match="group must be one of cart, room, got ''"):
        export_onnx(run, tmp_path)
    description = json.loads((export_onnx(run, tmp_path, group="cart") / "model.json").read_text())
    assert description["action_space"] == {"n": 2, "type": "Discrete"}
    card = (run / "model" / "README.md").read_text()
    assert "groups of spaces, chosen by the environments: `cart` (observations" in card


def test_a_run_that_is_killed_ends_as_one_that_is_not(mixture, run, tmp_path):
    command = ["-m", "ad_hf", "train", "--recipe", mixture / "mixed.yaml", "--dataset", mixture / "histories", *STEPS]
    with training(command, tmp_path / "run", 4, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    ad_hf.train(mixture / "mixed.yaml", mixture / "histories", tmp_path / "run", resume="latest", overrides=STEPS)
    assert_ended_alike(tmp_path / "run", run)


def test_a_family_goes_on_alone_and_a_mixture_begins_with_the_model_of_a_family(mixture, run, tiny_run, tmp_path):
    steps = [*STEPS, "--training.max_steps", "1", "--training.learning_rate", "1e-12", "--training.init_from"]
    cart, mixed = (load_recipe(mixture / name, [*steps, str(run)]) for name in ("cart.yaml", "mixed.yaml"))
    cart.model = mixed.model
    alone = ad_hf.train(cart, mixture / "histories", tmp_path / "cart", config_name="cart").state_dict()
    own = ad_hf.ADModel.from_pretrained(run / "model").group("cart")
    assert all(np.allclose(weight, alone[name], atol=1e-9) for name, weight in own.state_dict().items())
    ad_hf.train(mixture / "mixed.yaml", mixture / "histories", tmp_path / "mixed", overrides=[*steps, str(tiny_run)])
    new = json.loads((tmp_path / "mixed" / "run.json").read_text())["init_from"]["new"]
    assert new == ["cart.embedding.observation", "cart.embedding.previous_action", "cart.head"]


@pytest.mark.slow
def test_two_processes_train_as_one_does(mixture, run, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ad_hf"]
    command = [*torchrun, "train", "--recipe", mixture / "mixed.yaml", "--dataset", mixture / "histories", *STEPS]
    done = subprocess.run(
        [*map(str, command), "--output_dir", str(tmp_path)],
        **{"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "timeout": 300},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.abs(np.subtract(losses(tmp_path), losses(run))).max() < 1e-4
    for family in ("room", "cart"):
        both = [[line[f"loss/{family}"] for line in metrics(folder)] for folder in (tmp_path, run)]
        assert np.abs(np.subtract(*both)).max() < 1e-4
    assert weights(tmp_path / "model").keys() == weights(run / "model").keys()


def test_quickstart_collects_trains_and_evaluates_each_family(mixture, tmp_path):
    recipe = load_recipe(mixture / "mixed.yaml", STEPS)
    results = quickstart(recipe, tmp_path / "run", num_seeds=1, num_workers=0)
    assert set(results) == {"room", "cart"}
    assert (tmp_path / "run" / "cart" / "learning_curve.png").is_file()
    assert results["cart"]["agents"]["AD"]["num_tasks"] == 2
    card = ModelCard.load(tmp_path / "run" / "model" / "README.md")
    assert [each.dataset_type for each in card.data.eval_results] == ["CartPole-v1", "ad_hf/DarkRoom-v0"]
    last = results["cart"]["agents"]["AD"]["at"]["4"]["return"]
    assert re.search(rf"^\| `cart`, `CartPole-v1` \| [\d.]+ \| {last:.2f} \(.* \| 1 x 1 x 2 \|$", card.content, re.M)

    told = json.loads((tmp_path / "run" / "families.json").read_text())
    again = EvaluatedModel.load(
        tmp_path / "run", tmp_path / "run" / "histories", mixture / "cart.yaml", config_name="cart"
    )
    again.family = ("cart", "of other weights")
    with pytest.raises(ValueError, match=r"run of several families.* such as .*run/cart"):
        evaluate_models([again], tmp_path / "run", num_seeds=1)
    evaluate_models([again], tmp_path / "again", num_seeds=1)
    assert set(told["families"]) == {"room", "cart"}
    assert set(json.loads((tmp_path / "run" / "families.json").read_text())["families"]) == {"cart"}


@pytest.mark.parametrize(
    ("batch_size", "share", "processes", "counts"),
    [
        (8, {"a": 1, "b": 1}, 1, {"a": 4, "b": 4}),
        (9, {"a": 1, "b": 1}, 1, {"a": 5, "b": 4}),
        (8, {"a": 3, "b": 1}, 2, {"a": 6, "b": 2}),
        (64, {"a": 1, "b": 1, "c": 0.001}, 1, {"a": 32, "b": 31, "c": 1}),
    ],
)
def test_windows_are_shared_by_weight_and_each_family_has_some(batch_size, share, processes, counts):
    assert shares_of_batch(batch_size, share, processes) == counts


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"mixture": {"recipes": ["dark_room"]}}, "mixture.recipes must be two or more of different names"),
        ({"mixture": {"recipes": ["dark_room", "dark_room"]}}, "two or more of different names"),
        (
            {"mixture": {"recipes": ["dark_room", "bandit"], "weights": {"cart": 1.0}}},
            "of dark_room, bandit, got cart",
        ),
        ({"mixture": {"recipes": ["dark_room", "bandit"], "weights": {"bandit": 0.0}}}, "must be above 0"),
        (
            {"mixture": {"recipes": ["dark_room", "bandit"]}, "data": {"keep_every_episode": 2}},
            "data of a mixture are",
        ),
    ],
)
def test_recipes_of_no_mixture_are_refused(tmp_path, change, error):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(ValueError, match=error):
        load_recipe(tmp_path / "recipe.yaml")


def test_datasets_and_batches_that_do_not_fit_the_families_are_refused(mixture, tmp_path):
    histories = mixture / "histories"
    with pytest.raises(ValueError, match=r"2 families \(room, cart\), and there are 3 datasets"):
        ad_hf.train(mixture / "mixed.yaml", [histories] * 3, tmp_path / "run")
    with pytest.raises(ValueError, match="several datasets need a recipe with a section mixture"):
        ad_hf.train(None, [histories] * 2, tmp_path / "run")
    with pytest.raises(ValueError, match="truncated_bptt is for one family, not for a mixture"):
        ad_hf.train(
            mixture / "mixed.yaml", histories, tmp_path / "run", overrides=["--training.truncated_bptt", "true"]
        )
    with pytest.raises(ValueError, match="at least one window for each of 2 families"):
        ad_hf.train(mixture / "mixed.yaml", histories, tmp_path / "run", overrides=["--training.batch_size", "1"])
