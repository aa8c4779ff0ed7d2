import shutil

import pytest
from datasets import load_dataset

import ad_hf


def collect(folder, seed, **settings):
    family = ad_hf.TaskFamily(
        "ad_hf/DarkRoom-v0", [{"goal": [0, 0]}, {"goal": [2, 2]}], {"size": 3}, native_vector=True
    )
    hyperparameters = {"n_steps": 5}
    return ad_hf.collect(
        family,
        n_envs=2,
        total_timesteps=200,
        hyperparameters=hyperparameters,
        seeds=[seed],
        output_dir=folder,
        num_workers=1,
        **settings,
    )


def actions(rows):
    return [row["actions"] for row in rows]


def test_folders_of_the_same_name_are_not_taken_for_one_another(tmp_path):
    """Neither by this package nor by datasets itself, which caches a local folder by its name."""
    first, second = collect(tmp_path / "a" / "histories", seed=0), collect(tmp_path / "b" / "histories", seed=1)
    ours = [actions(ad_hf.load_histories(folder, "train")[0]) for folder in (first, second)]
    plain = [actions(load_dataset(str(folder), split="train")) for folder in (first, second)]
    assert ours[0] != ours[1]
    assert plain == ours


def test_a_folder_that_is_collected_anew_is_read_anew(tmp_path):
    folder = collect(tmp_path / "histories", seed=0)
    before = actions(ad_hf.load_histories(folder, "train")[0]), actions(load_dataset(str(folder), split="train"))
    shutil.rmtree(folder)
    collect(folder, seed=1)
    after = actions(ad_hf.load_histories(folder, "train")[0]), actions(load_dataset(str(folder), split="train"))
    assert before[0] == before[1] != after[0] == after[1]


def test_a_split_that_is_not_there_is_told_with_those_that_are(tiny_histories):
    with pytest.raises(ValueError, match="test, train, validation"):
        ad_hf.load_histories(tiny_histories, "dev")


def test_a_model_for_a_dataset_has_its_spaces(tiny_histories):
    config = ad_hf.config_from_dataset(tiny_histories, hidden_size=32)
    assert config.observation_space == {"type": "MultiDiscrete", "nvec": [3, 3]}
    assert config.action_space == {"type": "Discrete", "n": 5}
    assert config.hidden_size == 32
    with pytest.raises(ValueError, match="hiden_size"):
        ad_hf.config_from_dataset(tiny_histories, hiden_size=32)
