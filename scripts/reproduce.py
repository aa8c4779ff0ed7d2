"""
Run a study of the paper, and write its page, pictures and numbers.

    python scripts/reproduce.py main
    python scripts/reproduce.py context --cells 2            # two more cells of it, and what is known by then
    python scripts/reproduce.py main --report                # nothing but figure, table and numbers of finished cells
                                                             # or, without runs, of the returns reported before
    python scripts/reproduce.py all --report

Studies are files in scripts/studies, of which `minutes` says how long they take on two CPU cores; `--full` runs the
larger setting that some have for a GPU. A study can be interrupted at any time, even by SIGKILL: the same command goes
on, and no finished cell is run again. Started once more while it runs, it works on other cells: two processes with a
thread each (OMP_NUM_THREADS=1) do more on two cores than one with two. Runs are kept in runs/reproduce; results go to
docs/results/studies.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats
from studies.attention import attention_of, plot_attention, record_episodes
from studies.pictures import agents_table, plot_study
from studies.study import FULL, Cell, NotFinishedError, Study, StudyRunner, cells, load_study, source_settings
from tqdm.auto import tqdm

from ad_hf.envs.task_family import TaskFamily
from ad_hf.evaluation.card import evaluation_card, write_evaluation
from ad_hf.evaluation.curves import bootstrap_means, interval, mean_of
from ad_hf.evaluation.episodes import episodes_to_show, see_again, some_of
from ad_hf.evaluation.headlines import number
from ad_hf.evaluation.paths import PATHS_FILE, room_size, write_paths
from ad_hf.evaluation.returns import RANDOM, ROWS_FILE, random_rows, read_rows
from ad_hf.evaluation.rollouts import evaluate
from ad_hf.evaluation.summary import PICTURES, SUMMARY_ENTRIES, SUMMARY_FILE, last_of
from ad_hf.model.modeling_ad import ADModel
from ad_hf.storage.cards import CARD
from ad_hf.storage.files import atomic_path, write_text

STUDIES = Path(__file__).resolve().parent / "studies"
LOOKS = (PATHS_FILE, "attention.png")
ALT = {
    "learning_curve.png": "Return by environment steps of the context",
    "rooms.png": "Share of the optimum by the goal's place in the room",
    PATHS_FILE: "Paths through the room in the first and in later episodes of a context",
    "attention.png": "Attention by the age of a step in the context",
}
ORDER = (
    *("main", "prompts", "label_smoothing", "label_smoothing_actor_critic"),
    *("context", "tasks", "streams", "mask", "size", "backbone"),
)


def study_names() -> list[str]:
    """The studies there are, those of the paper in its order first."""
    found = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    return [name for name in ORDER if name in found] + [name for name in found if name not in ORDER]


def paper_table(study: Study, found: dict[str, Any]) -> str:
    """
    Returns as a table of markdown, beside the paper's, where it has any; if their order is the same, where ours are
    lower, and how much the variants differ.
    """
    paper = {name: variant.paper for name, variant in study.variants.items() if variant.paper is not None}
    whose = ["ours (95% interval)", "the paper's"] if paper else ["last ten episodes (95% interval)"]
    head = [study.varied or "variant", *whose]
    lines = [f"| {' | '.join([*head, 'parameters'])} |", "|---" * (len(head) + 1) + "|"]
    ends = {name: last_of(found["agents"][name]) for name in study.variants}
    for name, variant in study.variants.items():
        low, high = ends[name]["return_interval"]
        cells_of_line = [
            variant.label or name,
            f"{number(ends[name]['return'])} ({number(low)} to {number(high)})",
            *([number(variant.paper)] if paper else []),
            f"{found['parameters'][name]:,}",
        ]
        lines.append(f"| {' | '.join(cells_of_line)} |")
    if len(paper) > 2:
        order = stats.kendalltau([ends[name]["return"] for name in paper], list(paper.values())).statistic
        lines += ["", f"Kendall's tau between ours and the paper's order: {order:.2f} (1: the same order)."]
    lower = [study.variants[name].label or name for name, value in paper.items() if ends[name]["return"] < value]
    if paper:
        lines += ["", f"Ours is lower than the paper's: {', '.join(lower) or 'none'}."]
    for name, less in found.get("versus", {}).items():
        low, high = less["interval"]
        pair = (
            f"{study.variants[name].label or name} less {study.variants[study.versus or name].label or study.versus}"
        )
        lines += ["", f"{pair}, by training and task: {number(less['mean'])} ({number(low)} to {number(high)})."]
    return "\n".join(lines)


def differences(study: Study, rows: pa.Table) -> dict[str, dict[str, Any]]:
    """How much more variants return in the last ten episodes than `study.versus`, by training and task."""
    ends: dict[str, dict[tuple[int, int, str], list[float]]] = {}
    for row in rows.select(["agent", "split_seed", "training_seed", "task_id", "returns"]).to_pylist():
        run = row["split_seed"], row["training_seed"], row["task_id"]
        ends.setdefault(row["agent"], {}).setdefault(run, []).append(float(np.mean(row["returns"][-10:])))
    found = {}
    for name in [name for name in study.variants if name != study.versus]:
        blocks: dict[int, dict[int, list[float]]] = {}  # of splits, of trainings
        for (split, seed, task), own in sorted(ends[name].items()):
            less = np.mean(own) - np.mean(ends[study.versus or name][split, seed, task])
            blocks.setdefault(split, {}).setdefault(seed, []).append(float(less))
        arrays = [np.array(list(block.values()))[:, None] for block in blocks.values()]
        bounds = [float(bound) for bound in interval(bootstrap_means(arrays))]
        found[name] = {"mean": float(mean_of(arrays)), "interval": bounds}
    return found


def look_inside(cell: Cell, runner: StudyRunner, folder: Path) -> None:
    """Draw episodes of a cell's model in some test tasks, and what it attends to in all of them."""
    recipe, family = cell.recipe, TaskFamily(cell.recipe.family)
    model = ADModel.from_pretrained(runner.folder / cell.folder / "model")
    tasks = family.tasks("test")
    output = record_episodes(model, family, tasks, 10, recipe.rollout)
    shown = some_of(len(tasks))
    walked = evaluate(model, family, num_episodes=10, num_seeds=1, rollout_config=recipe.rollout, shown=shown)
    episodes, cells = episodes_to_show((1, 2, 5), 10), room_size(family)
    if cells and (seen := see_again(family, walked, episodes)):
        write_paths(folder, seen, cells)
    with atomic_path(folder / LOOKS[1]) as path:
        plot_attention(path, attention_of(model, output))


def results_of_runs(study: Study, runner: StudyRunner) -> tuple[pa.Table, dict[str, Any]]:
    """The returns of the cells that are finished, and what `evaluation.json` says of them."""
    rows, finished = runner.rows(study)
    told = [runner.details(cell) for cell in finished]
    details = {
        "study": study.name,
        "title": study.title,
        "varied": study.varied or "",
        "env_id": finished[0].recipe.family.env_id,
        "recipe": study.recipe,
        "settings": study.settings,
        "variants": {name: variant.settings for name, variant in study.variants.items()},
        "paper": {name: variant.paper for name, variant in study.variants.items()},
        "parameters": {cell.variant: each["parameters"] for cell, each in zip(finished, told)},
        "splits": sorted({cell.split for cell in finished}),
        "training_seeds": sorted({cell.seed for cell in finished}),
        "cells": f"{len(finished)} of {len(cells(study))}",
        "seconds": round(sum(each["seconds"] for each in told), 1),
        "devices": sorted({each["device"] for each in told}),
        **({} if study.versus is None else {"versus": differences(study, rows)}),
    }
    return rows, details


def results_written(study: Study, folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The same of a study that was reported before, where its runs are not at hand."""
    details = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    variants = {name: variant.settings for name, variant in study.variants.items()}
    if (details["settings"], details["variants"]) != (study.settings, variants):
        raise ValueError(f"{folder} was written with other settings than the study now says: run it again")
    rows = read_rows(folder / ROWS_FILE)
    if RANDOM not in rows["agent"].to_pylist():  # as earlier versions wrote it
        first = {cell.split: cell for cell in cells(study) if cell.split in details["splits"]}
        families = {split: TaskFamily(cell.recipe.family) for split, cell in first.items()}
        seeds = study.num_rollouts
        rows = pa.concat_tables(
            [rows, *(random_rows(each, num_seeds=seeds, split_seed=split) for split, each in families.items())]
        )
    told = {name: details[name] for name in details if name not in SUMMARY_ENTRIES}
    return rows, {**told, "title": study.title, "varied": study.varied or ""}


def report(study: Study, runner: StudyRunner, output_dir: Path) -> None:
    """
    Write figure, table and numbers of the cells that are finished.

    Raises:
        NotFinishedError: if too few of them are, and the study was not reported before either.
    """
    try:
        rows, details = results_of_runs(study, runner)
    except NotFinishedError:
        if not (output_dir / study.name / ROWS_FILE).is_file():
            raise
        rows, details = results_written(study, output_dir / study.name)
    folder, source = output_dir / study.name, source_settings(study)
    found = write_evaluation(folder, rows, details if source is None else {**details, "source": source})
    if study.over_numbers:  # curves of all variants would hide each other
        for picture in PICTURES:
            (folder / picture).unlink(missing_ok=True)
    write_text(folder / CARD, evaluation_card(folder, folder.name, found))
    if study.varied is not None:
        with atomic_path(folder / "study.png") as path:
            plot_study(path, study, found)
    if study.look_inside is not None:
        seen = Cell(study, study.look_inside, details["splits"][0], details["training_seeds"][0])
        if runner.is_finished(seen):
            look_inside(seen, runner, folder)
    page = study_page(study, found, output_dir)
    write_text(output_dir / f"{study.name}.md", page)
    print(page)


def study_page(study: Study, found: dict[str, Any], output_dir: Path) -> str:
    """The page of a study in the documentation: its command, tables and notes, and the pictures that there are."""
    name = study.name.removesuffix(FULL)
    command = f"python scripts/reproduce.py {name}" + " --full" * (name != study.name)
    pictures = [f"{study.name}/{picture}" for picture in ("study.png", *PICTURES, *LOOKS)]
    has_papers = any(variant.paper is not None for variant in study.variants.values())
    alt = {**ALT, "study.png": "Return at the end of each variant" + ", beside the paper's" * has_papers}
    parts = [
        f"# {study.title}",
        f"`{command}`: {found['cells']} cells finished; splits of the tasks: {len(found['splits'])}, "
        f"training seeds: {len(found['training_seeds'])}, rollouts on every test task: {study.num_rollouts}; "
        f"{found['seconds'] / 60:.0f} minutes on {' and '.join(found['devices'])}.",
        paper_table(study, found),
        agents_table(found),
        study.notes,
        *(f"![{alt[Path(each).name]}]({each})" for each in pictures if (output_dir / each).is_file()),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def run_with_model(cell: Cell, runner: StudyRunner) -> None:
    """Run a cell; one that takes the model of another cell after that one, if it is not finished."""
    if cell.model_of is not None:
        study, variant = cell.model_of
        same = study == cell.study.name
        other = cell.study if same else load_study(STUDIES / f"{study.removesuffix(FULL)}.yaml", study.endswith(FULL))
        needed = Cell(other, variant, cell.split, cell.seed)
        if not runner.run(needed):
            tqdm.write(f"{cell}: another process is at work on {needed}, whose model it takes: run it again then")
            return
    if not runner.run(cell):
        tqdm.write(f"{cell}: another process is at work on it")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+", choices=[*study_names(), "all"], help="which to run")
    parser.add_argument("--cells", type=int, metavar="N", help="stop after N cells (default: all)")
    parser.add_argument("--report", action="store_true", help="run nothing: report what is finished")
    parser.add_argument("--full", action="store_true", help="the larger setting, for a GPU")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduce"), help="of runs (default: %(default)s)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("docs/results/studies"), help="of results (default: %(default)s)"
    )
    return parser


def main() -> int:
    """Run studies and report."""
    arguments = make_parser().parse_args()
    names = study_names() if "all" in arguments.study else arguments.study
    studies = [load_study(STUDIES / f"{name}.yaml", arguments.full) for name in names]
    runner = StudyRunner(arguments.folder)
    left = (
        []
        if arguments.report
        else [cell for study in studies for cell in cells(study) if not runner.is_finished(cell)]
    )
    left = left[: arguments.cells]
    try:
        with tqdm(left, unit=" cells", disable=not left) as bar:
            for cell in bar:
                bar.set_description(str(cell))
                run_with_model(cell, runner)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for study in studies:
        try:
            report(study, runner, arguments.output_dir)
        except ValueError as error:
            print(error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
