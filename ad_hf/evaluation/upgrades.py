"""Evaluations of earlier versions, with no more said of them than their curves allow."""

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
    steps_to_shares,
    untested,
)
from ad_hf.evaluation.returns import RANDOM, SOURCE
from ad_hf.evaluation.summary import EPISODES, last_of, models_of


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """
    The content of an `evaluation.json`, or of a `report.json` of earlier versions, as `evaluation.json` is now.

    Earlier versions counted steps to 90% of a model's own end, which a model that learns nothing reaches at once. Of
    those the curves are kept: learning is tested by their bands, and steps are counted where random play is known.
    """
    if "curves" in content:
        content = _from_report(content)
    agents = content["agents"]
    evaluation = {"of": EPISODES, "tasks": [], "groups": {}, "models": [], "datasets": [], "source": None, **content}
    if "random_return" not in evaluation:
        curve = None if RANDOM not in agents else agents[RANDOM]["curve"]["mean"]
        evaluation["random_return"] = None if curve is None else float(np.mean(curve))
        evaluation["optimal_return"] = next((agent["optimal_return"] for agent in agents.values()), None)
    if any("learns" not in agent for agent in models_of(evaluation).values()):
        evaluation["agents"] = deepcopy(agents)
        _test(evaluation)
    return evaluation


def _from_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """A `report.json` as an `evaluation.json`, of the agents AD, source and random."""
    tasks, curves, source = report["tasks"], report["curves"], report.get("source")
    shared = {
        **dict.fromkeys(("num_splits", "num_models"), 1),
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
    known = [task.get("random") for task in tasks]
    random = report.get("random_return", None if None in known else float(np.mean(known)))
    if random is not None:
        agents[RANDOM] = {**shared, "at": {"": {"return": random}}, "curve": None}
    names = {"AD": "return", SOURCE: "source", RANDOM: "random"}
    return {
        **{
            name: report[name]
            for name in ("env_id", "source", "seconds", "versions", "weights_digest")
            if name in report
        },
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
    """Say of the curves of an earlier version what is said of curves now."""
    agents, optimal, random = evaluation["agents"], evaluation["optimal_return"], evaluation["random_return"]
    curves = {name: Curve.from_json(agent["curve"]) for name, agent in agents.items() if agent["curve"] is not None}
    by_step = evaluation["of"] != EPISODES
    steps = len(next(iter(curves.values())).mean) if by_step else 1
    source, gain = curves.get(SOURCE), None
    if random is not None and source is not None:
        gain = _gain_of(source, random / steps, "steps" if by_step else "episodes")
    elif random is not None and optimal is not None:
        gain = Gain.of_optimum(np.array([optimal / steps]), np.array([random / steps]))
    least = min(
        *(curve.mean.min() for curve in curves.values()), *(each for each in (optimal, random) if each is not None), 0
    )
    comparable = bool(evaluation.get("source")) and is_comparable(evaluation["source"])
    for name, agent in agents.items():
        last = last_of(agent)
        share, agent["shares_of"] = share_of_optimum(last["return"], optimal, random, bool(least < 0))
        last.pop("of_optimal", None)
        last |= {} if share is None else {"of_optimal": share}
        agent.pop("steps_to", None)
        if name == RANDOM or name not in curves:
            continue
        runs = agent["num_models"] * agent["num_rollouts"] * agent["num_tasks"]
        agent["learns"] = untested("steps") if by_step else learning_of_curve(curves[name], runs)
        beside = None if name == SOURCE else source
        agent["steps_to"] = steps_to_shares(curves[name], beside, gain, agent["learns"]["verdict"], comparable)
        if name == SOURCE:
            for entry in agent["steps_to"].values():
                del entry["source"]


def _gain_of(source: Curve, random: float, of: str) -> Gain:
    """The gain of a source of which nothing but a curve was kept: none unless its band ends above random play."""
    end = final_points(len(source.mean), of)
    if source.low[end].mean() <= random:
        return Gain(SOURCE)
    return Gain(SOURCE, random, float(source.mean[end].mean()))
