"""What an evaluation leaves: returns as a small dataset, a summary, pictures, and a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ad_hf.evaluation.protocol import (
    CURVES_FILE,
    ROOMS_FILE,
    ROWS_FILE,
    SUMMARY_FILE,
    AgentReturns,
    agents_of,
    read_rows,
    summarize,
    write_rows,
)
from ad_hf.files import atomic_path, local_path, write_text
from ad_hf.histories.schema import VERSIONED_PACKAGES, package_versions
from ad_hf.hub.cards import CARD, evaluation_card


def write_evaluation(output_dir: str | Path, rows: pa.Table, details: dict[str, Any]) -> dict[str, Any]:
    """
    Write `returns.parquet`, `evaluation.json`, `learning_curves.png`, `rooms.png` and a card.

    Args:
        output_dir (`str` or `Path`):
            Folder to write to.
        rows (`pa.Table`):
            Returns of all agents, as of [`~ad_hf.evaluation.protocol`].
        details (`dict`):
            Further entries of `evaluation.json`, among them `env_id`.

    Returns:
        `dict`: what `evaluation.json` holds.
    """
    from ad_hf.evaluation.agent_plots import plot_agents, plot_rooms, rooms_of  # only here is matplotlib needed

    output_dir = local_path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(output_dir / ROWS_FILE, rows)
    agents = agents_of(rows)
    found = {**details, "agents": summarize(agents), "versions": package_versions(VERSIONED_PACKAGES)}
    with atomic_path(output_dir / CURVES_FILE) as path:
        plot_agents(path, agents, f"{details['env_id']}: tasks never seen in training")
    (output_dir / ROOMS_FILE).unlink(missing_ok=True)  # of what was evaluated there before
    rooms = rooms_of(agents)
    if rooms:
        with atomic_path(output_dir / ROOMS_FILE) as path:
            plot_rooms(path, rooms)
    write_text(output_dir / SUMMARY_FILE, json.dumps(found, indent=2) + "\n")
    write_text(output_dir / CARD, evaluation_card(output_dir, output_dir.name, found))
    return found


def read_evaluation(folder: str | Path) -> list[AgentReturns]:
    """The agents of an evaluation that was written before."""
    return agents_of(read_rows(Path(folder) / ROWS_FILE))


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits."""
    return "-" if value is None else f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def agents_table(found: dict[str, Any]) -> str:
    """The summary of an evaluation as a table of markdown."""
    lines = [
        "| agent | trainings x rollouts x tasks | first episode | last ten episodes (95% interval) | of the optimum | "
        "interquartile mean share (95% interval) | regret, of the optimum | steps to 90% of its end: own / source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, agent in found["agents"].items():
        first, last = (list(agent["at"].values())[index] for index in (0, -1))
        steps = agent.get("steps_to", {}).get("90%", {})
        low, high = last["return_interval"]
        bounds = last["iqm_interval"]
        cells = [
            name,
            f"{agent['num_models']} x {agent['num_rollouts']} x {agent['num_tasks']}",
            number(first["return"]),
            f"**{number(last['return'])}** ({number(low)} to {number(high)})",
            number(last.get("of_optimal")),
            number(last["iqm"]) + ("" if bounds is None else f" ({number(bounds[0])} to {number(bounds[1])})"),
            number(agent["regret"]["of_optimal"]) if "regret" in agent else "-",
            f"{number(steps['env_steps'])} / {number(steps['source'])}"
            + (f" ({number(steps['ratio'], 2)} times)" if steps["ratio"] else "")
            if "source" in steps
            else number(steps.get("env_steps")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def evaluation_summary(found: dict[str, Any], files: Sequence[Path]) -> str:
    """The summary of an evaluation in a few lines."""
    lines = []
    for name, agent in found["agents"].items():
        last = list(agent["at"].values())[-1]
        low, high = last["return_interval"]
        share = f", {last['of_optimal']:.3f} of the optimum" if "of_optimal" in last else ""
        steps = agent.get("steps_to", {}).get("90%", {})
        faster = ""
        if steps.get("ratio"):
            faster = (
                f"; {steps['env_steps']:,} steps to {steps['level']:.2f}, its source {steps['source']:,} "
                f"({steps['ratio']:.1f} times as many)"
            )
        episodes = last["episodes"]
        lines.append(
            f"{name}: {last['return']:.2f} (95% interval {low:.2f} to {high:.2f}){share}, episodes {episodes[0]} to "
            f"{episodes[1]}, {agent['num_models']} x {agent['num_rollouts']} rollouts on {agent['num_tasks']} tasks"
            f"{faster}"
        )
    lines.append("   ".join(str(file) for file in files if file.is_file()))
    return "\n".join(lines)
