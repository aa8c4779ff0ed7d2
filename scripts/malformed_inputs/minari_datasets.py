"""Minari datasets, ours and those of others: metadata, episodes and options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from malformed_inputs.common import DROP, Input, Place, accepted, edit_bytes, edit_json, refused

AREA = "converters"
NAN = float("nan")


def _minari(change: Callable[[Path], Any], *options: Any) -> Callable[[Place], list[Any]]:
    """The conversion of the Minari dataset of the honest histories, changed."""

    def make(place: Place) -> list[Any]:
        folder = place.take("minari/tiny/a2c-v0", "minari")
        change(folder / "data")
        return ["convert", "from-minari", folder, place.out, *options]

    return make


def _entry(path: str, value: Any) -> Callable[[Path], Any]:
    """An entry of the metadata of the Minari dataset; `ad_hf` is ours."""
    return lambda data: edit_json(data / "metadata.json", (path, value))


def _of_others(data: Path) -> None:
    """As a dataset that somebody else made: without our entry."""
    edit_json(data / "metadata.json", ("ad_hf", DROP))


def _both(first: Callable[[Path], Any], second: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def change(data: Path) -> None:
        first(data)
        second(data)

    return change


def _inside(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """Something in the HDF5 file of the Minari dataset."""

    def edit(data: Path) -> None:
        import h5py

        with h5py.File(data / "main_data.hdf5", "r+") as file:
            change(file)

    return edit


def _put(name: str, index: Any, value: Any) -> Callable[[Any], Any]:
    def change(file: Any) -> None:
        values = file[name][()]
        if index is None:
            values = value
        else:
            values[index] = value
        del file[name]
        file[name] = values

    return change


MINARI: list[tuple[str, Callable[[Path], Any], str]] = [
    ("ad_hf a number", _entry("ad_hf", 5), r"ad_hf"),
    ("ad_hf/shards left out", _entry("ad_hf/shards", DROP), r"shards"),
    ("ad_hf/shards of text", _entry("ad_hf/shards", {"train-00000-of-00001.parquet": "all"}), r"shards|train-0000"),
    (
        "ad_hf/shards of counts below 0",
        _entry("ad_hf/shards", {"train-00000-of-00001.parquet": [-1]}),
        r"shards|train-0000",
    ),
    ("ad_hf/shards with a path", _entry("ad_hf/shards", {"../train-00000-of-00001.parquet": [48]}), r"\.\./train"),
    (
        "ad_hf/shards of more rows than there are",
        _entry("ad_hf/shards", lambda shards: {name: [*sizes, 9] for name, sizes in shards.items()}),
        r"shards|rows|train",
    ),
    ("ad_hf/episodes as text", _entry("ad_hf/episodes", "all"), r"episodes"),
    ("ad_hf/config_name with a path", _entry("ad_hf/config_name", "../../x"), r"config_name|\.\./x"),
    ("ad_hf/metadata a list", _entry("ad_hf/metadata", []), r"metadata"),
    ("ad_hf/metadata/tasks as text", _entry("ad_hf/metadata/tasks", "all"), r"tasks"),
    ("metadata that is no JSON", lambda data: (data / "metadata.json").write_text("{"), r"metadata\.json"),
    ("metadata that is a list", lambda data: (data / "metadata.json").write_text("[]"), r"metadata"),
    ("total_episodes as text", _entry("total_episodes", "many"), r"episodes"),
    ("no data", lambda data: (data / "main_data.hdf5").unlink(), r"main_data\.hdf5"),
    (
        "half of its data",
        lambda data: edit_bytes(data / "main_data.hdf5", lambda each: each[: len(each) // 2]),
        r"main_data\.hdf5",
    ),
    ("an episode is missing", _inside(lambda file: file.__delitem__("episode_3")), r"episode"),
    (
        "no rewards in an episode",
        _inside(lambda file: file.__delitem__("episode_3/rewards")),
        r"episode_?\s?3|rewards",
    ),
    ("a reward of NaN", _inside(_put("episode_3/rewards", 2, NAN)), r"rewards"),
    ("an action beyond the space", _inside(_put("episode_3/actions", 2, 17)), r"action"),
    ("an action less than steps", _inside(_put("episode_3/actions", None, np.zeros(5, np.int64))), r"actions"),
    (
        "an end in the middle of an episode",
        _inside(_put("episode_3/terminations", 2, True)),
        r"episode.*3|ends|terminations",
    ),
]


def _same(place: Place, value: Any) -> str | None:
    """Histories came back as they were."""
    import pyarrow.parquet as pq

    for split in ("train", "validation", "test"):
        name = f"default/{split}-00000-of-00001.parquet"
        if not pq.read_table(place.out / name).equals(pq.read_table(place.base / "h" / name)):
            return f"{name} is another"
    return None


def inputs() -> Iterator[Input]:
    """Minari datasets, refused and accepted."""
    for what, change, names in MINARI:
        yield refused(AREA, f"Minari: {what}", _minari(change), names)
        if what in ("a reward of NaN", "an action beyond the space", "an action less than steps", "no data"):
            yield refused(
                AREA,
                f"Minari, of others: {what}",
                _minari(_both(_of_others, change)),
                names,
            )
    yield refused(
        AREA,
        "Minari, of others: histories of no episodes",
        _minari(_of_others, "--episodes_per_history", "0"),
        r"episodes_per_history",
    )
    yield refused(
        AREA,
        "Minari, of others: pieces of no steps",
        _minari(_of_others, "--max_piece_steps", "-1"),
        r"max_piece_steps",
    )
    yield refused(
        AREA,
        "Minari: an environment of another name for ours",
        _minari(lambda data: None, "--env_id", "Foo-v0"),
        r"env_id",
    )
    yield accepted(AREA, "Minari: there and back", _minari(lambda data: None), _same)
    yield accepted(AREA, "Minari, of others", _minari(_of_others, "--episodes_per_history", "15"))
