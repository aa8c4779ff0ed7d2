"""Hostile inputs: names that would be imported, links that leave a folder, text that breaks out of a card."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from malformed_inputs.common import METADATA, SHARD, Input, Place, accepted, command, edit_json, refused

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
            ("stratify_by", "ad_hf.envs.tasks.locate"),
            ("stratify_by", "ad_hf.envs.task_family.import_callable"),
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


HOSTILE = {
    "quotes": 'x", __import__("os").system("touch MARKER"), "',
    "an apostrophe and a parenthesis": "x'); __import__('os').system('touch MARKER'); ('",
    "a code block's end": "x\n```\n\n# Injected\n\n```python\nimport os; os.system('touch MARKER')\n",
    "a template": "{{ ''.__class__.__mro__ }}{% include '/etc/passwd' %}",
    "metadata's end": "x\n---\nlicense: injected\n---\n",
    "HTML": "x</code><script>injected()</script>",
    "backticks": "x` [injected](https://example.com) `",
    "a backslash": 'x\\", __import__("os").system("touch MARKER"), "\\',
}


def _check_card(text: str) -> str | None:
    """What is wrong with a card: code that does not parse or calls what it must not, blocks that break open."""
    _, header, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    data = yaml.safe_load(header)
    if "injected" in str(data.get("license")):
        return "its metadata has an injected licence"
    fences = re.findall(r"^\s*(`{3,}|~{3,})", body, re.MULTILINE)
    if len(fences) % 2:
        return "its code blocks are not closed"
    blocks = re.findall(r"^(`{3,})python\n(.*?)^\1\s*$", body, re.MULTILINE | re.DOTALL)
    for _, code in blocks:
        try:
            tree = ast.parse(code)
        except SyntaxError as error:
            return f"its code does not parse: {error}"
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if "__import__" in called or "system" in called or "exec" in called:
                return f"its code calls {called}"
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1\s*$", "", body, flags=re.MULTILINE | re.DOTALL)
    plain = re.sub(r"(`+).+?\1", "", outside)
    for sign in ("# Injected", "<script>", "[injected](", "root:"):
        if sign in plain:
            return f"its text has {sign!r}"
    return None


def _card_of_model(change: Callable[[Path, str], Any], text: str) -> Callable[[Place], Callable[[], Any]]:
    def make(place: Place) -> Callable[[], Any]:
        from ad_hf.hub.cards import write_model_card

        run = place.take("run")
        change(run, text)
        return lambda: str(write_model_card(run))

    return make


def _card_of_dataset(path: str, text: Any) -> Callable[[Place], Callable[[], Any]]:
    def make(place: Place) -> Callable[[], Any]:
        from ad_hf.hub.cards import write_dataset_card

        folder = place.take("h")
        edit_json(folder / METADATA, (path, text))
        return lambda: str(write_dataset_card(folder))

    return make


def _read_card(place: Place, value: Any) -> str | None:
    return _check_card(Path(value).read_text())


def _in_run(*paths: str) -> Callable[[Path, str], Any]:
    """A text in entries of JSON files of a run, in both of their places."""

    def change(run: Path, text: str) -> None:
        for path in paths:
            name, entry = path.split(":")
            for folder in (run, run / "model"):
                edit_json(folder / name, (entry, text))

    return change


def _in_recipe(run: Path, text: str) -> None:
    for folder in (run, run / "model"):
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe["family"]["report_by"] = text
        (folder / "recipe.yaml").write_text(f"# ```\n# {text}\n{yaml.safe_dump(recipe, default_style='|')}")


def _pushed(kind: str, change: Callable[[Place, Path], Any]) -> Callable[[Place], Callable[[], Any]]:
    """A push to a Hub on this machine; returns the files that are there then, with their contents."""

    def make(place: Place) -> Callable[[], Any]:
        import ad_hf

        place.text("SECRET of the user", "outside/secret.txt")
        folder = place.take("h" if kind == "dataset" else "run")
        change(place, folder)

        def call() -> Any:
            from huggingface_hub import HfApi, hf_hub_download

            with place.hub():
                push = ad_hf.push_dataset if kind == "dataset" else ad_hf.push_model
                push(folder, "local/x")
                names = HfApi().list_repo_files("local/x", repo_type=kind)
                return {name: Path(hf_hub_download("local/x", name, repo_type=kind)).read_bytes() for name in names}

        return call

    return make


def _no_secret(place: Place, files: Any) -> str | None:
    """No content of the user's from outside was pushed, and no code but the package's own."""
    import ad_hf.model

    for name, content in files.items():
        if b"SECRET" in content:
            return f"{name} was pushed, with what lies elsewhere"
        own = Path(ad_hf.model.__file__).parent / Path(name).name
        if name.endswith(".py") and (not own.exists() or own.read_bytes() != content):
            return f"{name} was pushed, which is not the package's own"
    return None


def _link(name: str) -> Callable[[Place, Path], Any]:
    """A file of what is pushed is a link to a file elsewhere."""

    def change(place: Place, folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(place.folder / "outside" / "secret.txt")

    return change


def _file(name: str, text: str = "SECRET of the user") -> Callable[[Place, Path], Any]:
    def change(place: Place, folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def _linked_folder(place: Place, folder: Path) -> None:
    (folder / "model" / "data").symlink_to(place.folder / "outside")


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


def _users(verb: str, name: str, is_folder: bool = False) -> Callable[[Place], list[Any]]:
    """A verb that writes into a folder where the user has something."""

    def make(place: Place) -> list[Any]:
        path = place.out / name
        (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        (path / "notes.txt" if is_folder else path).write_text("mine")
        if verb == "collect":
            return place.collect(place.recipe({"source.total_timesteps": 48, "source.n_envs": 2}))
        if verb == "convert":
            return ["convert", "from-arrays", place.base / "box.npz", place.out, "--env_id", "Foo-v0"]
        return {"train": place.train, "rollout": place.rollout}.get(verb, lambda: place.evaluate(place.base / "run"))()

    return make


def _users_model_elsewhere(place: Place) -> list[Any]:
    """`model` is a link to a folder of the user's."""
    place.text("mine", "elsewhere/notes.txt")
    place.out.mkdir()
    (place.out / "model").symlink_to(place.folder / "elsewhere")
    return place.train()


def _kept(*names: str) -> Callable[[Place, Any], str | None]:
    def check(place: Place, value: Any) -> str | None:
        for name in names:
            path = place.folder / name
            if not path.is_file() or path.read_text() != "mine":
                return f"{name}, which is the user's, is gone"
        return None

    return check


def _always(make: Callable[[Place], list[Any]], check: Callable[[Place, Any], str | None]) -> Callable[[Place], Any]:
    """A command after which something is checked whether it was refused or not."""

    def call_of(place: Place) -> Callable[[], Any]:
        argv = make(place)

        def call() -> Any:
            status = command(argv)
            return check(place, status)

        return call

    return call_of


def _lost(place: Place, value: Any) -> str | None:
    return None if value is None else str(value)


def inputs() -> Iterator[Input]:
    """Hostile inputs, and the user's own files."""
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
    for what, text in HOSTILE.items():
        in_run = _in_run("run.json:env_id", "report.json:env_id")
        yield refused(
            AREA,
            f"card of a model: an env_id with {what}",
            _card_of_model(in_run, text),
            r"env_id|run\.json",
            _read_card,
            either=True,
        )
        yield refused(
            AREA,
            f"card of a dataset: an env_id with {what}",
            _card_of_dataset("env_id", text),
            r"env_id|metadata\.json",
            _read_card,
            either=True,
        )
    for what in ("a code block's end", "backticks", "HTML", "metadata's end"):
        text = HOSTILE[what]
        yield refused(
            AREA,
            f"card of a model: a recipe with {what}",
            _card_of_model(_in_recipe, text),
            r"recipe\.yaml",
            _read_card,
            either=True,
        )
        yield refused(
            AREA,
            f"card of a dataset: an algorithm with {what}",
            _card_of_dataset("source/algorithm", text),
            r"algorithm|metadata\.json",
            _read_card,
            either=True,
        )
        yield refused(
            AREA,
            f"card of a dataset: a hyper-parameter with {what}",
            _card_of_dataset("source/hyperparameters", {text: text}),
            r"hyperparameters|metadata\.json",
            _read_card,
            either=True,
        )
        yield refused(
            AREA,
            f"card of a model: a dataset's name with {what}",
            _card_of_model(_in_run("run.json:dataset/name"), text),
            r"run\.json|dataset",
            _read_card,
            either=True,
        )
    for kind, name in (
        ("model", "recipe.yaml"),
        ("model", "model/notes.json"),
        ("model", "model/learning_curve.png"),
        ("model", "model/README.md"),
        ("dataset", "README.md"),
        ("dataset", METADATA),
        ("dataset", SHARD),
        ("dataset", "default/notes.txt"),
        ("dataset", "recipe.yaml"),
    ):
        yield refused(
            AREA,
            f"push of a {kind}: {name} is a link to a file elsewhere",
            _pushed(kind, _link(name)),
            rf"{Path(name).name.replace('.', '[.]')}|link",
            _no_secret,
            either=True,
        )
    yield accepted(
        AREA, "push of a model: a folder that is a link elsewhere", _pushed("model", _linked_folder), _no_secret
    )
    for name in (
        "model/.env",
        "model/credentials.json",
        "model/token",
        ".git/config",
        "model/optimizer.safetensors",
        "notes.md",
    ):
        yield accepted(
            AREA, f"push of a model: the user's {name} beside it", _pushed("model", _file(name)), _no_secret
        )
    for name in ("default/.env", "secrets.json", "default/raw.npz", ".cache/token"):
        yield accepted(
            AREA, f"push of a dataset: the user's {name} in it", _pushed("dataset", _file(name)), _no_secret
        )
    for name in ("model/modeling_ad.py", "model/setup.py"):
        yield accepted(
            AREA, f"push of a model: somebody's {name}", _pushed("model", _file(name, "SECRET = 1\n")), _no_secret
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
    for verb, name, is_folder in (
        ("train", "model", True),
        ("train", "model", False),
        ("train", ".notes.12.tmp", False),
        ("train", ".drafts.old", True),
        ("train", "checkpoint-final", True),
        ("train", "checkpoint-3", False),
        ("collect", "default", True),
        ("collect", "default", False),
        ("collect", ".mine.tmp", False),
        ("convert", "default", True),
        ("convert", "notes", True),
        ("rollout", "model", True),
        ("evaluate", "evaluation.json", True),
        ("rollout", "report.json", True),
        ("train", "metrics.jsonl", True),
    ):
        lost = f"out/{name}/notes.txt" if is_folder else f"out/{name}"
        made = _always(_users(verb, name, is_folder), _kept(lost))
        yield accepted(
            AREA, f"{verb}: the user's {'folder' if is_folder else 'file'} {name} in the output folder", made, _lost
        )
    yield accepted(
        AREA,
        "train: the model's folder is a link to the user's",
        _always(_users_model_elsewhere, _kept("elsewhere/notes.txt")),
        _lost,
    )
