"""Settings that change how a run is computed, and not what comes out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ad_hf

CONFIGS = Path(__file__).resolve().parents[2] / "scripts" / "accelerate_configs"


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_gradient_checkpointing_changes_no_loss(tiny_run, tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, gradient_checkpointing=True)
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), abs=1e-6)


@pytest.mark.slow
def test_a_compiled_model_has_about_the_same_losses_and_can_be_loaded(tiny_run, tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, torch_compile=True, save_steps=5)
    model = ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), abs=1e-3)
    assert set(model.state_dict()) == set(ad_hf.ADModel.from_pretrained(tiny_run / "model").state_dict())
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run", resume="latest")


def test_a_tracker_gets_metrics_settings_and_the_picture(tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, log_with="tensorboard")
    run = tmp_path / "run"
    ad_hf.train(tiny_recipe, tiny_histories, run)
    events = EventAccumulator(str(run / "ad_hf"), {"images": 0}).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "learning_rate", "validation_return"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx({line["step"]: line[name] for line in lines if name in line})
    assert [image.step for image in events.Images("training")] == [10, 20]
    assert events.Images("training")[0].width > 500
    (settings,) = (yaml.safe_load(file.read_text()) for file in (run / "ad_hf").rglob("hparams.yml"))
    assert settings["learning_rate"] == tiny_recipe.training.learning_rate


def test_a_tracker_that_is_not_installed_is_refused_by_name(tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, log_with="comet_ml")
    with pytest.raises(ValueError, match=r"training\.log_with: comet_ml is not installed"):
        ad_hf.train(tiny_recipe, tiny_histories, tmp_path / "run")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem == "single" else 8)
    assert (
        str(config.distributed_type.value)
        == {
            "single": "NO",
            "multi_gpu": "MULTI_GPU",
            "fsdp": "FSDP",
            "deepspeed_zero2": "DEEPSPEED",
            "deepspeed_zero3": "DEEPSPEED",
        }[path.stem]
    )
