"""Hostile inputs: names that would be imported, files that link to what lies elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from malformed_inputs.common import METADATA, Input, Place, accepted, edit_json, refused

AREA = "security"
WAY_OUT = r"trust_remote_code"
CALLED = {
    "family.grid": None,
    "family.tasks": [{"command": "touch {marker}"}, {"command": "true"}, {"command": "true "}],
}
ALONE = {"family.native_vector": False}


def _named(setting: str, name: str) -> dict[str, Any]:
    return {f"family.{setting}": name, **CALLED}


def _wrapped(name: str, **kwargs: Any) -> dict[str, Any]:
    return {**ALONE, "family.wrappers": [{"name": name, "kwargs": kwargs}]}


def _drawn(function: str, **kwargs: Any) -> dict[str, Any]:
    values = {"goal": {"function": function, "kwargs": kwargs}}
    return {"family.grid": None, "family.random": {"num_tasks": 9, "values": values}}


# What a recipe that lies beside a model sets, for evaluate to refuse with the way out.
RECIPES: list[tuple[str, dict[str, Any], str]] = [
    *(
        (f"{setting}: {name}", _named(setting, name), rf"{setting}.*{WAY_OUT}")
        for setting, name in (
            ("stratify_by", "posix.system"),
            ("stratify_by", "importlib.import_module"),
            ("stratify_by", "ad_hf.recipe.files"),
            ("stratify_by", "ad_hf.envs.imports.import_named"),
            ("stratify_by", "ad_hf.envs.imports.import_callable"),
            ("stratify_by", "ad_hf.envs.dark_room.goal_distance.__globals__"),
            ("stratify_by", "ad_hf.envs.dark_room.goal_distance "),
            ("stratify_by", "AD_HF.envs.dark_room.goal_distance"),
            ("optimal_return", "torch.hub.load"),
            ("optimal_return", "shutil.os.system"),
            ("random_return", "numpy.load"),
            ("random_return", "evil_here.f"),
        )
    ),
    *(
        (f"a draw by {function}", _drawn(function, **kwargs), rf"family\.random.*{WAY_OUT}")
        for function, kwargs in (
            ("timeit.timeit", {"stmt": "open('{marker}', 'w')"}),
            ("subprocess.check_output", {"args": ["touch", "{marker}"]}),
            ("builtins.open", {"file": "{marker}", "mode": "w"}),
            ("gymnasium.envs.toy_text.frozen_lake.gym.make", {"id": "evil_here:X-v0"}),
        )
    ),
    *(
        (f"wrapper {name}", _wrapped(name, **kwargs), rf"wrappers.*{WAY_OUT}")
        for name, kwargs in (
            ("stable_baselines3.common.monitor.Monitor", {"filename": "{marker}"}),
            ("gymnasium.wrappers.TransformReward", {"func": "os.system"}),
            ("gymnasium.wrappers.LambdaAction", {}),
            ("gymnasium.wrappers.HumanRendering", {}),
            ("gymnasium.wrappers.vector.RecordVideo", {"video_folder": "{marker}"}),
            ("gymnasium.make_vec", {}),
            ("evil_here.Wrapper", {}),
            ("gymnasium.wrappers.TimeLimit.__init__", {"max_episode_steps": 3}),
        )
    ),
    (
        "a wrapper's argument that names a file",
        _wrapped("gymnasium.wrappers.ClipReward", log_path="{marker}"),
        rf"log_path.*{WAY_OUT}",
    ),
    *(
        (f"env_id {env_id}", {**ALONE, "family.env_id": env_id, "family.env_kwargs": kwargs}, rf"env.*{WAY_OUT}")
        for env_id, kwargs in (
            ("evil_here:CartPole-v1", {}),
            ("os:system", {}),
            ("gymnasium.envs.classic_control:CartPole-v1", {}),
            ("GymV21Environment-v0", {"env_id": "evil_here:X-v0"}),
            ("SomebodysRoom-v3", {}),
            (" CartPole-v1", {}),
        )
    ),
    *(
        (
            f"env_kwargs {name}",
            {**ALONE, "family.env_id": env_id, "family.env_kwargs": {name: "{marker}"}},
            rf"{name}.*{WAY_OUT}",
        )
        for env_id, name in (("Humanoid-v5", "xml_file"), ("Swimmer-v5", "model_path"))
    ),
    (
        "a file among a task's arguments",
        {
            **ALONE,
            "family.env_id": "HalfCheetah-v5",
            "family.env_kwargs": {},
            "family.grid": {"xml_file": ["{marker}"] * 4},
        },
        rf"xml_file.*{WAY_OUT}",
    ),
    (
        "a file among a split's arguments",
        {
            **ALONE,
            "family.env_id": "HalfCheetah-v5",
            "family.env_kwargs": {},
            "family.grid": None,
            "family.splits": {split: {"tasks": [{"xml_file": "{marker}"}]} for split in ("train", "test")},
        },
        rf"xml_file.*{WAY_OUT}",
    ),
    (
        "a private attribute",
        {
            **ALONE,
            "family.attributes": ["_np_random"],
            "family.env_kwargs": {"size": 3, "max_episode_steps": 6, "_np_random": 1},
        },
        rf"_np_random.*{WAY_OUT}",
    ),
    (
        "an attribute of an attribute",
        {
            **ALONE,
            "family.attributes": ["spec.entry_point"],
            "family.env_kwargs": {"size": 3, "max_episode_steps": 6, "spec.entry_point": "os:system"},
        },
        rf"entry_point.*{WAY_OUT}",
    ),
    (
        "an environment as a class",
        {"family.env_id": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "{marker}"]}}},
        r"env_id",
    ),
    (
        "a seed as a class",
        {"rollout.seed": {"class_path": "builtins.open", "init_args": {"file": "{marker}", "mode": "w"}}},
        r"rollout\.seed",
    ),
]
UNREAD: list[tuple[str, dict[str, Any]]] = [
    ("callbacks", {"source.callbacks": [{"name": "evil_here.Callback"}]}),
    ("an expert", {"source.algorithm": "NoisedPolicy", "source.hyperparameters": {"expert": "evil_here.expert"}}),
    (
        "a policy",
        {
            "source.hyperparameters": {
                "policy": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "{marker}"]}}
            }
        },
    ),
    ("labels", {"data.labels": "evil_here.labels"}),
    ("a tracker", {"training.log_with": "evil_here"}),
    (
        "code of a backbone",
        {"model.backbone_config": {"model_type": "gpt2", "auto_map": {"AutoConfig": "evil_here.Config"}}},
    ),
]


def _evil_module(place: Place) -> None:
    """A module that makes the marker when it is imported, in a folder that is looked at first."""
    folder = place.folder / "modules"
    folder.mkdir()
    code = f"open({str(place.marker)!r}, 'w').close()\n"
    (folder / "evil_here.py").write_text(code)
    sys.path.insert(0, str(folder))


def _beside_model(changes: dict[str, Any]) -> Callable[[Place], list[Any]]:
    """A run whose recipe is changed, evaluated."""

    def make(place: Place) -> list[Any]:
        _evil_module(place)
        run = place.take("run")
        filled = json.loads(json.dumps(changes).replace("{marker}", str(place.marker)))
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        for path, value in filled.items():
            section, _, name = path.partition(".")
            recipe[section][name] = value
        for file in (run / "recipe.yaml", run / "model" / "recipe.yaml"):
            file.write_text(yaml.safe_dump(recipe))
        return place.evaluate(run)

    return make


def _tagged(place: Place) -> list[Any]:
    run = place.take("run")
    for file in (run / "recipe.yaml", run / "model" / "recipe.yaml"):
        file.write_text(f"family: !!python/object/new:os.system [touch {place.marker}]\n")
    return place.evaluate(run)


def _with_code(changes: dict[str, Any] | None = None) -> Callable[[Place], list[Any]]:
    """A model whose modelling files are somebody's, and whose configuration may ask for them."""

    def make(place: Place) -> list[Any]:
        _evil_module(place)
        run = place.take("run")
        for file in (run / "model").glob("*.py"):
            file.write_text(f"open({str(place.marker)!r}, 'w').close()\n")
        edit_json(run / "model" / "config.json", *(changes or {}).items())
        return place.rollout(run)

    return make


# Links and external data in HDF5 files: how `rewards` is put into a file, of what lies in another one.
def _hdf5(put: Callable[[Any, Any, Path], Any]) -> Callable[[Place], list[Any]]:
    def make(place: Place) -> list[Any]:
        import h5py
        import numpy as np

        other = place.folder / "other.hdf5"
        with h5py.File(other, "w") as file:
            for name, values in (
                ("observations", np.full((8, 1), 7)),
                ("actions", np.zeros(8, int)),
                ("rewards", np.full(8, 7.0)),
                ("dones", np.arange(8) % 4 == 3),
            ):
                file[name] = values
                file[f"deep/er/{name}"] = values
        with h5py.File(place.folder / "a.hdf5", "w") as file:
            put(h5py, file, other)
        return ["convert", "from-arrays", place.folder / "a.hdf5", place.out, "--env_id", "Foo-v0"]

    return make


def _group_of_other(h5py: Any, file: Any, other: Path) -> None:
    file["run"] = h5py.ExternalLink(str(other), "/")
    file["rewards"] = [0.0] * 8


def _deep_group_of_other(h5py: Any, file: Any, other: Path) -> None:
    _good(file.create_group("run"))
    del file["run/observations"]
    file["links"] = h5py.ExternalLink(str(other), "/deep")
    file["run/observations"] = h5py.SoftLink("/links/er/observations")


def _good(group: Any) -> None:
    import numpy as np

    for name, values in (
        ("observations", np.zeros((8, 1))),
        ("actions", np.zeros(8, int)),
        ("rewards", np.ones(8)),
        ("dones", np.arange(8) % 4 == 3),
    ):
        group[name] = values


def _virtual_rewards(h5py: Any, file: Any, other: Path) -> None:
    _good(file)
    del file["rewards"]
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "rewards", (8,))
    file.create_virtual_dataset("rewards", layout)


def _raw_actions(h5py: Any, file: Any, other: Path) -> None:
    _good(file)
    del file["actions"]
    raw = other.with_name("raw.bin")
    raw.write_bytes(bytes(8))
    file.create_dataset("actions", (8,), "u1", external=[(str(raw), 0, 8)])


def _goal_of_other(h5py: Any, file: Any, other: Path) -> None:
    _good(file)
    file["goal"] = h5py.ExternalLink(str(other), "/rewards")


def _dones_of_other(h5py: Any, file: Any, other: Path) -> None:
    _good(file)
    del file["dones"]
    file["dones"] = h5py.ExternalLink(str(other), "/dones")


def _minari(change: Callable[[Place, Path], Any], of_others: bool = True) -> Callable[[Place], list[Any]]:
    def make(place: Place) -> list[Any]:
        _evil_module(place)
        folder = place.take("minari/tiny/a2c-v0", "minari")
        if of_others:
            data = json.loads((folder / "data" / "metadata.json").read_text())
            data.pop("ad_hf")
            (folder / "data" / "metadata.json").write_text(json.dumps(data))
        change(place, folder / "data")
        return ["convert", "from-minari", folder, place.out]

    return make


def _episode_of_other(name: str) -> Callable[[Place, Path], Any]:
    def change(place: Place, data: Path) -> None:
        import h5py

        shutil.copy(data / "main_data.hdf5", place.folder / "other.hdf5")
        with h5py.File(data / "main_data.hdf5", "r+") as file:
            del file[name]
            file[name] = h5py.ExternalLink(str(place.folder / "other.hdf5"), name)

    return change


def _spec_of_evil(place: Place, data: Path) -> None:
    spec = {
        "id": "evil_here:X-v0",
        "entry_point": "evil_here:X",
        "kwargs": {},
        "additional_wrappers": [{"name": "W", "entry_point": "evil_here:W", "kwargs": {}}],
    }
    edit_json(data / "metadata.json", ("env_spec", json.dumps(spec)))


def _merged(place: Place) -> list[Any]:
    """Two datasets of other seeds whose recipes name code."""
    _evil_module(place)
    folders = []
    for seed in (0, 1):
        folder = place.take("h", f"h{seed}")
        recipe = yaml.safe_load((place.base / "tiny.yaml").read_text())
        recipe["family"]["stratify_by"] = "evil_here.f"
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"family": recipe["family"]}))
        edit_json(folder / METADATA, ("seeds", [seed]), ("fingerprint", ""))
        folders.append(folder)
    _other_seed(folders[1])
    return ["merge", *folders, place.out]


def _other_seed(folder: Path) -> None:
    """Histories under the names of seed 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in (folder / "default").glob("*.parquet"):
        table = pq.read_table(shard)
        rows = [{**row, "history_id": re.sub(r"-0-", "-1-", row["history_id"])} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)


def _no_evil(place: Place, value: Any) -> str | None:
    for path in place.out.rglob("recipe.yaml"):
        if "evil_here" in path.read_text():
            return "the result's recipe names code of somebody's"
    return None


def _wrapped_data(place: Place) -> list[Any]:
    _evil_module(place)
    folder = place.take("h")
    edit_json(folder / METADATA, ("wrappers", [{"name": "evil_here.W", "kwargs": {}}]), ("env_id", "evil_here:X-v0"))
    return ["convert", "to-minari", folder, "tiny/evil-v0"]


def inputs() -> Iterator[Input]:
    """What names code or links elsewhere, and must not be followed."""
    for what, changes, names in RECIPES:
        yield refused(AREA, f"evaluate, recipe of a model: {what}", _beside_model(changes), names)
    for what, changes in UNREAD:
        yield accepted(AREA, f"evaluate, recipe of a model: {what}, which is not read", _beside_model(changes))
    yield refused(AREA, "evaluate, recipe of a model: a tag of Python", _tagged, r"recipe\.yaml")
    yield accepted(AREA, "rollout: a model's own modelling code, which is not read", _with_code())
    yield refused(
        AREA,
        "rollout: a configuration whose backbone has code",
        _with_code(
            {
                "backbone_config": {
                    "model_type": "gpt2",
                    "n_embd": 16,
                    "n_layer": 1,
                    "n_head": 2,
                    "auto_map": {"AutoConfig": "evil_here.Config", "AutoModel": "evil_here.Model"},
                }
            }
        ),
        rf"auto_map.*{WAY_OUT}|{WAY_OUT}|blocks|backbone",
    )
    yield refused(
        AREA,
        "rollout: a kernel of somebody's on the Hub",
        _with_code({"_attn_implementation": "evil/kernel"}),
        r"attn_implementation|evil/kernel",
        either=True,
    )
    for what, put, names in (
        ("a group is a link to another file", _group_of_other, r"run|link|observations"),
        ("observations are a link to a group of another file", _deep_group_of_other, r"observations|link"),
        ("rewards are a virtual dataset", _virtual_rewards, r"rewards"),
        ("actions are stored in another file", _raw_actions, r"actions"),
        ("ends are a link to another file", _dones_of_other, r"dones"),
        ("the goal is a link to another file", _goal_of_other, r"goal"),
    ):
        yield refused(AREA, f"HDF5: {what}", _hdf5(put), names)
    yield refused(
        AREA,
        "Minari: an episode is a link to another file",
        _minari(_episode_of_other("episode_5")),
        r"episode_?\s?5|link",
    )
    yield refused(
        AREA,
        "Minari: actions are a link to another file",
        _minari(_episode_of_other("episode_5/actions")),
        r"episode_?\s?5|link|actions",
    )
    yield refused(
        AREA,
        "Minari, ours: an episode is a link to another file",
        _minari(_episode_of_other("episode_5"), of_others=False),
        r"episode_?\s?5|link",
    )
    yield refused(AREA, "Minari: an environment with code", _minari(_spec_of_evil), r"env|spec|evil_here", either=True)
    yield refused(
        AREA,
        "convert to-minari: an environment and a wrapper with code",
        _wrapped_data,
        rf"evil_here|{WAY_OUT}",
        either=True,
    )
    yield refused(
        AREA, "merge: recipes that name code", _merged, rf"evil_here|{WAY_OUT}|recipe", _no_evil, either=True
    )
