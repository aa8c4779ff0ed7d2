"""What is said first of a model: that it learns only if it does, and in fewer steps than its source only if it did."""

import json

import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub import ModelCard

from ad_hf.cli import main
from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.card import evaluation_card
from ad_hf.evaluation.evaluate import Evaluation, play_at_random
from ad_hf.evaluation.headlines import learning_of
from ad_hf.evaluation.plots import title_of
from ad_hf.evaluation.protocol import agents_of, evaluation_rows, source_rows
from ad_hf.evaluation.report import SourceCurves, write_report
from ad_hf.evaluation.results import evaluation_summary, write_evaluation
from ad_hf.evaluation.upgrades import upgrade_evaluation, upgrade_report
from ad_hf.hub.model_card import model_card
from ad_hf.pipeline import summary

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


@pytest.fixture(scope="module")
def tasks():
    return [{"goal": [x, y]} for x in range(2) for y in range(2)]


def reported(tmp_path, histories, tasks, own, source, random, optimal, **details):
    """A report, a card and an evaluation of a model and a source whose returns in four tasks differ a little."""
    family = TaskFamily(
        "ad_hf/DarkRoom-v0",
        splits={"train": [{"goal": [2, 2]}], "test": tasks},
        env_kwargs={"size": 3},
        optimal_return=lambda **_: optimal,
        random_return=lambda **_: random,
        native_vector=True,
    )
    near = 1 + 0.003 * np.array([-3, -1, 1, 3])[:, None]
    found = family.tasks("test")
    evaluation = Evaluation(found, own * near * np.ones((3, 4, 1)), np.full((3, 4, EPISODES), STEPS), 0)
    returns = source * near * np.ones((STREAMS, 4, 1))
    lengths = np.full(returns.shape, STEPS)
    ids = [task.task_id for task in found]
    curves = SourceCurves(returns, lengths, STREAMS * STEPS * np.arange(1.0, EPISODES + 1), ids, None, STREAMS)
    details = {"env_id": "ad_hf/DarkRoom-v0", "seeds": {"training": 0}, **details}
    report = write_report(tmp_path, evaluation, family, histories, details, curves)
    rows = [evaluation_rows(evaluation, family, "AD", 0, 0), source_rows(curves, family)]
    played = Evaluation(found, np.full((3, 4, 5), float(random)), np.full((3, 4, 5), STEPS), 0)
    rows.append(evaluation_rows(played, family, "random"))
    return report, pa.concat_tables(rows)


def card_of(report):
    config = {"observation_space": {}, "action_space": {}, "context_length": 4}
    files = {
        name: json.dumps(content).encode() for name, content in (("config.json", config), ("report.json", report))
    }
    return ModelCard(model_card(files, "someone/something")).text


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_said_follows_from_a_test_and_from_the_sources_levels(name, tmp_path, tiny_histories, tasks):
    made, verdict, half, most, ratio, words, share = CASES[name]
    report, rows = reported(tmp_path, tiny_histories, tasks, *made)
    found = write_evaluation(tmp_path / "evaluation", rows, {"env_id": "ad_hf/DarkRoom-v0"})
    agent = found["agents"]["AD"]

    texts = {
        "console": summary(report, tmp_path),
        "title": title_of(report),
        "card": card_of(report),
        "evaluation": evaluation_summary({"agents": {"AD": agent}}, []),
    }
    assert report["learns"]["verdict"] == agent["learns"]["verdict"] == verdict
    low, high = report["learns"]["interval"]
    assert (low > 0, high < 0) == (verdict == "learns", verdict == "gets worse")
    for steps, who in ((report["env_steps_to"], "ad"), (agent["steps_to"], "env_steps")):
        for entry, expected in ((steps["50%"], half), (steps["90%"], most)):
            assert entry["at_start"] == (expected == "start")
            if expected != "start":
                assert entry[who] == expected
        assert steps["90%"]["ratio"] == (None if ratio is None else pytest.approx(ratio))
        assert ratio is not None or steps["50%"]["ratio"] is None or steps["90%"][who] is None
    assert report["fraction_of_optimal"] == pytest.approx(share, abs=0.01)
    last = list(agent["at"].values())[-1]
    assert last["of_optimal"] == pytest.approx(share, abs=0.01)
    negative = made[2] < 0
    assert report["fraction_of"] == agent["shares_of"] == ("gain over random play" if negative else "return")
    assert (" possible" in texts["console"].splitlines()[0]) != negative
    assert words in texts["title"]
    ratios = [entry["ratio"] for entry in report["env_steps_to"].values() if entry["ratio"] is not None]
    for which, text in texts.items():
        told = ratios[-1:] if which == "title" else ratios  # of the highest share that is reached
        assert ("times fewer" in text) == any(each > 1 for each in told)
        assert ("times more steps" in text) == any(each < 1 for each in told)
        if which != "card":
            assert verdict in text
    assert ("wanders at first and gets better from episode to episode" in texts["card"]) == (verdict == "learns")
    assert (f"**On held-out tasks it {verdict} in its context**" in texts["card"]) == (verdict != "learns")


@pytest.mark.parametrize("name", CASES)
def test_old_reports_and_evaluations_say_no_more_than_their_curves(name, tmp_path, tiny_histories, tasks):
    made, verdict, _, most, ratio, _, share = CASES[name]
    report, rows = reported(tmp_path, tiny_histories, tasks, *made)
    found = write_evaluation(tmp_path / "evaluation", rows, {"env_id": "ad_hf/DarkRoom-v0"})
    flattering = {"ad": 50, "source": 25000, "level": 0.1, "ratio": 500.0}
    for new in ("learns", "env_steps_to", "fraction_of", "random_return", "random_episodes"):
        del report[new]
    old = {**report, "env_steps_to_90": flattering, "fraction_of_optimal": -1.2}
    for agent in found["agents"].values():
        agent["steps_to"] = {"90%": {"level": 0.1, "env_steps": 50, "source": 25000, "ratio": 500.0}}
        for new in {"learns", "shares_of"} & set(agent):
            del agent[new]

    new = upgrade_report(old)
    agent = upgrade_evaluation(found)["agents"]["AD"]

    assert new["learns"]["conservative"]
    assert new["learns"]["verdict"] == agent["learns"]["verdict"] == verdict
    assert new["env_steps_to"]["90%"]["ad"] == (None if most is None else agent["steps_to"]["90%"]["env_steps"])
    assert new["env_steps_to"]["90%"]["ratio"] == (None if ratio is None else pytest.approx(ratio))
    assert agent["steps_to"]["90%"]["ratio"] is None  # what the source was is not known
    assert new["fraction_of_optimal"] == pytest.approx(share, abs=0.01)
    unknown = {**old, "tasks": [{**task, "random": None} for task in old["tasks"]]}
    for text in (card_of(old), card_of(unknown), evaluation_card(tmp_path, "x/y", found)):
        assert "500 times" not in text
        assert "25,000" not in text
    assert "gain over random play" not in card_of(unknown)  # of which it knows nothing


def test_what_a_source_is_decides_whether_steps_are_compared(tmp_path, tiny_histories, tasks):
    made = CASES["learns faster"][0]
    ratios = {}
    for case, entries in {
        "synthetic": {"algorithm": "NoisedPolicy", "independent_streams": True},
        "streams not known": {"independent_streams": None},
        "each stream for itself": {"independent_streams": True},
        "one stream": {"independent_streams": None, "n_envs": 1},
    }.items():
        report, _ = reported(tmp_path, tiny_histories, tasks, *made)
        source = {**report["source"], **entries}
        old = {name: value for name, value in report.items() if name != "learns"}
        ratios[case] = upgrade_report({**old, "source": source})["env_steps_to"]["90%"]["ratio"]

    assert ratios["synthetic"] is ratios["streams not known"] is None
    assert ratios["each stream for itself"] == ratios["one stream"] == pytest.approx(1200 / 140)


def test_a_verdict_needs_points_to_compare_and_runs():
    level = np.full((1, 3, 4, 30), 0.1)  # whose means differ by rounding
    assert learning_of([level])["verdict"] == "does not learn"
    steps = np.concatenate([np.zeros(20), np.ones(20)]) + np.zeros((1, 3, 4, 40))
    assert learning_of([steps], "steps")["last"] == [37, 40]
    few = learning_of([steps[..., :3]])
    assert (few["first"], few["last"]) == ([1, 1], [2, 3])  # which do not overlap
    for block in (steps[..., :1], steps[:, :1, :3]):
        assert learning_of([block])["verdict"] is None


def test_random_play_is_bounded_and_seeded(dark_room_family):
    tasks = dark_room_family.tasks("test")
    first, again = (play_at_random(dark_room_family, tasks, max_steps=9) for _ in range(2))
    assert first.returns.shape == (3, 3, 2)  # of episodes of four steps
    np.testing.assert_array_equal(first.returns, again.returns)
    np.testing.assert_array_equal(first.step_rewards.sum(axis=2), first.returns[..., 0])
    assert play_at_random(dark_room_family, tasks, max_steps=3) is None


@pytest.mark.parametrize("option", [[], ["--independent_streams"], ["--no-independent_streams"]])
def test_histories_of_arrays_are_compared_with(option, tmp_path, tiny_run, tiny_recipe_file, tiny_recipe):
    family = TaskFamily(tiny_recipe.family)
    (tmp_path / "arrays").mkdir()
    length, rng = 6 * 20, np.random.default_rng(0)
    for task in family.all_tasks:
        ends = np.arange(1, length + 1) % 6 == 0
        np.savez(
            tmp_path / "arrays" / f"{task.task_id:03d}.npz",
            observations=np.zeros((4, length, 2), dtype=np.int64),
            actions=rng.integers(5, size=(4, length)),
            rewards=np.broadcast_to(np.linspace(0, 1, length), (4, length)),
            truncations=np.broadcast_to(ends, (4, length)),
        )
    arguments = ["from-arrays", tmp_path / "arrays", tmp_path / "histories", "--recipe", tiny_recipe_file, *option]
    assert main(["convert", *map(str, arguments)]) == 0

    arguments = ["--model", tiny_run / "model", "--recipe", tiny_recipe_file, "--dataset", tmp_path / "histories"]
    assert main(["rollout", *map(str, arguments), "--output_dir", str(tmp_path / "run"), "--no_video"]) == 0

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    independent = {"--independent_streams": True, "--no-independent_streams": False}.get(option[0] if option else "")
    assert report["source"].get("independent_streams") is independent
    assert report["curves"]["source"]["env_steps"][0] == 6 * (1 if independent else 4)
    assert independent is not None or report["env_steps_to"]["90%"]["ratio"] is None
    text = card_of(report)
    counted = {None: "whether they learn together is not known", True: "each stream counted by itself"}
    assert counted.get(independent, "all streams that learn together counted") in text


def test_agents_of_negative_returns_have_shares_of_the_gain(tmp_path, tiny_histories, tasks):
    _, rows = reported(tmp_path, tiny_histories, tasks, *CASES["gets worse, around zero"][0])
    agents = {agent.agent: agent for agent in agents_of(rows)}
    assert agents["random"].at(5)["of_optimal"] == pytest.approx(0)
    assert agents["AD"].summary()["regret"]["of_optimal"] > 0
    alone = agents_of(rows.filter(pa.compute.field("agent") == "AD"))[0]
    assert alone.shares() is None  # without random play there is none
    assert "of_optimal" not in alone.at(40)
