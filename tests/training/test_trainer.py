import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ad_hf
from ad_hf.training.config import TrainingConfig
from ad_hf.training.machine import choose_precision
from ad_hf.training.optimizers import make_optimizers

REPOSITORY = Path(__file__).resolve().parents[2]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tiny_model(dataset, **settings):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "context_length": 24}
    return ad_hf.ADModel(ad_hf.config_from_dataset(dataset, **{**sizes, **settings}))


def test_a_run_leaves_its_recipe_metrics_and_model(tiny_run, tiny_recipe):
    names = {"recipe.yaml", "run.json", "metrics.jsonl", "training.png", "checkpoint-10", "model"}
    assert {path.name for path in tiny_run.iterdir()} == names
    settled = replace(tiny_recipe, rollout=tiny_recipe.rollout.resolve())  # a run says every setting
    assert ad_hf.load_recipe(tiny_run / "recipe.yaml") == settled
    assert [line["step"] for line in metrics(tiny_run)] == list(range(1, 21))
    assert [line["step"] for line in metrics(tiny_run) if "validation_return" in line] == [10, 20]
    model = ad_hf.ADModel.from_pretrained(tiny_run / "model")
    assert model.rollout_config.num_episodes == tiny_recipe.rollout.num_episodes


def test_training_lowers_the_loss(tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, max_steps=80, learning_rate=1e-2, eval_steps=80)
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1


def test_the_same_seed_gives_the_same_losses_and_weights_and_another_seed_others(
    tiny_run, tiny_recipe, tiny_histories, tmp_path
):
    again = ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "again")
    tiny_recipe.training = replace(tiny_recipe.training, seed=1)
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "other")
    losses = [[line["loss"] for line in metrics(run)] for run in (tiny_run, tmp_path / "again", tmp_path / "other")]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    first = ad_hf.ADModel.from_pretrained(tiny_run / "model").state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in again.state_dict().items())


def test_accumulating_gradients_changes_no_loss(tiny_run, tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, gradient_accumulation_steps=4)
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    whole, parts = ([line["loss"] for line in metrics(run)] for run in (tiny_run, tmp_path / "run"))
    assert parts == pytest.approx(whole, abs=1e-4)


def test_weight_decay_is_for_matrices_alone(tiny_histories):
    model = tiny_model(tiny_histories)
    names = {id(weight): name for name, weight in model.named_parameters()}
    for kind in ("adamw", "muon"):
        groups = [
            group
            for optimizer in make_optimizers(model, TrainingConfig(optimizer=kind, weight_decay=0.1))
            for group in optimizer.param_groups
        ]
        decayed = {names[id(weight)] for group in groups if group["weight_decay"] for weight in group["params"]}
        spared = {names[id(weight)] for group in groups if not group["weight_decay"] for weight in group["params"]}
        assert decayed | spared == set(names.values())
        assert not decayed & spared
        assert all("norm" in name or "bias" in name or "table" in name or "episode_start" in name for name in spared)
        assert {"blocks.0.attention.qkv.weight", "head.linear.weight"} <= decayed


def test_the_best_model_on_validation_tasks_is_kept(tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, max_steps=40, eval_steps=4, learning_rate=1e-2)
    model = ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    scores = [line["validation_return"] for line in metrics(tmp_path / "run") if "validation_return" in line]
    assert len(set(scores)) > 1
    family = ad_hf.TaskFamily(tiny_recipe.family)
    training = tiny_recipe.training
    returns = ad_hf.evaluate(
        model, family, "validation", training.eval_episodes, training.eval_repeats, training.seed
    ).returns
    assert returns[..., -10:].mean() == pytest.approx(max(scores))


def test_a_dataset_of_another_split_is_refused(tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.family.split_seed = 5
    with pytest.raises(ValueError, match="another split"):
        ad_hf.train(tiny_recipe, tiny_histories, tmp_path)


def test_a_dataset_of_another_environment_is_refused(tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.family.env_kwargs = {"size": 3, "max_episode_steps": 7}
    with pytest.raises(ValueError, match="max_episode_steps"):
        ad_hf.train(tiny_recipe, tiny_histories, tmp_path)


def test_bfloat16_trains_to_about_the_same_losses(tiny_run, tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, mixed_precision="bf16")
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    full, half = ([line["loss"] for line in metrics(run)] for run in (tiny_run, tmp_path / "run"))
    assert half != full
    assert half == pytest.approx(full, abs=0.03)


def test_the_precision_of_a_cpu_is_measured():
    precision, why = choose_precision(torch.device("cpu"))
    assert precision in ("bf16", "no")
    assert "GFLOP/s" in why


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 0},
        {"batch_size": 6, "gradient_accumulation_steps": 4},
        {"mixed_precision": "int8"},
        {"optimizer": "sgd"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=f"training.{next(iter(settings))}"):
        TrainingConfig(**settings)
