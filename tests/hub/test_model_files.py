"""What of a model's folder is pushed: files by their names, the package's own code, results of these weights."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import ad_hf
from ad_hf.hub.model_files import checkpoint_files, model_files, own_results, run_files, weights_digest
from ad_hf.storage.files import files_in

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


REFUSED = {
    "a link out": (lambda folder: (folder / "replay.gif").symlink_to("/etc/passwd"), "replay.gif is a link out of"),
    "weights elsewhere": (
        lambda folder: (
            os.replace(folder / "model.safetensors", folder.parent / "w")
            or (folder / "model.safetensors").symlink_to("../w")
        ),
        "model.safetensors is a link out of",
    ),
    "a pickle": (lambda folder: (folder / "optimizer.PT").touch(), "optimizer.PT"),
    "another model": (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "must be 'ad'"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json must hold a mapping"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_wrong_is_refused_by_its_name(folder, name):
    spoil_it, told = REFUSED[name]
    spoil_it(folder)
    with pytest.raises(ValueError, match=told):
        {**model_files(folder), **run_files(folder)}


def test_a_pipe_is_no_file(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        model_files(folder)


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


def test_files_of_a_snapshot_in_the_cache_are_its_own(tmp_path):
    snapshot = tmp_path / "models--somebody--x" / "snapshots" / "0123"
    blobs = snapshot.parent.parent / "blobs"
    for each in (snapshot, blobs):
        each.mkdir(parents=True)
    (blobs / "77").write_text("{}")
    (snapshot / "run.json").symlink_to("../../blobs/77")
    assert set(files_in(snapshot, ["run.json"])) == {"run.json"}
    (snapshot / "recipe.yaml").symlink_to("../../../../secret")
    (tmp_path.parent / "secret").write_text("")
    with pytest.raises(ValueError, match=r"recipe\.yaml is a link out"):
        files_in(snapshot, ["recipe.yaml"])
