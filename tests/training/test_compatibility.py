"""A rollout and an evaluation stand beside histories of the same tasks alone, and say so before they play."""

import json
import shutil
from pathlib import Path

import pytest

import ad_hf
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.pipeline import EvaluatedModel, evaluate_models
from ad_hf.training.compatibility import check_tasks


def edited(histories, folder, edit):
    copy = Path(shutil.copytree(histories, folder))
    data = json.loads((copy / "default" / "metadata.json").read_text())
    edit(data)
    (copy / "default" / "metadata.json").write_text(json.dumps(data))
    return copy


def of(split, data):
    return [task for task in data["tasks"] if task["split"] == split]


def other_environment(data):
    data["env_id"] = "ad_hf/DarkKeyToDoor-v0"


def other_goals(data):
    first, second = of("test", data)
    first["kwargs"], second["kwargs"] = second["kwargs"], first["kwargs"]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (other_environment, "holds histories with env_id = 'ad_hf/DarkKeyToDoor-v0', the recipe's family has"),
        (other_goals, "holds histories of other tasks or of another split than the recipe's family: it has"),
    ],
)
def test_histories_of_others_are_refused_before_anything_is_played(tiny_recipe, tiny_histories, tmp_path, edit, told):
    dataset = edited(tiny_histories, tmp_path / "data", edit)
    model = ad_hf.ADModel(ad_hf.config_from_dataset(tiny_histories, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match=told):
        evaluate_models([EvaluatedModel(model, tiny_recipe, dataset)], tmp_path / "evaluation", num_seeds=1)
    assert not list((tmp_path / "evaluation").iterdir())


def test_some_of_the_tasks_are_enough(tiny_recipe, tiny_histories, tmp_path):
    family = TaskFamily(tiny_recipe.family)

    def fewer(data):
        data["tasks"] = [of("train", data)[0], *of("test", data)]
        data["tasks"][0]["kwargs"] = {"goal": [2, 2, 2]}  # which no test is made on

    dataset = HistoryDataset.open(edited(tiny_histories, tmp_path / "data", fewer))
    check_tasks(family, dataset, "test")
    with pytest.raises(ValueError, match="holds histories of other tasks"):
        check_tasks(family, dataset)
