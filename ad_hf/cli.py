"""The `ad-hf` command: a verb is a function's signature, its help the function's docstring."""

from __future__ import annotations

import logging
import os
import re
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from ad_hf.cli_help import print_help
from ad_hf.hub.config import PushConfig
from ad_hf.progress import show_messages
from ad_hf.settings import did_you_mean, excerpt, parse_json

ACCELERATE_CONFIGS = Path(__file__).parent / "accelerate_configs"
STDOUT = 1  # descriptor of the standard output
TASKS_FAILED = 3  # exit status of a collection that lacks tasks
MOST = 2**63 - 1
MOST_WORKERS, MOST_SEEDS = 10_000, 10_000  # memory runs out above, as after a digit too many
VIDEOS = {"gif": ("gif",), "mp4": ("gif", "mp4")}  # the card of a model shows the GIF


def _check_name(_: Any, value: Any) -> None:
    """Refuse text that is empty, as a shell's unset variable is."""
    names = value if isinstance(value, list) else [value]
    if any(name is not None and not name.strip() for name in names):
        raise ValueError("Expected a name or a folder, got empty text")


def _read_json(_: Any, tokens: Sequence[Any]) -> Any:
    return parse_json(tokens[0].value, excerpt(tokens[0].value), object)


def _whole(least: int = 1, most: int = MOST) -> Parameter:
    return Parameter(validator=Number(gte=least, lte=most))


Name = Annotated[str, Parameter(validator=_check_name)]
Names = Annotated[list[str], Parameter(validator=_check_name, consume_multiple=True)]
Count = Annotated[int, _whole()]
Number0 = Annotated[int, _whole(least=0)]
Workers = Annotated[int, _whole(least=0, most=MOST_WORKERS)]
Seeds = Annotated[int, _whole(most=MOST_SEEDS)]
Json = Annotated[dict[str, Any] | None, Parameter(converter=_read_json, n_tokens=1, accepts_keys=False)]
Flag = Annotated[bool, Parameter(show_default=False)]
Overrides = Annotated[Sequence[str], Parameter(parse=False)]  # dotted options, which the recipe reads


@Parameter(name="*", group="Common options")
@dataclass(frozen=True)
class Common:
    """
    Options of every verb.

    Args:
        trust_remote_code: Let what comes along with a dataset, a model or a run import and run code.
        quiet: Print results and errors only.
        verbose: Print messages for developers, too.
        debug: Show the traceback of an error.
    """

    trust_remote_code: Flag = False
    quiet: Flag = False
    verbose: Flag = False
    debug: Flag = False


COMMON = Common()
app = App(
    name="ad-hf",
    help="Algorithm Distillation on the Hugging Face stack: transformers that learn in context.",
    help_format="plaintext",
    version=lambda: f"ad_hf {version('ad_hf')}",
    default_parameter=Parameter(name_transform=lambda name: name, negative=(), allow_repeating=True),
    exit_on_error=False,
    print_error=False,
)
push_app = App(name="push", help="Push a dataset, a model, an evaluation or a page to the Hub.")
export_app = App(name="export", help="Write a model for other programs.")
convert_app = App(name="convert", help="Convert histories to another format, or from one.")
app.command(push_app)
app.command(export_app)
app.command(convert_app)


@app.command
def quickstart(
    *,
    recipe: Name = "dark_room",
    output_dir: Name = "runs/quickstart",
    num_workers: Workers | None = None,
    num_seeds: Seeds = 3,
    dataset: Name | None = None,
    config_name: Name | None = None,
    overwrite: Flag = False,
    common: Common = COMMON,
    overrides: Overrides = (),
) -> None:
    """Collect, train and evaluate, in some minutes on a laptop.

    Args:
        recipe: Name or file of a recipe.
        output_dir: Folder of the run.
        num_workers: Processes that collect; by default one per core. 0 collects in this process.
        num_seeds: Rollouts per test task.
        dataset: Histories to take instead of collecting any: a folder or a Hub id.
        config_name: Configuration of the dataset.
        overwrite: Write over the run of another recipe in the output_dir.
    """
    from ad_hf import pipeline
    from ad_hf.evaluation.summary import describe
    from ad_hf.recipe import load_recipe

    settings = load_recipe(recipe, overrides)
    evaluation = pipeline.quickstart(
        *(settings, output_dir, num_seeds, num_workers, dataset, config_name, common.trust_remote_code, overwrite)
    )
    if "agents" in evaluation:
        print(describe(evaluation, output_dir))
    else:  # of a mixture
        print("\n\n".join(f"{name}:\n{describe(own, f'{output_dir}/{name}')}" for name, own in evaluation.items()))


@app.command
def recipes(name: Name | None = None, /, *, common: Common = COMMON) -> None:
    """List the recipes of the package, or print one.

    Args:
        name: A recipe to print with its comments, as in `ad-hf recipes dark_room > mine.yaml`.
    """
    from ad_hf.envs.recipes import recipe_path
    from ad_hf.recipe_list import recipe_table

    print(recipe_table() if name is None else recipe_path(name).read_text(encoding="utf-8").rstrip())


@app.command
def init(env_id: Name, file: Name | None = None, /, *, env_kwargs: Json = None, common: Common = COMMON) -> None:
    """Write a first recipe for an environment, with comments.

    Args:
        env_id: Id of the environment, as CartPole-v1, or module:Id-v0 to import the module that registers it.
        file: File to write; by default its name is that of the environment.
        env_kwargs: Arguments of its constructor, as JSON.
    """
    from ad_hf.envs.recipes import recipes_of
    from ad_hf.recipe_draft import write_draft

    path = write_draft(env_id, file, env_kwargs)
    if names := recipes_of(env_id):
        print(f"the package has a recipe for {env_id} that learns well: ad-hf recipes {next(iter(names))}")
    print(f"recipe: {path}   collect with: ad-hf collect --recipe {path} --output_dir histories")


@app.command(name="accelerate-config")
def accelerate_config(name: Name | None = None, /, *, common: Common = COMMON) -> None:
    """List configurations for `accelerate launch`, or print one.

    Args:
        name: A configuration to print, as in `ad-hf accelerate-config fsdp > fsdp.yaml`.
    """
    texts = {path.stem: path.read_text(encoding="utf-8").rstrip() for path in ACCELERATE_CONFIGS.glob("*.yaml")}
    if name is None:
        for each, text in sorted(texts.items()):
            print(f"{each:17}{text.partition('. ')[0].removeprefix('# ')}".partition("\n")[0])
    elif name not in texts:
        raise ValueError(f"unknown configuration {name!r}{did_you_mean(name, texts)}: {', '.join(sorted(texts))}")
    else:
        print(texts[name])


@app.command
def collect(
    *,
    recipe: Name | None = None,
    output_dir: Name = "histories",
    num_workers: Workers | None = None,
    executor: Literal["local", "ray"] = "local",
    address: Name | None = None,
    part: Name = "1/1",
    common: Common = COMMON,
    overrides: Overrides = (),
) -> None:
    """Let a source learn every task, and keep its histories.

    Args:
        recipe: Name or file of a recipe, which `ad-hf recipes` lists and `ad-hf init` writes.
        output_dir: Folder of the dataset, or a URL as s3://...
        num_workers: Processes that collect; by default one per core. 0 collects in this process.
        executor: Processes of this machine, or a Ray cluster.
        address: Address of a Ray cluster; by default Ray starts one on this machine.
        part: K/N: do every N-th shard only, as one of N such calls.
    """
    from ad_hf import pipeline
    from ad_hf.collection.output_folder import is_published
    from ad_hf.recipe import load_recipe

    if recipe is None:
        raise ValueError(
            "--recipe says what to collect: give one that `ad-hf recipes` lists, or one for your own environment, "
            "which `ad-hf init ENV_ID FILE` writes"
        )
    options = {"executor": executor, "address": address, "part": part, "trust_remote_code": common.trust_remote_code}
    folder = pipeline.collect_recipe(load_recipe(recipe, overrides), output_dir, num_workers, **options)
    if is_published(folder):  # other parts may be missing, of which a message tells
        _print_histories(folder)


@app.command
def inspect(
    dataset: Name,
    *,
    recipe: Name | None = None,
    output_dir: Name | None = None,
    config_name: Name | None = None,
    common: Common = COMMON,
    overrides: Overrides = (),
) -> None:
    """Check whether histories can teach in-context learning.

    Args:
        dataset: Learning histories: a folder or a Hub id.
        recipe: Name or file of a recipe; by default the dataset's own.
        output_dir: Folder for a picture and the numbers, inspection.png and inspection.json; by default none.
        config_name: Configuration of the dataset.
    """
    from ad_hf import diagnosis
    from ad_hf.histories.dataset import HistoryDataset
    from ad_hf.own_recipe import recipe_to_inspect
    from ad_hf.recipe import load_recipe

    opened = HistoryDataset.open(dataset, config_name)
    if recipe is None:
        settings, origin = recipe_to_inspect(opened, overrides, common.trust_remote_code)
        logging.getLogger("ad_hf").info(origin)
    else:
        settings = load_recipe(recipe, overrides)
    inspection = diagnosis.inspect_dataset(opened, settings.data, settings.model.context_length)
    if output_dir is not None:
        diagnosis.write_inspection(inspection, output_dir)
        print(f"picture: {output_dir}/inspection.png   numbers: {output_dir}/inspection.json\n")
    print(diagnosis.describe(inspection))
    if not inspection.findings:
        config = [] if config_name is None else ["--config_name", config_name]
        options = ["--recipe", recipe or "RECIPE", "--dataset", dataset, *config, *overrides]
        print(f"train on them with: ad-hf train {shlex.join(options)} --output_dir RUN")


@app.command
def train(
    *,
    dataset: Names,
    output_dir: Name,
    recipe: Name | None = None,
    config_name: Name | None = None,
    init_from: Name | None = None,
    streaming: Flag = False,
    resume: Name | None = None,
    push_to: Name | None = None,
    push_every: Count | None = None,
    overwrite: Flag = False,
    common: Common = COMMON,
    overrides: Overrides = (),
) -> None:
    """Train a model on learning histories.

    Args:
        dataset: Learning histories: a folder or a Hub id; of a mixture, one for each family or one with all.
        output_dir: Folder of the run.
        recipe: Name or file of a recipe; by default the dataset's own tasks, with the packaged settings for them.
        config_name: Configuration of the dataset.
        init_from: Start from this model's weights where they fit: a folder or a Hub id.
        streaming: Read histories when they are needed, in bounded memory.
        resume: Go on from a checkpoint: the newest one (latest) if there is any, or this folder or Hub id.
        push_to: Push the model, and meanwhile checkpoints, to this repository, as user/name or user/name@branch.
        push_every: Updates between pushes of checkpoints.
        overwrite: Write over another run in the output_dir.
    """
    from ad_hf import pipeline

    if init_from is not None:
        overrides = [*overrides, "--training.init_from", init_from]
    pipeline.train(
        *(
            recipe,
            dataset[0] if len(dataset) == 1 else dataset,
            output_dir,
            config_name,
            streaming,
            resume,
            push_to,
            push_every,
            overrides,
        ),
        trust_remote_code=common.trust_remote_code,
        overwrite=overwrite,
    )
    print(f"model: {output_dir}/model   metrics: {output_dir}/metrics.jsonl")


@app.command
def rollout(
    *,
    model: Name,
    output_dir: Name,
    recipe: Name | None = None,
    dataset: Name | None = None,
    config_name: Name | None = None,
    num_seeds: Seeds = 3,
    video: Literal["gif", "mp4"] = "gif",
    no_video: Annotated[bool, Parameter(name=("--no_video", "--no-video"), show_default=False)] = False,
    common: Common = COMMON,
    overrides: Overrides = (),
) -> None:
    """Let a model learn held-out tasks in its context.

    Args:
        model: A model, or the folder of its run: a folder or a Hub id.
        output_dir: Folder of the returns, their summary and the pictures.
        recipe: Name or file of a recipe; by default that of the model's run.
        dataset: Histories, to show the source's own curves beside the model's.
        config_name: Configuration of the dataset.
        num_seeds: Rollouts per test task.
        video: Replay of first and later episodes: replay.gif; with mp4 replay.mp4, too.
        no_video: Write no replay.
    """
    from ad_hf import pipeline
    from ad_hf.evaluation.summary import describe
    from ad_hf.evaluation.video import check_formats

    formats = () if no_video else VIDEOS[video]
    check_formats(formats)  # before a model is downloaded
    own = pipeline.EvaluatedModel.load(model, dataset, recipe, overrides, common.trust_remote_code, config_name)
    own.run = None  # a rollout elsewhere leaves the results in the run's folder as they are
    print(describe(pipeline.evaluate_models([own], output_dir, num_seeds, formats), output_dir))


@app.command
def evaluate(
    *,
    model: Names,
    output_dir: Name,
    recipe: Name | None = None,
    dataset: Names | None = None,
    num_seeds: Seeds = 5,
    common: Common = COMMON,
    overrides: Overrides = (),
) -> None:
    """Compare trainings, their source and random actions.

    Args:
        model: Models, or folders of their runs.
        output_dir: Folder of evaluation.json and the pictures.
        recipe: Name or file of a recipe; by default that of each model's run.
        dataset: Histories of their source: one dataset for all models, or one for each.
        num_seeds: Rollouts of each model per task.
    """
    from ad_hf import pipeline
    from ad_hf.evaluation.summary import describe

    datasets: list[str | None] = list(dataset) if dataset else [None]
    if len(datasets) not in (1, len(model)):
        raise ValueError(f"--dataset: {len(datasets)} for {len(model)} models: give one for all, or one for each")
    models = [
        pipeline.EvaluatedModel.load(name, histories, recipe, overrides, common.trust_remote_code)
        for name, histories in zip(model, datasets * (len(model) // len(datasets)))
    ]
    print(describe(pipeline.evaluate_models(models, output_dir, num_seeds), output_dir))


Push = Annotated[PushConfig, Parameter(name="*", parse=re.compile("^(?!token$)"))]  # which a shell would record
PUSH = PushConfig()


@push_app.command(name="dataset")
def push_dataset(
    folder: Name,
    repo_id: Name,
    /,
    *,
    config_name: Name | None = None,
    config: Push = PUSH,
    common: Common = COMMON,
) -> None:
    """Push learning histories.

    Args:
        folder: Folder of the dataset.
        repo_id: Repository, as user/name; it is made if need be.
        config_name: Push this configuration alone, or the only one under this name.
    """
    from ad_hf.hub import push

    options = {"config_name": config_name, "trust_remote_code": common.trust_remote_code}
    print(push.push_dataset(folder, repo_id, config, **options))


@push_app.command(name="model")
def push_model(folder: Name, repo_id: Name, /, *, config: Push = PUSH, common: Common = COMMON) -> None:
    """Push a model, with its card and the results of its run.

    Args:
        folder: Folder of the model, or of its run, or a Hub id.
        repo_id: Repository, as user/name; it is made if need be.
    """
    from ad_hf.hub import push

    print(push.push_model(folder, repo_id, config))


@push_app.command(name="evaluation")
def push_evaluation(folder: Name, repo_id: Name, /, *, config: Push = PUSH, common: Common = COMMON) -> None:
    """Push an evaluation: its returns, their summary and the pictures.

    Args:
        folder: Folder that `ad-hf evaluate` wrote.
        repo_id: Repository, as user/name; it is made if need be.
    """
    from ad_hf.hub import push

    print(push.push_evaluation(folder, repo_id, config))


@push_app.command(name="space")
def push_space(model: Name, repo_id: Name, /, *, config: Push = PUSH, common: Common = COMMON) -> None:
    """Push the page on which a model learns, as a static Space.

    Args:
        model: A model, or the folder of its run or of its export: a folder or a Hub id.
        repo_id: Space, as user/name; it is made if need be.
    """
    from ad_hf.export.space import push_space as push

    print(push(model, repo_id, config, trust_remote_code=common.trust_remote_code))


@export_app.command(name="onnx")
def export_onnx(
    model: Name,
    /,
    *,
    output_dir: Name,
    precision: Literal["fp16", "fp32"] = "fp16",
    group: Name | None = None,
    common: Common = COMMON,
) -> None:
    """Write one step of a model as ONNX, and what a program needs to roll it out.

    Args:
        model: A model, or the folder of its run: a folder or a Hub id.
        output_dir: Folder of model.onnx and model.json.
        precision: How weights are stored; fp16 rounds them.
        group: Of a model of several groups of spaces, the one to export.
    """
    from ad_hf.export.onnx_files import export_onnx as export

    folder = export(model, output_dir, precision=precision, group=group, trust_remote_code=common.trust_remote_code)
    print(f"step: {folder}/model.onnx   description: {folder}/model.json")


@app.command
def demo(
    model: Name,
    /,
    *,
    output_dir: Name | None = None,
    port: Annotated[int, _whole(least=0, most=65535)] = 0,
    no_serve: Annotated[bool, Parameter(name=("--no_serve", "--no-serve"), show_default=False)] = False,
    common: Common = COMMON,
) -> None:
    """Let a model learn in a browser: build its page and serve it on this machine.

    Args:
        model: A model, or the folder of its run or of its export: a folder or a Hub id.
        output_dir: Folder of the page, which any web server serves; by default a temporary one.
        port: Port of the server; 0 takes a free one.
        no_serve: Build the page only.
    """
    from ad_hf.export.page import build_demo, serve

    if no_serve and output_dir is None:
        raise ValueError("--no_serve builds the page only: give its folder by --output_dir")
    with TemporaryDirectory() as temporary:
        folder = build_demo(model, output_dir or f"{temporary}/page", trust_remote_code=common.trust_remote_code)
        if output_dir is not None:
            print(f"page: {folder}/index.html")
        if not no_serve:
            with suppress(KeyboardInterrupt):
                serve(folder, port, lambda address: print(f"open {address}   Ctrl-C ends it", flush=True))


@app.command
def merge(*paths: Name, config_name: Name | None = None, common: Common = COMMON) -> None:
    """Join datasets of one family, of other seeds or tasks.

    Args:
        paths: Two datasets of learning histories or more, and then the folder of the dataset to write.
        config_name: Configuration of each of them, and of the result.
    """
    from ad_hf.formats.merge import merge_datasets

    if len(paths) < 3:
        raise ValueError(f"ad-hf merge takes two datasets or more, and then the folder to write, got {list(paths)}")
    _print_histories(merge_datasets(paths[:-1], paths[-1], config_name, common.trust_remote_code))


@convert_app.command(name="to-minari")
def to_minari(
    dataset: Name,
    dataset_id: Name,
    /,
    *,
    split: Name | None = None,
    config_name: Name | None = None,
    common: Common = COMMON,
) -> None:
    """Write histories as a Minari dataset, from which they come back as they are.

    Args:
        dataset: Learning histories: a folder or a Hub id.
        dataset_id: Id for Minari, such as dark_room/a2c-v0.
        split: Only the tasks of this split; by default all.
        config_name: Configuration of the dataset.
    """
    from ad_hf.formats.minari import to_minari as write

    folder = write(dataset, dataset_id, config_name, split, common.trust_remote_code)
    print(f"Minari dataset: {folder}   load it with minari.load_dataset({dataset_id!r})")


@Parameter(name="*")
@dataclass(frozen=True)
class ImportOptions:
    """
    Options of every import.

    Args:
        env_id: Environment, which gymnasium need not know.
        env_kwargs: Keyword arguments that all tasks share, as JSON.
        max_piece_steps: Cut longer histories into several rows.
        config_name: Configuration of the dataset to write.
    """

    env_id: Name | None = None
    env_kwargs: Json = None
    max_piece_steps: Count | None = None
    config_name: Name | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class ArrayOptions:
    """
    Tasks, spaces and layout of arrays.

    Args:
        tasks: JSON file with the task of each file or group, in order or by name.
        task_keys: Arrays or attributes that say the task.
        num_validation_tasks: As in a recipe's family; by default 0.
        num_test_tasks: As in a recipe's family; by default 0.
        split_seed: As in a recipe's family; by default 0.
        observation_space: Space as JSON; by default inferred.
        action_space: Space as JSON; by default inferred.
        time_first: Arrays are (steps, streams, ...).
        algorithm: The algorithm that learnt; by default unknown.
        independent_streams: Each stream of a task learns for itself, or all belong to one learner; by default unknown.
    """

    tasks: Name | None = None
    task_keys: Names | None = None
    num_validation_tasks: Number0 | None = None
    num_test_tasks: Number0 | None = None
    split_seed: Number0 | None = None
    observation_space: Json = None
    action_space: Json = None
    time_first: Flag = False
    algorithm: Name | None = None
    independent_streams: Annotated[bool | None, Parameter(negative="--no-independent_streams")] = None


@Parameter(name="*", show=False)
@dataclass(frozen=True)
class ArrayNames:
    """Names of the arrays in npz and HDF5 files."""

    observations: Name | None = None
    actions: Name | None = None
    rewards: Name | None = None
    terminations: Name | None = None
    truncations: Name | None = None
    dones: Name | None = None
    next_observations: Name | None = None


IMPORT, ARRAYS, NAMES = ImportOptions(), ArrayOptions(), ArrayNames()


@convert_app.command(name="from-minari")
def from_minari(
    source: Name,
    output_dir: Name,
    /,
    *,
    episodes_per_history: Count | None = None,
    options: ImportOptions = IMPORT,
    common: Common = COMMON,
) -> None:
    """Write a Minari dataset, ours or any other, as histories.

    Args:
        source: A local Minari dataset: its id or folder.
        output_dir: Folder of the dataset to write.
        episodes_per_history: Episodes of a history, of a dataset that is not ours; by default all.
    """
    from ad_hf.formats.minari import from_minari as write

    _import(write, source, output_dir, common, episodes_per_history=episodes_per_history, **vars(options))


@convert_app.command(name="from-arrays")
def from_arrays(
    source: Name,
    output_dir: Name,
    /,
    *,
    recipe: Name | None = None,
    arrays: ArrayOptions = ARRAYS,
    names: ArrayNames = NAMES,
    options: ImportOptions = IMPORT,
    common: Common = COMMON,
) -> None:
    """Write npz or HDF5 files as histories.

    Where arrays have other names than observations, actions, rewards, terminations, truncations, dones and
    next_observations, an option for each says so, as in --dones KEY.

    Args:
        source: An npz or HDF5 file, or a folder of such files.
        output_dir: Folder of the dataset to write.
        recipe: Recipe whose family the tasks belong to.
    """
    from ad_hf.envs.task_family import TaskFamily
    from ad_hf.formats.arrays import from_arrays as write

    family = None if recipe is None else TaskFamily.from_recipe(recipe)
    renamed = {array: name for array, name in vars(names).items() if name is not None}
    _import(write, source, output_dir, common, family=family, names=renamed, **vars(arrays), **vars(options))


def _print_histories(folder: Path | str) -> None:
    print(f"histories: {folder}   load them with datasets.load_dataset({str(folder)!r})")


def _import(write: Callable[..., Path], source: str, output_dir: str, common: Common, **options: Any) -> None:
    """Import histories with the options that are set, and print how to use them."""
    options = {name: value for name, value in options.items() if value is not None}
    folder = write(source, output_dir, **options, trust_remote_code=common.trust_remote_code)
    _print_histories(folder)
    if (folder / "recipe.yaml").is_file():
        print(f"train on them with: ad-hf train --recipe {folder}/recipe.yaml --dataset {folder} --output_dir RUN")


def run(argv: Sequence[str] | None = None) -> None:
    """Do what a command line says."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    verb, bound, unknown, unparsed = app.parse_known_args(tokens)
    if verb == app.help_print:
        print_help(app, tokens)
        return
    if "overrides" in unparsed:
        bound.arguments["overrides"] = unknown
        names = [f"--{name}" for name in (*signature(verb).parameters, *Common.__dataclass_fields__)]
        for option in (word.partition("=")[0] for word in unknown):
            if option.startswith("--") and "." not in option:
                raise ValueError(f"unknown option {option}{did_you_mean(option, names)}: see ad-hf {tokens[0]} --help")
    elif unknown:
        raise ValueError(f"unknown options: {' '.join(unknown)}")
    common = bound.arguments.get("common", COMMON)
    show_messages(logging.WARNING if common.quiet else logging.DEBUG if common.verbose else logging.INFO)
    if recipe := bound.arguments.get("recipe"):
        from ad_hf.envs.recipes import add_import_folders

        add_import_folders(recipe)
    verb(*bound.args, **bound.kwargs)


def _line(error: BaseException) -> str:
    """An error in one line, whatever letters are in the files that it is about."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(str(error).split()))


def _is_expected(error: Exception) -> bool:
    """Whether an error is about settings, names, files or packages, and its text says what to do."""
    from huggingface_hub.errors import StrictDataclassError

    return isinstance(error, (CycloptsError, ImportError, OSError, StrictDataclassError, ValueError))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        signal = getattr(error, "signal", None)  # of a training that saved a checkpoint first
        text = error if signal else "interrupted; finished work is kept, and the same command goes on from there"
        print(f"\nad-hf: {text}", file=sys.stderr)
        return 128 + signal if signal else 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_left():  # as by `| head`
            return 0
        if type(error).__name__ == "CollectionError":  # of some tasks, after all others were learnt
            print(f"ad-hf: {error}", file=sys.stderr)
            return TASKS_FAILED
        if "--debug" in (sys.argv if argv is None else argv):
            raise
        if isinstance(error, CycloptsError):
            error.verbose = False
        text = (
            _line(error)
            if _is_expected(error)
            else f"{type(error).__name__}: {_line(error)[:500]} (--debug shows where)"
        )
        print(f"ad-hf: error: {text}", file=sys.stderr)
        return 2
    return 0


def _is_output_left() -> bool:
    """Whether nobody reads the output any more; the rest of it then goes nowhere, instead of failing at exit."""
    poll = select.poll()  # there are no such pipes on Windows
    poll.register(STDOUT, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True


if __name__ == "__main__":
    sys.exit(main())
