"""Command lines: options without values, folders with odd names, files where folders belong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from malformed_inputs.common import Input, Place, accepted, refused

AREA = "command line"

# Options of train, and what has to be named.
OF_TRAIN: list[tuple[str, list[Any], str]] = [
    ("a setting without its value", ["--training.max_steps"], r"training\.max_steps"),
    ("a setting whose value is an option", ["--training.max_steps", "--streaming"], r"training\.max_steps"),
    ("a setting that is empty", ["--training.max_steps="], r"max_steps"),
    ("a setting of another spelling", ["--training.max_step", "5"], r"max_step\b"),
    ("a section of another spelling", ["--trainer.max_steps", "5"], r"trainer\.max_steps"),
    ("a section alone", ["--training", "5"], r"--training\b"),
    ("text for a number", ["--training.batch_size", "eight"], r"batch_size"),
    ("a list for a number", ["--training.batch_size", "[8]"], r"batch_size"),
    ("a setting below a number", ["--training.batch_size.x", "8"], r"batch_size"),
    ("YAML that is none", ["--family.grid", "{goal: ["], r"family\.grid"),
    ("a tag of Python", ["--family.env_kwargs", "!!python/name:os.system"], r"family\.env_kwargs"),
    ("a further word", ["more"], r"more"),
    ("an option of another verb", ["--num_workers", "2"], r"num_workers"),
    ("a configuration that there is not", ["--config_name", "large"], r"large"),
    ("a configuration outside of the folder", ["--config_name", "../h/default"], r"\.\./h/default"),
    ("a checkpoint that there is not", ["--resume", "nothing/at/all"], r"nothing/at/all"),
    ("a number of updates between pushes that is 0", ["--push_to", "somebody/x", "--push_every", "0"], r"push_every"),
    ("a repository that is none", ["--push_to", "not an id"], r"not an id"),
    ("a recipe of another spelling", ["--recipe", "darkroom"], r"darkroom"),
    ("a folder as a recipe", ["--recipe", "/"], r"recipe '?/"),
]


def _other(*argv: Any) -> Callable[[Place], list[Any]]:
    """A command line with names of honest things in braces."""
    return lambda place: [str(each).format(base=place.base, out=place.out) for each in argv]


OTHERS: list[tuple[str, Callable[[Place], list[Any]], str]] = [
    ("a verb of another spelling", _other("trian"), r"trian"),
    ("train without a dataset", _other("train", "--output_dir", "{out}"), r"--dataset"),
    ("an empty name of a model", _other("rollout", "--model", "", "--output_dir", "{out}"), r"model"),
    ("a file for a model", _other("rollout", "--model", "{base}/tiny.yaml", "--output_dir", "{out}"), r"tiny\.yaml"),
    (
        "a dataset for a model",
        _other("rollout", "--recipe", "{base}/tiny.yaml", "--model", "{base}/h", "--output_dir", "{out}"),
        r"/h\b",
    ),
    ("a file for a dataset", _other("train", "--dataset", "{base}/tiny.yaml", "--output_dir", "{out}"), r"tiny\.yaml"),
    ("a run for a dataset", _other("train", "--dataset", "{base}/run", "--output_dir", "{out}"), r"/run\b.*metadata"),
    (
        "no rollouts",
        _other(
            "rollout",
            "--recipe",
            "{base}/tiny.yaml",
            "--model",
            "{base}/run",
            "--output_dir",
            "{out}",
            "--num_seeds",
            "0",
        ),
        r"num_seeds",
    ),
    (
        "rollouts below none",
        _other("evaluate", "--model", "{base}/run", "--output_dir", "{out}", "--num_seeds", "-7"),
        r"num_seeds",
    ),
    (
        "half a rollout",
        _other("evaluate", "--model", "{base}/run", "--output_dir", "{out}", "--num_seeds", "0.5"),
        r"num_seeds",
    ),
    (
        "two datasets for one model",
        _other("evaluate", "--model", "{base}/run", "--dataset", "{base}/h", "{base}/h", "--output_dir", "{out}"),
        r"--dataset",
    ),
    (
        "a run and its model are the same model",
        _other("evaluate", "--model", "{base}/run", "{base}/run/model", "--output_dir", "{out}"),
        r"same|twice|seed",
    ),
    (
        "a replay that there is not",
        _other("rollout", "--model", "{base}/run", "--output_dir", "{out}", "--video", "avi"),
        r"avi",
    ),
    (
        "fewer than no workers",
        _other("collect", "--recipe", "{base}/tiny.yaml", "--output_dir", "{out}", "--num_workers", "-1"),
        r"num_workers",
    ),
    (
        "a third of two parts",
        _other("collect", "--recipe", "{base}/tiny.yaml", "--output_dir", "{out}", "--part", "3/2"),
        r"part",
    ),
    (
        "a part of none",
        _other("collect", "--recipe", "{base}/tiny.yaml", "--output_dir", "{out}", "--part", "1/0"),
        r"part",
    ),
    (
        "a part in words",
        _other("collect", "--recipe", "{base}/tiny.yaml", "--output_dir", "{out}", "--part", "first"),
        r"part",
    ),
    ("an executor that there is not", _other("collect", "--output_dir", "{out}", "--executor", "slurm"), r"slurm"),
    (
        "an address without what it is of",
        _other(
            "collect",
            "--recipe",
            "{base}/tiny.yaml",
            "--output_dir",
            "{out}",
            "--num_workers",
            "1",
            "--address",
            "1.2.3.4",
        ),
        r"address",
    ),
    (
        "a URL of a scheme that there is not",
        _other("collect", "--recipe", "{base}/tiny.yaml", "--num_workers", "1", "--output_dir", "nosuch://bucket/h"),
        r"nosuch",
    ),
    ("one dataset to merge", _other("merge", "{base}/h", "{out}"), r"two|dataset"),
    (
        "a dataset to merge with itself",
        _other("merge", "{base}/h", "{base}/h", "{out}"),
        r"h\b.*(same|twice|seed|both)",
    ),
    ("datasets of two rooms to merge", _other("merge", "{base}/h", "{base}/room4", "{out}"), r"env_kwargs|size"),
    ("datasets of two families to merge", _other("merge", "{base}/h", "{base}/box", "{out}"), r"env_id|space"),
    (
        "converting into what is there",
        _other("convert", "from-arrays", "{base}/box.npz", "{base}/run", "--env_id", "A-v0"),
        r"/run\b",
    ),
    ("a push of what is no model", _other("push", "model", "{base}/h", "somebody/x"), r"/h\b"),
    ("a push of what is no dataset", _other("push", "dataset", "{base}/run", "somebody/x"), r"/run\b"),
    ("a push of what is no evaluation", _other("push", "evaluation", "{base}/h", "somebody/x"), r"/h\b"),
    ("a push of something else", _other("push", "space", "{base}/run", "somebody/x"), r"space"),
    (
        "a configuration of a model",
        _other("push", "model", "{base}/run", "somebody/x", "--config_name", "a"),
        r"config_name",
    ),
    ("a conversion that there is not", _other("convert", "to-rlds", "{base}/h", "x"), r"to-rlds"),
    ("a Minari dataset without a version", _other("convert", "to-minari", "{base}/h", "tiny"), r"tiny"),
    (
        "a split that there is not",
        _other("convert", "to-minari", "{base}/h", "tiny/other-v0", "--split", "dev"),
        r"dev",
    ),
]


def _pushed(place: Place) -> list[Any]:
    """A push that must not end with success, as nobody answers."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = False
    import time

    time.sleep = lambda seconds: None  # between attempts
    return ["push", "dataset", place.base / "h", "somebody/x"]


def _file_for_folder(verb: str) -> Callable[[Place], list[Any]]:
    def make(place: Place) -> list[Any]:
        place.text("mine", "out")
        return {"train": place.train, "rollout": place.rollout}.get(verb, lambda: place.evaluate(place.base / "run"))()

    return make


def _kept(name: str) -> Callable[[Place, Any], str | None]:
    """A check that a file of the user's is as it was."""
    return lambda place, value: None if (place.folder / name).read_text() == "mine" else f"{name} was written over"


def _beside_home(place: Place, value: Any) -> str | None:
    if Path("~").exists():
        return "a folder called ~ was made"
    return None if (place.folder / "home" / "run" / "model").is_dir() else "there is no run in the home folder"


def _named(name: str, of_run: bool = False) -> Callable[[Place], list[Any]]:
    """Training on a dataset in a folder of an odd name, or in a run's folder of such a name."""

    def make(place: Place) -> list[Any]:
        if of_run:
            place.out = place.folder / name
            return place.train()
        return place.train(place.take("h", name))

    return make


def _at_home(place: Place) -> list[Any]:
    (place.folder / "home").mkdir()
    os.environ["HOME"] = str(place.folder / "home")
    place.out = "~/run"  # type: ignore[assignment]
    return place.train()


def _from_home(place: Place) -> list[Any]:
    place.take("h", "home")
    os.environ["HOME"] = str(place.folder / "home")
    return place.train("~")


def _beside(place: Place) -> list[Any]:
    """A dataset whose name, were it a pattern, would be that of another folder beside it."""
    place.take("room4", "run1")
    return place.train(place.take("h", "run[1]"))


def _linked(place: Place) -> list[Any]:
    (place.folder / "link").symlink_to(place.base / "h")
    return place.train(place.folder / "link")


def _read_only(place: Place) -> list[Any]:
    folder = place.take("h", "read_only")
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return place.train(folder)


def _relative(place: Place) -> list[Any]:
    place.take("h")
    (place.folder / "deep").mkdir()
    os.chdir("deep")
    return place.train("../deep/../h/")


def _beside_hidden(place: Place) -> list[Any]:
    folder = place.take("h")
    (folder / ".git" / "default").mkdir(parents=True)
    (folder / "default" / ".DS_Store").write_bytes(b"\0\1")
    (folder / "default" / "notes.txt").write_text("mine")
    return place.train(folder)


def inputs() -> Iterator[Input]:
    """Command lines, refused and accepted."""
    for what, options, names in OF_TRAIN:

        def make(place: Place, options: list[Any] = options) -> list[Any]:
            return place.train(None, *options)

        yield refused(AREA, f"train: {what}", make, names)
    for what, other, names in OTHERS:
        yield refused(AREA, what, other, names)
    yield refused(AREA, "a push to a Hub that does not answer", _pushed, r"127\.0\.0\.1.*(reached|connection|connect)")
    for verb in ("train", "rollout", "evaluate"):
        yield refused(
            AREA, f"{verb}: a file where its folder is to be", _file_for_folder(verb), r"\bout\b", _kept("out")
        )
    for name in ("Daten für ß [neu] {x} *?", "a::b", "with%20percent", "train-00000-of-00001"):
        yield accepted(AREA, f"train: a dataset in a folder called {name}", _named(name))
    for name in ("Läufe [1]", "a::b", "#1 {best}"):
        yield accepted(AREA, f"train: a run in a folder called {name}", _named(name, of_run=True))
    yield accepted(AREA, "train: a run in the home folder", _at_home, _beside_home)
    yield accepted(AREA, "train: a dataset that is the home folder", _from_home)
    yield accepted(AREA, "train: a folder run[1] beside a folder run1", _beside)
    yield accepted(AREA, "train: a link to a dataset", _linked)
    yield accepted(AREA, "train: a dataset that nobody may write to", _read_only)
    yield accepted(AREA, "train: a relative path with .. in it", _relative)
    yield accepted(AREA, "train: files of others in a dataset's folder", _beside_hidden)
    yield accepted(
        AREA, "train: --resume latest without a checkpoint", lambda place: place.train(None, "--resume", "latest")
    )
    yield accepted(
        AREA,
        "train: a setting after an equals sign",
        lambda place: place.train(None, "--training.learning_rate=.001", "--training.weight_decay", "0"),
    )
    yield accepted(AREA, "recipes: nothing else", lambda place: ["recipes"])
    yield accepted(
        AREA,
        "rollout: a model's folder with a slash at its end",
        lambda place: place.rollout(f"{place.base}/run/model/"),
    )
