"""Reports and evaluations of earlier versions, with what is said of the curves that they hold now."""

from __future__ import annotations

from typing import Any

import numpy as np

from ad_hf.evaluation.curves import Curve
from ad_hf.evaluation.headlines import (
    OF_RETURN,
    Gain,
    compared_points,
    is_comparable,
    learning_of_curve,
    share_of_optimum,
    steps_to_shares,
    untested,
)


def upgrade_report(
    report: dict[str, Any], random: np.ndarray | None = None, random_steps: np.ndarray | None = None
) -> dict[str, Any]:
    """
    A `report.json`, as it is now written.

    Earlier versions counted steps to 90% of a model's own end, which a model that learns nothing reaches at once. Of
    those reports the curves are kept: what can be said of them is, and the rest is left out.

    Args:
        report (`dict`):
            The report.
        random (`np.ndarray` of shape `(num_tasks,)`, *optional*):
            Return of random play in each task, if the report does not say it. Without it, no steps are counted.
        random_steps (`np.ndarray` of shape `(num_steps,)`, *optional*):
            Of rollouts of a single episode, mean reward of random play at each step. Without it, nothing is said of
            whether such a model learns.
    """
    if "learns" in report:
        return report
    own, source = (
        None if report["curves"][who] is None else Curve.from_json(report["curves"][who]) for who in ("ad", "source")
    )
    assert own is not None
    by_task = {name: _column(report["tasks"], name) for name in ("return", "optimal", "random")}
    if by_task["random"] is None:
        by_task["random"] = random
    runs = report["num_test_tasks"] * report["num_rollout_seeds"]
    of, steps = "episodes", 1
    learns = learning_of_curve(own, runs)
    if report["curves"]["of"] != "return of an episode":
        of, steps = "steps", len(own.mean)
        beyond = None if random_steps is None else [band - random_steps for band in (own.mean, own.low, own.high)]
        learns = untested(of) if beyond is None else learning_of_curve(Curve(own.env_steps, *beyond), runs, of)
    gain = None
    known, optimal = by_task["random"], by_task["optimal"]
    if known is not None and source is not None:
        gain = _gain_of(source, float(known.mean()) / steps, of)
    elif known is not None:
        gain = Gain.of_optimum(None if optimal is None else optimal / steps, known / steps)
    found = {name: value for name, value in report.items() if name != "env_steps_to_90"}
    means = {name: None if values is None else float(values.mean()) for name, values in by_task.items()}
    returns = [curve.mean for curve in (own, source) if curve is not None]
    least = min(each.min() for each in (*returns, *by_task.values()) if each is not None)
    share, of_what = share_of_optimum(report["test_return_final"], means["optimal"], means["random"], bool(least < 0))
    comparable = report.get("source") is not None and is_comparable(report["source"])
    return found | {
        "learns": learns,
        "fraction_of_optimal": share,
        "fraction_of": of_what,
        "random_return": means["random"],
        "env_steps_to": steps_to_shares(own, source, gain, learns["verdict"], comparable, "ad"),
        "tasks": [
            {**task, "random": None if known is None else float(known[index])}
            for index, task in enumerate(report["tasks"])
        ],
    }


def upgrade_evaluation(found: dict[str, Any]) -> dict[str, Any]:
    """
    An `evaluation.json`, as it is now written; see [`upgrade_report`]. Steps are told and not compared: earlier
    versions did not say what the source was.
    """
    agents = found["agents"]
    if all("learns" in agent for name, agent in agents.items() if name != "random"):
        return found
    curves = {name: Curve.from_json(agent["curve"]) for name, agent in agents.items()}
    random = float(curves["random"].mean.mean()) if "random" in curves else None
    optimal = next((agent["optimal_return"] for agent in agents.values()), None)
    gain = None
    if random is not None and "source" in curves:
        gain = _gain_of(curves["source"], random, "episodes")
    elif random is not None and optimal is not None:
        gain = Gain.of_optimum(np.array([optimal]), np.array([random]))
    negative = min(curve.mean.min() for curve in curves.values()) < 0 or (optimal is not None and optimal < 0)
    upgraded = {}
    for name, agent in agents.items():
        kept = {key: value for key, value in agent.items() if key != "steps_to"}
        last = list(agent["at"].values())[-1]
        kept["shares_of"] = None if negative or "of_optimal" not in last else OF_RETURN
        if name != "random":
            runs = agent["num_models"] * agent["num_rollouts"] * agent["num_tasks"]
            learns = learning_of_curve(curves[name], runs)
            source = None if name == "source" else curves.get("source")
            steps = steps_to_shares(curves[name], source, gain, learns["verdict"], False, "env_steps")
            kept |= {"learns": learns, "steps_to": steps}
            if name == "source":
                for entry in steps.values():
                    del entry["source"]
        upgraded[name] = kept
    return {**found, "agents": upgraded}


def _column(tasks: list[dict[str, Any]], name: str) -> np.ndarray | None:
    values = [task.get(name) for task in tasks]
    return None if None in values else np.array(values, dtype=np.float64)


def _gain_of(source: Curve, random: float, of: str) -> Gain:
    """The gain of a source of which nothing but a curve was kept: none unless its band ends above random play."""
    points = compared_points(len(source.mean), of)
    last = slice(None) if points is None else points[1]
    if source.low[last].mean() <= random:
        return Gain("source", None, None)
    return Gain("source", random, float(source.mean[last].mean()))
