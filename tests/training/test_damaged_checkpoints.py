"""Checkpoints that are not what a run writes: each is refused with its file and entry, and with the way out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ad_hf
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.training.checkpoints import load_checkpoint
from ad_hf.training.metrics import read_metrics
from ad_hf.training.saved_state import Number, check_entry, check_state
from ad_hf.training.trainer import Trainer

STATE, TENSORS, MODEL = "training_state.json", "training.safetensors", "model.safetensors"
WEIGHT, MATRIX = "head.linear.bias", "blocks.1.up.weight"


@pytest.fixture(scope="module")
def run(tiny_recipe_file, tiny_histories, tmp_path_factory):
    """Recipe and folder of a run with two checkpoints, of updates 2 and 4 of 6."""
    recipe = ad_hf.load_recipe(tiny_recipe_file)
    recipe.training = replace(
        recipe.training, max_steps=6, eval_steps=2, save_steps=2, save_total_limit=2, eval_episodes=2
    )
    folder = tmp_path_factory.mktemp("runs") / "run"
    ad_hf.train(recipe, tiny_histories, folder, say=lambda line: None)
    return recipe, folder


@pytest.fixture(scope="module")
def trainer(run, tiny_histories, tmp_path_factory):
    """The run anew, whose state no checkpoint that is refused changes."""
    output_dir = tmp_path_factory.mktemp("runs") / "other"
    return Trainer(run[0], HistoryDataset.open(tiny_histories), output_dir, lambda line: None, streaming=False)


@pytest.fixture
def checkpoints(run, tmp_path):
    return Path(shutil.copytree(run[1], tmp_path / "run", symlinks=True))


def cut(share):
    return lambda file: file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def text(content):
    return lambda file: file.write_text(content)


def gone(file):
    file.unlink()


def entry(*path_and_value):
    """Set an entry of JSON, at a path."""
    *path, last, value = path_and_value

    def change(file):
        state = place = json.loads(file.read_text())
        for name in path:
            place = place[name]
        place[last] = value
        file.write_text(json.dumps(state))

    return change


def without(name):
    def change(file):
        state = json.loads(file.read_text())
        del state[name]
        file.write_text(json.dumps(state))

    return change


def tensors(change):
    def rewrite(file):
        found = load_file(file)
        change(found)
        save_file(found, file, metadata={"format": "pt"})

    return rewrite


def fill(name, value):
    return tensors(lambda found: found[name].fill_(value))


def put(name, value):
    return tensors(lambda found: found.update({name: value}))


def drop(name):
    return tensors(lambda found: found.pop(name))


def link(file):
    file.unlink()
    file.symlink_to("/etc/hostname")


NOT_WHOLE = "is not a whole file of safetensors"
MOMENT, STEP = f"optimizer/0/{WEIGHT}/exp_avg", f"optimizer/0/{WEIGHT}/step"
DAMAGED = {
    "empty state": (STATE, cut(0), "is not JSON"),
    "half a state": (STATE, cut(0.5), "is not JSON"),
    "no UTF-8": (STATE, lambda file: file.write_bytes(b"\xff\xfe{}"), "is not UTF-8"),
    "deep": (STATE, text('{"a":' * 100_000), "nests too deep"),
    "state gone": (STATE, gone, "is not a file"),
    "list": (STATE, text("[]"), "must hold a mapping"),
    "nothing": (STATE, text("{}"), "dataset is missing"),
    "number for dataset": (STATE, entry("dataset", 3), "dataset must be a mapping, got 3"),
    "no settings": (STATE, without("settings"), "settings is missing"),
    **{
        f"no {name}": (STATE, without(name), f"{name} is missing")
        for name in ("step", "best", "unvalidated", "batches")
    },
    **{f"no {name}": (STATE, without(name), f"{name} is missing") for name in ("optimizers", "schedulers", "scaler")},
    "step below": (STATE, entry("step", -1), "step must be 4, got -1"),
    "step above": (STATE, entry("step", 10**9), "step must be 4, got 1000000000"),
    "step of another": (STATE, entry("step", 2), "step must be 4, got 2"),
    "step as text": (STATE, entry("step", "4"), "step must be 4, got '4'"),
    "step as a truth": (STATE, entry("step", True), "step must be 4, got True"),
    "best of one": (STATE, entry("best", [0.5]), "best must have 2 entries"),
    "best as text": (STATE, entry("best", ["0.5", 2]), r"best\[0\] must be a finite number, got '0\.5'"),
    "best NaN": (STATE, entry("best", 0, float("nan")), r"best\[0\] must be a finite number, got nan"),
    "best later": (STATE, entry("best", 1, 6), r"best\[1\] must be a whole number from 1 to 4, got 6"),
    "unvalidated list": (STATE, entry("unvalidated", [1]), "unvalidated must be None"),
    "unvalidated text": (STATE, entry("unvalidated", {"loss": "x"}), r"unvalidated\.loss must be a finite number"),
    "position below": (STATE, entry("batches", 0, "position", -8), r"batches\[0\] must be .*'position': 32}"),
    "position above": (STATE, entry("batches", 0, "position", 10**9), r"batches\[0\] must be .*got .*1000000000"),
    "position of another": (STATE, entry("batches", 0, "position", 16), r"batches\[0\] must be .*'position': 32}"),
    "epoch": (STATE, entry("batches", 0, "epoch", 10**9), r"batches\[0\] must be"),
    "batches empty": (STATE, entry("batches", []), "batches must have 1 entries"),
    "batches number": (STATE, entry("batches", 7), "batches must be a list"),
    "batch list": (STATE, entry("batches", [[]]), r"batches\[0\] must be a mapping"),
    "schedulers empty": (STATE, entry("schedulers", []), "schedulers must have 2 entries"),
    "scheduler empty": (STATE, entry("schedulers", 1, {}), r"schedulers\[1\]\.base_lrs is missing"),
    "scheduler ahead": (
        STATE,
        entry("schedulers", 0, "last_epoch", 40),
        r"schedulers\[0\]\.last_epoch must be 4, got 40",
    ),
    "scheduler faster": (
        STATE,
        entry("schedulers", 0, "base_lrs", 1, 9.0),
        r"schedulers\[0\]\.base_lrs\[1\] must be 0\.003",
    ),
    "optimizers empty": (STATE, entry("optimizers", []), "optimizers must have 2 entries"),
    "optimizer faster": (
        STATE,
        entry("optimizers", 0, 1, "lr", 1e9),
        r"optimizers\[0\]\[1\]\.lr must be 0\.001.*, got 1000000000\.0",
    ),
    "optimizer text": (STATE, entry("optimizers", 1, 0, "lr", "fast"), r"optimizers\[1\]\[0\]\.lr must be .*'fast'"),
    "optimizer decay": (
        STATE,
        entry("optimizers", 0, 0, "weight_decay", 9.0),
        r"optimizers\[0\]\[0\]\.weight_decay must be 0\.01",
    ),
    "optimizer betas": (STATE, entry("optimizers", 0, 0, "betas", [0.9, 1.5]), r"betas\[1\] must be 0\.99, got 1\.5"),
    "optimizer of others": (STATE, entry("optimizers", 0, 0, "params", 0, "x"), r"params\[0\] must be '.*', got 'x'"),
    "scaler": (STATE, entry("scaler", {"scale": 1.0}), "scaler must be None"),
    **{f"tensors cut at {share}": (TENSORS, cut(share), NOT_WHOLE) for share in (0, 0.01, 0.5, 0.99)},
    **{f"weights cut at {share}": (MODEL, cut(share), "safetensors is damaged") for share in (0, 0.01, 0.5, 0.99)},
    "tensors gone": (TENSORS, gone, "is missing"),
    "weights gone": (MODEL, gone, r"no file named model\.safetensors"),
    "no moment": (TENSORS, drop(MOMENT), f"{MOMENT} is missing"),
    "moment of another": (
        TENSORS,
        put("optimizer/0/x/exp_avg", torch.zeros(2)),
        "optimizer/0/x/exp_avg is unexpected",
    ),
    "moment's shape": (TENSORS, put(MOMENT, torch.zeros(2)), rf"{MOMENT} is of shape \[2\], expected \[5\]"),
    "moment NaN": (TENSORS, fill(MOMENT, float("nan")), f"{MOMENT} has numbers that are not finite"),
    "Muon inf": (TENSORS, fill(f"optimizer/1/{MATRIX}/momentum_buffer", float("inf")), "not finite"),
    "variance below 0": (TENSORS, fill(f"{MOMENT}_sq", -1.0), "exp_avg_sq has numbers below 0"),
    "steps ahead": (TENSORS, fill(STEP, 1e9), f"{STEP} is 1000000000.0, after 4 updates"),
    "moment of integers": (TENSORS, put(MOMENT, torch.zeros(5, dtype=torch.uint8)), "of type torch.uint8"),
    "no random state": (TENSORS, drop("random/0/cpu"), "random/0/cpu is missing"),
    "short random state": (
        TENSORS,
        put("random/0/cpu", torch.zeros(7, dtype=torch.uint8)),
        r"of shape \[7\], expected",
    ),
    "other random state": (
        TENSORS,
        put("random/0/cpu", torch.full((5056,), 255, dtype=torch.uint8)),
        "is no state of random",
    ),
    "no weight": (MODEL, drop(WEIGHT), f"{WEIGHT} is missing"),
    "extra weight": (MODEL, put("x", torch.zeros(1)), "x is none of the model's"),
    "weight's shape": (MODEL, put(WEIGHT, torch.zeros(2)), r"has shape \(2,\), the model's has \(5,\)"),
    "weight NaN": (MODEL, fill(WEIGHT, float("nan")), f"not all finite: {WEIGHT}"),
    "config cut": ("config.json", cut(0.5), "config.json is not JSON"),
    "config of a link": ("config.json", link, "is a link out of the checkpoint"),
    "best weight NaN": (f"best/{MODEL}", fill(WEIGHT, float("nan")), "not all finite"),
    "best cut": (f"best/{MODEL}", cut(0.5), "safetensors is damaged"),
    "best's config": ("best/config.json", cut(0.5), "config.json is not JSON"),
    "best gone": ("best", shutil.rmtree, "best"),
    "best with a link": ("best/config.json", link, "is a link out of the checkpoint"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_and_the_newest_whole_one_named(trainer, checkpoints, name):
    file, damage, expected = DAMAGED[name]
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
    """What else lies beside it, code above all, does not come along."""
    best = checkpoints / "checkpoint-4" / "best"
    (best / "modeling_ad.py").write_text("raise SystemExit")
    (best / "notes.txt").write_text("mine")
    assert load_checkpoint(trainer, checkpoints / "checkpoint-4") == 4
    model = trainer.output_dir / "model"
    assert (model / "modeling_ad.py").read_text() != "raise SystemExit"
    assert not (model / "notes.txt").exists()
    assert (model / MODEL).read_bytes() == (best / MODEL).read_bytes()
    shutil.rmtree(trainer.output_dir)


@pytest.mark.parametrize("value", [None, 0.0, float("inf"), "1"])
def test_a_scaler_goes_on_from_a_scale_that_it_may_have(trainer, checkpoints, monkeypatch, value):
    scaler = torch.amp.GradScaler("cpu")
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    state = json.loads((checkpoints / "checkpoint-4" / STATE).read_text())
    state["scaler"] = {**scaler.state_dict(), "scale": 128.0 if value is None else value, "_growth_tracker": 3}
    if value is None:
        check_state(trainer, state, 4, sharded=False)
    else:
        with pytest.raises(ValueError, match=r"scaler\.scale must be a finite number from 1e-38"):
            check_state(trainer, state, 4, sharded=False)


@pytest.fixture(scope="module")
def streamed(run, tiny_histories, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "streamed"
    return Trainer(run[0], HistoryDataset.open(tiny_histories), output_dir, lambda line: None, streaming=True)


@pytest.mark.parametrize(
    "change",
    [
        {"places": [[0, 0, -1]]},
        {"places": [[0, 10**9, 0]]},
        {"places": [[10**9, 0, 0]]},
        {"places": [[0, 0]]},
        {"places": [[0, 0, 1.5]]},
        {"places": []},
        {"places": 3},
        {"turn": 1},
        {"consumers": 7},
    ],
    ids=str,
)
def test_impossible_places_in_a_stream_are_refused(streamed, change):
    state = {"places": [[0, 0, 32]], "turn": 0, "consumers": 1}
    streamed.batches.check_state_dict(state, 0, 4)
    with pytest.raises(ValueError, match=r"batches\[0\] is no place in the stream after 4 batches"):
        streamed.batches.check_state_dict({**state, **change}, 0, 4)


def test_a_place_past_the_windows_of_a_stream_is_refused_where_they_are_read(streamed):
    streamed.batches.load_state_dict({"places": [[0, 0, 10**9]], "turn": 0, "consumers": 1})
    with pytest.raises(ValueError, match="goes on after window 1000000000 of a part of"):
        next(iter(streamed.batches))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{}", "line 2.step is missing"),
        ('{"step": "1"}', r"line 2\.step must be a whole number from 1, got '1'"),
        ("[1]", "line 2 must hold a mapping"),
        ('{"step": 2, "loss": null}', r"line 2\.loss must be a finite number, got None"),
        ('{"step": 2, "loss": NaN}', r"line 2\.loss must be a finite number, got nan"),
        ('{"step": 2, "validation_curve": [1, "2"]}', r"line 2\.validation_curve\[1\] must be a finite number"),
        ('{"step": 2, "validation_curve": 3}', r"line 2\.validation_curve must be a list"),
        ("loss", "line 2 is not JSON"),
    ],
)
def test_lines_that_are_no_metrics_are_refused(tmp_path, line, expected):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "loss": 1.5, "validation_curve": [0.5]}}\n{line}\n{{"step"')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, {expected}"):
        read_metrics(file)
    file.write_text(file.read_text().replace(f"{line}\n", ""))
    assert read_metrics(file) == [{"step": 1, "loss": 1.5, "validation_curve": [0.5]}]


@pytest.mark.parametrize(
    ("found", "expected"),
    [(3, Number(1, 3, whole=True)), (0.1 + 0.2, 0.3), ({"a": [1, None], "b": 0}, {"a": [1, None]}), (2, Number())],
)
def test_entries_that_are_as_expected(found, expected):
    check_entry(found, expected, "entry")
