"""The plan for collections past one machine."""

import importlib.util
import sys
from pathlib import Path

import pytest

from ad_hf.recipe import load_recipe

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "scaling_plan.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("scaling_plan", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling_plan"] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling_plan"]


@pytest.mark.parametrize("transitions", [1e6, 1e9, 1e11, 1e13])
def test_shards_stay_within_the_limits_of_the_hub(script, transitions):
    units = script.Units(collect_rate=5e4, tokens_rate=1e4, bytes=0.5, seconds_per_job=2e-4)
    found = script.plan(transitions, units, 0.04)
    assert found["shards"] <= script.HUB_FILES_PER_FOLDER
    assert found["MB per shard"] < 1000 * script.HUB_GB_PER_FILE
    assert found["shards"] * found["transitions per shard"] >= transitions
    assert found["transitions per shard"] % units.transitions_per_job == 0


def test_a_plan_is_in_proportion_to_what_was_measured(script):
    units = script.Units(collect_rate=1e5, tokens_rate=2e4, bytes=2.0, seconds_per_job=1e-3)
    found = script.plan(3.6e9, units, 0.5)
    assert found["collect, core hours"] == pytest.approx(10)
    assert found["collect, price"] == pytest.approx(5)
    assert found["one epoch, core hours"] == pytest.approx(50)
    assert found["parquet, GB"] == pytest.approx(7.2)
    assert found["scheduler, hours"] == pytest.approx(0.01)
    assert found["cores that one scheduler keeps busy"] == pytest.approx(1000)


def test_the_measured_files_are_read(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling_plan.py", "--transitions", "1e9", "--bytes", "1.5"])
    script.main()
    printed = capsys.readouterr().out
    assert "1.50 bytes each" in printed
    assert "| collect, core hours | " in printed


def test_the_cost_of_an_update_is_that_of_its_products(script):
    settings = ["--training.batch_size=8", "--model.intermediate_size=256", "--model.hidden_size=128"]
    recipe = load_recipe("dark_room", settings)
    model, tokens = recipe.model, 8 * recipe.model.context_length
    blocks = model.num_hidden_layers * (4 * 128**2 + 2 * 128 * 256)
    attention = 2 * model.num_hidden_layers * 128 * model.context_length  # each step's two products with all others
    found = script.cost_of_update(recipe)
    assert found["flops"] == pytest.approx(6 * tokens * (blocks + attention), rel=0.02)  # the head and rewards besides
    assert found["saved_bytes"] > 2 * tokens * 128 * model.num_hidden_layers
    assert found["observation_bytes"] == 2 * tokens


def test_a_recipe_is_described(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling_plan.py", "--recipe", "watermaze", "--peak", "1e15", "--share", "0.5"])
    script.main()
    printed = capsys.readouterr().out
    assert "64 windows of 200 steps" in printed
    assert "at 50% of 1,000 TFLOP/s" in printed
    assert "1,600,000 transitions of 100 tasks" in printed
