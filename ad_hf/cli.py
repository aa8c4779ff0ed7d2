"""The `ad-hf` command."""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from ad_hf.collection.failures import CollectionError
from ad_hf.settings import parse_json, shown
from ad_hf.training.interruption import TrainingInterrupted

if TYPE_CHECKING:
    from ad_hf.recipe import Recipe

EPILOG = """\
examples:
  ad-hf recipes                                             what there is
  ad-hf quickstart                                          collect, train and report on Dark Room
  ad-hf collect --recipe dark_room --output_dir histories
  ad-hf train --recipe dark_room --dataset histories --output_dir runs/dark_room --training.learning_rate 3e-4
  ad-hf rollout --recipe dark_room --model runs/dark_room/model --dataset histories --output_dir runs/dark_room
  ad-hf rollout --recipe dark_room --model user/ad-dark-room --output_dir seen --video mp4
  ad-hf evaluate --model runs/seed0 runs/seed1 runs/seed2 --dataset histories --output_dir evaluation
  ad-hf push dataset histories user/dark-room-histories
  ad-hf push model runs/dark_room user/ad-dark-room
  ad-hf push evaluation evaluation user/dark-room-returns
  ad-hf train --dataset user/dark-room-histories --streaming --output_dir runs/streamed
  ad-hf merge seed0 seed1 histories                         of one family, with other seeds or other tasks
  ad-hf convert to-minari histories dark_room/a2c-v0        and from-minari, from-arrays (npz, HDF5)

A dataset or a model is a folder, or an id on the Hub, as user/name or user/name@revision. Any setting of a recipe can
be given as a dotted option; `ad-hf VERB --help` lists those that matter to a verb.

exit status: 0 if all is well, 2 for settings, names and files that are wrong and for any other error, 3 if some tasks
could not be learnt (the same command tries them again), 130 if interrupted by Ctrl-C, 143 if training was by SIGTERM.
An error is one line; --debug shows its traceback
"""

ARRAYS = (
    *("observations", "actions", "rewards", "terminations", "truncations", "dones", "next_observations"),
)  # of histories in npz and HDF5 files

STDOUT = 1  # descriptor of the standard output

TASKS_FAILED = 3  # exit status of a collection that lacks tasks; 2 is that of wrong settings, 130 of an interruption

MOST_WORKERS, MOST_SEEDS = 10_000, 10_000  # above which memory would run out, as of a digit too many

VIDEOS = {"gif": ("gif",), "mp4": ("gif", "mp4")}  # replays to write: the card of a model shows the GIF

TRUST = "let what comes along with a dataset, model or run import and run code (default: it is data)"

SECTIONS_OF_VERBS = {
    "quickstart": ("family", "source", "data", "model", "training", "rollout"),
    "collect": ("family", "source"),
    "train": ("family", "data", "model", "training", "rollout"),
    "rollout": ("family", "rollout"),
    "evaluate": ("family", "rollout"),
}


class _Help(argparse.Action):
    """Print a verb's own options, then the settings of a recipe that it reads."""

    def __call__(self, parser, namespace, values, option_string=None):
        from ad_hf.recipe import settings_help

        parser.print_help()
        sections = SECTIONS_OF_VERBS.get(self.const)
        if sections is not None:
            print("\nSettings of the recipe, each of which can be overridden:\n")
            print(settings_help(sections))
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
        if name == "evaluate":
            verb.add_argument("--recipe", metavar="NAME|FILE", help="recipe (default: that of each model's run)")
        elif name in SECTIONS_OF_VERBS:
            verb.add_argument("--recipe", default="dark_room", metavar="NAME|FILE", help="recipe (default: dark_room)")
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name != "recipes":
            verb.add_argument("--trust_remote_code", action="store_true", help=TRUST)
        return verb

    verb = add_verb("quickstart", "Collect, train and report on held-out tasks, in some minutes on a laptop.")
    verb.add_argument("--output_dir", default="runs/quickstart", help="folder of the run (default: %(default)s)")
    verb.add_argument(
        "--num_workers", type=_count(MOST_WORKERS), help="processes that collect (default: one per core)"
    )
    verb.add_argument(
        "--num_seeds", type=_count(MOST_SEEDS), default=3, help="rollouts per test task (default: %(default)s)"
    )
    verb.add_argument("--dataset", metavar="DIR|ID", help="histories to take instead of collecting any")
    verb.add_argument("--config_name", help="configuration of the dataset")

    add_verb("recipes", "List the recipes that come with the package, with their sizes and times.")

    verb = add_verb("collect", "Let a source learn every task, and write its learning histories as a dataset.")
    verb.add_argument(
        "--output_dir", default="histories", help="folder of the dataset, or a URL as s3://... (default: %(default)s)"
    )
    verb.add_argument(
        "--num_workers", type=_count(MOST_WORKERS), help="processes that collect (default: one per core)"
    )
    verb.add_argument("--executor", choices=["local", "ray"], default="local", help="what runs them (default: local)")
    verb.add_argument("--address", help="of a Ray cluster (default: start one on this machine)")
    verb.add_argument("--part", metavar="K/N", default="1/1", help="do every N-th shard only, as one of N such calls")

    verb = add_verb("train", "Train a model on learning histories.")
    verb.add_argument("--dataset", required=True, metavar="DIR|ID", help="learning histories")
    verb.add_argument("--config_name", help="configuration of the dataset")
    verb.add_argument("--streaming", action="store_true", help="read them as they are needed, in bounded memory")
    verb.add_argument(
        "--resume", metavar="latest|DIR|ID", help="go on from a checkpoint: the newest, if there is one, or this"
    )
    verb.add_argument("--push_to", metavar="REPO[@BRANCH]", help="push the model, and meanwhile checkpoints, there")
    verb.add_argument("--push_every", type=_count(), metavar="N", help="updates between pushes of checkpoints")
    verb.add_argument("--output_dir", required=True, help="folder of the run")

    verb = add_verb("rollout", "Let a model learn held-out tasks in its context, and report how it did.")
    verb.add_argument("--model", required=True, metavar="DIR|ID", help="a model, or the folder of its run")
    verb.add_argument("--dataset", metavar="DIR|ID", help="histories, to show the source's own curves beside")
    verb.add_argument("--config_name", help="configuration of the dataset")
    verb.add_argument("--output_dir", required=True, help="folder of report.json and the pictures")
    videos = verb.add_mutually_exclusive_group()
    videos.add_argument(
        "--video",
        nargs="?",
        choices=VIDEOS,
        const="gif",
        default="gif",
        help="replay of the first and last episodes: replay.gif, and with mp4 replay.mp4, too (default: gif)",
    )
    videos.add_argument("--no_video", "--no-video", dest="video", action="store_const", const=None, help="no replay")
    verb.add_argument(
        "--num_seeds", type=_count(MOST_SEEDS), default=3, help="rollouts per test task (default: %(default)s)"
    )

    verb = add_verb("evaluate", "Compare trainings, their source and random actions on held-out tasks.")
    verb.add_argument("--model", required=True, nargs="+", metavar="DIR|ID", help="models, or folders of their runs")
    verb.add_argument("--dataset", nargs="+", metavar="DIR|ID", help="histories of their source: of all, or of each")
    verb.add_argument("--output_dir", required=True, help="folder of evaluation.json and the pictures")
    verb.add_argument(
        "--num_seeds", type=_count(MOST_SEEDS), default=5, help="rollouts of each per task (default: %(default)s)"
    )

    verb = add_verb("push", "Put a dataset, a model or an evaluation on the Hub, with its card, in one commit.")
    verb.add_argument("kind", choices=["dataset", "model", "evaluation"], help="what it is")
    verb.add_argument("folder", metavar="DIR|ID", help="of it, or of the model's run")
    verb.add_argument("repo_id", metavar="REPO", help="user/name of the repository, which is made if need be")
    verb.add_argument("--private", action="store_true", default=None, help="make a new repository a private one")
    verb.add_argument("--revision", help="branch to push to, which is made if need be (default: main)")
    verb.add_argument("--config_name", help="of a dataset: push this configuration alone, or the only one as this")
    verb.add_argument("--license", help="of what is pushed (default: that in its card, else apache-2.0)")

    verb = add_verb("merge", "Join histories of one family, with other seeds or of other tasks, as one dataset.")
    verb.add_argument("datasets", nargs="+", metavar="DIR|ID", help="two datasets of learning histories, or more")
    verb.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the dataset to write")
    verb.add_argument("--config_name", help="configuration of each of them, and of the result")

    verb = add_verb("convert", "Write histories in another format, or those of another format as a dataset.")
    _add_directions(verb)
    return parser


def _count(most: int = 2**63 - 1, least: int = 1) -> Callable[[str], int]:
    """The type of an option that is a whole number."""

    def read(text: str) -> int:
        if re.fullmatch(r"-?[0-9]{1,19}", text) is None or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return read


def _json(text: str) -> Any:
    """The type of an option that is JSON."""
    try:
        return parse_json(text, shown(text), object)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_directions(verb: argparse.ArgumentParser) -> None:
    """The directions of `convert`; what is given is passed on to the function of that name."""
    directions = verb.add_subparsers(dest="direction", required=True, metavar="DIRECTION")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return directions.add_parser(
            name, help=text, description=text, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )

    to_minari = add("to-minari", "Write histories as a Minari dataset, from which they come back as they are.")
    to_minari.add_argument("dataset", metavar="DIR|ID", help="learning histories")
    to_minari.add_argument("dataset_id", metavar="MINARI_ID", help="id for Minari, such as dark_room/a2c-v0")
    to_minari.add_argument("--split", help="only the tasks of this split (default: all)")

    from_minari = add("from-minari", "Write a Minari dataset, ours or any other, as histories.")
    from_minari.add_argument("source", metavar="MINARI_ID|DIR", help="a local Minari dataset")
    from_minari.add_argument("--episodes_per_history", type=_count(), help="of one that is not ours (default: all)")

    from_arrays = add("from-arrays", "Write npz or HDF5 files as histories.")
    from_arrays.add_argument("source", metavar="FILE|DIR", help="an npz or HDF5 file, or a folder of such files")
    from_arrays.add_argument("--recipe", metavar="NAME|FILE", help="recipe whose family the tasks are of")
    from_arrays.add_argument("--tasks", metavar="FILE", help="JSON: each file's or group's task, in order or by name")
    from_arrays.add_argument("--task_keys", nargs="+", metavar="KEY", help="arrays or attributes that say the task")
    for number in ("num_validation_tasks", "num_test_tasks", "split_seed"):
        from_arrays.add_argument(f"--{number}", type=_count(least=0), help="as of a recipe's family (default: 0)")
    for space in ("observation_space", "action_space"):
        from_arrays.add_argument(f"--{space}", type=_json, metavar="JSON", help="space (default: inferred)")
    for array in ARRAYS:
        from_arrays.add_argument(f"--{array}", metavar="KEY", help=f"name of the array of {array}")
    from_arrays.add_argument("--time_first", action="store_true", help="arrays are (steps, streams, ...)")
    from_arrays.add_argument("--algorithm", help="what learnt (default: unknown)")
    from_arrays.add_argument(
        "--independent_streams",
        action=argparse.BooleanOptionalAction,
        help="each stream of a task learns for itself, or all are of one learner (default: not known)",
    )

    for direction in (to_minari, from_minari, from_arrays):
        direction.add_argument("--trust_remote_code", action="store_true", help=TRUST)
    for direction in (from_minari, from_arrays):
        direction.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the dataset to write")
        direction.add_argument("--env_id", help="environment, which gymnasium need not know")
        direction.add_argument("--env_kwargs", type=_json, metavar="JSON", help="what all tasks share")
        direction.add_argument("--max_piece_steps", type=_count(), help="cut longer histories into several rows")
    for direction in (to_minari, from_minari, from_arrays):
        direction.add_argument("--config_name", help="configuration of the dataset of histories")
        direction.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Do what a verb says."""
    if arguments.verb == "convert":
        convert(arguments, overrides)
        return
    if arguments.verb == "merge":
        merge(arguments, overrides)
        return
    # Imported here, so that `ad-hf --help` answers at once.
    from transformers.utils.logging import disable_progress_bar

    from ad_hf import pipeline
    from ad_hf.collection.publishing import is_published
    from ad_hf.recipe import load_recipe
    from ad_hf.recipe_list import recipe_table

    disable_progress_bar()  # of loading a model's weights, which takes no time
    if arguments.verb == "push":
        push(arguments, overrides)
        return
    if arguments.verb == "recipes":
        refuse(overrides)
        print(recipe_table())
        return
    if arguments.verb == "evaluate":
        evaluate(arguments, overrides)
        return
    recipe = load_recipe(arguments.recipe, overrides)
    if arguments.verb == "quickstart":
        pipeline.quickstart(
            recipe,
            arguments.output_dir,
            arguments.num_seeds,
            arguments.num_workers,
            arguments.dataset,
            arguments.config_name,
            arguments.trust_remote_code,
        )
    elif arguments.verb == "collect":
        settings = {name: getattr(arguments, name) for name in ("executor", "address", "part", "trust_remote_code")}
        folder = pipeline.collect_recipe(recipe, arguments.output_dir, arguments.num_workers, **settings)
        if is_published(folder):  # else other parts are missing, as was said
            print(f"histories: {folder}   load them with datasets.load_dataset({str(folder)!r})")
    elif arguments.verb == "train":
        pipeline.train(
            recipe,
            arguments.dataset,
            arguments.output_dir,
            arguments.config_name,
            arguments.streaming,
            arguments.resume,
            arguments.push_to,
            arguments.push_every,
        )
        print(f"model: {arguments.output_dir}/model   metrics: {arguments.output_dir}/metrics.jsonl")
    else:
        rollout(arguments, recipe)


def refuse(unknown: Sequence[str]) -> None:
    """Refuse options that a verb without settings does not have."""
    if unknown:
        raise ValueError(f"unknown options: {' '.join(unknown)}")


def rollout(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Roll a model out and report how it did."""
    from ad_hf import pipeline
    from ad_hf.evaluation.video import check_formats
    from ad_hf.hub.models import load_model

    formats = VIDEOS.get(arguments.video, ())
    try:
        check_formats(formats)  # before a model is downloaded
    except ImportError as error:  # of a package that an extra installs
        raise ValueError(str(error)) from error
    model, described = load_model(arguments.model, arguments.trust_remote_code)
    report = pipeline.evaluate_recipe(
        recipe,
        model,
        arguments.dataset,
        arguments.output_dir,
        arguments.num_seeds,
        {"model": described},
        arguments.config_name,
        formats,
    )
    print(pipeline.summary(report, arguments.output_dir))


def evaluate(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Evaluate models by the protocol."""
    from pathlib import Path

    from ad_hf import pipeline
    from ad_hf.evaluation.protocol import EVALUATION_FILES
    from ad_hf.evaluation.results import evaluation_summary

    datasets = arguments.dataset or [None]
    if len(datasets) not in (1, len(arguments.model)):
        raise ValueError(
            f"--dataset: {len(datasets)} for {len(arguments.model)} models: give one for all, or one for each"
        )
    models = [
        pipeline.EvaluatedModel.load(name, dataset, arguments.recipe, overrides, arguments.trust_remote_code)
        for name, dataset in zip(arguments.model, datasets * (len(arguments.model) // len(datasets)))
    ]
    found = pipeline.evaluate_models(models, arguments.output_dir, arguments.num_seeds)
    files = [Path(arguments.output_dir) / file for file in EVALUATION_FILES]
    print(evaluation_summary(found, files))


def push(arguments: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Push a dataset, a model or an evaluation."""
    from ad_hf.hub.push import push_dataset, push_evaluation, push_model

    refuse(unknown)
    if arguments.kind != "dataset" and arguments.config_name is not None:
        raise ValueError("--config_name is for datasets: nothing else has configurations")
    settings = {name: getattr(arguments, name) for name in ("private", "revision", "license")}
    if arguments.kind == "dataset":
        url = push_dataset(arguments.folder, arguments.repo_id, **settings, config_name=arguments.config_name)
    else:
        push_other = push_model if arguments.kind == "model" else push_evaluation
        url = push_other(arguments.folder, arguments.repo_id, **settings)
    print(url)


def merge(arguments: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Merge datasets."""
    from ad_hf.formats.merge import merge_datasets

    refuse(unknown)
    folder = merge_datasets(
        arguments.datasets, arguments.output_dir, arguments.config_name, arguments.trust_remote_code
    )
    print(f"histories: {folder}   load them with datasets.load_dataset({str(folder)!r})")


def convert(arguments: argparse.Namespace, unknown: Sequence[str]) -> None:
    """Convert histories in one of the directions."""
    from ad_hf.envs.task_family import TaskFamily
    from ad_hf.formats.arrays import from_arrays
    from ad_hf.formats.minari import from_minari, to_minari

    refuse(unknown)
    others = ("verb", "direction", "help", "debug")
    settings = {name: value for name, value in vars(arguments).items() if name not in others}
    try:
        if arguments.direction == "to-minari":
            folder = to_minari(**settings)
            print(f"Minari dataset: {folder}   load it with minari.load_dataset({arguments.dataset_id!r})")
            return
        if arguments.direction == "from-minari":
            folder = from_minari(**settings)
        else:
            settings["names"] = {array: settings.pop(array) for array in ARRAYS if array in settings}
            if "recipe" in settings:
                settings["family"] = TaskFamily.from_recipe(settings.pop("recipe"))
            folder = from_arrays(**settings)
    except ImportError as error:  # of a package that an extra installs
        raise ValueError(str(error)) from error
    print(f"histories: {folder}   load them with datasets.load_dataset({str(folder)!r})")
    if (folder / "recipe.yaml").is_file():
        print(f"train on them with: ad-hf train --recipe {folder}/recipe.yaml --dataset {folder} --output_dir RUN")


def _check_not_blank(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse names and folders that are empty, as those of a shell's unset variables are."""
    for name, value in vars(arguments).items():
        if any(isinstance(each, str) and not each.strip() for each in (value if isinstance(value, list) else [value])):
            parser.error(f"argument {name}: expected a name or folder, got empty text")


def _line(error: BaseException) -> str:
    """An error in one line, whatever letters are in the files that it is about."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(str(error).split()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = make_parser()
    debug = True  # of errors in this parser, which are ours
    try:
        arguments, overrides = parser.parse_known_args(argv)
        _check_not_blank(parser, arguments)
        debug = arguments.debug
        run(arguments, overrides)
        sys.stdout.flush()
    except TrainingInterrupted as error:
        print(f"\nad-hf: {error}", file=sys.stderr)
        return 128 + error.signal
    except KeyboardInterrupt:
        print(
            "\nad-hf: interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr
        )
        return 130
    except CollectionError as error:  # of some tasks, after all others were learnt
        print(f"ad-hf: {error}", file=sys.stderr)
        return TASKS_FAILED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_left():  # as by `| head`
            return 0
        if debug:
            raise
        expected = isinstance(error, (ValueError, OSError, StrictDataclassError))  # settings, names, files
        what = _line(error) if expected else f"{type(error).__name__}: {_line(error)[:500]} (--debug shows where)"
        print(f"ad-hf: error: {what}", file=sys.stderr)
        return 2
    return 0


def _is_output_left() -> bool:
    """Whether nobody reads the output any more; what is left of it then goes nowhere, instead of failing at exit."""
    poll = select.poll()  # there are no such pipes on Windows
    poll.register(STDOUT, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True


if __name__ == "__main__":
    sys.exit(main())
