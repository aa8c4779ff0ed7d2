"""Checkpoints that are not what a run writes: each is refused with its file and entry, and with the way out."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ad_hf
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.training.checkpoints import load_checkpoint
from ad_hf.training.members import Member
from ad_hf.training.metrics import read_metrics
from ad_hf.training.saved_state import check_state
from ad_hf.training.trainer import Trainer

STATE, TENSORS, MODEL, CONFIG = "training_state.json", "training.safetensors", "model.safetensors", "config.json"
WEIGHT = "head.linear.bias"
MOMENT, STEP = f"optimizer/{WEIGHT}/exp_avg", f"optimizer/{WEIGHT}/step"
NAN, INF, DROP = float("nan"), float("inf"), object()


@pytest.fixture(scope="module")
def recipe(tiny_recipe_file):
    recipe = ad_hf.load_recipe(tiny_recipe_file)
    recipe.training = replace(
        recipe.training, max_steps=6, eval_steps=2, save_steps=2, save_total_limit=2, eval_episodes=2
    )
    return recipe


@pytest.fixture(scope="module")
def run(recipe, tiny_histories, tmp_path_factory):
    """A run with two checkpoints, of updates 2 and 4 of 6."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    ad_hf.train(recipe, tiny_histories, folder)
    return folder


@pytest.fixture(scope="module")
def make_trainer(recipe, tiny_histories, tmp_path_factory):
    def make(streaming):
        dataset, output_dir = HistoryDataset.open(tiny_histories), tmp_path_factory.mktemp("runs") / "other"
        member = Member(dataset, recipe.family, recipe.data, recipe.rollout, streaming)
        return Trainer(output_dir, [member], recipe.model, recipe.training)

    return make


@pytest.fixture(scope="module")
def trainer(make_trainer):
    """The run anew, whose state no refused checkpoint changes."""
    return make_trainer(streaming=False)


@pytest.fixture
def checkpoints(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run", symlinks=True))


def cut(share):
    return lambda file: file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def content(data):
    return lambda file: file.write_bytes(data)


def entry(path, value):
    """Set or drop an entry of JSON, at a path."""

    def change(file):
        state = place = json.loads(file.read_text())
        *outer, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
        for part in outer:
            place = place[part]
        if value is DROP:
            del place[last]
        else:
            place[last] = value
        file.write_text(json.dumps(state))

    return change


def tensor(name, value):
    """Fill, replace, or drop a tensor."""

    def change(file):
        tensors = load_file(file)
        if value is DROP:
            del tensors[name]
        elif isinstance(value, float):
            tensors[name].fill_(value)
        else:
            tensors[name] = value
        save_file(tensors, file, metadata={"format": "pt"})

    return change


def link(file):
    file.unlink()
    file.symlink_to("/etc/hostname")


ENTRIES = [  # of the state: path, value, what the error says
    *((name, DROP, f"{name} is missing") for name in ("step", "best", "unvalidated", "batches", "dataset")),
    *((name, DROP, f"{name} is missing") for name in ("settings", "scaler")),
    ("dataset", 3, "dataset must be a mapping, got 3"),
    *(("step", step, f"step must be 4, got {step}") for step in (-1, 10**9, 2)),
    *(("step", step, f"step must be a whole number, got {step!r}") for step in ("4", True)),
    ("best", [0.5], "best must be a return and an update from 1 to 4"),
    ("best/1", 6, "best must be a return and an update from 1 to 4"),
    ("best/0", "0.5", r"best\[0\] must be a finite number, got '0\.5'"),
    ("best/0", NAN, r"best\[0\] must be a finite number, got nan"),
    ("unvalidated", [1], "unvalidated must be a mapping"),
    ("unvalidated", {"loss": "x"}, r"unvalidated\.loss must be a finite number"),
    ("unvalidated", {"loss": 1.0}, r"unvalidated\.learning_rate is missing"),
    *(("batches/0/position", place, r"batches\[0\] must be .*'position': 32}") for place in (-8, 16, 10**9)),
    ("batches/0/epoch", 10**9, r"batches\[0\] must be"),
    ("batches", [], "batches must have an entry for each process"),
    ("batches", 7, "batches must be a list"),
    ("batches", [[]], r"batches\[0\] must be a mapping"),
    ("scaler", {"scale": 1.0, "_growth_tracker": 0}, "scaler must be null"),
]
NOT_WHOLE = "training.safetensors: Error while deserializing"
FILES = [
    *((STATE, cut(share), "is not JSON") for share in (0, 0.5)),
    (STATE, content(b"\xff\xfe{}"), "is not UTF-8"),
    (STATE, content(b'{"a":' * 100_000), "nests too deep"),
    (STATE, content(b"[]"), "must hold a mapping"),
    (STATE, Path.unlink, "is not a file"),
    *((TENSORS, cut(share), NOT_WHOLE) for share in (0, 0.01, 0.5, 0.99)),
    *((MODEL, cut(share), "safetensors is damaged") for share in (0, 0.01, 0.5, 0.99)),
    (TENSORS, Path.unlink, "No such file"),
    (MODEL, Path.unlink, r"no file named model\.safetensors"),
    (TENSORS, tensor(MOMENT, DROP), f"{MOMENT} is missing"),
    (TENSORS, tensor("optimizer/x/exp_avg", torch.zeros(2)), "optimizer/x/exp_avg is unexpected"),
    (TENSORS, tensor(MOMENT, torch.zeros(2)), rf"{MOMENT} is of shape \[2\], expected \[5\]"),
    (TENSORS, tensor(MOMENT, torch.zeros(5, dtype=torch.uint8)), "of type torch.uint8"),
    (TENSORS, tensor(MOMENT, NAN), f"{MOMENT} has numbers that are not finite"),
    (TENSORS, tensor("optimizer/blocks.1.up.weight/momentum_buffer", INF), "not finite"),
    (TENSORS, tensor(f"{MOMENT}_sq", -1.0), "exp_avg_sq has numbers below 0"),
    (TENSORS, tensor(STEP, 1e9), f"{STEP} is 1000000000.0, after 4 updates"),
    (TENSORS, tensor("random/0/cpu", DROP), "random/0/cpu is missing"),
    (TENSORS, tensor("random/0/cpu", torch.zeros(7, dtype=torch.uint8)), r"of shape \[7\], expected"),
    (TENSORS, tensor("random/0/cpu", torch.full((5056,), 255, dtype=torch.uint8)), "is no state of random"),
    (MODEL, tensor(WEIGHT, DROP), f"{WEIGHT} is missing"),
    (MODEL, tensor("x", torch.zeros(1)), "x is none of the model's"),
    (MODEL, tensor(WEIGHT, torch.zeros(2)), r"has shape \(2,\), the model's has \(5,\)"),
    (MODEL, tensor(WEIGHT, NAN), f"not all finite: {WEIGHT}"),
    (CONFIG, cut(0.5), "config.json is not JSON"),
    (CONFIG, link, "is a link out of the checkpoint"),
    (f"best/{MODEL}", tensor(WEIGHT, NAN), "not all finite"),
    (f"best/{MODEL}", cut(0.5), "safetensors is damaged"),
    (f"best/{CONFIG}", cut(0.5), "config.json is not JSON"),
    (f"best/{CONFIG}", link, "is a link out of the checkpoint"),
    ("best", shutil.rmtree, "best"),
    *((STATE, entry(path, value), expected) for path, value, expected in ENTRIES),
]


@pytest.mark.parametrize("case", range(len(FILES)), ids=lambda case: re.sub(r"\W+", " ", " ".join(FILES[case][::2])))
def test_a_damaged_checkpoint_is_refused_and_the_newest_whole_one_named(trainer, checkpoints, case):
    file, damage, expected = FILES[case]
    newest = checkpoints / "checkpoint-4"
    damage(newest / file)
    with pytest.raises(ValueError, match=expected) as refused:
        load_checkpoint(trainer, newest)
    assert str(refused.value).startswith(f"{newest} is damaged (")
    assert str(newest / file.split("/")[0]) in str(refused.value)
    assert str(refused.value).endswith(
        f": go on from checkpoint-2 with --resume {checkpoints}/checkpoint-2, or remove checkpoint-4"
    )
    assert not trainer.output_dir.exists()


def test_a_run_without_a_whole_checkpoint_starts_anew(trainer, checkpoints):
    for step in (2, 4):
        (checkpoints / f"checkpoint-{step}" / STATE).write_text("{}")
    with pytest.raises(ValueError, match="there is no other one that is whole: train without --resume"):
        load_checkpoint(trainer, checkpoints / "checkpoint-4")


def test_the_best_model_is_written_anew_from_its_weights(trainer, checkpoints):
    """Other files beside it, code above all, do not come along."""
    best = checkpoints / "checkpoint-4" / "best"
    (best / "modeling_ad.py").write_text("raise SystemExit")
    (best / "notes.txt").write_text("mine")
    assert load_checkpoint(trainer, checkpoints / "checkpoint-4") == 4
    model = trainer.output_dir / "model"
    assert (model / "modeling_ad.py").read_text() != "raise SystemExit"
    assert not (model / "notes.txt").exists()
    assert (model / MODEL).read_bytes() == (best / MODEL).read_bytes()
    shutil.rmtree(trainer.output_dir)


def test_a_scaler_goes_on_from_a_scale_above_0(trainer, checkpoints, monkeypatch):
    monkeypatch.setattr(trainer.accelerator, "scaler", torch.amp.GradScaler("cpu"))
    state = json.loads((checkpoints / "checkpoint-4" / STATE).read_text())
    check_state(trainer, {**state, "scaler": {"scale": 128.0, "_growth_tracker": 3}}, 4)
    for scaler in (None, {"scale": 0.0, "_growth_tracker": 3}):
        with pytest.raises(ValueError, match="scaler must be that of a gradient scaler, its scale above 0"):
            check_state(trainer, {**state, "scaler": scaler}, 4)


def test_impossible_places_in_a_stream_are_refused(make_trainer):
    batches, state = make_trainer(streaming=True).batches, {"places": [[0, 0, 32]], "turn": 0, "consumers": 1}
    batches.check_state_dict(state, 0, 4)
    places: list = [[[0, 0, -1]], [[0, 10**9, 0]], [[10**9, 0, 0]], [[0, 0]], [[0, 0, 1.5]], [], 3]
    for change in [*({"places": place} for place in places), {"turn": 1}, {"consumers": 7}]:
        with pytest.raises(ValueError, match=r"batches\[0\] is no place in the stream after 4 batches"):
            batches.check_state_dict({**state, **change}, 0, 4)
    batches.load_state_dict({**state, "places": [[0, 0, 10**9]]})
    with pytest.raises(ValueError, match="goes on after window 1000000000 of a part of"):
        next(iter(batches))


def test_lines_without_metrics_are_refused(tmp_path):
    file, line = tmp_path / "metrics.jsonl", '{"step": 1, "loss": 1.5, "validation_curve": [0.5]}\n'
    for wrong, expected in (
        ("{}", "step is missing"),
        ('{"step": "1"}', "step must be a whole number from 1 to .*, got '1'"),
        ('{"step": 0}', "step must be from 1 to .*, got 0"),
        ("[1]", "must hold a mapping"),
        ('{"step": 2, "loss": null}', "loss must be a finite number, got None"),
        ('{"step": 2, "loss": NaN}', "loss must be a finite number, got nan"),
        ('{"step": 2, "validation_curve": [1, "2"]}', r"validation_curve\[1\] must be a finite number"),
        ('{"step": 2, "validation_curve": 3}', "validation_curve must be a list"),
        ("loss", "is not JSON"),
    ):
        file.write_text(f'{line}{wrong}\n{{"step"')
        with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2:? {expected}"):
            read_metrics(file)
    file.write_text(f'{line}{{"step"')  # torn: the run was killed as it wrote
    assert read_metrics(file) == [json.loads(line)]
