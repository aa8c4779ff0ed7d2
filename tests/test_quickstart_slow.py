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
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_test_tasks"] >= 16
    assert report["num_rollout_seeds"] >= 3
    assert report["final_episodes"] == [91, 100]
    assert report["test_return_final"] >= 0.88 * report["optimal_return"]
    assert report["test_return_first"] < 0.2 * report["optimal_return"]
    assert report["learns"]["verdict"] == "learns"
    for steps in report["env_steps_to"].values():
        assert steps["ratio"] > 5
    assert report["peak_memory_gigabytes"] < 4
