"""The costs of kinds of layers, in miniature."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"


def test_costs_of_layers_are_measured_and_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    arguments = ["--lengths", "60", "120", "--repeats", "1", "--steps", "200", "--num_envs", "2", "--threads", "1"]
    monkeypatch.setattr(memory, "TOKENS", 240)
    monkeypatch.setattr(sys, "argv", ["memory.py", *arguments, "--output_dir", str(tmp_path)])
    memory.main()

    costs = json.loads((tmp_path / "memory_cost.json").read_text())
    assert (tmp_path / "memory_cost.png").stat().st_size > 10_000
    held = {kind: [costs["rollout"][length][kind]["kilobytes"] for length in ("60", "120")] for kind in memory.KINDS}
    assert held["full"][1] == pytest.approx(2 * held["full"][0], rel=0.01)
    assert held["full"][1] > held["sliding"][1] > held["sliding"][0]
    assert held["linear"][1] == held["linear"][0]
    assert all(late["kilobytes_late_to_early"] == 1 for late in costs["late"].values())
    assert all(rate > 0 for length in costs["training"].values() for rate in length.values())
    assert len(capsys.readouterr().out.splitlines()) >= 5
