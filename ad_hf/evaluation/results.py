"""What an evaluation leaves: returns as a small dataset, a summary, pictures, and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ad_hf.evaluation.card import evaluation_card
from ad_hf.evaluation.headlines import (
    OF_GAIN,
    SHARES,
    evidence_words,
    is_comparable,
    learns_cell,
    number,
    pace_lines,
    steps_cell,
    streams_words,
    verdict_words,
)
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
from ad_hf.histories.schema import VERSIONED_PACKAGES, package_versions
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import atomic_path, local_path, write_text


def write_evaluation(output_dir: str | Path, rows: pa.Table, details: dict[str, Any]) -> dict[str, Any]:
    """
    Write `returns.parquet`, `evaluation.json`, `learning_curves.png`, `rooms.png` and a card.

    Args:
        output_dir (`str` or `Path`):
            Folder to write to.
        rows (`pa.Table`):
            Returns of all agents, as of [`~ad_hf.evaluation.protocol`].
        details (`dict`):
            Further entries of `evaluation.json`, among them `env_id` and, of a source among the agents, `source`: its
            `algorithm`, `n_envs` and `independent_streams`, as the metadata of histories say it.

    Returns:
        `dict`: what `evaluation.json` holds.
    """
    from ad_hf.evaluation.agent_plots import plot_agents, plot_rooms, rooms_of  # only here is matplotlib needed

    output_dir = local_path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(output_dir / ROWS_FILE, rows)
    agents = agents_of(rows)
    source = details.get("source", {"algorithm": "", "independent_streams": False})  # that of a study is collected
    comparable, streams = is_comparable(source), streams_words(source)
    found = {**details, "agents": summarize(agents, comparable), "versions": package_versions(VERSIONED_PACKAGES)}
    with atomic_path(output_dir / CURVES_FILE) as path:
        plot_agents(path, agents, f"{details['env_id']}: tasks never seen in training", streams=streams)
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


def agents_table(found: dict[str, Any]) -> str:
    """The summary of an evaluation as a table of markdown."""
    whose = {
        steps["gain_of"]
        for agent in found["agents"].values()
        for steps in agent.get("steps_to", {}).values()
        if steps["level"] is not None
    }
    gain, who = ("the optimum's", "") if whose == {"optimum"} else ("the source's", ": own / source")
    of = {agent["shares_of"] for agent in found["agents"].values()} - {None}
    shares = "of the optimum" + (f" ({OF_GAIN})" if of == {OF_GAIN} else "")
    lines = [
        "| agent | trainings x rollouts x tasks | first episode | last ten episodes (95% interval) | "
        f"learns: last ten - first (95% interval) | {shares} | interquartile mean share (95% interval) | "
        f"regret, {shares} | " + " | ".join(f"steps to {share:.0%} of {gain} gain{who}" for share in SHARES) + " |",
        "|---" * (8 + len(SHARES)) + "|",
    ]
    for name, agent in found["agents"].items():
        first, last = (list(agent["at"].values())[index] for index in (0, -1))
        low, high = last["return_interval"]
        bounds = last["iqm_interval"]
        cells = [
            name,
            f"{agent['num_models']} x {agent['num_rollouts']} x {agent['num_tasks']}",
            number(first["return"]),
            f"**{number(last['return'])}** ({number(low)} to {number(high)})",
            "-" if "learns" not in agent else learns_cell(agent["learns"]),
            number(last.get("of_optimal")),
            number(last["iqm"]) + ("" if bounds is None else f" ({number(bounds[0])} to {number(bounds[1])})"),
            number(agent["regret"]["of_optimal"]) if "regret" in agent else "-",
            *(steps_cell(agent.get("steps_to", {}).get(f"{share:.0%}"), "env_steps") for share in SHARES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _over(agent: Mapping[str, Any]) -> str:
    return "'s gain over random play" if agent["shares_of"] == OF_GAIN else ""


def evaluation_summary(found: dict[str, Any], files: Sequence[Path]) -> str:
    """The summary of an evaluation in a few lines."""
    lines = []
    for name, agent in found["agents"].items():
        last = list(agent["at"].values())[-1]
        low, high = last["return_interval"]
        share = f", {last['of_optimal']:.3f} of the optimum{_over(agent)}" if "of_optimal" in last else ""
        episodes = last["episodes"]
        lines.append(
            f"{name}: {last['return']:.2f} (95% interval {low:.2f} to {high:.2f}){share}, episodes {episodes[0]} to "
            f"{episodes[1]}, {agent['num_models']} x {agent['num_rollouts']} rollouts on {agent['num_tasks']} tasks"
        )
        if "learns" in agent:
            words = [verdict_words(agent["learns"]), evidence_words(agent["learns"])]
            words += pace_lines(agent["steps_to"], "env_steps")
            lines.append(f"  {'; '.join(word for word in words if word is not None)}")
    lines.append("   ".join(str(file) for file in files if file.is_file()))
    return "\n".join(lines)
