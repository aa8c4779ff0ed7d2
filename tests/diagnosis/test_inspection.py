"""`ad-hf inspect`: a good dataset has no finding, and one with a fault has the finding of that fault alone."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from faulty_histories import ARROWS, TORQUES, climb, make_dataset
from gymnasium import spaces
from test_readme import python_blocks

import ad_hf
from ad_hf.cli import main
from ad_hf.diagnosis import describe, inspect_dataset, sample, write_inspection
from ad_hf.diagnosis.findings import of_actions
from ad_hf.diagnosis.measures import measure_actions, measure_tasks
from ad_hf.histories.selection import DataConfig
from ad_hf.model.configuration_ad import ADConfig

CONTEXT = 100


def flat(episodes):
    return np.full(episodes, 0.3)


def expert(episodes):
    return np.full(episodes, 0.95)


def inspect(folder, context_length=CONTEXT, **data):
    return inspect_dataset(folder, DataConfig(**data), context_length)


def kinds(inspection):
    return [finding.of for finding in inspection.findings]


def goals(count, seed=1):
    return [{"goal": goal} for goal in np.random.default_rng(seed).uniform(size=(count, 2)).tolist()]


TRAIN = goals(20)
NEARLY = [{"goal": [x + 1e-12, y]} for x, y in (task["goal"] for task in TRAIN[:3])]
OTHERS = goals(6, seed=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("good") / "histories")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reward": lambda right: right - 1.0},
        {"reward": lambda right: -50 + 10 * right},
        {"space": TORQUES},
        {"streams": 1},
        {"tasks": {"train": [{}] * 12, "test": [{}] * 3}},  # as imported ones, without keyword arguments
        {"skill": lambda _: climb(100), "episodes": 100, "steps_of_episode": 1, "ended": False},  # as of a bandit
    ],
    ids=["cells", "negative", "all negative", "continuous", "one stream", "no kwargs", "one episode"],
)
def test_a_good_dataset_has_no_finding(settings, tmp_path):
    inspection = inspect(make_dataset(tmp_path / "histories", **settings))
    assert (kinds(inspection), inspection.verdict) == ([], "nothing speaks against training")
    assert inspection.returns.rise > 0
    assert inspection.returns.interval[0] > 0


@pytest.mark.parametrize(
    ("settings", "of", "fault", "advice"),
    [
        ({"skill": flat}, "returns", "the source does not improve", "source.total_timesteps"),
        ({"skill": expert}, "returns", "the source does not improve", "before it has learnt anything"),
        (
            {"skill": lambda episodes: np.zeros(episodes)},
            "returns",
            "every episode returns 0",
            "check that the environment uses the task's arguments",
        ),
        ({"episodes": 1500, "streams": 2}, "windows", "too little to see", "--data.keep_every_episode"),
        ({"steps_of_episode": 80}, "windows", "1.2 episodes end in a window of 100", "--model.context_length 320"),
        (
            {"episodes": 12},
            "windows",
            "histories of 120 steps are shorter than 1.25 windows of 100",
            "--model.context_length 40",
        ),
        ({"tasks": {"train": TRAIN, "test": [*NEARLY, *OTHERS[:3]]}}, "tasks", "3 of 6 held-out tasks", "leave these"),
        ({"tasks": {"train": TRAIN[:3], "test": OTHERS}}, "tasks", "3 training tasks", "of more tasks"),
        ({"tasks": {"train": TRAIN}}, "tasks", "no validation and no test tasks", "hold tasks out"),
        ({"actions": (0, 1, 2, 4)}, "actions", "takes action 3 (0.00% of steps)", "let the source explore"),
    ],
    ids=["flat", "expert", "no reward", "slow", "long", "short", "memorised", "few", "no test", "action"],
)
def test_a_fault_is_found_and_nothing_else(settings, of, fault, advice, tmp_path):
    inspection = inspect(make_dataset(tmp_path / "histories", **settings))
    assert kinds(inspection) == [of], inspection.findings
    (finding,) = inspection.findings
    assert fault in finding.fault
    assert advice in finding.advice
    assert inspection.verdict == f"1 finding: {of}"


@pytest.mark.parametrize("settings", [{"episodes": 1500, "streams": 2}, {"steps_of_episode": 80}, {"episodes": 12}])
def test_windows_that_follow_the_advice_are_good(settings, tmp_path):
    folder = make_dataset(tmp_path / "histories", **settings)
    (finding,) = inspect(folder).findings
    alternatives = [re.findall(r"--\w+\.(\w+) (\d+)", part) for part in finding.advice.split(" or ")]
    assert any(alternatives)
    for options in filter(None, alternatives):
        assert kinds(inspect(folder, **{name: int(value) for name, value in options})) == [], options


def test_the_learning_part_of_a_history(tmp_path):
    """Episodes, and windows, are counted while the source learns; advice says where to cut the rest off."""
    folder = make_dataset(
        tmp_path / "histories", episodes=600, skill=lambda episodes: climb(60)[np.minimum(np.arange(episodes), 59)]
    )
    long = inspect(folder)
    assert long.windows.learning_windows < 0.2
    (count,) = re.findall(r"--data.max_episodes (\d+)", describe(long).replace("\n            ", " "))
    short = inspect(folder, max_episodes=int(count))
    assert short.windows.learning_windows > 0.2
    assert "max_episodes " + count + " or" not in describe(short)
    assert kinds(long) == kinds(short) == []


def test_a_rise_within_a_window_is_at_most_the_whole_one(tmp_path):
    folder = make_dataset(tmp_path / "histories", skill=lambda _: np.arange(100) >= 8, episodes=100)
    inspection = inspect(folder, context_length=200)
    assert inspection.windows.rise > inspection.returns.rise
    assert inspection.windows.share == 1
    assert "as much as the source's whole rise" in describe(inspection).replace("\n            ", " ")


def test_expert_distillation_is_named(good):
    assert kinds(inspect(good, last_episodes=5)) == ["windows"]
    with pytest.raises(ValueError, match=r"data\.min_improvement"):
        inspect(good, min_improvement=1e6)


def test_selection_does_not_make_a_flat_source_rise(tmp_path):
    folder = make_dataset(tmp_path / "histories", skill=flat)
    chosen = inspect(folder, min_improvement=0.5)  # by chance, about a third of the histories
    assert 0 < chosen.histories.kept < chosen.histories.read / 2
    assert kinds(chosen) == ["returns"]


@pytest.mark.parametrize("ended", [True, False])
def test_rounding_is_not_a_difference(ended, tmp_path):
    """A step costs 0.02 whatever the source does, a little more or less in float32."""
    noise = np.random.default_rng(0)
    cost = lambda right: -0.02 * (1 + 1e-7 * noise.normal(size=right.shape))  # noqa: E731
    settings = {"steps_of_episode": 10} if ended else {"steps_of_episode": 1, "episodes": 400, "ended": False}
    inspection = inspect(make_dataset(tmp_path / "histories", reward=cost, **settings))
    returns, windows = inspection.returns, inspection.windows
    assert (returns.rise, returns.interval, returns.histories, returns.improving) == (0, [0, 0], 0, 0)
    assert (returns.lowest, windows.rise, set(windows.rises)) == (returns.highest, 0, {0})
    assert kinds(inspection) == ["returns"]
    assert ("every step has the reward -0.02" if not ended else "every episode returns -0.2") in describe(inspection)


def test_tasks_that_do_not_differ(tmp_path):
    """A source without chance does the same in all of them."""
    inspection = inspect(make_dataset(tmp_path / "histories", skill=lambda _: np.arange(60) > 30, actions=(1,)))
    assert inspection.histories.alike == 1
    assert kinds(inspection) == ["tasks", "actions"]
    assert inspection.findings[0].fault.startswith("100% of histories are, step by step, those of another task")


def test_actions_by_dimension():
    rng = np.random.default_rng(0)
    steps = np.stack([np.zeros(1000), np.sign(rng.normal(size=1000))], axis=1).astype(np.float32)
    numbers = measure_actions(steps, TORQUES)
    assert (numbers.constant, numbers.at_bounds) == ([0], [0.0, 1.0])
    faults = [finding.fault for finding in of_actions(numbers)]
    assert len(faults) == 2
    assert "never varies in dimension 0:" in faults[0]
    assert "dimension 1 (100%)" in faults[1]
    assert measure_actions(np.array([0, 1, 1, 3]), ARROWS).shares == [[0.25, 0.5, 0.0, 0.25, 0.0]]
    pairs = spaces.MultiDiscrete([2, 3])
    (finding,) = of_actions(measure_actions(rng.integers(0, 2, (1000, 2)), pairs))
    assert "action 2 of dimension 1 (0.00% of steps):" in finding.fault


@pytest.mark.parametrize(
    ("train", "test", "near", "equal"),
    [
        ([{"n": n} for n in range(20)], [{"n": 20}, {"n": 21}], 0, 0),  # neighbours in a grid are other tasks
        ([{"n": n} for n in range(20)], [{"n": 19.0}, {"n": 21}], 1, 1),
        ([{"g": n / 7} for n in range(20)], [{"g": 3 / 7 * (1 + 1e-13)}], 1, 1),
        ([{"g": n / 7} for n in range(20)], [{"g": 3 / 7 + 1e-3}], 1, 0),
        ([{"map": ["SF", f"G{n}"]} for n in range(20)], [{"map": ["SF", "G3"]}, {"map": ["SF", "GG"]}], 1, 1),
        ([{"a": n, "side": "left"} for n in range(20)], [{"a": 3, "side": "right"}], 0, 0),
    ],
)
def test_near_tasks(train, test, near, equal):
    pairs = [*((kwargs, "train") for kwargs in train), *((kwargs, "test") for kwargs in test)]
    tasks = [{"task_id": number, "kwargs": kwargs, "split": split} for number, (kwargs, split) in enumerate(pairs)]
    numbers = measure_tasks(tasks)
    assert (len(numbers.near), numbers.equal, numbers.distinct) == (near, equal, 20)


def test_observations_are_not_read(good, tmp_path):
    """Frames and long vectors cost nothing: the column may hold anything."""
    whole = inspect(good)
    folder = tmp_path / "damaged"
    (folder / "default").mkdir(parents=True)
    for path in sorted((good / "default").iterdir()):
        (folder / "default" / path.name).write_bytes(path.read_bytes())
    (shard,) = folder.glob("default/train-*.parquet")
    groups = pq.read_metadata(shard).row_group(0)
    column = next(each for each in map(groups.column, range(11)) if each.path_in_schema.startswith("observations"))
    with shard.open("r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * 100)
    with pytest.raises(ValueError, match="damaged"):
        ad_hf.load_histories(folder, "train")
    assert inspect(folder).returns == whole.returns


def test_a_part_of_a_large_dataset_is_from_all_of_its_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr("ad_hf.histories.writer.ROW_GROUP_BYTES", 1)  # a history in each
    monkeypatch.setattr("ad_hf.histories.stream.BLOCK_BYTES", 1)
    folder = make_dataset(tmp_path / "histories")
    monkeypatch.setattr(sample, "MOST_STEPS", 10_000)  # of 36,000
    inspection = inspect(folder)
    assert (inspection.histories.read, inspection.histories.is_all) == (16, False)
    assert inspection.returns.tasks == 16
    assert "16 read, from regular distances" in describe(inspection)
    assert inspection.findings == []


def test_the_command_line(tiny_histories, tmp_path, capsys):
    """By the settings of the packaged recipe of its environment, by others, and by a recipe of one's own."""
    assert main(["inspect", str(tiny_histories), "--model.context_length", "24"]) == 0
    own = capsys.readouterr()
    assert "context_length 24, data.keep_every_episode 4" in own.out
    assert "the packaged recipe dark_room" in own.err
    assert own.out.splitlines()[-1] == "1 finding: tasks"  # it has six
    out = tmp_path / "out"
    assert main(["inspect", str(tiny_histories), "--recipe", "dark_room_hard", "--output_dir", str(out)]) == 0
    assert "context_length 400:" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["inspection.json", "inspection.png"]
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no learning histories" in capsys.readouterr().err


def test_an_unknown_environment_has_the_default_settings(good, capsys):
    assert main(["inspect", str(good), "--data.max_episodes", "50"]) == 0
    done = capsys.readouterr()
    assert "windows by the defaults" in done.err
    assert f"context_length {ADConfig().context_length}, data.max_episodes 50:" in done.out
    options = f"--recipe RECIPE --dataset {good} --data.max_episodes 50"
    assert done.out.splitlines()[-1] == f"train on them with: ad-hf train {options} --output_dir RUN"


def test_the_report_and_its_files(good, tmp_path):
    inspection = inspect(good, keep_every_episode=2)
    lines = describe(inspection).splitlines()
    assert lines[-1] == "nothing speaks against training"
    assert max(map(len, lines)) <= 120
    assert len(lines) < 24
    assert not any(line.startswith("!") for line in lines)
    write_inspection(inspection, tmp_path / "inspection")
    assert json.loads((tmp_path / "inspection" / "inspection.json").read_text())["verdict"] == lines[-1]
    picture = (tmp_path / "inspection" / "inspection.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000


def test_the_documented_python_runs_as_written(tiny_histories, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "histories").symlink_to(tiny_histories)
    (block,) = python_blocks("docs/guides/troubleshooting.md", "Look at the data first")
    exec(block, {})
    assert "tasks 6 training tasks" in capsys.readouterr().out
    assert (tmp_path / "inspection" / "inspection.png").is_file()
