"""Training from other weights: what fits is taken, what is new is drawn, what is frozen stays."""

import json
import re
import shutil
import sys
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from history_files import make_table, windows_of_folder, write_dataset
from safetensors.torch import load_file, save_file
from training_runs import assert_ended_alike, losses, metrics, same_weights, shortened, weights
from transformers import AutoModel

import ad_hf
from ad_hf.envs.spaces import space_to_json
from ad_hf.histories.windows import WindowBatches
from ad_hf.training.init_from import fit_config, part_of, take_weights

BOX, CELLS = gym.spaces.Box(-1, 1, (2,)), gym.spaces.MultiDiscrete([3, 3])
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "context_length": 24}
KEPT = ["embedding.previous_reward", "embedding.episode_start", "trunk"]


def spaces_of(observations, actions, **normalization):
    return {"observation_space": space_to_json(observations), "action_space": space_to_json(actions), **normalization}


def model_of(observations, actions, **settings):
    return ad_hf.ADModel(ad_hf.ADConfig(**spaces_of(observations, actions), **{**SIZES, **settings}))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Histories of vectors and seven actions, of an environment that is not here."""
    return write_dataset(tmp_path_factory.mktemp("data") / "vectors", [make_table([400])])


@pytest.fixture
def start(tiny_recipe_file, tiny_run, tiny_histories, vectors, tmp_path):
    """Train from the weights of the tiny run, on its own histories or on the others; returns the run."""

    def run(name="run", others=False, resume=None, dropout=0.0, dynamics_weight=0.0, split_seed=0, **training):
        recipe = shortened(
            tiny_recipe_file, **{"init_from": str(tiny_run), "max_steps": 6, "eval_steps": 6, **training}
        )
        recipe.model = replace(recipe.model, dropout=dropout, dynamics_weight=dynamics_weight)
        recipe.family = replace(recipe.family, split_seed=split_seed)
        if others:
            recipe.family = replace(ad_hf.Recipe().family, env_id="test/Histories-v0", tasks=[{}])
        ad_hf.train(recipe, vectors if others else tiny_histories, tmp_path / name, resume=resume)
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    ("observations", "actions", "new"),
    [
        (CELLS, gym.spaces.Discrete(5), []),
        (gym.spaces.MultiDiscrete([3, 3, 2]), gym.spaces.Discrete(5), ["embedding.observation"]),
        (BOX, gym.spaces.Discrete(5), ["embedding.observation"]),
        (CELLS, gym.spaces.Discrete(6), ["embedding.previous_action", "head"]),
        (BOX, BOX, ["embedding.observation", "embedding.previous_action", "head"]),
    ],
    ids=str,
)
def test_parts_of_the_same_names_and_shapes_are_taken_whole(observations, actions, new):
    base, model = model_of(CELLS, gym.spaces.Discrete(5)), model_of(observations, actions)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    taken, drawn = take_weights(model, base)
    assert (sorted(drawn), {*taken} >= {*KEPT}) == (new, True)
    theirs = base.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, (before if part_of(name) in new else theirs)[name])


def test_a_group_takes_embedding_and_head_of_the_group_with_its_spaces_or_with_most_that_fit():
    two, five = gym.spaces.Discrete(2), gym.spaces.Discrete(5)
    mean, other = ({"observation_mean": [value] * 2, "observation_std": [1.0] * 2} for value in (3.0, 4.0))
    groups = {"a": spaces_of(CELLS, five), "b": spaces_of(BOX, two, **mean), "c": spaces_of(BOX, five, **mean)}
    base = ad_hf.ADModel(ad_hf.ADConfig(groups=groups, **SIZES))
    alone = ad_hf.ADConfig(**spaces_of(BOX, two, **other), **SIZES)
    fit_config(alone, base.config, "base")
    assert (alone.observation_mean, alone.observation_std) == ([3.0] * 2, [1.0] * 2)
    model = ad_hf.ADModel(alone)
    assert take_weights(model, base)[1] == []
    theirs = base.group("b").state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.state_dict().items())

    groups = {"b": spaces_of(BOX, two, **other), "d": spaces_of(BOX, gym.spaces.Discrete(3), **other)}
    mixture = ad_hf.ADConfig(groups={**groups, "e": spaces_of(CELLS, two)}, **SIZES)
    varied = {**base.config.groups, "c": spaces_of(BOX, five, **other)}  # of two normalisations, d gets neither
    fit_config(mixture, ad_hf.ADConfig(groups=varied, **SIZES), "base")
    assert [mixture.groups[name]["observation_mean"] for name in "bd"] == [[3.0] * 2, [4.0] * 2]
    model = ad_hf.ADModel(mixture)
    assert take_weights(model, base)[1] == ["d.embedding.previous_action", "d.head"]
    own, theirs = model.state_dict(), base.state_dict()
    for name, source in {"embeddings.e": "embeddings.b", "embeddings.d": "embeddings.b", "heads.e": "heads.b"}.items():
        ending = "linear.weight" if "heads" in name else "previous_reward.weight"
        assert torch.equal(own[f"{name}.{ending}"], theirs[f"{source}.{ending}"])
    cells = "observation.tables.0.weight"
    assert torch.equal(own[f"embeddings.e.{cells}"], theirs[f"embeddings.a.{cells}"])


def test_a_training_on_a_models_own_histories_begins_where_the_model_is(start, tiny_run, tiny_histories, caplog):
    caplog.set_level("INFO", "ad_hf")
    run = start(max_steps=1, learning_rate=1e-12)
    model = ad_hf.ADModel.from_pretrained(tiny_run / "model")
    batches = WindowBatches(windows_of_folder(tiny_histories, 24), 8, 0, 1)
    assert losses(run)[0] == pytest.approx(model(**next(iter(batches))).loss.item(), abs=1e-6)
    family = ad_hf.TaskFamily(ad_hf.load_recipe(tiny_run / "recipe.yaml").family)
    returns = ad_hf.evaluate(model, family, "validation", 2, 2, seed=0).final_returns
    assert metrics(run)[0]["validation_return"] == pytest.approx(returns.mean())
    origin = json.loads((run / "run.json").read_text())["init_from"]
    assert (origin["name"], origin["revision"], origin["new"]) == (str(tiny_run), None, [])
    assert f"weights from {tiny_run}: embedding.observation, " in caplog.text


def test_with_the_trunk_frozen_new_parts_move_and_nothing_else(start, tiny_run):
    run = start(others=True, trainable="new")
    base, trained = weights(tiny_run / "model"), weights(run / "model")
    new = json.loads((run / "run.json").read_text())["init_from"]["new"]
    assert new == ["embedding.observation", "embedding.previous_action", "head"]
    kept = {name for name in trained if part_of(name) not in new}
    assert {name for name in kept if torch.equal(trained[name], base[name])} == kept
    fresh = start("fresh", others=True, init_from=None, trainable="all")
    assert not same_weights(run / "model", fresh / "model")
    assert losses(run)[-1] < losses(run)[0]


def test_heads_that_predict_what_follows_are_added_to_a_model_whose_policy_stays(start, tiny_run):
    run = start(dynamics_weight=1.0, trainable="new", max_steps=12)
    assert json.loads((run / "run.json").read_text())["init_from"]["new"] == ["dynamics"]
    base, trained = weights(tiny_run / "model"), weights(run / "model")
    assert all(torch.equal(trained[name], base[name]) for name in base)
    first, last = metrics(run)[0], metrics(run)[-1]
    for name in ("observation", "reward", "value", "end"):
        assert 0 < last[f"loss/{name}"] < first[f"loss/{name}"]
    assert last["loss/actions"] < last["loss"]


@pytest.mark.parametrize(("optimizer", "trainable"), [("muon", "all"), ("adamw", "new"), ("muon", "lora")])
def test_a_training_from_other_weights_resumes_exactly(start, tiny_run, tmp_path, optimizer, trainable):
    settings = {
        "others": trainable != "lora",
        "trainable": trainable,
        "optimizer": optimizer,
        "save_steps": 3,
        "dropout": 0.1,
    }
    whole = start("whole", **settings)
    shutil.copytree(whole / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    shutil.copy(whole / "metrics.jsonl", tmp_path / "run")
    moved = shutil.copytree(tiny_run, tmp_path / "moved")
    assert_ended_alike(start("run", resume="latest", **settings, init_from=str(moved)), whole)


@pytest.fixture(scope="module")
def bases(tiny_run, tmp_path_factory):
    """Models that the tiny recipe's model cannot start from."""
    folder = tmp_path_factory.mktemp("bases")
    backbone = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 16, "vocab_size": 1}
    for name, settings in {
        "wide": {"hidden_size": 32, "num_attention_heads": 4},
        "llama": {"backbone_config": backbone},
        "foreign": {},
    }.items():
        model_of(CELLS, gym.spaces.Discrete(5), **settings).save_pretrained(folder / name)
    config = json.loads((folder / "foreign" / "config.json").read_text())
    (folder / "foreign" / "config.json").write_text(json.dumps({**config, "attn_implementation": "some/kernel"}))
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"init_from": "BASES/wide"},
            "is of other sizes .*: set --model.hidden_size 32 --model.num_attention_heads 4$",
        ),
        ({"init_from": "BASES/llama"}, "another decoder .*: set model.backbone_config to .* llama$"),
        ({"init_from": "BASES/foreign"}, "can run other people's code"),
        ({"init_from": "BASES"}, "holds no model"),
        ({"init_from": "nowhere"}, "neither a folder nor the id of a model"),
        ({"split_seed": 1}, r"\d of 2 test tasks are training or validation tasks of the run of .*tiny"),
        ({"trainable": "new"}, "training.trainable is new, and every part .*nothing would be trained"),
        ({"trainable": "new", "init_from": None}, "training.trainable new needs .*training.init_from"),
        ({"trainable": "head"}, "training.trainable must be one of all, new, lora"),
    ],
    ids=str,
)
def test_models_that_do_not_fit_are_refused_before_anything_is_written(start, bases, tmp_path, settings, expected):
    if "BASES" in str(settings):
        settings = {"init_from": settings["init_from"].replace("BASES", str(bases))}
    with pytest.raises((ValueError, OSError), match=expected):
        start(**settings)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_from_the_weights_that_it_started_from(start, tiny_run, bases):
    run = start(save_steps=3)
    for other in (None, str(run)):
        with pytest.raises(ValueError, match=r"cannot be resumed: the model of training.init_from was '\w{64}', now"):
            start(save_steps=3, init_from=other, resume=run / "checkpoint-3")


def test_adapters_are_merged_into_a_model_that_loads_without_peft(start, tiny_run, tiny_histories, monkeypatch):
    settings = {"trainable": "lora", "lora_rank": 2, "learning_rate": 0.02, "save_steps": 3}
    run = start(**settings)
    base, trained = weights(tiny_run / "model"), weights(run / "model")
    assert trained.keys() == base.keys()
    moved = {name for name in trained if not torch.equal(trained[name], base[name])}
    assert moved == {name for name in trained if re.search(r"blocks\..*\.(qkv|output|up|down)\.weight", name)}
    assert {int(torch.linalg.matrix_rank(trained[name] - base[name], rtol=1e-3)) for name in moved} == {2}
    tensors = load_file(run / "checkpoint-3" / "training.safetensors")
    lost = next(name for name in tensors if name.startswith("adapter/"))
    save_file(
        {name: each for name, each in tensors.items() if name != lost}, run / "checkpoint-3/training.safetensors"
    )
    with pytest.raises(ValueError, match=f"is damaged .*training.safetensors: {re.escape(lost)} is missing"):
        start(resume="latest", **settings)
    monkeypatch.setitem(sys.modules, "peft", None)
    AutoModel.from_pretrained(run / "checkpoint-3")
    model = AutoModel.from_pretrained(run / "model")
    family = ad_hf.TaskFamily(ad_hf.load_recipe(run / "recipe.yaml").family)
    returns = ad_hf.evaluate(model, family, "validation", 2, 2, seed=0).final_returns
    assert metrics(run)[-1]["validation_return"] == pytest.approx(returns.mean())
    with pytest.raises(ImportError, match=r"needs the package peft: pip install 'ad_hf\[peft\]'"):
        start("other", trainable="lora")
