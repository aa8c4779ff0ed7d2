"""Studies: cells that are shared, resumed after SIGKILL, and reported together."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from filelock import FileLock
from studies.study import NotFinishedError, Study, StudyRunner, Variant, cells, load_study

from ad_hf.evaluation.returns import ROWS_FILE
from ad_hf.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
STUDIES = sorted((REPOSITORY / "scripts" / "studies").glob("*.yaml"))


def reproduce():
    """scripts/reproduce.py as a module."""
    spec = importlib.util.spec_from_file_location("reproduce", REPOSITORY / "scripts" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_study(tiny_recipe_file):
    """Two variants, two seeds."""
    return Study(
        "tiny",
        "A tiny study",
        str(tiny_recipe_file),
        {"AD": Variant(paper=1.0), "wide": Variant({"model.hidden_size": 32}, paper=2.0)},
        settings={"rollout.num_episodes": 11},
        training_seeds=[0, 1],
        num_rollouts=2,
        varied="width",
    )


@pytest.fixture(scope="module")
def collected(tiny_recipe_file, tmp_path_factory):
    """A folder of runs in which there are histories of the tiny recipe."""
    folder = tmp_path_factory.mktemp("collected")
    StudyRunner(folder).histories(load_recipe(tiny_recipe_file))
    return folder


@pytest.fixture
def runner(collected, tmp_path):
    """Runs cells in a folder of its own."""
    return StudyRunner(shutil.copytree(collected, tmp_path / "runs"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_there_are_can_be_read_and_their_recipes_are_what_they_say(path):
    for full in (False, True):
        study = load_study(path, full)
        for cell in cells(study):
            recipe = cell.recipe
            assert (recipe.family.split_seed, recipe.training.seed) == (cell.split, cell.seed)
            assert recipe.rollout.resolve().num_episodes == study.settings["rollout.num_episodes"]
        assert study.minutes is not None


def test_processes_that_share_a_folder_take_different_cells(tiny_study, runner):
    first, second, *_ = cells(tiny_study)
    code = (
        "import sys, time; from pathlib import Path; from filelock import FileLock; folder = Path(sys.argv[1]); "
        "folder.mkdir(parents=True); lock = FileLock(folder / '.lock').acquire(); print('held', flush=True); "
        "time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, runner.folder / first.folder], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline().strip() == b"held"
        assert not runner.run(first)
        assert runner.run(second)
    finally:
        other.kill()  # which no lock outlives
        other.communicate()

    assert not runner.is_finished(first)
    assert runner.run(first)
    assert runner.is_finished(first)


def test_cells_of_other_settings_are_neither_gone_on_with_nor_reported(tiny_study, runner):
    for cell in cells(tiny_study)[:2]:
        assert runner.run(cell)
    tiny_study.variants["wide"].paper = 3.0  # which is no setting
    assert runner.rows(tiny_study)[1] == cells(tiny_study)[:2]

    tiny_study.settings["rollout.num_episodes"] = 12

    with pytest.raises(ValueError, match=r"split0-seed0 was run with other settings than the study now says: delete"):
        runner.run(cells(tiny_study)[0])
    with pytest.raises(ValueError, match=r"split0-seed0 was run with other settings"):
        runner.rows(tiny_study)


def test_the_seconds_of_a_run_that_was_interrupted_count(tiny_study, runner, monkeypatch):
    def interrupt(*_, **__):
        time.sleep(1)
        raise KeyboardInterrupt

    cell = cells(tiny_study)[0]
    with monkeypatch.context() as patch:
        patch.setattr("studies.study.train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.run(cell)
    before = runner.details(cell)["seconds"]
    assert before >= 1

    assert runner.run(cell)

    assert runner.details(cell)["seconds"] > before


def test_the_larger_setting_of_a_study_shares_no_cell_with_the_smaller_one():
    file = REPOSITORY / "scripts" / "studies" / "prompts.yaml"
    study, larger = load_study(file), load_study(file, full=True)

    assert {cell.folder for cell in cells(study)}.isdisjoint(cell.folder for cell in cells(larger))
    assert study.variants["AD 50%"].model_of == "main/AD"
    assert larger.variants["AD 50%"].model_of == "main-full/AD"
    assert len(cells(larger)) > len(cells(study))


def test_a_studys_entries_are_checked(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("title: x\nvariant: {}\n")
    with pytest.raises(ValueError, match=r"unknown entries \['variant'\], missing entries \['recipe', 'variants'\]"):
        load_study(file)
    file.write_text("title: x\nrecipe: dark_room\nvariants: {a: {setting: {}}}\n")
    with pytest.raises(ValueError, match=r"variants: .*'setting'"):
        load_study(file)


def test_every_variant_comes_once_before_any_is_repeated(tiny_study):
    assert [(cell.variant, cell.seed) for cell in cells(tiny_study)] == [
        ("AD", 0),
        ("wide", 0),
        ("AD", 1),
        ("wide", 1),
    ]


def test_cells_share_histories_and_finished_ones_are_not_run_again(tiny_study, runner):
    tmp_path = runner.folder
    with pytest.raises(ValueError, match="no split and seed is finished in all variants"):
        runner.rows(tiny_study)
    for cell in cells(tiny_study)[:3]:
        runner.run(cell)
    assert len([path for path in (tmp_path / "histories").iterdir() if path.is_dir()]) == 1
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    for cell in cells(tiny_study)[:3]:
        runner.run(cell)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}

    rows, finished = runner.rows(tiny_study)

    # Seed 1 is finished in one variant alone: what is compared has the same seeds.
    assert [(cell.variant, cell.seed) for cell in finished] == [("AD", 0), ("wide", 0)]
    assert set(rows["agent"].to_pylist()) == {"AD", "wide", "source", "random"}
    assert runner.details(finished[1])["parameters"] > runner.details(finished[0])["parameters"]


def test_a_variant_takes_anothers_model_with_demonstrations(tiny_study, runner):
    tiny_study.variants = {"AD": Variant(), "prompted": Variant(model_of="tiny/AD", prompt=0.5)}
    tiny_study.settings["model.initializer_range"] = 0.5  # of a model that cares what it sees, untrained as it is
    own, prompted = cells(tiny_study)[:2]
    with pytest.raises(ValueError, match="takes the model of tiny/AD, of which there is none: run it first"):
        runner.run(prompted)

    runner.run(own)
    runner.run(prompted)

    rows, _ = runner.rows(tiny_study)
    returns = {name: rows.filter(pc.equal(rows["agent"], name))["returns"].to_pylist() for name in ("AD", "prompted")}
    assert returns["AD"] != returns["prompted"]
    assert not (runner.folder / prompted.folder / "model").exists()


def test_a_study_that_is_killed_goes_on_without_losing_a_finished_cell(tiny_recipe_file, collected, runner, tmp_path):
    study = {
        "title": "t",
        "recipe": str(tiny_recipe_file),
        "variants": {"AD": {"paper": 1.0}, "wide": {"settings": {"model.hidden_size": 32}}},
        "settings": {"rollout.num_episodes": 11, "training.save_steps": 5},
        "varied": "width",
    }
    scripts = tmp_path / "scripts"
    shutil.copytree(REPOSITORY / "scripts" / "studies", scripts / "studies")
    (scripts / "studies" / "tiny.yaml").write_text(yaml.safe_dump(study))
    (scripts / "reproduce.py").write_text((REPOSITORY / "scripts" / "reproduce.py").read_text())
    command = [sys.executable, str(scripts / "reproduce.py"), "tiny", "--folder", str(tmp_path / "runs")]
    command += ["--output_dir", str(tmp_path / "results")]
    cell = tmp_path / "runs" / "tiny" / "AD" / "split0-seed0"
    second = cell.parents[1] / "wide" / "split0-seed0"
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 240
        while not (second / "checkpoint-5").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    first = (cell / ROWS_FILE).stat().st_mtime_ns
    assert not (second / ROWS_FILE).exists()

    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    assert (cell / ROWS_FILE).stat().st_mtime_ns == first
    results = tmp_path / "results" / "tiny"
    found = json.loads((results / "evaluation.json").read_text())
    assert found["cells"] == "2 of 2"
    assert set(found["agents"]) == {"AD", "wide", "source", "random"}
    assert (results / "study.png").is_file()
    assert "| AD | " in (tmp_path / "results" / "tiny.md").read_text()
    # As if nobody had killed it.
    whole = StudyRunner(shutil.copytree(collected, tmp_path / "other"))
    loaded = load_study(scripts / "studies" / "tiny.yaml")
    for each in cells(loaded):
        whole.run(each)
        other = (tmp_path / "other" / each.folder / ROWS_FILE).read_bytes()
        assert other == (tmp_path / "runs" / each.folder / ROWS_FILE).read_bytes()


def write_studies(script, tiny_recipe_file, folder, monkeypatch):
    """Two studies, the second of which takes the first one's model."""
    common = {"title": "t", "recipe": str(tiny_recipe_file), "settings": {"rollout.num_episodes": 11}}
    for name, variant in (("base", {"paper": 1.0}), ("taker", {"model_of": "base/AD"})):
        study = {**common, "variants": {"AD": variant}, "varied": "nothing"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setattr(script, "STUDIES", folder)
    return [load_study(folder / f"{name}.yaml") for name in ("base", "taker")]


def test_a_cell_that_takes_another_studys_model_runs_after_it(tiny_recipe_file, runner, tmp_path, monkeypatch, capsys):
    script = reproduce()
    base, taker = (cells(study)[0] for study in write_studies(script, tiny_recipe_file, tmp_path, monkeypatch))
    (runner.folder / base.folder).mkdir(parents=True)
    with FileLock(runner.folder / base.folder / ".lock"):
        script.run_with_model(taker, runner)
    assert not runner.is_finished(base)
    assert not runner.is_finished(taker)
    assert "another process is at work on base: AD, split 0, seed 0, whose model it takes" in capsys.readouterr().out

    script.run_with_model(taker, runner)

    assert runner.is_finished(base)
    assert runner.is_finished(taker)
    assert not (runner.folder / taker.folder / "model").exists()


def test_a_study_whose_runs_are_gone_is_reported_of_its_returns(tiny_recipe_file, runner, tmp_path, monkeypatch):
    script = reproduce()
    study, _ = write_studies(script, tiny_recipe_file, tmp_path, monkeypatch)
    gone = StudyRunner(tmp_path / "gone")
    with pytest.raises(NotFinishedError):
        script.report(study, gone, tmp_path / "results")
    runner.run(cells(study)[0])
    script.report(study, runner, tmp_path / "results")
    page, folder = tmp_path / "results" / "base.md", tmp_path / "results" / "base"
    before = {file.name: file.read_bytes() for file in [page, *folder.iterdir()]}
    assert {"study.png", "base.md", "evaluation.json", "returns.parquet"} <= set(before)
    for file in (folder / "study.png", page):
        file.unlink()

    script.report(study, gone, tmp_path / "results")

    assert {file.name: file.read_bytes() for file in [page, *folder.iterdir()]} == before
    study.settings["rollout.num_episodes"] = 12
    with pytest.raises(ValueError, match="was written with other settings than the study now says: run it again"):
        script.report(study, gone, tmp_path / "results")


def test_a_table_compares_with_the_papers_order(tiny_study):
    script = reproduce()
    at = {"at": {"11": {"return": 0.0, "return_interval": [0.0, 0.0]}}}
    tiny_study.variants["third"] = Variant(paper=3.0)
    agents = {name: json.loads(json.dumps(at)) for name in tiny_study.variants}
    for value, agent in zip((1.0, 3.0, 2.0), agents.values()):
        agent["at"]["11"]["return"] = value
    found = {"agents": agents, "parameters": dict.fromkeys(agents, 10)}

    table = script.paper_table(tiny_study, found)

    assert "order: 0.33 (1: the same order)" in table
    assert table.endswith("Ours is lower than the paper's: third.")


def test_differences_are_paired_by_training_and_task(tiny_study):
    script, tiny_study.versus = reproduce(), "AD"
    rows = [
        {"agent": agent, "split_seed": 0, "training_seed": seed, "task_id": str(task), "returns": [9.0, *[end] * 10]}
        for seed in (0, 1)
        for task in (1, 2, 30)
        for agent, end in (("AD", task), ("AD", task + 2.0), ("wide", task + 1.5))
    ]

    (less,) = script.differences(tiny_study, pa.Table.from_pylist(rows)).values()

    assert less == {"mean": pytest.approx(0.5), "interval": [pytest.approx(0.5)] * 2}  # whatever the tasks are worth
    end = {"at": {"11": {"return": 1.0, "return_interval": [0.5, 1.5]}}}
    found = {"agents": {"AD": end, "wide": end}, "parameters": {"AD": 1, "wide": 2}, "versus": {"wide": less}}
    tiny_study.variants["wide"].label = "128"
    assert "128 less AD, by training and task: 0.5 (0.5 to 0.5)." in script.paper_table(tiny_study, found)
