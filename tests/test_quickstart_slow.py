"""The promise of the README, at full size."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_quickstart_learns_held_out_rooms_in_context(tmp_path):
    command = [sys.executable, "-m", "ad_hf.cli", "quickstart", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    own, optimal = evaluation["agents"]["AD"], evaluation["optimal_return"]
    assert own["num_tasks"] >= 16
    assert own["num_rollouts"] >= 3
    assert own["at"]["100"]["episodes"] == [91, 100]
    assert own["at"]["100"]["return"] >= 0.88 * optimal
    assert own["at"]["1"]["return"] < 0.2 * optimal
    assert own["learns"]["verdict"] == "learns"
    for steps in own["steps_to"].values():
        assert steps["ratio"] > 5
    assert evaluation["peak_memory_gigabytes"] < 4
