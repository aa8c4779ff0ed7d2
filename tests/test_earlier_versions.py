"""What version 0.1.0 wrote before the package was laid out anew: it loads, goes on and acts as it did."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import load_dataset

import ad_hf
from ad_hf.hub.model_card import write_model_card

BEFORE = Path(__file__).parent / "data" / "before"


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A copy of the folder in which histories were collected and a run trained."""
    folder = tmp_path / "before"
    shutil.copytree(BEFORE, folder)
    monkeypatch.chdir(folder)
    return folder


def test_histories_still_load(before):
    assert load_dataset(str(before / "histories"), split="train").num_rows == 24
    rows, metadata = ad_hf.load_histories(before / "histories", "train")
    assert rows.num_rows == 24
    assert metadata.source["algorithm"] == "A2C"


def test_a_model_still_acts_as_it_did(before):
    expected = json.loads((before / "expected.json").read_text())
    family = ad_hf.TaskFamily.from_recipe(str(before / "recipe.yaml"))
    model = ad_hf.ADModel.from_pretrained(before / "run" / "model")
    output = model.rollout(family.make_vec(family.tasks("test")), num_episodes=6, seed=0, output_steps=True)
    assert output["actions"].tolist() == expected["actions"]
    assert output["episode_returns"].tolist() == expected["episode_returns"]


def test_a_checkpoint_goes_on_as_it_did(before):
    lines = [json.loads(line) for line in (before / "run" / "metrics.jsonl").read_text().splitlines()]
    whole = ["--model.sliding_window", "null"]  # blocks attended to all of the context
    ad_hf.train("recipe.yaml", "histories", "run", resume="latest", overrides=whole)
    resumed = [json.loads(line) for line in (before / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in resumed] == [line["step"] for line in lines]
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    assert resumed[-1]["validation_return"] == lines[-1]["validation_return"]


def test_a_card_still_tells_of_a_report(before):
    report = json.loads((before / "run" / "report.json").read_text())
    card = write_model_card(before / "run").read_text()
    assert f"{report['test_return_final']:.2f}" in card
    assert "mean_reward" in card
