"""Where no recipe is named, what came along with a model or a dataset says which tasks it is about."""

import json
import shutil
from dataclasses import asdict

import pytest
import yaml
from training_runs import assert_ended_alike

import ad_hf
from ad_hf.cli import main
from ad_hf.envs.task_family import TaskFamily
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.own_recipe import recipe_of_dataset, recipe_of_model
from ad_hf.recipe import load_recipe


@pytest.fixture
def tiny(tiny_recipe_file):
    """The sections of the tiny recipe."""
    return yaml.safe_load(tiny_recipe_file.read_text())


def changed(tiny_histories, folder, recipe=None, **entries):
    """A dataset with other entries of its metadata, and with a recipe beside it."""
    shutil.copytree(tiny_histories, folder)
    path = folder / "default" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return HistoryDataset.open(folder)


def test_training_without_a_recipe_is_that_of_the_datasets_own_tasks(tiny, tiny_histories, tiny_run, tmp_path, capsys):
    options = [
        f"--{name}.{each}={value}" for name in ("model", "training", "rollout") for each, value in tiny[name].items()
    ]
    arguments = ["train", "--dataset", tiny_histories, "--output_dir", tmp_path / "run"]
    assert main([*map(str, arguments), *options, "--data.keep_every_episode=1"]) == 0
    said = (
        f"recipe: environment, tasks and splits of {tiny_histories}, other settings of the packaged recipe dark_room"
    )
    assert f"{said}, since --recipe names none\n" in capsys.readouterr().err
    assert_ended_alike(tmp_path / "run", tiny_run)


def test_a_family_comes_back_from_the_metadata_of_its_histories(tiny, tiny_histories):
    recipe, _ = recipe_of_dataset(HistoryDataset.open(tiny_histories), ["--training.max_steps", "3"])
    packaged = load_recipe("dark_room")
    family, own = TaskFamily(recipe.family), TaskFamily(**tiny["family"])
    assert [asdict(task) for task in family.tasks()] == [asdict(task) for task in own.tasks()]
    assert family.native_vector
    assert family.optimal_returns(family.tasks()).tolist() == own.optimal_returns(own.tasks()).tolist()
    assert (recipe.data, recipe.model, recipe.rollout) == (packaged.data, packaged.model, packaged.rollout)
    assert recipe.training.max_steps == 3


def test_a_dataset_of_a_packaged_recipe_is_known_as_one(tiny_histories, tmp_path):
    recipe = load_recipe("frozen_lake")
    tasks = [asdict(task) for task in TaskFamily(recipe.family).tasks()]
    family = {"env_id": recipe.family.env_id, "env_kwargs": recipe.family.env_kwargs, "tasks": tasks}
    dataset = changed(tiny_histories, tmp_path / "lake", **family)
    found, said = recipe_of_dataset(dataset)
    assert (found, said) == (recipe, f"recipe: frozen_lake, which {dataset} was collected with")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"env_id": "my_rooms:Room-v0"}, "none of the package is for my_rooms:Room-v0.*--recipe.*ad-hf init"),
        ({"wrappers": [{"name": "os.system", "kwargs": {}}]}, "family.wrappers.*os.system.*trust_remote_code"),
        ({"env_kwargs": {"xml_file": "/etc/passwd"}}, "family.env_kwargs.xml_file.*may name a file"),
    ],
)
def test_a_dataset_names_no_code(tiny_histories, tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        recipe_of_dataset(changed(tiny_histories, tmp_path / "histories", **entries))


def test_only_the_family_of_a_recipe_beside_a_dataset_is_read_unless_it_is_trusted(tiny, tiny_histories, tmp_path):
    beside = {**tiny, "data": {"labels": "os.system"}}
    dataset = changed(tiny_histories, tmp_path / "histories", beside)
    recipe, said = recipe_of_dataset(dataset)
    assert recipe.family == load_recipe(dataset.repository.download([]) / "recipe.yaml").family
    assert (recipe.data, recipe.model) == (load_recipe("dark_room").data, load_recipe("dark_room").model)
    assert "the packaged recipe dark_room" in said
    trusted, said = recipe_of_dataset(dataset, trust_remote_code=True)
    assert (trusted.data.labels, trusted.model.hidden_size) == ("os.system", 16)
    assert "packaged" not in said


def test_a_rollout_without_a_recipe_is_on_the_tasks_of_the_models_run(tiny_run, tiny_histories, tmp_path, capsys):
    arguments = ["rollout", "--model", str(tiny_run / "model"), "--num_seeds", "1", "--no_video"]
    assert main([*arguments, "--output_dir", str(tmp_path / "seen")]) == 0
    captured = capsys.readouterr()
    assert f"recipe: the one of the model {tiny_run / 'model'}, since --recipe names none\n" in captured.err
    evaluation = json.loads((tmp_path / "seen" / "evaluation.json").read_text())
    assert (len(evaluation["tasks"]), list(evaluation["agents"]["AD"]["at"])) == (2, ["1", "10", "12"])
    bare = shutil.copytree(tiny_run / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("recipe.yaml"))
    assert len(TaskFamily(recipe_of_model(bare, tiny_histories)[0].family).tasks("test")) == 2


def test_training_in_python_says_what_it_needs(tiny_histories):
    with pytest.raises(TypeError, match="needs a dataset and an output_dir"):
        ad_hf.train(dataset=tiny_histories)


def test_test_tasks_that_a_run_has_trained_on_are_refused(tiny_run, tiny_recipe_file, tmp_path, capsys):
    arguments = ["rollout", "--model", str(tiny_run), "--num_seeds", "1", "--no_video", "--output_dir", str(tmp_path)]
    for options in (["--family.num_test_tasks", "4"], ["--recipe", str(tiny_recipe_file), "--family.split_seed", "1"]):
        assert main([*arguments, *options]) == 2
        assert "test tasks are training or validation tasks of the run of" in capsys.readouterr().err
    other_room = ["--family.env_kwargs.max_episode_steps", "5", "--family.split_seed", "1"]
    assert main([*arguments, *other_room]) == 0
