import shutil

import numpy as np
import pytest
import torch
from datasets import load_dataset
from history_files import make_histories, make_table, open_dataset, rows_to_table, windows_of_folder, write_dataset

import ad_hf
from ad_hf.histories.statistics import describe_shards
from ad_hf.histories.windows import WindowBatches
from ad_hf.histories.writer import describe
from ad_hf.storage.files import write_text


def test_folders_of_the_same_name_and_folders_made_anew_are_not_taken_for_one_another(tmp_path):
    """Neither by this package nor by datasets itself, which caches a local folder by its name."""
    expected = []
    for seed, parent in enumerate(("a", "b", "b")):
        folder = tmp_path / parent / "histories"
        shutil.rmtree(folder, ignore_errors=True)
        write_dataset(folder, [make_table([40] * 3, seed=seed)])
        describe(folder, folder.name, "default", open_dataset(folder).metadata)
        ours, plain = ad_hf.load_histories(folder, "train")[0], load_dataset(str(folder), split="train")
        assert ours["actions"] == plain["actions"]
        assert ours["actions"] not in expected
        expected.append(ours["actions"])


def test_a_split_that_is_not_there_is_told_with_those_that_are(tiny_histories):
    with pytest.raises(ValueError, match="test, train, validation"):
        ad_hf.load_histories(tiny_histories, "dev")


def test_a_model_for_a_dataset_has_its_spaces(tiny_histories):
    config = ad_hf.config_from_dataset(tiny_histories, hidden_size=32)
    assert config.observation_space == {"type": "MultiDiscrete", "nvec": [3, 3]}
    assert config.action_space == {"type": "Discrete", "n": 5}
    assert config.hidden_size == 32
    assert config.reward_scale == 1.0  # rewards of 0 and 1 stay as they are
    with pytest.raises(ValueError, match="hiden_size"):
        ad_hf.config_from_dataset(tiny_histories, hiden_size=32)


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def write_scaled(folder, factor):
    """Histories of random vectors, these and their rewards multiplied by a factor."""
    rows, rng = make_histories([60, 60, 60]), np.random.default_rng(0)
    for row in rows:
        row["observations"] = (factor * rng.normal(size=(60, 2))).tolist()
        row["rewards"] = (factor * np.array(row["rewards"])).tolist()
    return write_dataset(folder, [rows_to_table(rows)])


def trained_logits(folder):
    """Logits of a model after some updates on a dataset, on its first batch."""
    dataset = open_dataset(folder)
    windows = windows_of_folder(folder, 12)
    torch.manual_seed(0)
    model = ad_hf.ADModel(ad_hf.config_from_dataset(dataset, **SIZES, context_length=12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _, batch in zip(range(10), WindowBatches(windows, batch_size=6)):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model(**windows.batch(windows.epoch_order(0))).logits


def test_the_scale_of_observations_and_rewards_makes_no_difference(tmp_path):
    small, large = (trained_logits(write_scaled(tmp_path / str(factor), factor)) for factor in (1.0, 1000.0))
    torch.testing.assert_close(large, small, atol=2e-3, rtol=1e-3)
    assert small.std() > 0.05


def test_a_dataset_that_says_its_statistics_is_not_read_for_them(tmp_path):
    folder = write_scaled(tmp_path / "histories", 3.0)
    counted = ad_hf.config_from_dataset(folder)
    assert counted.observation_std == pytest.approx([3.0, 3.0], rel=0.2)
    metadata = open_dataset(folder).metadata
    describe_shards(metadata, folder / "default")
    write_text(folder / "default" / "metadata.json", metadata.to_json())
    for shard in folder.glob("default/*.parquet"):
        shard.unlink()
    read = ad_hf.config_from_dataset(folder)
    for name in ("observation_mean", "observation_std", "reward_scale"):
        assert getattr(read, name) == getattr(counted, name)
    given = ad_hf.config_from_dataset(folder, reward_scale=7.0, observation_mean=[1.0, 2.0])
    assert (given.reward_scale, given.observation_mean) == (7.0, [1.0, 2.0])  # take the statistics' place
    raw = ad_hf.config_from_dataset(folder, normalize_observations=False)
    assert raw.observation_mean is raw.observation_std is None
    assert raw.reward_scale == ad_hf.config_from_dataset(folder, reward_scale=None).reward_scale > 1
