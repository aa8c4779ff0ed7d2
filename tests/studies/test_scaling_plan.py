"""The plan for collections past one machine."""

import importlib.util
import sys
from pathlib import Path

import pytest

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
