"""
Keep the results of runs beside the documentation, and print them as a table.

    ad-hf quickstart --recipe bandit --output_dir runs/bandit
    python scripts/results.py bandit=runs/bandit dark_key_to_door=runs/dark_key_to_door
    python scripts/results.py dark_room=evaluation       # of several trainings, by `ad-hf evaluate`
    python scripts/results.py bandit watermaze_small     # those that are there, once more

Writes docs/results/NAME.json and NAME.png, the evaluation and the learning curve, and prints a line of markdown for
each. Results of earlier versions are written as they are now.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ad_hf.evaluation.headlines import SHARES, learns_cell, number, steps_cell
from ad_hf.evaluation.pictures import plot_curves
from ad_hf.evaluation.returns import RANDOM, SOURCE
from ad_hf.evaluation.summary import SUMMARY_FILE, last_of
from ad_hf.evaluation.upgrades import upgrade
from ad_hf.settings import read_json
from ad_hf.storage.files import atomic_path, write_text

HEAD = (
    "| recipe | first episode | last episodes (95% interval) | learns: last - first (95% interval) | random actions | "
    "source at its end | best possible | "
    + " | ".join(f"steps to {share:.0%} of the source's gain: in context / source" for share in SHARES)
    + " | held-out tasks x rollouts |\n"
    + "|---" * (8 + len(SHARES))
    + "|"
)


def row(name: str, evaluation: dict[str, Any]) -> str:
    """The evaluation of a run as a line of a markdown table."""
    agents = evaluation["agents"]
    compared = [agent for agent in agents if agent not in (SOURCE, RANDOM)]
    if len(compared) != 1:
        raise SystemExit(f"{name} compares {', '.join(compared)}, and a line is of one agent")
    own, source = agents[compared[0]], agents.get(SOURCE)
    last = last_of(own)
    low, high = last["return_interval"]
    cells = [
        name,
        number(next(iter(own["at"].values()))["return"]),
        f"**{number(last['return'])}** ({number(low)} to {number(high)})",
        learns_cell(own["learns"]),
        number(evaluation["random_return"]),
        number(None if source is None else last_of(source)["return"]),
        number(evaluation["optimal_return"]),
        *(steps_cell(steps) for steps in own["steps_to"].values()),
        f"{own['num_tasks']} x {own['num_rollouts']}",
    ]
    return f"| {' | '.join(cells)} |"


def evaluation_of(run: Path, name: str) -> dict[str, Any]:
    """The evaluation of a run, without the paths of the machine that made it."""
    file = next((run / each for each in (SUMMARY_FILE, "report.json") if (run / each).is_file()), run)
    evaluation = upgrade(read_json(file))
    evaluation["models"] = [{**model, "name": name} for model in evaluation["models"]]
    evaluation["datasets"] = [{**dataset, "name": name} for dataset in evaluation["datasets"]]
    return evaluation


def main() -> None:
    """Copy the evaluations of runs, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME[=RUN]", help="folders of runs, and their names in the table")
    parser.add_argument("--output_dir", type=Path, default=Path("docs/results"), help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    for run in arguments.runs:
        name, _, folder = run.partition("=")
        file = arguments.output_dir / f"{name}.json"
        evaluation = evaluation_of(Path(folder) if folder else file, name)
        with atomic_path(file.with_suffix(".png")) as path:
            plot_curves(path, evaluation)
        write_text(file, json.dumps(evaluation) + "\n")
        print(row(name, evaluation))


if __name__ == "__main__":
    main()
