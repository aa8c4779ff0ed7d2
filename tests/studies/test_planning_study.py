"""The study of planning: from histories to a table, of which nothing is done twice."""

import json

import numpy as np
import pytest
from studies import planning


@pytest.mark.slow
def test_a_world_is_trained_played_and_compared_once(tiny_recipe_file, tiny_histories, tmp_path, monkeypatch):
    (tmp_path / "work" / "tiny").mkdir(parents=True)
    (tmp_path / "work" / "tiny" / "histories").symlink_to(tiny_histories)
    world = planning.World("Tiny", str(tiny_recipe_file), 2, 12, {"num_beams": 5})
    monkeypatch.setattr(planning, "WORLDS", {"tiny": world})
    options = ["planning", "--work_dir", str(tmp_path / "work"), "--output_dir", str(tmp_path), "--worlds", "tiny"]
    monkeypatch.setattr("sys.argv", [*options, "--seeds", "0", "1"])

    planning.main()
    first = (tmp_path / "planning.json").read_text()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}
    planning.main()

    assert (tmp_path / "planning.json").read_text() == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}
    found = json.loads(first)["tiny"]["agents"]
    assert list(found) == list(planning.AGENTS)
    ends = {name: each["last ten episodes"] for name, each in found.items()}
    gain = ends["beam search"]["minus heads, no planning"]
    difference = ends["beam search"]["mean"] - ends["heads, no planning"]["mean"]
    assert np.isclose(gain["mean"], difference)
    assert gain["interval"][0] <= gain["mean"] <= gain["interval"][1]
    assert (tmp_path / "planning.png").stat().st_size > 10_000
