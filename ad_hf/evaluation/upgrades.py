"""Evaluations of earlier versions, which say no more than their curves allow."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from ad_hf.evaluation.curves import Curve
from ad_hf.evaluation.headlines import (
    Gain,
    final_points,
    is_comparable,
    learning_of_curve,
    share_of_optimum,
    shares_of,
    steps_to_shares,
    untested,
)
from ad_hf.evaluation.returns import RANDOM, SOURCE
from ad_hf.evaluation.summary import EPISODES, last_of, models_of

KEPT = ("env_id", "source", "seconds", "versions", "weights_digest")  # entries of a `report.json`


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """
    The content of an `evaluation.json`, or of a `report.json` of earlier versions, as `evaluation.json` is now.

    Earlier versions counted steps to 90% of a model's own end, which a model that learns nothing reaches at once. Only
    their curves stay: the bands of the curves test learning, and steps are counted where random play is known.
    """
    if "curves" in content:
        content = _from_report(content)
    agents = content["agents"]
    evaluation = {"of": EPISODES, "tasks": [], "groups": {}, "models": [], "datasets": [], "source": None, **content}
    if "random_return" not in evaluation:
        evaluation["random_return"] = float(np.mean(agents[RANDOM]["curve"]["mean"])) if RANDOM in agents else None
        evaluation["optimal_return"] = next((agent["optimal_return"] for agent in agents.values()), None)
    if any("learns" not in agent for agent in models_of(evaluation).values()):
        evaluation["agents"] = deepcopy(agents)
        _test(evaluation)
    return evaluation


def _from_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """A `report.json` as an `evaluation.json`, of the agents AD, source and random."""
    tasks, curves, source = report["tasks"], report["curves"], report.get("source")
    shared = {
        "num_splits": 1,
        "num_models": 1,
        "num_rollouts": report["num_rollout_seeds"],
        "num_tasks": report["num_test_tasks"],
        "optimal_return": report["optimal_return"],
        "shares_of": report.get("fraction_of"),
    }
    last = {
        "episodes": report["final_episodes"],
        "return": report["test_return_final"],
        "return_interval": report["test_return_final_interval"],
        "of_optimal": report["fraction_of_optimal"],
    }
    at = {"1": {"episodes": [1, 1], "return": report["test_return_first"]}, str(last["episodes"][1]): last}
    agents = {"AD": {**shared, "at": at, "curve": curves["ad"]}}
    if "learns" in report:
        steps_to = {
            share: {**{name: value for name, value in steps.items() if name != "ad"}, "env_steps": steps["ad"]}
            for share, steps in report["env_steps_to"].items()
        }
        agents["AD"] |= {"learns": report["learns"], "steps_to": steps_to}
    if source is not None:
        agents[SOURCE] = {**shared, "at": {"": {"return": report["source_return_final"]}}, "curve": curves["source"]}
    randoms = [task.get("random") for task in tasks]
    random = report.get("random_return", None if None in randoms else float(np.mean(randoms)))
    if random is not None:
        agents[RANDOM] = {**shared, "at": {"": {"return": random}}, "curve": None}
    names = {"AD": "return", SOURCE: "source", RANDOM: "random"}
    return {
        **{name: report[name] for name in KEPT if name in report},
        "agent": "AD",
        "models": [{"training_seed": report.get("seeds", {}).get("training"), "rollout_seed": report["rollout_seed"]}],
        "datasets": [report["dataset"]] if report.get("dataset") else [],
        "of": curves["of"],
        "optimal_return": report["optimal_return"],
        "random_return": random,
        "agents": agents,
        "groups": {
            name: {
                **{key: group.get(key) for key in ("num_tasks", "optimal", "random")},
                "returns": {agent: group.get(names[agent]) for agent in agents},
                "normalized": {"AD": group["normalized"]},
            }
            for name, group in (report.get("groups") or {}).items()
        },
        "tasks": [
            {
                **{name: task.get(name) for name in ("task_id", "kwargs", "optimal", "random")},
                "returns": {agent: task.get(names[agent]) for agent in agents},
            }
            for task in tasks
        ],
    }


def _test(evaluation: dict[str, Any]) -> None:
    """Add the entries that curves have now to the curves of an earlier version."""
    agents, optimal, random = evaluation["agents"], evaluation["optimal_return"], evaluation["random_return"]
    curves = {name: Curve.from_json(agent["curve"]) for name, agent in agents.items() if agent["curve"] is not None}
    of = "episodes" if evaluation["of"] == EPISODES else "steps"
    steps = len(next(iter(curves.values())).mean) if of == "steps" else 1
    gain = Gain()
    if random is not None and SOURCE in curves:
        gain = _gain_of(curves[SOURCE], random / steps, of)
    elif random is not None and optimal is not None:
        gain = Gain.of_optimum(np.array(optimal / steps), np.array(random / steps))
    lows = [
        *(curve.mean.min() for curve in curves.values()),
        *(each for each in (optimal, random) if each is not None),
    ]
    comparable = bool(evaluation.get("source")) and is_comparable(evaluation["source"])
    for name, agent in agents.items():
        last = last_of(agent)
        last.pop("of_optimal", None)
        last |= share_of_optimum(last["return"], optimal, random, min(lows) < 0)
        agent["shares_of"] = shares_of(last, min(lows) < 0)
        agent.pop("steps_to", None)
        if name in curves and name != RANDOM:
            runs = agent["num_models"] * agent["num_rollouts"] * agent["num_tasks"]
            learns = agent["learns"] = untested(of) if of == "steps" else learning_of_curve(curves[name], runs)
            agent["steps_to"] = steps_to_shares(name, curves, gain, learns["verdict"], comparable)


def _gain_of(source: Curve, random: float, of: str) -> Gain:
    """The gain of a source from its curve alone: none unless its band ends above random play."""
    end = final_points(len(source.mean), of)
    if source.low[end].mean() <= random:
        return Gain(SOURCE)
    return Gain(SOURCE, random, float(source.mean[end].mean()))
