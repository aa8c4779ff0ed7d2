"""A mixture's histories on the Hub: one repository with a configuration for each family."""

import json

import yaml
from safetensors.torch import load_file

from ad_hf.pipeline import collect_recipe
from ad_hf.recipe import load_recipe

STEPS = ["--training.max_steps", "4", "--training.eval_steps", "4", "--training.batch_size", "4", "--streaming"]


def test_configurations_of_a_repository_are_streamed_as_those_of_a_folder(
    hub, ad_hf_with_hub, tiny_recipe_file, tmp_path
):
    tiny = yaml.safe_load(tiny_recipe_file.read_text())
    for name in ("room", "hall"):
        (tmp_path / f"{name}.yaml").write_text(tiny_recipe_file.read_text())
    recipes = [str(tmp_path / f"{name}.yaml") for name in ("room", "hall")]
    mixed = {"mixture": {"recipes": recipes}, "model": tiny["model"], "training": tiny["training"]}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(mixed))
    collect_recipe(load_recipe(tmp_path / "mixed.yaml"), tmp_path / "histories", num_workers=0)
    ad_hf_with_hub("push", "dataset", tmp_path / "histories", "local/both")

    train = ["train", "--recipe", tmp_path / "mixed.yaml", *STEPS]
    for dataset, run in ((tmp_path / "histories", "of_folder"), ("local/both", "of_hub")):
        ad_hf_with_hub(*train, "--dataset", dataset, "--output_dir", tmp_path / run)

    weights, expected = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("of_hub", "of_folder"))
    assert all(weight.equal(expected[name]) for name, weight in weights.items())
    datasets = json.loads((tmp_path / "of_hub" / "run.json").read_text())["groups"]
    assert {name: each["dataset"]["config_name"] for name, each in datasets.items()} == {
        "room": "room",
        "hall": "hall",
    }
