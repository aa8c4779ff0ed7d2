"""The help of the command line: a screen for each verb, and the settings of a recipe where they are asked for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from cyclopts import App

WIDTH = 100
EXAMPLES = """
Examples:
  ad-hf quickstart
  ad-hf init CartPole-v1 pole.yaml
  ad-hf collect --recipe pole.yaml --output_dir histories
  ad-hf inspect histories --recipe pole.yaml
  ad-hf train --recipe pole.yaml --dataset histories --output_dir run --training.learning_rate 3e-4
  ad-hf rollout --recipe pole.yaml --model run --dataset histories --output_dir run

A dataset or a model is a folder, or an id on the Hub, as user/name or user/name@revision.
Exit status: 0 for success, 2 for an error, 3 if some tasks could not be learnt (the same command
tries them again), 130 after Ctrl-C, 143 if SIGTERM ended a training. --debug shows tracebacks.\
"""
SECTIONS_OF_VERBS = {
    "quickstart": ("family", "source", "data", "model", "training", "rollout"),
    "collect": ("family", "source"),
    "inspect": ("data", "model"),
    "train": ("family", "data", "model", "training", "rollout"),
    "rollout": ("family", "rollout"),
    "evaluate": ("family", "rollout"),
}


def print_help(app: App, tokens: Sequence[str]) -> None:
    """Print what a command line asks for: the help of a verb, or after `--help all` the settings that it reads."""
    from rich.console import Console

    place = next((place for place, word in enumerate(tokens) if word in app.help_flags), len(tokens))
    verbs = list(app.parse_commands(list(tokens[:place]))[0])
    verb, topic = " ".join(verbs), "".join(tokens[place + 1 : place + 2])
    sections = SECTIONS_OF_VERBS.get(verb, ())
    if topic == "all" or topic in sections:
        from ad_hf.recipe import settings_help

        print(f"Settings of the recipe, as options of ad-hf {verb}; --help SECTION has all about a section's.\n")
        print(settings_help(sections if topic == "all" else [topic], WIDTH, first_sentence=topic == "all"))
        return
    app.help_print(verbs, console=Console(width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)))
    if not verbs:
        print(EXAMPLES)
    if sections:
        print("\nSettings of the recipe are options, too, as --SECTION.SETTING VALUE:")
        print(f"ad-hf {verb} --help all lists them.")
