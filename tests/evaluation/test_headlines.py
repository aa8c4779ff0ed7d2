"""What is said first of a model: that it learns only if it does, and in fewer steps than its source only if it did."""

import json

import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub import ModelCard

from ad_hf.cli import main
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.card import evaluation_card, write_evaluation
from ad_hf.evaluation.headlines import is_comparable, learning_of
from ad_hf.evaluation.pictures import title_of
from ad_hf.evaluation.returns import evaluation_rows
from ad_hf.evaluation.rollouts import Evaluation
from ad_hf.evaluation.summary import describe, last_of, summarize
from ad_hf.evaluation.upgrades import upgrade
from ad_hf.hub.model_card import model_card

EPISODES, STEPS, STREAMS = 40, 10, 5  # a source's step on a task is a step of all its streams


def rises(start, end, episodes=20):
    """Returns (40,) that go from a start to an end in so many episodes."""
    return start + (end - start) * np.minimum(1, np.arange(EPISODES) / (episodes - 1))


def stays(value):
    return np.full(EPISODES, float(value))


SOURCE = rises(0, 8, 24)  # which is at 50% after 750 steps, and at 90% after 1,200
# Returns of the model and of its source, and of random play and of the best possible; the verdict, the model's steps
# to 50% and 90% of what its source gains, how many times more its source takes to 90%, words of the title, and the
# share of the optimum that it ends at.
CASES = {
    "learns faster": ((rises(0, 8, 12), SOURCE, 0, 10), "learns", 90, 140, 1200 / 140, "8.6 times fewer", 0.8),
    "learns slower": ((rises(0, 8, 38), rises(0, 8, 2), 0, 10), "learns", 220, 370, 300 / 370, "1.2 times more", 0.74),
    "learns half": ((rises(0, 5, 12), SOURCE, 0, 10), "learns", 120, None, None, "90% not reached", 0.5),
    "gets worse": ((rises(6, 3), SOURCE, 0, 10), "gets worse", "start", None, None, "gets worse", 0.3),
    "stays": ((stays(0.2), SOURCE, 0, 10), "does not learn", None, None, None, "50% of its source's gain not", 0.02),
    "starts at the end": ((stays(8), SOURCE, 0, 10), "does not learn", "start", "start", None, "from its first", 0.8),
    "starts near it": ((rises(6, 8, 5), SOURCE, 0, 10), "learns", "start", 60, None, "from its first", 0.8),
    "negative": ((rises(-50, -11, 12), SOURCE * 5 - 50, -50, -5), "learns", 90, 140, 1200 / 140, "8.6 times", 39 / 45),
    "gets worse, around zero": (
        (rises(-0.9, -1.27), rises(-3, -0.5), -3, 0.8),
        *("gets worse", "start", None, None, "gets worse", 1.73 / 3.8),
    ),
    "source does not gain": ((rises(0, 8), stays(0), 0, 10), "learns", None, None, None, "learns in its", 0.8),
    "nobody learns": ((stays(1), stays(0), 0, 10), "does not learn", None, None, None, "does not learn", 0.1),
}


def rows_of(own, source, random, optimal):
    """Rows of a model and a source whose returns in four tasks differ a little, and of random play."""
    family = TaskFamily(
        "ad_hf/DarkRoom-v0",
        splits={"train": [{"goal": [2, 2]}], "test": [{"goal": [x, y]} for x in range(2) for y in range(2)]},
        env_kwargs={"size": 3},
        optimal_return=lambda **_: optimal,
        native_vector=True,
    )
    near, tasks = 1 + 0.003 * np.array([-3, -1, 1, 3])[:, None], family.tasks("test")
    tables = []
    for agent, returns, streams in (
        ("AD", own * near * np.ones((3, 4, 1)), 1),
        ("source", source * near * np.ones((STREAMS, 4, 1)), STREAMS),
        ("random", np.full((3, 4, 5), float(random)), 1),
    ):
        evaluation = Evaluation(tasks, returns, np.full(returns.shape, STEPS), 0, None, streams)
        tables.append(evaluation_rows(evaluation, family, agent, 0, 0 if agent == "AD" else None))
    return pa.concat_tables(tables)


DETAILS = {
    "env_id": "ad_hf/DarkRoom-v0",
    "agent": "AD",
    "models": [{"training_seed": 0, "rollout_seed": 0}],
    "datasets": [],
    "source": {"algorithm": "A2C", "n_envs": STREAMS, "independent_streams": False},
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A case, and its evaluation."""
    return request.param, write_evaluation(
        tmp_path_factory.mktemp("evaluation"), rows_of(*CASES[request.param][0]), DETAILS
    )


def card_of(content, file="evaluation.json"):
    config = {"observation_space": {}, "action_space": {}, "context_length": 4}
    files = {name: json.dumps(each).encode() for name, each in (("config.json", config), (file, content))}
    return ModelCard(model_card(files, "someone/something")).text


def test_all_that_is_said_follows_from_a_test_and_from_the_sources_levels(case, tmp_path):
    name, evaluation = case
    returns, verdict, half, most, ratio, words, share = CASES[name]
    agent = evaluation["agents"]["AD"]

    assert agent["learns"]["verdict"] == verdict
    low, high = agent["learns"]["interval"]
    assert (low > 0, high < 0) == (verdict == "learns", verdict == "gets worse")
    steps = agent["steps_to"]
    for entry, expected in ((steps["50%"], half), (steps["90%"], most)):
        assert entry["at_start"] == (expected == "start")
        if expected != "start":
            assert entry["env_steps"] == expected
    assert steps["90%"]["ratio"] == (None if ratio is None else pytest.approx(ratio))
    assert ratio is not None or steps["50%"]["ratio"] is None or steps["90%"]["env_steps"] is None
    assert last_of(agent)["of_optimal"] == pytest.approx(share, abs=0.01)
    negative = returns[2] < 0
    assert agent["shares_of"] == ("gain over random play" if negative else "return")
    below = title_of(evaluation)[1]
    title = below[0].lower() + below[1:]
    texts = {"console": describe(evaluation, tmp_path), "title": title, "card": card_of(evaluation)}
    assert (" possible" in texts["console"].splitlines()[0]) != negative
    assert words in texts["title"]
    ratios = [entry["ratio"] for entry in steps.values() if entry["ratio"] is not None]
    for which, text in texts.items():
        told = ratios[-1:] if which == "title" else ratios  # of the highest share that is reached
        assert ("times fewer" in text) == any(each > 1 for each in told)
        assert ("times more steps" in text) == any(each < 1 for each in told)
        assert which == "card" or verdict in text
    assert ("wanders at first and gets better from episode to episode" in texts["card"]) == (verdict == "learns")
    assert (f"**On held-out tasks it {verdict} in its context**" in texts["card"]) == (verdict != "learns")


def as_a_report(evaluation):
    """A `report.json` as the first version wrote it, which counted steps to 90% of a model's own end."""
    agents = evaluation["agents"]
    last = last_of(agents["AD"])
    return {
        "env_id": evaluation["env_id"],
        "test_return_final": last["return"],
        "test_return_final_interval": last["return_interval"],
        "test_return_first": agents["AD"]["at"]["1"]["return"],
        "optimal_return": evaluation["optimal_return"],
        "fraction_of_optimal": -1.2,
        "source_return_final": last_of(agents["source"])["return"],
        "groups": {},
        "env_steps_to_90": {"ad": 50, "source": 25000, "level": 0.1, "ratio": 500.0},
        "final_episodes": [31, 40],
        "num_test_tasks": 4,
        "num_rollout_seeds": 3,
        "rollout_seed": 0,
        "tasks": [
            {**{key: task[key] for key in ("task_id", "kwargs", "optimal", "random")}, "return": task["returns"]["AD"]}
            for task in evaluation["tasks"]
        ],
        "source": evaluation["source"],
        "seeds": {"training": 0},
        "curves": {
            "of": "return of an episode",
            **{name: agents[who]["curve"] for name, who in (("ad", "AD"), ("source", "source"))},
        },
    }


def as_it_was(evaluation):
    """An `evaluation.json` as the first version wrote it."""
    old = {**json.loads(json.dumps(evaluation)), "datasets": []}
    for new in ("of", "optimal_return", "random_return", "groups", "tasks", "source"):
        del old[new]
    for agent in old["agents"].values():
        agent["steps_to"] = {"90%": {"level": 0.1, "env_steps": 50, "source": 25000, "ratio": 500.0}}
        for new in {"learns", "shares_of"} & set(agent):
            del agent[new]
    return old


def test_old_reports_and_evaluations_say_no_more_than_their_curves(case, tmp_path):
    name, evaluation = case
    _, verdict, _, most, ratio, _, share = CASES[name]
    report, old = as_a_report(evaluation), as_it_was(evaluation)
    before = json.dumps([report, old])

    from_report, from_old = (upgrade(each)["agents"]["AD"] for each in (report, old))

    assert json.dumps([report, old]) == before
    for agent in (from_report, from_old):
        assert agent["learns"]["conservative"]
        assert agent["learns"]["verdict"] == verdict
        assert most in (None, "start") or agent["steps_to"]["90%"]["env_steps"] == most
        assert last_of(agent)["of_optimal"] == pytest.approx(share, abs=0.01)
    assert from_report["steps_to"]["90%"]["ratio"] == (None if ratio is None else pytest.approx(ratio))
    assert from_old["steps_to"]["90%"]["ratio"] is None  # the source is not known
    unknown = {**report, "tasks": [{**task, "random": None} for task in report["tasks"]]}
    cards = [card_of(report, "report.json"), card_of(unknown, "report.json"), card_of(old)]
    for text in (*cards, evaluation_card(tmp_path, "x/y", old)):
        assert "500 times" not in text
        assert "25,000" not in text
    assert "gain over random play" not in cards[1]  # of which it knows nothing


@pytest.mark.parametrize(
    ("entries", "comparable"),
    [
        ({"algorithm": "NoisedPolicy", "independent_streams": True}, False),  # synthetic
        ({"independent_streams": None}, False),
        ({"independent_streams": True}, True),
        ({"independent_streams": None, "n_envs": 1}, True),
    ],
)
def test_what_a_source_is_decides_whether_steps_are_compared(entries, comparable):
    source = {**DETAILS["source"], **entries}
    assert is_comparable(source) == comparable
    rows = rows_of(*CASES["learns faster"][0])
    ratio = summarize(rows, is_comparable(source))["agents"]["AD"]["steps_to"]["90%"]["ratio"]
    assert ratio == (pytest.approx(1200 / 140) if comparable else None)


def test_a_verdict_needs_points_to_compare_and_runs():
    level = np.full((1, 3, 4, 30), 0.1)  # whose means differ by rounding
    assert learning_of([level])["verdict"] == "does not learn"
    steps = np.concatenate([np.zeros(20), np.ones(20)]) + np.zeros((1, 3, 4, 40))
    assert learning_of([steps], "steps")["last"] == [37, 40]
    few = learning_of([steps[..., :3]])
    assert (few["first"], few["last"]) == ([1, 1], [2, 3])  # which do not overlap
    for block in (steps[..., :1], steps[:, :1, :3]):
        assert learning_of([block])["verdict"] is None


@pytest.mark.parametrize("independent", [None, True, False])
def test_histories_of_arrays_are_compared_with(independent, tmp_path, tiny_run, tiny_recipe_file, tiny_recipe):
    (tmp_path / "arrays").mkdir()
    length, rng = 6 * 20, np.random.default_rng(0)
    for task in TaskFamily(tiny_recipe.family).all_tasks:
        np.savez(
            tmp_path / "arrays" / f"{task.task_id:03d}.npz",
            observations=np.zeros((4, length, 2), dtype=np.int64),
            actions=rng.integers(5, size=(4, length)),
            rewards=np.broadcast_to(np.linspace(0, 1, length), (4, length)),
            truncations=np.broadcast_to(np.arange(1, length + 1) % 6 == 0, (4, length)),
        )
    option = {None: [], True: ["--independent_streams"], False: ["--no-independent_streams"]}[independent]
    arguments = ["from-arrays", tmp_path / "arrays", tmp_path / "histories", "--recipe", tiny_recipe_file, *option]
    assert main(["convert", *map(str, arguments)]) == 0

    arguments = ["--model", tiny_run / "model", "--recipe", tiny_recipe_file, "--dataset", tmp_path / "histories"]
    assert main(["rollout", *map(str, arguments), "--output_dir", str(tmp_path / "run"), "--no_video"]) == 0

    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["source"].get("independent_streams") is independent
    assert evaluation["agents"]["source"]["curve"]["env_steps"][0] == 6 * (1 if independent else 4)
    assert independent is not None or evaluation["agents"]["AD"]["steps_to"]["90%"]["ratio"] is None
    counted = {None: "whether they learn together is not known", True: "each stream counted by itself"}
    assert counted.get(independent, "all 4 streams that learn together counted") in card_of(evaluation)


def test_agents_of_negative_returns_have_shares_of_the_gain():
    rows = rows_of(*CASES["gets worse, around zero"][0])
    agents = summarize(rows)["agents"]
    assert last_of(agents["random"])["of_optimal"] == pytest.approx(0)
    assert agents["AD"]["regret"]["of_optimal"] > 0
    alone = summarize(rows.filter(pa.compute.field("agent") == "AD"))["agents"]["AD"]
    assert alone["shares_of"] is None  # without random play there is none
    assert "of_optimal" not in last_of(alone)
