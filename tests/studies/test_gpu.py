"""The check of a GPU, in miniature on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"
SCRIPT = BENCHMARKS / "gpu.py"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def plan(gpu, tmp_path):
    return gpu.make_plan(gpu.make_parser().parse_args(["--rehearse"]), tmp_path)


def lines(printed):
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_what_can_be_done(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert "no GPU" in line
    assert "--rehearse" in line


def test_contexts_are_exact_with_and_without_a_sliding_window(gpu, plan, capsys):
    assert gpu.play("exactness", plan) == 0
    found = lines(capsys.readouterr().out)
    assert [(line["cache"].split()[0], line["dtype"]) for line in found] == [
        (cache, dtype) for cache in ("whole", "sliding") for dtype in ("float32", "bfloat16")
    ]
    for line in found:
        assert line["passed"]
        if line["dtype"] == "float32":  # no check that every cache would pass
            assert line["of_a_cache_that_loses_a_step"] > 1000 * line["tolerance"]


def test_a_part_that_fails_says_why(gpu, plan, capsys):
    (plan.work / "dark_rooms").write_text("no folder")
    assert gpu.play("precision", plan) == 1
    (line,) = lines(capsys.readouterr().out)
    assert not line["passed"]
    assert "dark_rooms is no folder" in line["error"]


def test_a_part_ends_when_its_time_is_over_and_failures_are_written(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "bandit", "dark_room", "--rehearse", "--output_dir", str(tmp_path)])
    for part in ("bandit", "dark_room"):
        monkeypatch.setitem(gpu.PARTS, part, (gpu.PARTS[part][0], 0.2))
    assert gpu.main() == 1
    failures = [
        {"part": part, "error": "not done after 1 seconds", "passed": False} for part in ("bandit", "dark_room")
    ]
    assert lines(capsys.readouterr().out) == failures
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["parts"] == failures
    assert written["rehearsal"]
    assert written["torch"] == torch.__version__


@pytest.mark.slow
def test_all_parts_are_rehearsed_and_written(gpu, tmp_path):
    command = [sys.executable, str(SCRIPT), "--rehearse", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["rehearsal"]
    assert written["parts"] == lines(done.stdout)
    assert {line["part"] for line in written["parts"]} == set(gpu.PARTS)
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
