"""The files of a model that are pushed: a list of names, the package's own code, results of these weights."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import ad_hf
from ad_hf.hub.model_files import checkpoint_files, model_files, own_results, run_files, weights_digest

CODE = {path.name: path for path in Path(ad_hf.model.__file__).parent.glob("*_ad.py")}
OWN = {"AutoConfig": "configuration_ad.ADConfig", "AutoModel": "modeling_ad.ADModel"}


@pytest.fixture
def folder(tiny_run, tmp_path):
    """A copy of a model's folder, to be spoilt."""
    return Path(shutil.copytree(tiny_run / "model", tmp_path / "theirs"))


def content(value):
    return value if isinstance(value, bytes) else value.read_bytes()


def spoil(folder):
    """Put what must not be pushed into a model's folder."""
    (folder / "credentials.json").write_text("secret")
    (folder / ".env").write_text("secret")
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "models.safetensors").write_text("other")
    (folder / "extra.py").write_text("evil")
    (folder / "best.d").mkdir()
    for name in CODE:
        (folder / name).unlink()
        (folder / name).write_text("evil")


def test_files_go_by_their_names_with_the_packages_own_code(folder):
    before = model_files(folder)
    assert set(before) == {"config.json", "model.safetensors", "rollout_config.json", *CODE}
    assert content(before["config.json"]) == (folder / "config.json").read_bytes()
    spoil(folder)
    after = model_files(folder)
    assert {name: content(value) for name, value in after.items()} == {n: content(v) for n, v in before.items()}
    assert all(content(after[name]) == path.read_bytes() for name, path in CODE.items())


ELSEWHERE = {
    "auto_map": {"AutoConfig": "somebody/evil--configuration.X", "AutoModelForCausalLM": "somebody/evil--modeling.X"},
    "custom_pipelines": {"x": {"impl": "somebody/evil--pipeline.X"}},
    "attn_implementation": "somebody/kernel",
    "_experts_implementation": {"": "somebody/kernel"},
}


def test_a_configuration_names_no_code_elsewhere(folder):
    config = json.loads((folder / "config.json").read_text())
    spoilt = {**config, **ELSEWHERE, "backbone_config": {"model_type": "llama", **ELSEWHERE, "layers": [ELSEWHERE]}}
    (folder / "config.json").write_text(json.dumps({**spoilt, "dtype": "float32", "attn_implementation_": "a/b"}))
    found = json.loads(content(model_files(folder)["config.json"]))
    assert found.pop("auto_map") == OWN
    assert found.pop("backbone_config") == {"model_type": "llama", "layers": [{}]}
    assert found.pop("attn_implementation_") == "a/b"
    assert {**found, "backbone_config": None, "auto_map": OWN} == {**config, "dtype": "float32"}


def test_wrong_files_are_refused_by_name(tiny_run, tmp_path):
    def move_weights_out(folder):
        os.replace(folder / "model.safetensors", folder.parent / "w")
        (folder / "model.safetensors").symlink_to("../w")

    def put_a_pipe(folder):
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")

    for number, (spoil_it, error, message) in enumerate(
        (
            (lambda folder: (folder / "replay.gif").symlink_to("/etc/passwd"), ValueError, "replay.gif is a link out"),
            (move_weights_out, ValueError, "model.safetensors is a link out of"),
            (lambda folder: (folder / "optimizer.PT").touch(), ValueError, "optimizer.PT"),
            (lambda folder: (folder / "config.json").write_text('{"model_type": "b"}'), ValueError, "must be 'ad'"),
            (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json is not JSON"),
            (lambda folder: (folder / "config.json").write_text("[]"), ValueError, "config.json must hold a mapping"),
            (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "holds no model"),
            (put_a_pipe, FileNotFoundError, "holds no model"),
        )
    ):
        folder = Path(shutil.copytree(tiny_run / "model", tmp_path / str(number) / "model"))
        spoil_it(folder)
        with pytest.raises(error, match=message):
            {**model_files(folder), **run_files(folder)}


def test_a_checkpoint_is_pushed_by_its_names_too(folder):
    shutil.copytree(folder, folder / "best")
    for name in ("training.safetensors", "training_state.json", "notes.txt"):
        (folder / name).write_text("{}")
    expected = set(model_files(folder))
    for each in (folder, folder / "best"):
        spoil(each)
    files = checkpoint_files(folder)
    assert set(files) == {
        *expected,
        *(f"best/{name}" for name in expected),
        "training.safetensors",
        "training_state.json",
    }
    assert all(content(files[f"best/{name}"]) == path.read_bytes() for name, path in CODE.items())
    (folder / "deepspeed").mkdir()
    (folder / "deepspeed" / "states.pt").touch()
    with pytest.raises(ValueError, match=r"deepspeed/states\.pt"):
        checkpoint_files(folder)
    (folder / "deepspeed" / "states.pt").unlink()
    (folder / "best" / "config.json").unlink()
    (folder / "best" / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        checkpoint_files(folder)


def test_results_are_those_of_the_weights(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    model = ad_hf.ADModel.from_pretrained(run / "model")
    digest = weights_digest(model)
    assert weights_digest(ad_hf.ADModel.from_pretrained(run / "model")) == digest
    results = {"evaluation.json", "learning_curve.png", "replay.gif"}
    for name in results:
        (run / name).write_text("{}")
    for file, of in (
        ("evaluation.json", digest),
        ("evaluation.json", None),
        ("evaluation.json", "other"),
        ("report.json", "other"),
    ):
        (run / "evaluation.json").unlink(missing_ok=True)
        (run / file).write_text(json.dumps({"weights_digest": of} if of else {}))  # earlier versions write none
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            left = set(own_results(run_files(run / "model"), lambda: digest))
        assert left == {"recipe.yaml", "run.json"} | (set() if of == "other" else results)
        assert [str(each.message) for each in told] == [
            f"{run / file} is of other weights than the model's: its results are left out"
        ] * (of == "other")
    (run / "evaluation.json").write_text("{}")
    assert "report.json" not in run_files(run / "model")  # which is older
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert weights_digest(model) != digest
    assert weights_digest(model.bfloat16()) != digest
