"""The house itself: a setting has one declaration, and a reader of a rollout's step meets few files."""

import dataclasses
import importlib.util
import inspect
import pkgutil
import sys
from collections import defaultdict
from pathlib import Path

import ad_hf
from ad_hf.recipe import SECTIONS

PACKAGE = Path(ad_hf.__file__).parent
# Names that a setting shares with something else, and why that is no second declaration.
HOMONYMS = {
    "algorithm": "of imported histories, which no source of ours has made",
    "attributes": "parts of an environment, once a family has checked them",
    "context_length": "of a trained model, and the shorter context that a rollout may ask for",
    "do_sample": "of a rollout, and of one step that differs",
    "dropout": "of residual branches, and the argument of transformers' attention functions",
    "env_id": "of imported histories",
    "env_kwargs": "of imported histories, and of an environment that a rollout makes by its id",
    "epsilon": "of a rollout's exploration, and of tabular learning",
    "labels": "the import path of a function, its result, and the targets of the loss",
    "learning_rate": "of the model, and of tabular learning",
    "max_steps": "updates of a training, steps of a rollout, and of random play",
    "normalize_observations": "of the model section, and as a keyword of config_from_dataset",
    "num_episodes": "of a rollout, and of the evaluation that asks for another number",
    "num_test_tasks": "of imported histories",
    "num_validation_tasks": "of imported histories",
    "num_workers": "processes that collect, and processes that read a stream",
    "random": "tasks that are drawn, and the return of random play",
    "reward_scale": "of the model, and of the model section, where the data may say it",
    "seed": "a training, a rollout, a collection and an evaluation have each their own",
    "split_seed": "of a family, and the label of an evaluation's rows",
    "splits": "tasks by split, and the splits to check",
    "task_ids": "of a family's splits, and of the environments of a learner",
    "tasks": "a family's own tasks, and tasks that are handed on",
    "temperature": "of a rollout, and of a density at temperature 1",
    "wrappers": "parts of an environment, once a family has checked them",
}


def declarations():
    """Every field of a dataclass, and every parameter with a default, of the package: its name -> where it stands."""
    places = defaultdict(set)
    for module in pkgutil.walk_packages(ad_hf.__path__, "ad_hf."):
        if module.name == "ad_hf.cli":
            continue  # whose options stand beside a recipe's settings
        if module.name == "ad_hf.envs.silent_fetch" and importlib.util.find_spec("minigrid") is None:
            continue  # which needs an extra
        for thing in vars(importlib.import_module(module.name)).values():
            if getattr(thing, "__module__", None) != module.name or thing.__name__ == "HistoryMetadata":
                continue  # the record of a collection that was made
            functions = [thing]
            if inspect.isclass(thing):
                functions = list(vars(thing).values())
                if dataclasses.is_dataclass(thing):
                    functions = [each for each in functions if getattr(each, "__name__", "") != "__init__"]
                    for field in dataclasses.fields(thing):
                        if field.name in inspect.get_annotations(thing):
                            places[field.name].add(f"{module.name}.{thing.__name__}")
            for function in filter(inspect.isfunction, functions):
                for name in parameters_with_defaults(inspect.unwrap(function)):
                    places[name].add(f"{module.name}.{function.__qualname__}")
    return places


def parameters_with_defaults(function):
    """Names of the parameters that a function's own code gives a default."""
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    return [*positional[len(positional) - len(function.__defaults__ or ()) :], *(function.__kwdefaults__ or {})]


def test_a_setting_is_declared_once():
    settings = {field.name for section in SECTIONS.values() for field in dataclasses.fields(section)}
    twice = {name: sorted(where) for name, where in declarations().items() if name in settings and len(where) > 1}
    assert len(settings) > 80
    assert twice.keys() - HOMONYMS.keys() == set(), [twice[name] for name in twice.keys() - HOMONYMS.keys()]
    assert HOMONYMS.keys() - twice.keys() == set()  # what is said of them is still so


def test_a_step_of_a_rollout_crosses_few_files():
    before = Path(__file__).parent / "data" / "before"
    family = ad_hf.TaskFamily.from_recipe(str(before / "recipe.yaml"))
    model = ad_hf.ADModel.from_pretrained(before / "run" / "model")
    files, calls = set(), []

    def note(frame, event, _):
        if event == "call" and PACKAGE in Path(frame.f_code.co_filename).parents:
            files.add(Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix())

    def look(_):
        calls.append(len(calls))
        sys.setprofile(note if len(calls) == 5 else None)

    try:
        model.rollout(family.make_vec(family.tasks("test")), num_episodes=6, seed=0, callback=look)
    finally:
        sys.setprofile(None)
    assert "model/modeling_ad.py" in files
    assert len({name for name in files if name.startswith("model/")}) <= 7, files
    assert {name for name in files if not name.startswith("model/")} <= {"envs/vector.py", "envs/dark_room.py"}
