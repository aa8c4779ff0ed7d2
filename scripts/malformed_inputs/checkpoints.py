"""Checkpoints: states that are damaged, incomplete or of something else, and what else lies in a run's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from malformed_inputs.common import (
    DROP,
    WEIGHTS,
    Input,
    Place,
    accepted,
    edit_bytes,
    edit_json,
    edit_tensors,
    refused,
)

AREA = "checkpoints"
NEWEST, STATE, TENSORS = "checkpoint-4", "training_state.json", "training.safetensors"

# Entries of training_state.json, what they are set to, and what has to be named beside the file.
ENTRIES: list[tuple[str, Any, str]] = [
    ("step", "4", "step"),
    ("step", 4.5, "step"),
    ("step", None, "step"),
    ("step", 7, "step"),
    ("step", -3, "step"),
    ("step", DROP, "step"),
    ("best", "good", "best"),
    ("best", [1], "best"),
    ("best", ["a", 2], "best"),
    ("unvalidated", {"a": 1}, "unvalidated"),
    ("batches", [], "batches|processes"),
    ("batches", {"epoch": 0}, "batches"),
    ("batches/0", {}, "batches"),
    ("batches/0/position", -1, "batches|position"),
    ("batches/0/position", "32", "batches|position"),
    ("batches/0/position", 10**12, "batches|position"),
    ("batches/0/epoch", 0.5, "batches|epoch"),
    ("dataset", None, "dataset"),
    ("dataset/fingerprint", "0" * 16, "fingerprint"),
    ("settings", [], "settings"),
    ("settings/training.learning_rate", 0.5, "learning_rate"),
]

TENSOR_CHANGES: list[tuple[str, str, Callable[[dict[str, Any]], Any], str]] = [
    (TENSORS, "a moment is missing", lambda tensors: tensors.pop("optimizer/norm.bias/exp_avg"), r"norm\.bias"),
    (
        TENSORS,
        "all moments are missing",
        lambda tensors: {name: each for name, each in tensors.items() if name.startswith("random")},
        r"training\.safetensors|optimizer",
    ),
    (
        TENSORS,
        "a moment of another shape",
        lambda tensors: tensors.update({"optimizer/norm.bias/exp_avg": tensors["optimizer/norm.bias/exp_avg"][:3]}),
        r"norm\.bias",
    ),
    (
        TENSORS,
        "an infinite moment",
        lambda tensors: tensors["optimizer/norm.bias/exp_avg_sq"].fill_(float("inf")),
        r"norm\.bias|finite",
    ),
    (
        TENSORS,
        "a moment of a weight that there is not",
        lambda tensors: tensors.update(
            {"optimizer/blocks.7.up.bias/exp_avg": tensors["optimizer/norm.bias/exp_avg"].clone()}
        ),
        r"blocks\.7",
    ),
    (
        TENSORS,
        "a random state that is too short",
        lambda tensors: tensors.update({"random/0/cpu": tensors["random/0/cpu"][:100]}),
        r"random",
    ),
    (
        WEIGHTS,
        "the head is missing",
        lambda tensors: {name: each for name, each in tensors.items() if "head" not in name},
        r"head",
    ),
    (WEIGHTS, "a further tensor", lambda tensors: tensors.update(extra=tensors["norm.bias"].clone()), r"extra"),
    (
        WEIGHTS,
        "a matrix that is transposed",
        lambda tensors: tensors.update({"blocks.1.down.weight": tensors["blocks.1.down.weight"].T}),
        r"blocks\.1\.down",
    ),
    (
        WEIGHTS,
        "an infinite weight",
        lambda tensors: tensors["norm.weight"].fill_(float("inf")),
        r"finite|norm\.weight",
    ),
]

BYTES: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    (STATE, "nothing in it", lambda data: b""),
    (STATE, "all but its last ten bytes", lambda data: data[:-10]),
    (STATE, "a number", lambda data: b"4"),
    (STATE, "UTF-16", lambda data: data.decode().encode("utf-16")),
    (TENSORS, "its first 1,000 bytes", lambda data: data[:1000]),
    (TENSORS, "text", lambda data: b"moments"),
    (WEIGHTS, "nothing in it", lambda data: b""),
    (WEIGHTS, "all but its last byte", lambda data: data[:-1]),
    (f"best/{WEIGHTS}", "its first half", lambda data: data[: len(data) // 2]),
    ("best/config.json", "a list", lambda data: b"[]"),
]


def _resumed(change: Callable[[Path], Any], resume: Any = "latest", *options: Any) -> Callable[[Place], list[Any]]:
    """Going on with a run whose folder is changed; the run is then `out`."""

    def make(place: Place) -> list[Any]:
        run = place.take("run", "out")
        change(run)
        return place.train(None, "--resume", resume if resume == "latest" else run / resume, *options)

    return make


def _in_newest(edit: Callable[..., Any], name: str, *changes: Any) -> Callable[[Path], Any]:
    return lambda run: edit(run / NEWEST / name, *changes)


def _removed(name: str) -> Callable[[Path], Any]:
    """Something of the newest checkpoint is not there."""

    def change(run: Path) -> None:
        path = run / NEWEST / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _went_on(place: Place, value: Any) -> str | None:
    steps = [json.loads(line)["step"] for line in (place.out / "metrics.jsonl").read_text().splitlines()]
    return None if max(steps) == 6 and sorted(set(steps)) == [1, 2, 3, 4, 5, 6] else f"metrics.jsonl has steps {steps}"


def _with(name: str, is_folder: bool = False) -> Callable[[Path], Any]:
    """A file, or a folder with one, that the user has in the run's folder."""

    def change(run: Path) -> None:
        path = run / name / "notes.txt" if is_folder else run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")

    return change


def _kept(name: str) -> Callable[[Place, Any], str | None]:
    def check(place: Place, value: Any) -> str | None:
        path = place.out / name
        path = path / "notes.txt" if path.is_dir() else path
        return None if path.is_file() and path.read_text() == "mine" else f"{name}, which is the user's, is gone"

    return check


def _linked_out(name: str) -> Callable[[Place], list[Any]]:
    """A file of a checkpoint's best model is a link to a file of the user's elsewhere."""

    def make(place: Place) -> list[Any]:
        secret = place.text("SECRET", "secret.txt")
        run = place.take("run", "out")
        (run / NEWEST / "best" / name).unlink(missing_ok=True)
        (run / NEWEST / "best" / name).symlink_to(secret)
        return place.train(None, "--resume", run / NEWEST)

    return make


def _no_secret(place: Place, value: Any) -> str | None:
    for path in place.out.rglob("*"):
        outside = path.is_file() and "checkpoint-4" not in path.parts and b"SECRET" in path.read_bytes()
        if outside:
            return f"what a link of the checkpoint points to was copied into {path.relative_to(place.out)}"
    return None


def _newer(*files: str) -> Callable[[Path], Any]:
    """A newer checkpoint than the newest, with some of its files."""

    def change(run: Path) -> None:
        (run / "checkpoint-5").mkdir()
        for name in files:
            shutil.copy(run / NEWEST / name, run / "checkpoint-5" / name)

    return change


def inputs() -> Iterator[Input]:
    """Checkpoints, refused and accepted."""
    for path, value, names in ENTRIES:
        shown = "left out" if value is DROP else repr(value)[:40]
        yield refused(AREA, f"{STATE}: {path} {shown}", _resumed(_in_newest(edit_json, STATE, (path, value))), names)
    for name, what, change, names in TENSOR_CHANGES:
        yield refused(AREA, f"{name}: {what}", _resumed(_in_newest(edit_tensors, name, change)), names)
    for name, what, damage in BYTES:
        wanted = rf"checkpoint-4.*{name.rpartition('/')[2].replace('.', '[.]')}".replace("|", "")
        yield refused(AREA, f"{name}: {what}", _resumed(_in_newest(edit_bytes, name, damage)), wanted)
        if name in (TENSORS, WEIGHTS):
            yield refused(
                AREA,
                f"{name}: {what}; an older checkpoint is whole",
                _resumed(_in_newest(edit_bytes, name, damage)),
                r"checkpoint-2",
            )
    for name in (WEIGHTS, TENSORS, "best"):
        yield refused(AREA, f"{name} is not there", _resumed(_removed(name)), name.replace(".", r"\."))
    yield refused(AREA, "a newer checkpoint without a state", _resumed(_newer(WEIGHTS)), r"checkpoint-5")
    yield refused(
        AREA,
        "a newer checkpoint that is a file",
        _resumed(_with("checkpoint-9")),
        r"checkpoint-9",
        _kept("checkpoint-9"),
        either=True,
    )
    yield refused(AREA, "--resume: the folder of a model", _resumed(lambda run: None, "model"), r"model\b.*checkpoint")
    yield refused(AREA, "--resume: the folder of the run", _resumed(lambda run: None, ""), r"checkpoint")
    yield refused(
        AREA,
        "--resume: with another learning rate",
        _resumed(lambda run: None, "latest", "--training.learning_rate", "0.5"),
        r"learning_rate",
    )
    yield refused(
        AREA,
        "--resume: with another width",
        _resumed(lambda run: None, "latest", "--model.hidden_size", "32"),
        r"hidden_size",
    )
    yield refused(
        AREA,
        "--resume: with histories of another room",
        lambda place: [
            *place.train(place.base / "room4", "--resume", place.base / "run" / NEWEST),
            "--family.env_kwargs.size",
            "4",
        ],
        r"dataset|env_kwargs",
    )
    for name in ("config.json", "notes.txt"):
        yield refused(
            AREA,
            f"best/{name} is a link to a file elsewhere",
            _linked_out(name),
            rf"link|{name}",
            _no_secret,
            either=True,
        )
    for name, is_folder in (
        (".mine.old", True),
        (".model.tmp", True),
        (".draft.tmp", False),
        (".a.1.old", True),
        ("checkpoint-mine", True),
        ("checkpoint-4.old", True),
        ("model.bak", True),
    ):
        yield accepted(AREA, f"the user's {name} in the run's folder", _resumed(_with(name, is_folder)), _kept(name))
    yield accepted(AREA, "the newest checkpoint", _resumed(lambda run: None), _went_on)
    yield accepted(AREA, "an older checkpoint, by its folder", _resumed(lambda run: None, "checkpoint-2"), _went_on)
    yield accepted(
        AREA,
        "the model is gone, and the checkpoint has it",
        _resumed(lambda run: shutil.rmtree(run / "model")),
        _went_on,
    )
    yield accepted(
        AREA, "logging more often than before", _resumed(lambda run: None, "latest", "--training.logging_steps", "2")
    )
    yield accepted(
        AREA,
        "the run's folder under another name",
        lambda place: place.train(None, "--resume", place.take("run", "Lauf [2]") / NEWEST),
    )
