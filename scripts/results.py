"""
Keep the results of runs beside the documentation, and print them as a table.

    ad-hf quickstart --recipe bandit --output_dir runs/bandit
    python scripts/results.py bandit=runs/bandit dark_key_to_door=runs/dark_key_to_door
    python scripts/results.py --mend bandit=bandit watermaze_small_ed=watermaze_small    # of these recipes

Writes docs/results/NAME.json and NAME.png, a run's report and learning curve, and prints a line of markdown for each.
`--mend` writes those that an earlier version kept as they are written now: random actions are taken in the recipe's
test tasks, and what the curves that were kept allow to be said is said.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.curves import Curve
from ad_hf.evaluation.evaluate import play_at_random
from ad_hf.evaluation.headlines import SHARES, learns_cell, number, steps_cell
from ad_hf.evaluation.plots import plot_learning_curves
from ad_hf.evaluation.report import normalized_return
from ad_hf.evaluation.upgrades import upgrade_report
from ad_hf.storage.files import atomic_path, write_text

HEAD = (
    "| recipe | first episode | last episodes (95% interval) | learns: last - first (95% interval) | random actions | "
    "source at its end | best possible | "
    + " | ".join(f"steps to {share:.0%} of the source's gain: in context / source" for share in SHARES)
    + " | held-out tasks x rollouts |\n"
    + "|---" * (8 + len(SHARES))
    + "|"
)


def row(name: str, report: dict[str, Any]) -> str:
    """A report as a line of a markdown table."""
    low, high = report["test_return_final_interval"]
    cells = [
        name,
        number(report["test_return_first"]),
        f"**{number(report['test_return_final'])}** ({number(low)} to {number(high)})",
        learns_cell(report["learns"]),
        number(report["random_return"]),
        number(report["source_return_final"]),
        number(report["optimal_return"]),
        *(steps_cell(steps, "ad") for steps in report["env_steps_to"].values()),
        f"{report['num_test_tasks']} x {report['num_rollout_seeds']}",
    ]
    return f"| {' | '.join(cells)} |"


def kept(folder: Path, name: str) -> dict[str, Any]:
    """The report of a run, without where its data was on the machine that made it, which says nothing to others."""
    report = json.loads((folder / "report.json").read_text())
    report["dataset"] = {**(report["dataset"] or {}), "name": name}
    report.pop("model", None)
    return report


def mended(report: dict[str, Any], recipe: str) -> dict[str, Any]:
    """
    A report that an earlier version kept, as it is written now.

    Raises:
        ValueError: if the recipe's test tasks are others.
    """
    family = TaskFamily.from_recipe(recipe)
    tasks = family.tasks("test")
    if "learns" in report:
        return report
    if json.loads(json.dumps([task.kwargs for task in tasks])) != [task["kwargs"] for task in report["tasks"]]:
        raise ValueError(f"{recipe} has other test tasks than the report")
    played = play_at_random(family, tasks, num_seeds=report["num_rollout_seeds"])
    assert played is not None  # without a limit to its steps
    by_step = None if played.step_rewards is None else played.step_rewards.mean(axis=(0, 1))
    measured = report["tasks"][0].get("random") is None
    report = upgrade_report(report, played.returns.mean(axis=(0, 2)), by_step)
    report["random_episodes"] = played.returns.size if measured else None
    for name, group in report["groups"].items():
        if name == "all" and measured:
            group["random"] = report["random_return"]
            values: dict[str, np.ndarray | None] = {
                key: np.array([group[key]]) for key in ("return", "random", "source")
            }
            group["normalized"] = normalized_return(values)
    return report


def main() -> None:
    """Copy what runs have left, or mend what is there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="folders of runs, and what to call them")
    parser.add_argument("--output_dir", type=Path, default=Path("docs/results"), help="default: %(default)s")
    parser.add_argument("--mend", action="store_true", help="NAME=RECIPE: write again what was kept of such runs")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    for run in arguments.runs:
        name, found, origin = run.partition("=")
        if not found:
            parser.error(f"expected NAME=RUN, got {run!r}")
        file = arguments.output_dir / f"{name}.json"
        report = mended(json.loads(file.read_text()), origin) if arguments.mend else kept(Path(origin), name)
        write_text(file, json.dumps(report) + "\n")
        ad, source = (report["curves"][who] and Curve.from_json(report["curves"][who]) for who in ("ad", "source"))
        with atomic_path(file.with_suffix(".png")) as path:
            plot_learning_curves(path, ad, source, report)
        print(row(name, report))


if __name__ == "__main__":
    main()
