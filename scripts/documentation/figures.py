"""What pages of results say, from the files in docs/results: no number of these is typed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import results as kept
import yaml
from reproduce import STUDIES, study_names

from ad_hf.evaluation.headlines import learns_cell, number, steps_cell
from ad_hf.evaluation.returns import RANDOM, SOURCE
from ad_hf.evaluation.summary import last_of
from ad_hf.settings import read_json
from documentation.reference import table

FOLDER = Path("docs/results")
# Of Laskin et al., 2022, by recipe: the return of AD at its end, and after how many episodes.
PAPER = {
    "dark_room": "14.1 after 1000",
    "dark_room_hard": "0.68 after 1000",
    "dark_key_to_door": "1.81 after 1000",
    "watermaze_small": "0.83 after 160",
}


@cache
def evaluation(name: str) -> dict[str, Any]:
    """The evaluation of a recipe."""
    return kept.evaluation_of(FOLDER / f"{name}.json", name)


def agent(name: str, agent: str | None = None) -> dict[str, Any]:
    """An agent of an evaluation; without its name, the one that is compared with source and random actions."""
    agents = evaluation(name)["agents"]
    return agents[agent or next(each for each in agents if each not in (SOURCE, RANDOM))]


def value(name: str, *keys: str | int, digits: int = 3) -> str:
    """A number in a file of docs/results, by its keys."""
    found: Any = read_json(FOLDER / name) if name.endswith("json") else evaluation(name)
    for key in keys:
        found = found[key]
    return number(found, digits)


def study(name: str, *who: str, at: int | None = None, of: str = "return", digits: int = 3) -> str:
    """What agents of a study reach in episodes up to `at`, or in the last ones; one after the other."""
    agents = read_json(FOLDER / "studies" / name / "evaluation.json")["agents"]
    ends = [agents[each]["at"][str(at)] if at else last_of(agents[each]) for each in who]
    return _listed([" to ".join(number(each, digits) for each in np.ravel(end[of])) for end in ends])


def series(name: str) -> str:
    """The returns at the end of a study's series over the same numbers, as a table."""
    variants = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))["variants"]
    agents = read_json(FOLDER / "studies" / name / "evaluation.json")["agents"]
    places = sorted({variant["place"] for variant in variants.values()})
    rows: dict[str, dict[int, str]] = {}
    for who, variant in variants.items():
        end = last_of(agents[who])
        low, high = end["return_interval"]
        cell = f"{number(end['return'])} ({number(low)} to {number(high)})"
        rows.setdefault(variant["series"], {})[variant["place"]] = cell
    head = ("", *(f"{place:,}" for place in places))
    return table(head, [(title, *(row.get(place, "-") for place in places)) for title, row in rows.items()])


def study_steps(name: str, share: str, source: bool = False, who: str = "AD") -> str:
    """Environment steps of a study's agent, or of its source, to a share of the source's gain."""
    return value(
        f"studies/{name}/evaluation.json", "agents", who, "steps_to", share, "source" if source else "env_steps"
    )


def papers(name: str, *who: str) -> str:
    """What the paper reports for variants of a study."""
    said = read_json(FOLDER / "studies" / name / "evaluation.json")["paper"]
    return _listed([number(said[each]) for each in who])


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def first(name: str, who: str | None = None, digits: int = 3) -> str:
    """Return of the first episode."""
    return number(next(iter(agent(name, who)["at"].values()))["return"], digits)


def last(name: str, who: str | None = None, digits: int = 3) -> str:
    """Return of the last episodes."""
    return number(last_of(agent(name, who))["return"], digits)


def interval(name: str, who: str | None = None, digits: int = 3) -> str:
    """The 95% interval of [`last`]."""
    low, high = last_of(agent(name, who))["return_interval"]
    return f"{number(low, digits)} to {number(high, digits)}"


def steps(name: str, share: str, source: bool = False) -> str:
    """Environment steps to a share of the source's gain, of the model or of its source."""
    count = agent(name)["steps_to"][share]["source" if source else "env_steps"]
    return "not reached" if count is None else f"{count:,}"


def tasks(name: str) -> str:
    """Number of held-out tasks."""
    return str(agent(name)["num_tasks"])


def episodes(name: str) -> str:
    """Number of episodes of a rollout."""
    return f"{last_of(agent(name))['episodes'][1]}"


def worlds(names: list[str]) -> str:
    """The results of recipes as a table."""
    head = [
        *("recipe", "random", "first episode", "last ten (95% interval)", "source at its end", "best possible"),
        *("steps to 50% of the source's gain: in context / source", "to 90%", "trainings x rollouts x tasks"),
    ]
    rows = []
    for name in names:
        own, whole = agent(name), evaluation(name)
        rows.append(
            (
                f"`{name}`",
                number(whole["random_return"]),
                first(name),
                f"**{last(name)}** ({interval(name)})",
                last(name, SOURCE),
                number(whole["optimal_return"]),
                *(steps_cell(steps) for steps in own["steps_to"].values()),
                f"{own['num_models']} x {own['num_rollouts']} x {own['num_tasks']}",
            )
        )
    return table(head, rows)


def paper(names: list[str]) -> str:
    """Recipes beside the paper's AD."""
    rows = [
        (f"`{name}`", f"**{last(name)}** after {episodes(name)}", PAPER[name], learns_cell(agent(name)["learns"]))
        for name in names
    ]
    return table(("recipe", "here", "the paper's AD", "learns: last ten less the first (95% interval)"), rows)


def bandit() -> str:
    """The bandit's returns by kind of arms, with random play as 0 and UCB as 1."""
    groups = evaluation("bandit")["groups"]
    return table(
        ("arms that pay", "tasks", "random", "AD", "UCB", "(AD - random) / (UCB - random)"),
        [
            (
                kind,
                str(group["num_tasks"]),
                *(number(group["returns"][who]) for who in (RANDOM, "AD", SOURCE)),
                f"**{group['normalized']['AD']:.2f}**",
            )
            for kind, group in groups.items()
            if kind != "all"
        ],
    )


def unseen() -> str:
    """The generalist in worlds that it was not trained on."""
    worlds = read_json(FOLDER / "generalist" / "unseen.json")
    return table(
        ("world", "tasks", "random", "first episode", "last ten", "learns: last ten less the first (95% interval)"),
        [
            (
                name,
                str(row["num_tasks"]),
                *(number(row[key]) for key in ("random", "return_first")),
                f"**{number(row['return_last'])}**",
                learns_cell(row),
            )
            for name, row in worlds.items()
        ],
    )


def specialists() -> str:
    """The generalist beside a specialist of each family, on unseen tasks."""
    families = read_json(FOLDER / "generalist" / "specialists.json")["families"]
    return table(
        (
            *("family", "random", "specialist", "generalist (95% interval)", "share of the specialist's gain"),
            "trainings x rollouts x tasks",
        ),
        [
            (
                f"`{name}`",
                *(number(row[key]) for key in ("random", "specialist")),
                f"{number(row['return_last'])} ({' to '.join(map(number, row['return_interval']))})",
                f"**{row['share']:.2f}**",
                f"{row['num_models']} x {row['num_rollouts']} x {row['num_tasks']}",
            )
            for name, row in families.items()
        ],
    )


def memory_costs() -> str:
    """What kinds of layers cost by the length of their memory."""
    costs = read_json(FOLDER / "studies" / "memory_cost.json")
    columns = [
        (what, length, part)
        for part, what in (
            ("training", "training, tokens/s"),
            ("steps_per_second", "rollout of 16 environments, steps/s"),
            ("kilobytes", "kB of an environment's context"),
        )
        for length in ("200", "4000")
    ]

    def cost(kind: str, length: str, part: str) -> str:
        return number(costs["training"][length][kind] if part == "training" else costs["rollout"][length][kind][part])

    return table(
        ("layers", *(f"{what}, {int(length):,} steps" for what, length, _ in columns)),
        [(kind, *(cost(kind, *column[1:]) for column in columns)) for kind in ("full", "sliding", "linear", "mixed")],
    )


def fine_tuning(recipe: str) -> str:
    """Trainings from the generalist and from nothing, after equal numbers of updates, on unseen tasks."""
    rows = read_json(FOLDER / "generalist" / f"fine_tuning_{recipe}.json")["rows"]
    return table(
        ("start, updates", "first episode", "last ten (95% interval)", "each training"),
        [
            (
                name,
                number(row["return_first"]),
                f"**{number(row['return_last'])}** ({' to '.join(map(number, row['return_interval']))})",
                ", ".join(map(number, row["by_training"])),
            )
            for name, row in rows.items()
        ],
    )


def studies() -> str:
    """A list of the studies that have been reported, by their titles."""
    lines = []
    for name in study_names():
        study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
        if (FOLDER / "studies" / f"{name}.md").is_file():
            title = f"[{study['title']}](studies/{name}.md)"
            lines.append((title, f"`python scripts/reproduce.py {name}`", str(study["minutes"])))
    return table(("study", "command", "minutes on two cores"), lines)


FUNCTIONS = {
    each.__name__: each
    for each in (
        *(value, study, study_steps, papers, first, last, interval, steps, tasks, episodes),
        *(worlds, paper, bandit, studies, series, unseen, specialists, fine_tuning, memory_costs),
    )
}
