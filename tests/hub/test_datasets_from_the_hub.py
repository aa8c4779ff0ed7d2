"""Datasets on the Hub, merged with others and memory-mapped, as those in folders are."""

import pytest

from ad_hf.histories.schema import read_metadata
from ad_hf.pipeline import collect_recipe
from ad_hf.recipe import load_recipe


@pytest.fixture(scope="module")
def other_seed(tiny_recipe_file, tmp_path_factory):
    """The tiny recipe's histories with another seed."""
    recipe = load_recipe(tiny_recipe_file, ["--source.seeds", "[1]"])
    return collect_recipe(recipe, tmp_path_factory.mktemp("other") / "histories", num_workers=1)


def test_a_dataset_on_the_hub_is_merged_with_one_in_a_folder(ad_hf_with_hub, tiny_histories, other_seed, tmp_path):
    ad_hf_with_hub("push", "dataset", other_seed, "user/other")
    ad_hf_with_hub("merge", "user/other", tiny_histories, tmp_path / "merged")
    metadata = read_metadata(tmp_path / "merged")
    assert metadata.seeds == [0, 1]
    assert metadata.statistics["train"]["histories"] == sum(
        read_metadata(folder).statistics["train"]["histories"] for folder in (tiny_histories, other_seed)
    )
    assert "- user/other@" in (tmp_path / "merged" / "README.md").read_text()  # at which commit


def test_a_dataset_on_the_hub_is_memory_mapped(ad_hf_with_hub, tiny_recipe_file, other_seed, tmp_path):
    """With the weights in the end that the folder it was pushed from gives."""
    ad_hf_with_hub("push", "dataset", other_seed, "user/other")
    weights = []
    for dataset, kept in (("user/other", "false"), (other_seed, "true")):
        run = tmp_path / f"kept_{kept}"
        settings = ["--training.max_steps", "4", "--data.keep_in_memory", kept, "--output_dir", run]
        ad_hf_with_hub("train", "--recipe", tiny_recipe_file, "--dataset", dataset, *settings)
        weights.append((run / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_dataset_on_the_hub_is_inspected_as_in_its_folder_without_a_download(ad_hf_with_hub, hub, other_seed):
    ad_hf_with_hub("push", "dataset", other_seed, "user/inspected")
    hub.clear_log()
    there, here = (ad_hf_with_hub("inspect", dataset).stdout for dataset in ("user/inspected", other_seed))
    assert there == here
    assert "finding" in there.splitlines()[-1]
    shards = [request for request in hub.requests if request.path.endswith(".parquet") and request.method == "GET"]
    assert shards
    assert all(request.range and "train-" in request.path for request in shards)
