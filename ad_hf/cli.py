"""The `ad-hf` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from huggingface_hub.errors import StrictDataclassError

EPILOG = """\
examples:
  ad-hf quickstart                                          collect, train and report on Dark Room
  ad-hf collect --recipe dark_room --output_dir histories
  ad-hf train --recipe dark_room --dataset histories --output_dir runs/dark_room --training.learning_rate 3e-4
  ad-hf rollout --recipe dark_room --model runs/dark_room/model --dataset histories --output_dir runs/dark_room

Any setting of a recipe can be given as a dotted option; `ad-hf VERB --help` lists those that matter to a verb.
"""

SECTIONS_OF_VERBS = {
    "quickstart": ("family", "source", "data", "model", "training", "rollout"),
    "collect": ("family", "source"),
    "train": ("family", "data", "model", "training", "rollout"),
    "rollout": ("family", "rollout"),
}


class _Help(argparse.Action):
    """Print a verb's own options, then the settings of a recipe that it reads."""

    def __call__(self, parser, namespace, values, option_string=None):
        from ad_hf.recipe import recipe_parser

        parser.print_help()
        print("\nSettings of the recipe, each of which can be overridden:\n")
        print(recipe_parser(SECTIONS_OF_VERBS[self.const]).format_help().partition("\n\n")[2])
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but a recipe's dotted settings."""
    parser = argparse.ArgumentParser(
        prog="ad-hf",
        description="Algorithm Distillation on the Hugging Face stack: transformers that learn in context.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ad_hf {version('ad_hf')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add_verb(name: str, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text, add_help=False, allow_abbrev=False)
        verb.add_argument("-h", "--help", action=_Help, const=name, nargs=0, help="show this help and the settings")
        verb.add_argument("--recipe", default="dark_room", metavar="NAME|FILE", help="recipe (default: dark_room)")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return verb

    verb = add_verb("quickstart", "Collect, train and report on held-out tasks, in some minutes on a laptop.")
    verb.add_argument("--output_dir", default="runs/quickstart", help="folder of the run (default: %(default)s)")
    verb.add_argument("--num_workers", type=int, help="processes that collect (default: one per core)")
    verb.add_argument("--num_seeds", type=int, default=3, help="rollouts per test task (default: %(default)s)")

    verb = add_verb("collect", "Let a source learn every task, and write its learning histories as a dataset.")
    verb.add_argument("--output_dir", default="histories", help="folder of the dataset (default: %(default)s)")
    verb.add_argument("--num_workers", type=int, help="processes that collect (default: one per core)")

    verb = add_verb("train", "Train a model on learning histories.")
    verb.add_argument("--dataset", required=True, help="folder of learning histories")
    verb.add_argument("--output_dir", required=True, help="folder of the run")

    verb = add_verb("rollout", "Let a model learn held-out tasks in its context, and report how it did.")
    verb.add_argument("--model", required=True, help="folder of a model")
    verb.add_argument("--dataset", required=True, help="histories, for the source's own curves on the same tasks")
    verb.add_argument("--output_dir", required=True, help="folder of report.json and learning_curve.png")
    verb.add_argument("--num_seeds", type=int, default=3, help="rollouts per test task (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Do what a verb says."""
    # Imported here, so that `ad-hf --help` answers at once.
    from transformers.utils.logging import disable_progress_bar

    from ad_hf import pipeline
    from ad_hf.recipe import load_recipe

    disable_progress_bar()  # of loading a model's weights, which takes no time
    recipe = load_recipe(arguments.recipe, overrides)
    if arguments.verb == "quickstart":
        pipeline.quickstart(recipe, arguments.output_dir, arguments.num_seeds, arguments.num_workers)
    elif arguments.verb == "collect":
        folder = pipeline.collect_recipe(recipe, arguments.output_dir, arguments.num_workers)
        print(f"histories: {folder}   load them with datasets.load_dataset({str(folder)!r})")
    elif arguments.verb == "train":
        pipeline.train(recipe, arguments.dataset, arguments.output_dir)
        print(f"model: {arguments.output_dir}/model   metrics: {arguments.output_dir}/metrics.jsonl")
    else:
        model = load_model(arguments.model)
        report = pipeline.evaluate_recipe(
            recipe, model, arguments.dataset, arguments.output_dir, arguments.num_seeds, {"model": arguments.model}
        )
        print(pipeline.summary(report, arguments.output_dir))


def load_model(folder: str):
    """A model from a folder, or a clear error."""
    from pathlib import Path

    from ad_hf.model import ADModel

    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model: expected config.json and model.safetensors in it")
    return ADModel.from_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments, overrides = make_parser().parse_known_args(argv)
    try:
        run(arguments, overrides)
    except KeyboardInterrupt:
        print(
            "\nad-hf: interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr
        )
        return 130
    except (ValueError, OSError, StrictDataclassError) as error:  # what users can get wrong: settings, names, folders
        if arguments.debug:
            raise
        print(f"ad-hf: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
