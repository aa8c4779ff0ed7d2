"""What is published and written: text that breaks out of cards, files that must not be pushed or lost."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from malformed_inputs.common import METADATA, SHARD, Input, Place, accepted, command, edit_json, refused

AREA = "security"
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
        from ad_hf.hub.model_card import write_model_card

        run = place.take("run")
        change(run, text)
        return lambda: str(write_model_card(run))

    return make


def _card_of_dataset(path: str, text: Any) -> Callable[[Place], Callable[[], Any]]:
    def make(place: Place) -> Callable[[], Any]:
        from ad_hf.histories.card import write_dataset_card

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
    """Hostile text and links in what is published, and the user's own files."""
    for what, text in HOSTILE.items():
        in_run = _in_run("run.json:env_id", "evaluation.json:env_id")
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
        ("rollout", "returns.parquet", True),
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
