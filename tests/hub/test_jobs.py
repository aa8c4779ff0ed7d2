"""The scripts for jobs: a machine that is lost at any moment takes little with it, and the next one goes on."""

import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hub_files import shards_in, shards_of
from huggingface_hub.cli.hf import app as hf
from local_hub_storage import HubError
from packaging.requirements import Requirement
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "scripts" / "jobs"
SCRIPTS = sorted(path.stem for path in JOBS.glob("*.py"))


@pytest.fixture
def lose(hub, tmp_path):
    """Run a script until the Hub has something, and then kill it with no time to do anything."""

    def run(name, *options, until):
        with open(tmp_path / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, JOBS / f"{name}.py", *map(str, options)],
                cwd=tmp_path,
                env=hub.environment(tmp_path / "hf_home"),
                stderr=log,
            )
            try:
                deadline = time.monotonic() + 120
                while not until():
                    assert process.poll() is None, (tmp_path / f"{name}.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            finally:
                process.kill()
                assert process.wait() == -signal.SIGKILL

    return run


@pytest.fixture
def run_job(ad_hf_with_hub):
    """Run a script to its end, as on another machine."""

    def run(name, *options, **settings):
        return ad_hf_with_hub(*options, script=(JOBS / f"{name}.py").read_text(), **settings)

    return run


def files_on(hub, kind, repo, branch):
    """What a branch holds, if there is one."""
    with suppress(KeyError, HubError):
        return hub.files(kind, repo, branch)
    return {}


def test_a_collection_goes_on_from_the_finished_jobs_of_a_machine_that_is_lost(
    hub, lose, run_job, tiny_recipe_file, tiny_histories, tmp_path
):
    repo = "local/histories"
    options = ["--recipe", tiny_recipe_file, "--repo", repo, "--num_workers", "0", "--push_seconds", "0.1"]

    def done():
        return {path for path in files_on(hub, "dataset", repo, "collecting") if path.endswith((".arrow", ".parquet"))}

    lose("collect", *options, "--output_dir", tmp_path / "lost", until=lambda: len(done()) > 1)
    left = done()
    assert not shards_in(hub, repo)
    hub.clear_log()
    hub.fail("403", method="POST", path="/commit/collecting")
    said = run_job("collect", *options, "--output_dir", tmp_path / "new")

    assert said.stderr.count("the finished jobs were not pushed") == 1
    fetched = {path for path in left for each in hub.requests if each.method == "GET" and each.path.endswith(path)}
    assert fetched == left
    assert f"{hub.url}/datasets/{repo}/tree/{hub.commits('dataset', repo)[0]}" in said.stdout
    assert shards_in(hub, repo) == shards_of(tiny_histories)
    assert not files_on(hub, "dataset", repo, "collecting")
    assert "collect A2C" not in run_job("collect", *options, "--output_dir", tmp_path / "again").stderr


FAULTY = """
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

from ad_hf import CollectionError, TaskFamily
from ad_hf.hub.collecting import collect_on_hub
from ad_hf.sources.config import SourceConfig


class Room(gym.Env):
    observation_space, action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(2)

    def __init__(self, goal=0):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        if self.goal == 1 and not Path(sys.argv[1]).exists():
            raise RuntimeError("the task is broken")
        return 1, 1.0, False, False, {}


gym.register("JobsRoom-v0", Room, max_episode_steps=4)
family = TaskFamily("JobsRoom-v0", [{"goal": goal} for goal in range(3)])
source = SourceConfig("A2C", n_envs=2, total_timesteps=40)
try:
    print(collect_on_hub(family, source, "local/histories", sys.argv[2], num_workers=0))
except CollectionError as error:
    print(error)
"""


def test_a_task_that_fails_is_tried_again_where_nothing_else_is_left(hub, ad_hf_with_hub, tmp_path):
    cured = tmp_path / "cured"
    said = ad_hf_with_hub(cured, tmp_path / "first", script=FAULTY).stdout
    assert "1 of 3 tasks and seeds failed" in said
    assert len(json.loads(hub.files("dataset", "local/histories")["default/metadata.json"])["failures"]) == 1

    cured.touch()
    hub.clear_log()
    said = ad_hf_with_hub(cured, tmp_path / "second", script=FAULTY)
    assert hub.commits("dataset", "local/histories")[0] in said.stdout
    fetched = {each.path for each in hub.requests if each.method == "GET" and each.path.endswith(".arrow")}
    assert len(fetched) == 2
    metadata = json.loads(hub.files("dataset", "local/histories")["default/metadata.json"])
    assert (metadata["failures"], len(metadata["progress"]["rows"])) == ([], 3)
    assert not files_on(hub, "dataset", "local/histories", "collecting")


def test_a_training_goes_on_from_the_branch_and_its_model_is_evaluated(
    hub, lose, run_job, ad_hf_with_hub, tiny_histories, tiny_recipe_file, tiny_run, tmp_path
):
    ad_hf_with_hub("push", "dataset", tiny_histories, "local/histories")
    options = ["--recipe", tiny_recipe_file, "--dataset", "local/histories", "--repo", "local/model"]
    options += ["--push_every", "1"]
    state = "checkpoint/training_state.json"

    lose("train", *options, until=lambda: state in files_on(hub, "model", "local/model", "training"))
    step = json.loads(hub.files("model", "local/model", "training")[state])["step"]
    assert 1 <= step < 20
    assert "model.safetensors" not in hub.files("model", "local/model")
    done = run_job("train", *options, "--output_dir", tmp_path / "new")

    assert f"going on after {step} updates" in done.stderr
    found, expected = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "new", tiny_run))
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    pushed = hub.files("model", "local/model")
    assert pushed["model.safetensors"] == (tmp_path / "new" / "model" / "model.safetensors").read_bytes()
    assert {"README.md", "recipe.yaml", "config.json"} < pushed.keys()

    options = ["--model", "local/model", "--dataset", "local/histories", "--repo", "local/returns"]
    done = run_job("evaluate", *options, "--num_seeds", "2", "--output_dir", tmp_path / "evaluation")
    assert "return on 2 held-out tasks" in done.stdout
    evaluation = json.loads(hub.files("dataset", "local/returns")["evaluation.json"])
    assert evaluation["agents"].keys() == {"AD", "random", "source"}
    assert evaluation["models"][0]["revision"] == hub.commits("model", "local/model")[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_of_a_script_says_what_it_runs_on(name):
    text = (JOBS / f"{name}.py").read_text()
    (header,) = re.findall(r"^# /// script$\n((?:^#(?:| .*)$\n)+)^# ///$", text, re.MULTILINE)  # as in PEP 723
    table = tomllib.loads("".join(line[2:] if line.startswith("# ") else line[1:] for line in header.splitlines(True)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [Requirement(each).name for each in table["dependencies"]] == [project["name"]]
    assert table["requires-python"] == project["requires-python"]


def test_the_commands_of_the_guide_are_those_of_the_client_and_of_the_scripts():
    """As a dry run of the client reads them, and the parsers of the scripts."""
    text = (ROOT / "docs" / "guides" / "jobs.md").read_text().replace("\\\n", " ")
    seen = set()
    for words in map(shlex.split, re.findall(r"^hf (jobs uv run .*)$", text, re.MULTILINE)):
        (place,) = [place for place, word in enumerate(words) if word.startswith("scripts/jobs/")]
        words[place] = str(ROOT / words[place])
        done = CliRunner().invoke(hf, [*words[:3], "--dry-run", *words[3:]])
        assert f" {shlex.join(words[place + 1 :])}\n" in done.output, done.output
        module = runpy.run_path(words[place])
        unknown = module["make_parser"]().parse_known_args(words[place + 1 :])[1]
        assert all(re.match(r"--(family|source|data|model|training|rollout)\.", word) for word in unknown[::2])
        seen.add(Path(words[place]).stem)
    assert seen == set(SCRIPTS)


def test_the_times_and_prices_of_the_guide_are_those_of_the_recipes():
    text = (ROOT / "docs" / "guides" / "jobs.md").read_text()
    measured = json.loads((ROOT / "ad_hf" / "recipes" / "measured.json").read_text())
    seconds = {name: each["collect_seconds"] + each["train_seconds"] for name, each in measured.items()}
    assert max(seconds, key=seconds.get) == "generalist"
    assert f"{seconds['dark_room']} s for `dark_room`, and {seconds['generalist'] / 60:.0f} minutes" in text
    (price,) = re.findall(r"^\| `cpu-upgrade` .*\| ([\d.]+) \|$", text, re.MULTILINE)
    assert max(seconds.values()) / 3600 * float(price) < 0.03
    assert f"2.8 hours, and {(4 + 18) / 8 * float(price):.2f} dollars" in text
