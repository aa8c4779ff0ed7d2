"""Pushing evaluations: a dataset of returns that explains itself, and models that are evaluated by their Hub ids."""

import json
import re
import shutil

import pytest

LOAD = """
import sys
from datasets import load_dataset

returns = load_dataset(sys.argv[1], split="test")
assert "ad_hf" not in sys.modules
print(len(returns), sorted(set(returns["agent"])))
"""


@pytest.fixture(scope="module")
def evaluated(tiny_run, tiny_histories, tmp_path_factory):
    """An evaluation of a run."""
    from ad_hf.cli import main

    folder = tmp_path_factory.mktemp("evaluations") / "evaluation"
    run = shutil.copytree(tiny_run, folder.parent / "run")  # whose card will tell of it
    arguments = ["--model", run, "--dataset", tiny_histories, "--output_dir", folder, "--num_seeds", "2"]
    assert main([str(argument) for argument in ["evaluate", *arguments]]) == 0
    return folder


@pytest.fixture
def evaluation(evaluated, tmp_path):
    """A copy of it, to be spoilt."""
    return shutil.copytree(evaluated, tmp_path / "evaluation")


def test_a_pushed_evaluation_is_a_dataset_that_loads_without_the_package_and_a_second_push_changes_nothing(
    hub, ad_hf_with_hub, run_with_hub, evaluation
):
    done = ad_hf_with_hub("push", "evaluation", evaluation, "local/returns")

    files = hub.files("dataset", "local/returns")
    assert files.keys() == {".gitattributes", *(path.name for path in evaluation.iterdir())}
    assert done.stdout == f"{hub.url}/datasets/local/returns/tree/{hub.commits('dataset', 'local/returns')[0]}\n"
    assert all(files[path.name] == path.read_bytes() for path in evaluation.iterdir() if path.name != "README.md")
    card = files["README.md"].decode()
    assert 'load_dataset("local/returns", split="test")' in card
    # 2 rollouts in 2 tasks; 2 of random actions; 8 streams of the source.
    printed = run_with_hub(LOAD, "local/returns").stdout
    assert printed.splitlines()[-1] == f"{2 * 2 + 2 * 2 + 8 * 2} ['AD', 'random', 'source']"
    commits = hub.commits("dataset", "local/returns")
    ad_hf_with_hub("push", "evaluation", evaluation, "local/returns")
    assert hub.commits("dataset", "local/returns") == commits


def test_what_people_wrote_in_a_card_of_results_stays(hub, ad_hf_with_hub, evaluation):
    card = evaluation / "README.md"
    card.write_text(card.read_text() + "\nSeen on a Tuesday.\n")
    ad_hf_with_hub("push", "evaluation", evaluation, "local/others")
    ad_hf_with_hub("push", "evaluation", evaluation, "local/others", "--revision", "second")

    for revision in ("main", "second"):
        assert "Seen on a Tuesday." in hub.files("dataset", "local/others", revision)["README.md"].decode()


def test_folders_without_an_evaluation_are_refused(hub, ad_hf_with_hub, evaluation):
    (evaluation / "returns.parquet").write_text("no")
    done = ad_hf_with_hub("push", "evaluation", evaluation, "local/returns", check=False)
    assert "returns.parquet: it is no parquet file" in done.stderr.splitlines()[-1]
    (evaluation / "evaluation.json").unlink()
    done = ad_hf_with_hub("push", "evaluation", evaluation, "local/returns", check=False)
    assert "holds no evaluation: expected evaluation.json and returns.parquet" in done.stderr.splitlines()[-1]
    done = ad_hf_with_hub("push", "evaluation", evaluation, "local/returns", "--config_name", "x", check=False)
    assert "--config_name" in done.stderr.splitlines()[-1]
    assert not hub.requests


def test_a_model_on_the_hub_is_evaluated_by_the_recipe_that_lies_beside_it(hub, ad_hf_with_hub, tiny_run, tmp_path):
    ad_hf_with_hub("push", "model", tiny_run, "local/model")

    ad_hf_with_hub("evaluate", "--model", "local/model", "--output_dir", tmp_path / "seen", "--num_seeds", "1")

    found = json.loads((tmp_path / "seen" / "evaluation.json").read_text())
    (model,) = found["models"]
    assert (model["name"], model["revision"]) == ("local/model", hub.commits("model", "local/model")[0])
    assert model["weights_digest"] == found["weights_digest"]
    assert re.search(r"AD \| 1 \| 1 \| 2 ", (tmp_path / "seen" / "README.md").read_text())
