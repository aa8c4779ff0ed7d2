# /// script
# requires-python = ">=3.11"
# dependencies = ["ad_hf"]
#
# [tool.hf-jobs]
# flavor = "cpu-upgrade"
# secrets = ["HF_TOKEN"]
# timeout = "2h"
# ///
"""
Evaluate models of the Hub in a job on tasks that they have not seen, and push the returns as a dataset.

    uv run scripts/jobs/evaluate.py --model USER/ad-dark-room --dataset USER/dark-room-histories --repo USER/returns
    hf jobs uv run scripts/jobs/evaluate.py --model USER/seed0 USER/seed1 --dataset USER/histories --repo USER/returns

A push is one commit, so that a job that was killed leaves nothing: run it again. Further options are settings of the
recipe, as of `ad-hf evaluate`.
"""

from __future__ import annotations

import argparse
import logging
import os

import torch

from ad_hf.evaluation.summary import describe
from ad_hf.hub.push import push_evaluation
from ad_hf.pipeline import EvaluatedModel, evaluate_models
from ad_hf.progress import show_messages


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, nargs="+", help="models on the Hub, as user/name")
    parser.add_argument("--dataset", help="histories of their source, as user/name")
    parser.add_argument("--repo", required=True, help="dataset on the Hub for the returns, as user/name")
    parser.add_argument("--recipe", help="name or file of a recipe (default: that of each model)")
    parser.add_argument("--output_dir", default="evaluation", help="folder of this machine (default: %(default)s)")
    parser.add_argument(
        "--num_seeds", type=int, default=5, help="rollouts of each model per task (default: %(default)s)"
    )
    return parser


def main() -> None:
    """Evaluate and push."""
    arguments, overrides = make_parser().parse_known_args()
    show_messages(logging.INFO)
    if cores := int(float(os.environ.get("CPU_CORES", 0))):  # a job sees all cores of its machine, and may use so many
        torch.set_num_threads(cores)
    models = [EvaluatedModel.load(name, arguments.dataset, arguments.recipe, overrides) for name in arguments.model]
    print(describe(evaluate_models(models, arguments.output_dir, arguments.num_seeds), arguments.output_dir))
    print(push_evaluation(arguments.output_dir, arguments.repo))


if __name__ == "__main__":
    main()
