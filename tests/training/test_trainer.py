"""The loop: losses fall, seeds repeat, the best model is kept; settings change how it is computed, or are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from history_files import make_table, open_dataset, write_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import losses, metrics, same_weights

import ad_hf
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.pipeline import EvaluatedModel, evaluate_models
from ad_hf.training.compatibility import check_family, check_tasks
from ad_hf.training.config import TrainingConfig
from ad_hf.training.machine import choose_precision
from ad_hf.training.optimizers import Float32Muon, make_optimizers

CONFIGS = Path(ad_hf.__file__).parent / "accelerate_configs"


@pytest.fixture
def train(tiny_recipe, tiny_histories, tmp_path):
    """Train the tiny recipe with other settings; returns the run."""

    def run(name="run", **settings):
        recipe = replace(tiny_recipe, training=replace(tiny_recipe.training, **settings))
        ad_hf.train(recipe, tiny_histories, tmp_path / name)
        return tmp_path / name

    return run


def test_a_run_leaves_its_recipe_metrics_and_model(tiny_run, tiny_recipe):
    names = {"recipe.yaml", "run.json", "metrics.jsonl", "training.png", "verdict.json", "checkpoint-10", "model"}
    assert {path.name for path in tiny_run.iterdir()} == names
    settled = replace(tiny_recipe, rollout=tiny_recipe.rollout.resolve())  # a run says every setting
    assert ad_hf.load_recipe(tiny_run / "recipe.yaml") == settled
    assert [line["step"] for line in metrics(tiny_run)] == list(range(1, 21))
    assert [line["step"] for line in metrics(tiny_run) if "validation_return" in line] == [10, 20]
    lines = (tiny_run / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["tokens_per_second"] > 0 for line in lines)
    model = ad_hf.ADModel.from_pretrained(tiny_run / "model")
    assert model.rollout_config.num_episodes == tiny_recipe.rollout.num_episodes


def test_training_lowers_the_loss_and_keeps_the_best_model_on_validation_tasks(train, tiny_recipe):
    run = train(max_steps=80, learning_rate=1e-2, eval_steps=16)
    assert sum(losses(run)[-10:]) / 10 < sum(losses(run)[:10]) / 10 - 0.1
    scores = [line["validation_return"] for line in metrics(run) if "validation_return" in line]
    assert len(set(scores)) > 1
    model, family, training = ad_hf.ADModel.from_pretrained(run / "model"), tiny_recipe.family, tiny_recipe.training
    returns = ad_hf.evaluate(
        model, ad_hf.TaskFamily(family), "validation", training.eval_episodes, training.eval_repeats, training.seed
    ).returns
    assert returns[..., -10:].mean() == pytest.approx(max(scores))


def test_the_same_seed_gives_the_same_losses_and_weights_and_another_seed_others(tiny_run, train):
    assert losses(again := train("again")) == losses(tiny_run)
    assert same_weights(again / "model", tiny_run / "model")
    assert losses(train("other", seed=1)) != losses(tiny_run)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"gradient_accumulation_steps": 4}, 1e-4),
        ({"gradient_checkpointing": True}, 1e-6),
        ({"mixed_precision": "bf16"}, 0.03),
    ],
    ids=str,
)
def test_settings_that_change_how_it_is_computed_change_no_loss_by_much(tiny_run, train, settings, tolerance):
    run = train(**settings)
    assert losses(run) == pytest.approx(losses(tiny_run), abs=tolerance)
    assert (losses(run) != losses(tiny_run)) == ("gradient_checkpointing" not in settings)


@pytest.mark.slow
def test_a_compiled_model_has_about_the_same_losses_and_can_be_loaded(tiny_run, tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, torch_compile=True, save_steps=5)
    model = ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), abs=1e-3)
    assert set(model.state_dict()) == set(ad_hf.ADModel.from_pretrained(tiny_run / "model").state_dict())
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run", resume="latest")


def test_weight_decay_is_for_matrices_alone(tiny_histories):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "context_length": 24}
    model = ad_hf.ADModel(ad_hf.config_from_dataset(tiny_histories, **sizes))
    names = {id(weight): name for name, weight in model.named_parameters()}
    for kind in ("adamw", "muon"):
        optimizers = make_optimizers(model, TrainingConfig(optimizer=kind, weight_decay=0.1))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        decayed = {names[id(weight)] for group in groups if group["weight_decay"] for weight in group["params"]}
        spared = {names[id(weight)] for group in groups if not group["weight_decay"] for weight in group["params"]}
        assert decayed | spared == set(names.values())
        assert not decayed & spared
        assert all("norm" in name or "bias" in name or "table" in name or "episode_start" in name for name in spared)
        assert {"blocks.0.attention.qkv.weight", "head.linear.weight"} <= decayed


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_in_float32_takes_the_steps_of_torchs(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    ends = []
    for kind in (torch.optim.Muon, Float32Muon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    assert (ends[0] - start).abs().mean() > 0.1
    torch.testing.assert_close(*ends, atol=0.01, rtol=0.01)  # torch's is of bfloat16
    assert optimizer.state[weight].keys() == {"momentum_buffer"}


def test_the_precision_of_a_cpu_is_measured():
    precision, why = choose_precision(torch.device("cpu"))
    assert precision in ("bf16", "no")
    assert "GFLOP/s" in why


@pytest.mark.parametrize(
    ("section", "settings", "expected"),
    [
        ("training", {"max_steps": 0}, "training.max_steps must be .*at least 1, got 0"),
        ("training", {"batch_size": 6, "gradient_accumulation_steps": 4}, "training.batch_size"),
        ("training", {"mixed_precision": "int8"}, "training.mixed_precision must be one of auto, no, bf16, fp16"),
        ("training", {"optimizer": "sgd"}, "training.optimizer must be one of adamw, muon"),
        ("training", {"log_with": "comet_ml"}, "training.log_with: comet_ml is not installed"),
        ("training", {"log_with": "paper"}, "training.log_with must be one of .*tensorboard.*, got 'paper'"),
        ("model", {"hidden_size": 0}, "model.hidden_size must be at least 1, got 0"),
        ("model", {"hidden_size": "x"}, "model.hidden_size must be a whole number, got 'x'"),
        ("model", {"hidden_size": None}, "model.hidden_size must be a whole number, got None"),
        ("model", {"hidden_size": 6, "num_attention_heads": 4}, r"hidden_size \(6\) must be an even multiple"),
        ("model", {"dropout": 1.5}, "model.dropout must be at least 0 and below 1, got 1.5"),
        ("model", {"reward_scale": 0}, "model.reward_scale must be .*above 0"),
        ("model", {"normalize_observations": "no"}, "model.normalize_observations must be true or false"),
        ("model", {"backbone_config": {"model_type": "t6"}}, "backbone_config needs the model_type"),
        ("family", {"split_seed": 5}, "another split"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny_recipe, tiny_histories, tmp_path, section, settings, expected):
    def start():
        setattr(tiny_recipe, section, replace(getattr(tiny_recipe, section), **settings))
        ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")

    with pytest.raises(ValueError, match=expected):
        start()


def test_a_tracker_gets_metrics_settings_and_the_picture(train):
    run = train(log_with="tensorboard")
    events = EventAccumulator(str(run / "ad_hf"), {"images": 0}).Reload()
    for name in ("loss", "learning_rate", "validation_return"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx({line["step"]: line[name] for line in metrics(run) if name in line})
    assert [image.step for image in events.Images("training")] == [10, 20]
    assert events.Images("training")[0].width > 500
    (settings,) = (yaml.safe_load(file.read_text()) for file in (run / "ad_hf").rglob("hparams.yml"))
    assert settings["learning_rate"] == 3e-3


def test_accelerate_reads_the_configurations():
    from accelerate.commands.config.config_args import load_config_from_file

    configs = {path.stem: load_config_from_file(str(path)) for path in CONFIGS.glob("*.yaml")}
    assert {name: str(config.distributed_type.value) for name, config in configs.items()} == {
        **{"single": "NO", "multi_gpu": "MULTI_GPU", "fsdp": "FSDP"},
        **{"deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"},
    }
    assert all(config.num_processes == (1 if name == "single" else 8) for name, config in configs.items())


def edited(histories, folder, edit):
    """A copy of histories with other metadata."""
    file = Path(shutil.copytree(histories, folder)) / "default" / "metadata.json"
    data = json.loads(file.read_text())
    edit(data, [task for task in data["tasks"] if task["split"] == "test"])
    file.write_text(json.dumps(data))
    return folder


def test_histories_of_others_are_refused_before_anything_starts(tiny_recipe, tiny_histories, tmp_path):
    def other_goals(data, tests):
        tests[0]["kwargs"], tests[1]["kwargs"] = tests[1]["kwargs"], tests[0]["kwargs"]

    model = ad_hf.ADModel(ad_hf.config_from_dataset(tiny_histories, hidden_size=16, num_hidden_layers=1))
    door = "ad_hf/DarkKeyToDoor-v0"
    for name, edit, expected in (
        ("door", lambda data, _: data.update(env_id=door), f"env_id = '{door}', the recipe's family has"),
        ("goals", other_goals, "other tasks or of another split than the recipe's family: it has"),
    ):
        dataset, evaluation = edited(tiny_histories, tmp_path / name, edit), tmp_path / f"{name}_evaluation"
        with pytest.raises(ValueError, match=expected):
            ad_hf.train(tiny_recipe, dataset, tmp_path / "run")
        with pytest.raises(ValueError, match=expected):
            evaluate_models([EvaluatedModel(model, tiny_recipe, dataset)], evaluation, num_seeds=1)
        assert not list(evaluation.iterdir())
        assert not (tmp_path / "run").exists()


def test_some_of_the_tasks_are_enough_to_evaluate(tiny_recipe, tiny_histories, tmp_path):
    def fewer(data, tests):
        train = next(task for task in data["tasks"] if task["split"] == "train")
        data["tasks"] = [{**train, "kwargs": {"goal": [2, 2, 2]}}, *tests]  # which no test is made on

    family = ad_hf.TaskFamily(tiny_recipe.family)
    dataset = HistoryDataset.open(edited(tiny_histories, tmp_path / "data", fewer))
    check_tasks(family, dataset, "test")
    with pytest.raises(ValueError, match="holds histories of other tasks"):
        check_tasks(family, dataset)


def test_data_of_an_environment_that_is_not_here_can_be_trained_on_where_no_task_is_acted_on(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / "data", [make_table([30])]))
    family = TaskFamily("test/Histories-v0", [{}])
    check_family(family, dataset)
    family.all_tasks += [replace(family.all_tasks[0], task_id=1, split="validation")]
    with pytest.raises(ValueError, match=r"cannot be made, which the recipe's validation tasks need.*not found"):
        check_family(family, dataset)
