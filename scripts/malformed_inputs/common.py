"""Inputs, where they are made, and ways to change a file of an honest run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

# A room of 3 x 3 cells, three of which are held out; learnt, trained and rolled out within seconds.
TINY: dict[str, Any] = {
    "family": {
        "env_id": "ad_hf/DarkRoom-v0",
        "env_kwargs": {"size": 3, "max_episode_steps": 6},
        "grid": {"goal": {"shape": [3, 3]}},
        "num_validation_tasks": 1,
        "num_test_tasks": 2,
        "stratify_by": "ad_hf.envs.dark_room.goal_distance",
        "optimal_return": "ad_hf.envs.dark_room.optimal_return",
        "native_vector": True,
    },
    "source": {
        "algorithm": "A2C",
        "n_envs": 8,
        "total_timesteps": 720,
        "hyperparameters": {"n_steps": 6, "learning_rate": 0.003, "gamma": 0.9},
    },
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "context_length": 24,
    },
    "training": {
        "max_steps": 6,
        "batch_size": 8,
        "eval_steps": 2,
        "eval_episodes": 3,
        "save_steps": 2,
        "save_total_limit": 3,
        "logging_steps": 1,
        "mixed_precision": "no",
    },
    "rollout": {"num_episodes": 3},
}
WEIGHTS = "model.safetensors"
SHARD = "default/train-00000-of-00001.parquet"
TEST_SHARD = "default/test-00000-of-00001.parquet"
METADATA = "default/metadata.json"

Task = list[Any] | Callable[[], Any]  # a command line, or a call


@dataclass(frozen=True)
class Input:
    """
    Something that somebody may give.

    Attributes:
        area (`str`), what (`str`):
            Of which kind it is, and what is odd about it.
        make (`Callable[[Place], Task]`):
            Makes it, and says what is done with it: a command line of `ad-hf`, or a function that is called.
        names (`str`, *optional*):
            Expression for what a refusal has to name. `None` for what has to be accepted.
        check (`Callable[[Place, Any], str | None]`, *optional*):
            Looks at what was done, of a call with what it returned, and says what went wrong in silence.
        either (`bool`):
            Whether it may as well be accepted, if `check` finds nothing.
        id (`str`):
            Its name in the campaign.
    """

    area: str
    what: str
    make: Callable[[Place], Task]
    names: str | None = None
    check: Callable[[Place, Any], str | None] | None = None
    either: bool = False
    id: str = ""


class Place:
    """
    Where an input is made and tried: an empty folder, and an honest run to take from.

    Args:
        base (`Path`):
            With `tiny.yaml`, the datasets `h`, `box` and `room4`, `run`, and more (see `prepare` of malformed.py).
        folder (`Path`):
            The empty folder, which is the working directory.
    """

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.marker = folder / "MARKER"  # which a command of a hostile input would make
        self.out = folder / "out"

    def take(self, name: str, to: str | None = None) -> Path:
        """A copy of something honest, to change."""
        source, target = self.base / name, self.folder / (to or Path(name).name)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy2(source, target)
        return target

    def recipe(self, changes: Mapping[str, Any] | None = None, name: str = "recipe.yaml") -> Path:
        """The tiny recipe with some settings changed, by dotted names; `DROP` leaves one out."""
        recipe = json.loads(json.dumps(TINY))
        for path, value in (changes or {}).items():
            *sections, last = path.split(".")
            place = recipe
            for section in sections:
                place = place.setdefault(section, {})
            if value is DROP:
                place.pop(last, None)
            else:
                place[last] = value
        return self.text(yaml.safe_dump(recipe, sort_keys=False), name)

    def text(self, text: str | bytes, name: str = "recipe.yaml") -> Path:
        """A file with this content."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def train(self, dataset: Any = None, *options: Any, recipe: Any = None) -> list[Any]:
        """The command that trains."""
        recipe, dataset = recipe or self.base / "tiny.yaml", dataset or self.base / "h"
        return ["train", "--recipe", recipe, "--dataset", dataset, "--output_dir", self.out, *options]

    def collect(self, recipe: Any, *options: Any) -> list[Any]:
        """The command that collects."""
        return ["collect", "--recipe", recipe, "--output_dir", self.out, "--num_workers", 1, *options]

    def rollout(self, model: Any = None, *options: Any, recipe: Any = None) -> list[Any]:
        """The command that rolls out, once per task and without a replay."""
        recipe, model = recipe or self.base / "tiny.yaml", model or self.base / "run"
        common = ["--output_dir", self.out, "--no_video", "--num_seeds", 1]
        return ["rollout", "--recipe", recipe, "--model", model, *common, *options]

    def evaluate(self, model: Any, *options: Any) -> list[Any]:
        """The command that evaluates."""
        return ["evaluate", "--model", model, "--output_dir", self.out, "--num_seeds", 1, *options]

    @contextmanager
    def hub(self) -> Iterator[Any]:
        """A Hub on this machine, which the clients of this process talk to."""
        from huggingface_hub import constants
        from local_hub import TOKEN, LocalHub

        constants.HF_HUB_OFFLINE = False
        os.environ["HF_TOKEN"] = TOKEN
        with LocalHub(self.folder / "hub", int(constants.ENDPOINT.rpartition(":")[2])) as hub:
            yield hub


DROP: Any = object()


def refused(
    area: str, what: str, make: Callable[[Place], Task], names: str, check: Any = None, either: bool = False
) -> Input:
    """An input that has to be refused, naming something."""
    return Input(area, what, make, names, check, either)


def accepted(area: str, what: str, make: Callable[[Place], Task], check: Any = None) -> Input:
    """An input that is odd, and right."""
    return Input(area, what, make, None, check)


def edit_json(path: Path, *changes: tuple[str, Any]) -> Path:
    """Change entries of a JSON file, by dotted names (numbers are places in lists); `DROP` leaves one out."""
    data = json.loads(path.read_text())
    for dotted, value in changes:
        *parts, last = [int(part) if part.isdigit() else part for part in dotted.split("/")]
        place = data
        for part in parts:
            place = place[part]
        if value is DROP:
            del place[last]
        else:
            place[last] = value(place[last]) if callable(value) else value
    path.write_text(json.dumps(data, indent=2))
    return path


def edit_bytes(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the bytes of a file."""
    path.write_bytes(change(path.read_bytes()))
    return path


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the tensors of a safetensors file, in place or by returning others."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    changed = change(tensors)
    tensors = changed if isinstance(changed, dict) else tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    return path


def edit_rows(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """Change the rows of a shard, in place or by returning others; columns keep their types."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows = change(rows) or rows
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return path


def edit_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Change the table of a shard."""
    pq.write_table(change(pq.read_table(path)), path)
    return path


def replace_column(name: str, convert: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    """A change of a table: another column in the place of one."""
    return lambda table: table.set_column(table.schema.get_field_index(name), name, convert(table[name]))


def in_file(edit: Callable[..., Any], name: str, *changes: Any) -> Callable[[Path], Any]:
    """A change of a folder: one of its files is edited."""
    return lambda folder: edit(folder / name, *changes)


def command(argv: Sequence[Any]) -> int:
    """Run `ad-hf` within a call."""
    from ad_hf.cli import main

    return main([str(each) for each in argv])
