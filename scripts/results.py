"""
Keep the results of runs beside the documentation, and print them as a table.

    ad-hf quickstart --recipe bandit --output_dir runs/bandit
    python scripts/results.py bandit=runs/bandit dark_key_to_door=runs/dark_key_to_door

Writes docs/results/NAME.json and NAME.png, a run's report and learning curve, and prints a line of markdown for each.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from ad_hf.files import write_text

HEAD = (
    "| recipe | first episode | last episodes (95% interval) | source at its end | best possible | "
    "steps to 90%: in context / source | held-out tasks x rollouts |\n|---|---|---|---|---|---|---|"
)


def number(value: float | None) -> str:
    """A number with three significant digits."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def row(name: str, report: dict[str, Any]) -> str:
    """A report as a line of a markdown table."""
    low, high = report["test_return_final_interval"]
    steps = report["env_steps_to_90"]
    both = " / ".join("-" if steps[who] is None else f"{steps[who]:,}" for who in ("ad", "source"))
    cells = [
        name,
        number(report["test_return_first"]),
        f"**{number(report['test_return_final'])}** ({number(low)} to {number(high)})",
        number(report["source_return_final"]),
        number(report["optimal_return"]),
        both + (f" ({steps['ratio']:.1f})" if steps["ratio"] else ""),
        f"{report['num_test_tasks']} x {report['num_rollout_seeds']}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Copy what runs have left and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="folders of runs, and what to call them")
    parser.add_argument("--output_dir", type=Path, default=Path("docs/results"), help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    for run in arguments.runs:
        name, found, folder = run.partition("=")
        if not found:
            parser.error(f"expected NAME=RUN, got {run!r}")
        report = json.loads((Path(folder) / "report.json").read_text())
        # Where a run's data was on the machine that made it says nothing to anyone else.
        report["dataset"] = {**(report["dataset"] or {}), "name": name}
        report.pop("model", None)
        write_text(arguments.output_dir / f"{name}.json", json.dumps(report) + "\n")
        shutil.copyfile(Path(folder) / "learning_curve.png", arguments.output_dir / f"{name}.png")
        print(row(name, report))


if __name__ == "__main__":
    main()
