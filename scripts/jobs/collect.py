# /// script
# requires-python = ">=3.11"
# dependencies = ["ad_hf"]
#
# [tool.hf-jobs]
# flavor = "cpu-upgrade"
# secrets = ["HF_TOKEN"]
# timeout = "4h"
# ///
"""
Collect learning histories in a job, and push them as a dataset.

    uv run scripts/jobs/collect.py --recipe dark_room --repo USER/dark-room-histories
    hf jobs uv run scripts/jobs/collect.py --recipe dark_room --repo USER/dark-room-histories

Finished tasks go to the branch `collecting` of the repository: the same command goes on after a job that was killed.
Further options are settings of the recipe, as of `ad-hf collect`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal

from ad_hf.envs.recipes import add_import_folders
from ad_hf.envs.task_family import TaskFamily
from ad_hf.hub.collecting import collect_on_hub
from ad_hf.progress import show_messages
from ad_hf.recipe import load_recipe


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="name or file of a recipe")
    parser.add_argument("--repo", required=True, help="dataset on the Hub, as user/name")
    parser.add_argument("--output_dir", default="histories", help="folder of this machine (default: %(default)s)")
    parser.add_argument("--push_seconds", type=float, default=300, help="between pushes (default: %(default)s)")
    # A job sees all cores of its machine, and may use so many.
    cores = int(float(os.environ.get("CPU_CORES", 0))) or None
    parser.add_argument("--num_workers", type=int, default=cores, help="processes that collect (default: one a core)")
    return parser


def main() -> None:
    """Collect and push."""
    arguments, overrides = make_parser().parse_known_args()
    show_messages(logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # finished tasks are pushed, as after Ctrl-C
    add_import_folders(arguments.recipe)
    recipe = load_recipe(arguments.recipe, overrides)
    options = arguments.output_dir, arguments.push_seconds
    family = TaskFamily(recipe.family)
    print(collect_on_hub(family, recipe.source, arguments.repo, *options, num_workers=arguments.num_workers))


if __name__ == "__main__":
    main()
