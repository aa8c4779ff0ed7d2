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
Train a model in a job on histories of the Hub, and push it with its card.

    uv run scripts/jobs/train.py --dataset USER/dark-room-histories --repo USER/ad-dark-room
    hf jobs uv run --flavor t4-small scripts/jobs/train.py --dataset USER/dark-room-histories --repo USER/ad-dark-room

Checkpoints go to the branch `training` of the model's repository: the same command goes on after a job that was
killed, to the same weights. Further options are settings of the recipe, as of `ad-hf train`.
"""

from __future__ import annotations

import argparse
import logging
import os

import torch
from huggingface_hub import HfApi

import ad_hf
from ad_hf.envs.recipes import add_import_folders
from ad_hf.hub.model_files import CHECKPOINT_FOLDER, STATE_FILE
from ad_hf.progress import show_messages

BRANCH = "training"


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="histories on the Hub, as user/name or user/name@revision")
    parser.add_argument("--repo", required=True, help="model on the Hub, as user/name")
    parser.add_argument("--recipe", help="name or file of a recipe (default: the dataset's own)")
    parser.add_argument("--output_dir", default="run", help="folder of this machine (default: %(default)s)")
    parser.add_argument("--push_every", type=int, default=100, help="updates between pushes (default: %(default)s)")
    parser.add_argument("--streaming", action="store_true", help="read histories when they are needed")
    return parser


def main() -> None:
    """Train and push."""
    arguments, overrides = make_parser().parse_known_args()
    show_messages(logging.INFO)
    if cores := int(float(os.environ.get("CPU_CORES", 0))):  # a job sees all cores of its machine, and may use so many
        torch.set_num_threads(cores)
    if arguments.recipe is not None:
        add_import_folders(arguments.recipe)
    branch = f"{arguments.repo}@{BRANCH}"
    pushed = HfApi().file_exists(arguments.repo, f"{CHECKPOINT_FOLDER}/{STATE_FILE}", revision=BRANCH)
    ad_hf.train(
        arguments.recipe,
        arguments.dataset,
        arguments.output_dir,
        streaming=arguments.streaming,
        resume=branch if pushed else "latest",
        push_to=branch,
        push_every=arguments.push_every,
        overrides=overrides,
    )
    print(ad_hf.push_model(arguments.output_dir, arguments.repo))


if __name__ == "__main__":
    main()
