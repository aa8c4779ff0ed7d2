"""The documentation: its numbers are those of the files that they come from, and a dead link is found."""

import json
import re
from pathlib import Path

import pytest
import reproduce
from documentation.links import faults

from ad_hf.evaluation.headlines import number
from ad_hf.evaluation.summary import last_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
STUDIES = sorted(path.stem for path in (RESULTS / "studies").glob("*.md"))
# Of pages that nothing generates: a sentence whose groups are numbers, a file of docs/results, and the keys of each.
SENTENCES = [
    (
        "docs/guides/scaling.md",
        r"\| memory-mapped \| ([\d,]+) \| ([\d.]+) \|",
        "data_beyond_memory.json",
        ["tokens_per_second.memory_mapped", "ratio_to_in_memory.memory_mapped"],
    ),
    (
        "docs/guides/scaling.md",
        r"\| streamed \| ([\d,]+) \| ([\d.]+) \|",
        "data_beyond_memory.json",
        ["tokens_per_second.streamed", "ratio_to_in_memory.streamed"],
    ),
    (
        "docs/guides/scaling.md",
        r"([\d,]+) microseconds a job, over ([\d,]+) jobs",
        "simulate_jobs.json",
        ["microseconds_per_job", "jobs"],
    ),
    (
        "docs/guides/scaling.md",
        r"Training: 20 kills, (\d+) of them during writes",
        "soak_train.json",
        ["kills.writing"],
    ),
    (
        "docs/guides/scaling.md",
        r"Collection: 20 kills, (\d+) of them during writes",
        "soak_collect.json",
        ["kills.writing"],
    ),
    (
        "docs/guides/planning.md",
        r"\| FrozenLake, all 100 episodes \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| \+([\d.]+) ",
        "studies/planning.json",
        [
            *(
                f"frozen_lake.agents.{name}.all episodes.mean"
                for name in ("AD", "heads, no planning", "beam search", "policy iteration")
            ),
            "frozen_lake.agents.beam search.all episodes.minus heads, no planning.mean",
        ],
    ),
    (
        "docs/guides/planning.md",
        r"\| Key-to-Door, one stream, last ten \| - \| ([\d.]+) \| ([\d.]+) \|",
        "studies/planning.json",
        [f"one_stream.agents.{name}.last ten episodes.mean" for name in ("heads, no planning", "beam search")],
    ),
    (
        "docs/guides/planning.md",
        r"\| Key-to-Door, all 20 episodes, one training \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|",
        "studies/planning.json",
        [f"dark_key_to_door.agents.{name}.all episodes.mean" for name in ("AD", "heads, no planning", "beam search")],
    ),
    (
        "README.md",
        r"it ends at \*\*([\d.]+)\*\* of 2, without planning at ([\d.]+) ",
        "studies/planning.json",
        [f"one_stream.agents.{name}.last ten episodes.mean" for name in ("beam search", "heads, no planning")],
    ),
    ("README.md", r"`generalist`, gains \*\*([\d.]+)\*\* of", "generalist/specialists.json", ["mean_share"]),
]


@pytest.mark.parametrize(("page", "sentence", "file", "keys"), SENTENCES)
def test_a_number_in_a_sentence_is_that_of_its_file(page, sentence, file, keys):
    found = re.search(sentence, (ROOT / page).read_text(encoding="utf-8"))
    assert found, f"{page} says no more: {sentence}"
    for text, key in zip(found.groups(), keys, strict=True):
        value = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        for part in key.split("."):
            value = value[part]
        digits = len(text.partition(".")[2])
        assert float(text.replace(",", "")) == round(value, digits), key


TABLE = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Results\n")[2].partition("\n## ")[0]
WORLDS = re.findall(r"^\| `(\w+)`[^|]* \|(.*) \|$", TABLE, flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "cells"), WORLDS, ids=[name for name, _ in WORLDS])
def test_the_readmes_table_is_that_of_the_evaluations(name, cells):
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    random, first, last, _, source, best, steps = map(str.strip, cells.split("|"))
    own = found["agents"]["AD"]
    shown = re.findall(r"-?[\d,]*\.?\d+", " | ".join((random, first, last, source, best, steps)))
    end, halfway = last_of(own), own["steps_to"]["50%"]
    ends = last_of(found["agents"]["source"])["return"]
    if name == "bandit":  # shares of what UCB gains over random play, in one episode
        even = found["groups"]["even"]
        gains = [even["optimal"] - even["returns"]["random"], even["returns"]["source"] - even["returns"]["random"]]
        expected = [0, even["normalized"]["AD"], 1, gains[0] / gains[1], halfway["env_steps"], halfway["source"]]
        assert shown == [
            f"{value:.{len(text.partition('.')[2])}f}" for text, value in zip(shown, expected, strict=True)
        ]
        return
    expected = [found["random_return"], own["at"]["1"]["return"], end["return"], *end["return_interval"]]
    expected += [end["episodes"][1], ends, *([] if found["optimal_return"] is None else [found["optimal_return"]])]
    expected += [] if halfway["at_start"] else [halfway["env_steps"], halfway["source"]]
    assert own["learns"]["verdict"] == "learns"
    assert (found["agents"]["AD"]["num_models"], end["episodes"][1] - end["episodes"][0]) == (3, 9)
    if name == "cartpole":
        expected.insert(7, 100)  # the length of an episode, which the evaluation does not know
    for text, value in zip(shown, expected, strict=True):
        assert float(text.replace(",", "")) == round(value, len(text.partition(".")[2]))


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_of_a_study_is_made_of_its_evaluation(name):
    study = reproduce.load_study(reproduce.STUDIES / f"{name}.yaml")
    found = json.loads((RESULTS / "studies" / name / "evaluation.json").read_text(encoding="utf-8"))
    page = (RESULTS / "studies" / f"{name}.md").read_text(encoding="utf-8")
    assert page == reproduce.study_page(study, found, RESULTS / "studies")
    assert all(f"**{number(last_of(agent)['return'])}**" in page for agent in found["agents"].values())


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "index.html").write_text('<h2 id="here">x</h2><a href="../#away">x</a>')
    (tmp_path / "index.html").write_text(
        '<a href="guide/#here">x</a><a href="guide/#there">x</a><a href="gone/">x</a><a href="https://example.org">x</a>'
        '<script src="https://example.org/x.js"></script>'
    )
    assert faults(tmp_path) == [
        "guide/index.html: ../#away: there is no such place in the page",
        "index.html: gone/: there is no such file",
        "index.html: guide/#there: there is no such place in the page",
        "index.html: loads https://example.org/x.js",
    ]
