"""A training and an evaluation take histories of the same tasks alone, and say so before they start."""

import json
import shutil
from pathlib import Path

import pytest

import ad_hf
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.pipeline import EvaluatedModel, evaluate_models
from ad_hf.training.compatibility import check_tasks


def edited(histories, folder, edit):
    """A copy of histories with other metadata."""
    file = Path(shutil.copytree(histories, folder)) / "default" / "metadata.json"
    data = json.loads(file.read_text())
    edit(data, [task for task in data["tasks"] if task["split"] == "test"])
    file.write_text(json.dumps(data))
    return folder


def other_environment(data, tests):
    data["env_id"] = "ad_hf/DarkKeyToDoor-v0"


def other_goals(data, tests):
    tests[0]["kwargs"], tests[1]["kwargs"] = tests[1]["kwargs"], tests[0]["kwargs"]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (other_environment, "holds histories with env_id = 'ad_hf/DarkKeyToDoor-v0', the recipe's family has"),
        (other_goals, "holds histories of other tasks or of another split than the recipe's family: it has"),
    ],
)
def test_histories_of_others_are_refused_before_anything_starts(tiny_recipe, tiny_histories, tmp_path, edit, expected):
    dataset = edited(tiny_histories, tmp_path / "data", edit)
    model = ad_hf.ADModel(ad_hf.config_from_dataset(tiny_histories, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match=expected):
        ad_hf.train(tiny_recipe, dataset, tmp_path / "run")
    with pytest.raises(ValueError, match=expected):
        evaluate_models([EvaluatedModel(model, tiny_recipe, dataset)], tmp_path / "evaluation", num_seeds=1)
    assert not list((tmp_path / "evaluation").iterdir())
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
