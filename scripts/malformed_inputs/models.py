"""Models: configurations, weights and the files beside them, damaged byte by byte and tensor by tensor."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from malformed_inputs.common import (
    DROP,
    WEIGHTS,
    Input,
    Place,
    accepted,
    edit_bytes,
    edit_json,
    edit_tensors,
    in_file,
    refused,
)

AREA = "models"

# Entries of config.json, what they are set to, and what has to be named.
ENTRIES: list[tuple[str, Any, str]] = [
    ("hidden_size", "16", "hidden_size"),
    ("hidden_size", 17, "hidden_size"),
    ("hidden_size", 8, "size|shape"),
    ("num_hidden_layers", 0, "num_hidden_layers"),
    ("num_hidden_layers", 4, r"blocks\.[23]"),
    ("intermediate_size", 31, r"blocks\.\d\.(up|down)"),
    ("context_length", 0, "context_length"),
    ("context_length", None, "context_length"),
    ("sliding_window", 0, "sliding_window"),
    ("layer_types", ["linear_attention"] * 2, "sliding_window.*layer_types"),
    ("layer_types", ["linear_attention", "sliding_attention"], r"blocks\.0\.attention"),
    ("layer_types", {"0": "full_attention"}, "layer_types"),
    ("linear_num_heads", "4", "linear_num_heads"),
    ("linear_memory_length", 0, "linear_memory_length"),
    ("observation_space", DROP, "observation_space"),
    ("observation_space", {"type": "Discrete", "n": 9}, "observation"),
    ("observation_space/nvec", [4, 4], "observation"),
    ("action_space/n", 4, "head|action"),
    ("action_space/n", 5.0, "action_space"),
    ("action_space/n", DROP, "action_space"),
    ("reward_scale", 0, "reward_scale"),
    ("reward_scale", "one", "reward_scale"),
    ("rope_theta", "many", "rope_theta"),
    ("rope_theta", -100.0, "rope_theta"),
    ("layer_norm_eps", -1e-3, "layer_norm_eps"),
    ("initializer_range", "x", "initializer_range"),
    ("backbone_config", {"model_type": "no-such-model"}, "backbone_config"),
    ("backbone_config", [], "backbone_config"),
    ("dtype", "float13", "dtype|float13"),
    ("action_distribution", "beta", "action_distribution"),
]

CONFIGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("nothing in it", lambda data: b""),
    ("its first half", lambda data: data[: len(data) // 2]),
    ("text", lambda data: b'"ad"'),
    ("UTF-16", lambda data: data.decode().encode("utf-16")),
    ("nested 50,000 deep", lambda data: b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
]


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A change of a safetensors file's header."""

    def edit(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        text = json.dumps(change(header) or header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return edit


BYTES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("its first eight bytes", lambda data: data[:8]),
    ("all but its last 64 bytes", lambda data: data[:-64]),
    ("bytes after its end", lambda data: data + bytes(64)),
    ("a header that is no JSON", lambda data: data[:8] + b"#" + data[9:]),
    ("a header longer than the file", lambda data: struct.pack("<Q", len(data)) + data[8:]),
    (
        "a tensor that lies beyond its end",
        _header(lambda header: header["norm.bias"].update(data_offsets=[10**9, 10**9 + 64])),
    ),
    ("a tensor of a negative size", _header(lambda header: header["norm.bias"].update(shape=[-16]))),
    ("a tensor of a type that there is not", _header(lambda header: header["norm.bias"].update(dtype="F7"))),
    (
        "two tensors at one place",
        _header(lambda header: header["norm.bias"].update(data_offsets=header["norm.weight"]["data_offsets"])),
    ),
    ("a pickle", lambda data: pickle.dumps({"a": 1})),
]

TENSORS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    (
        "a block is missing",
        lambda tensors: {name: each for name, each in tensors.items() if "blocks.1." not in name},
        r"blocks\.1\.",
    ),
    (
        "the last norm is missing",
        lambda tensors: {name: each for name, each in tensors.items() if name[:5] != "norm."},
        r"norm\.",
    ),
    (
        "a tensor of another name",
        lambda tensors: tensors.update(bias=tensors.pop("head.linear.bias")),
        r"head\.linear\.bias",
    ),
    (
        "all names with a prefix",
        lambda tensors: {f"module.{name}": each for name, each in tensors.items()},
        r"norm\.|blocks\.|embedding\.|head\.",
    ),
    (
        "a further block",
        lambda tensors: tensors.update(
            {
                name.replace("blocks.1.", "blocks.2."): each.clone()
                for name, each in tensors.items()
                if "blocks.1." in name
            }
        ),
        r"blocks\.2\.",
    ),
    (
        "a matrix that is transposed",
        lambda tensors: tensors.update({"blocks.0.up.weight": tensors["blocks.0.up.weight"].T}),
        r"blocks\.0\.up\.weight",
    ),
    (
        "a vector that is a matrix",
        lambda tensors: tensors.update({"norm.bias": tensors["norm.bias"][None]}),
        r"norm\.bias",
    ),
    ("no numbers in a vector", lambda tensors: tensors.update({"norm.bias": tensors["norm.bias"][:0]}), r"norm\.bias"),
    ("NaN in the last norm", lambda tensors: tensors["norm.weight"][3:4].fill_(float("nan")), r"finite|nan"),
    (
        "infinity in an embedding",
        lambda tensors: tensors["embedding.episode_start.weight"][1].fill_(float("inf")),
        r"finite|nan|inf",
    ),
    (
        "weights so large that products overflow",
        lambda tensors: [each.fill_(3e38) for name, each in tensors.items() if "norm" not in name],
        r"finite|nan|inf",
    ),
]


def _run(change: Callable[[Path], Any], verb: str = "rollout") -> Callable[[Place], list[Any]]:
    """A rollout, or another use, of a run of which something is changed."""

    def make(place: Place) -> list[Any]:
        folder = place.take("run")
        change(folder)
        if verb == "evaluate":
            return place.evaluate(folder)
        return place.rollout(folder)

    return make


def _pushed(change: Callable[[Path], Any]) -> Callable[[Place], Callable[[], Any]]:
    """A push of a run of which something is changed, to a Hub on this machine."""

    def make(place: Place) -> Callable[[], Any]:
        import ad_hf

        folder = place.take("run")
        change(folder)

        def call() -> Any:
            with place.hub():
                return ad_hf.push_model(folder, "local/model")

        return call

    return make


def _config(*changes: tuple[str, Any]) -> Callable[[Path], Any]:
    return lambda run: edit_json(run / "model" / "config.json", *changes)


def _file(name: str, text: str | bytes) -> Callable[[Path], Any]:
    """Another file of a run."""
    return lambda run: (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def _files(text: str, *names: str) -> Callable[[Path], Any]:
    """One other file in several places of a run."""
    return lambda run: [_file(name, text)(run) for name in names]


class _Hostile:
    """What makes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.marker}",))


def _pickled(name: str) -> Callable[[Place], list[Any]]:
    """Weights as a pickle that runs a command, in the place of the others."""

    def make(place: Place) -> list[Any]:
        folder = place.take("run")
        (folder / "model" / WEIGHTS).unlink()
        torch.save({"norm.bias": _Hostile(place.marker)}, folder / "model" / name)
        return place.rollout(folder)

    return make


def _as_folder(run: Path) -> None:
    (run / "model" / WEIGHTS).unlink()
    (run / "model" / WEIGHTS).mkdir()


def _as_pipe(run: Path) -> None:
    (run / "model" / WEIGHTS).unlink()
    os.mkfifo(run / "model" / WEIGHTS)


def _dangling(run: Path) -> None:
    (run / "model" / WEIGHTS).unlink()
    (run / "model" / WEIGHTS).symlink_to("nowhere")


def _sharded(
    index: Callable[[dict[str, Any]], Any], first: str = "model-00001-of-00002.safetensors"
) -> Callable[[Path], Any]:
    """Weights in two files, with an index of which something is changed."""

    def change(run: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = run / "model"
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        places = {name: f"model-0000{1 + (place >= 16)}-of-00002.safetensors" for place, name in enumerate(names)}
        for file in sorted(set(places.values())):
            save_file({name: tensors[name] for name in names if places[name] == file}, folder / file, {"format": "pt"})
        found: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index(found) or found))

    return change


def _half(run: Path) -> None:
    edit_tensors(run / "model" / WEIGHTS, lambda tensors: {name: each.half() for name, each in tensors.items()})
    _config(("dtype", "float16"))(run)


def _snapshot(place: Place) -> list[Any]:
    """A model as the Hub's cache holds it: links to blobs."""
    repository = place.folder / "models--somebody--ad"
    snapshot = repository / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in (place.base / "run" / "model").iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return place.rollout(snapshot)


def _of_ones_own(folder: Path) -> None:
    """Weights of the first version: without the files that later ones wrote beside them."""
    for file in (folder / "model").iterdir():
        if file.name not in ("config.json", WEIGHTS):
            file.unlink()


def inputs() -> Iterator[Input]:
    """Models, refused and accepted."""
    for path, value, names in ENTRIES:
        shown = "left out" if value is DROP else repr(value)
        yield refused(AREA, f"config.json: {path} {shown}", _run(_config((path, value))), names)
    for what, change in CONFIGS:
        yield refused(
            AREA,
            f"config.json: {what}",
            _run(in_file(edit_bytes, "model/config.json", change)),
            r"config\.json",
        )
    for what, change in BYTES:
        yield refused(
            AREA,
            f"{WEIGHTS}: {what}",
            _run(in_file(edit_bytes, f"model/{WEIGHTS}", change)),
            r"model\.safetensors",
        )
    for what, tensors, names in TENSORS:
        yield refused(
            AREA,
            f"{WEIGHTS}: {what}",
            _run(in_file(edit_tensors, f"model/{WEIGHTS}", tensors)),
            names,
        )
    for what, tensors, names in TENSORS[:5:2]:
        yield refused(
            AREA,
            f"evaluate, {WEIGHTS}: {what}",
            _run(in_file(edit_tensors, f"model/{WEIGHTS}", tensors), "evaluate"),
            names,
        )
        yield refused(
            AREA,
            f"push, {WEIGHTS}: {what}",
            _pushed(in_file(edit_tensors, f"model/{WEIGHTS}", tensors)),
            names,
        )
    yield refused(AREA, f"{WEIGHTS}: a folder", _run(_as_folder), r"model\.safetensors")
    yield refused(AREA, f"{WEIGHTS}: a pipe", _run(_as_pipe), r"model\.safetensors")
    yield refused(AREA, f"{WEIGHTS}: a link to nowhere", _run(_dangling), r"model\.safetensors")
    for name in ("pytorch_model.bin", "model.pt"):
        yield refused(
            AREA, f"a pickle that runs a command, {name}, alone", _pickled(name), r"safetensors|pytorch_model"
        )
    yield refused(AREA, "an index of weights that is a list", _run(_sharded(lambda index: [index])), r"index\.json")
    yield refused(
        AREA,
        "an index of weights without its map",
        _run(_sharded(lambda index: {"metadata": {}})),
        r"index\.json|weight_map",
    )
    yield refused(
        AREA,
        "an index of weights that names a file that is not there",
        _run(_sharded(lambda index: index["weight_map"].update({"norm.bias": "model-00003-of-00003.safetensors"}))),
        r"model-00003",
    )
    yield refused(
        AREA,
        "an index of weights that lacks a tensor",
        _run(_sharded(lambda index: index["weight_map"].pop("norm.bias") and None)),
        r"norm\.bias",
        either=True,
    )
    for what, text, names in (
        ("a list", "[]", r"rollout_config\.json"),
        ("a setting of another spelling", '{"num_episode": 3}', r"num_episode"),
        ("a number that is text", '{"num_episodes": "3"}', r"num_episodes"),
        ("a temperature below 0", '{"temperature": -0.5}', r"temperature"),
        ("its first bytes", '{"num_epi', r"rollout_config\.json"),
        ("Latin-1", '{"seed": "é"}'.encode("latin-1"), r"rollout_config\.json"),
    ):
        yield refused(AREA, f"rollout_config.json: {what}", _run(_file("model/rollout_config.json", text)), names)
    for what, text, names in (
        ("text", "true\nfalse: [", r"recipe\.yaml"),
        ("a list", "- family\n", r"recipe\.yaml"),
        ("nothing in it", "", r"recipe\.yaml"),
        ("no family", "training: {}\n", r"recipe\.yaml|env_id|family"),
    ):
        yield refused(
            AREA,
            f"recipe.yaml of a run: {what}",
            _run(_files(text, "recipe.yaml", "model/recipe.yaml"), "evaluate"),
            names,
        )
    for name, what, text in (
        ("run.json", "a number", "7"),
        ("run.json", "its first bytes", '{"env_id": "ad'),
        ("evaluation.json", "a list", "[1]"),
        ("evaluation.json", "NaN alone", "NaN"),
        ("evaluation.json", "text", '"good"'),
    ):
        yield refused(
            AREA,
            f"push, {name}: {what}",
            _pushed(_files(text, name, f"model/{name}")),
            name.replace(".", r"\."),
        )
    yield refused(
        AREA,
        "push, README.md: metadata that is no YAML",
        _pushed(_file("model/README.md", "---\ntags: [a\n---\n# Mine\n")),
        r"README\.md",
    )
    yield accepted(
        AREA,
        "config.json: keys of later versions",
        _run(_config(("of_a_later_version", {"a": 1}), ("transformers_version", "99.0.0"))),
    )
    yield accepted(
        AREA, "config.json: without code of its own", _run(_config(("auto_map", DROP), ("architectures", DROP)))
    )
    yield accepted(AREA, "weights and configuration alone", _run(_of_ones_own))
    yield accepted(AREA, "weights in float16", _run(_half))
    yield accepted(AREA, "weights in two files with an index", _run(_sharded(lambda index: None)))
    yield accepted(AREA, "a snapshot of the Hub's cache: links to blobs", _snapshot)
    yield accepted(AREA, "rollout_config.json: nothing set", _run(_file("model/rollout_config.json", "{}")))
    yield accepted(AREA, "a card of one's own", _run(_file("model/README.md", "# Mine\n\nno metadata\n")))
