"""Families of any environment, by configuration alone: collected, trained on, rolled out, stored and compared."""

import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import ad_hf
from ad_hf.evaluation.summary import last_of
from ad_hf.formats.minari import from_minari, to_minari
from ad_hf.histories.rollouts import from_rollout
from ad_hf.histories.schema import HistoryMetadata, read_metadata
from ad_hf.pipeline import EvaluatedModel, collect_recipe, evaluate_models
from ad_hf.recipe import load_recipe

FAMILIES = {
    "frozen_lake": """
        env_id: FrozenLake-v1
        env_kwargs: {is_slippery: false, max_episode_steps: 6}
        random:
          num_tasks: 5
          values: {desc: {function: gymnasium.envs.toy_text.frozen_lake.generate_random_map, kwargs: {size: 3}}}
    """,
    "cart_pole": """
        env_id: CartPole-v1
        env_kwargs: {max_episode_steps: 8, gravity: 5.0}
        random: {num_tasks: 5, values: {force_mag: {choices: [-10, 10]}, tau: {low: 0.01, high: 0.04, log: true}}}
        attributes: [force_mag, tau, gravity]
    """,
    "pendulum": """
        env_id: Pendulum-v1
        random: {num_tasks: 5, values: {g: {low: 2, high: 18}}}
        wrappers: [{name: gymnasium.wrappers.TimeLimit, kwargs: {max_episode_steps: 6}}]
    """,
    "spaces_of_bits": """
        env_id: "spaces_room:SpacesRoom-v0"
        env_kwargs: {observe: binary, act: multi}
        grid: {goal: [0, 2], pay: [1.0, 2.0, 3.0]}
        attributes: [pay]
    """,
}
REST = """
        num_validation_tasks: 1
        num_test_tasks: 1
source: {algorithm: A2C, n_envs: 2, total_timesteps: 120, hyperparameters: {policy_kwargs: {net_arch: [8]}}}
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16, context_length: 16}
training: {max_steps: 2, batch_size: 4, eval_steps: 2, eval_episodes: 2, eval_repeats: 1, mixed_precision: "no"}
rollout: {num_episodes: 2}
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A function of a family's name that returns a recipe of it, and histories, which are collected once."""

    @cache
    def collect(name):
        folder = tmp_path_factory.mktemp(name)
        (folder / "recipe.yaml").write_text(f"family:{FAMILIES[name].rstrip()}{REST}")
        recipe = load_recipe(folder / "recipe.yaml")
        return recipe, collect_recipe(recipe, folder / "histories", num_workers=1)

    return collect


@pytest.mark.parametrize("name", FAMILIES)
def test_any_family_goes_all_the_way(name, collected, tmp_path):
    recipe, histories = collected(name)
    family = ad_hf.TaskFamily(recipe.family)
    metadata = read_metadata(histories)
    again = ad_hf.TaskFamily(
        tasks=[task["kwargs"] for task in metadata.tasks],
        **{setting: getattr(metadata, setting) for setting in family.env_settings},
    )
    assert again.env_settings == family.env_settings
    assert [task.kwargs for task in again.tasks()] == [task.kwargs for task in family.tasks()]
    model = ad_hf.train(recipe, histories, tmp_path / "run")
    evaluation = evaluate_models([EvaluatedModel(model, recipe, histories)], tmp_path / "run", 1, ("gif",))
    assert {"AD", "source"} < set(evaluation["agents"])
    assert all(np.isfinite(last_of(agent)["return"]) for agent in evaluation["agents"].values())
    output = model.rollout(family.make_vec(family.tasks()), num_episodes=1, output_steps=True)
    from_rollout(output, family.tasks(), **family.env_settings, output_dir=tmp_path / "rollout")
    rolled = read_metadata(tmp_path / "rollout")
    assert {setting: getattr(rolled, setting) for setting in family.env_settings} == family.env_settings


@pytest.fixture
def cart_poles(collected):
    """A recipe with attributes, and histories of it."""
    return collected("cart_pole")


@pytest.mark.parametrize(
    "change", [{"wrappers": ["gymnasium.wrappers.NormalizeReward"]}, {"attributes": ["tau", "gravity", "force_mag"]}]
)
def test_histories_of_other_settings_are_refused(change, cart_poles, tmp_path):
    recipe, histories = cart_poles
    recipe = replace(recipe, family=replace(recipe.family, **change))
    with pytest.raises(ValueError, match=f"holds histories with {next(iter(change))} = "):
        ad_hf.train(recipe, histories, tmp_path / "run")
    with pytest.raises(ValueError, match=f"already holds histories with {next(iter(change))} = "):
        collect_recipe(recipe, histories, num_workers=1)


def test_histories_from_before_there_were_such_settings_are_read(cart_poles):
    _, histories = cart_poles
    data = json.loads(read_metadata(histories).to_json())
    del data["wrappers"], data["attributes"]
    metadata = HistoryMetadata.from_json(json.dumps(data))
    assert (metadata.wrappers, metadata.attributes) == ([], [])


def test_cards_tell_of_attributes_and_their_example_makes_the_environments(cart_poles, tmp_path):
    recipe, histories = cart_poles
    card = (histories / "README.md").read_text()
    assert "Of these, attributes of `env.unwrapped`, set once it is made: force_mag, tau, gravity" in card
    model = ad_hf.train(recipe, histories, tmp_path / "run")
    for evaluated in (False, True):
        if evaluated:
            evaluate_models([EvaluatedModel(model, recipe, histories)], tmp_path / "run", num_seeds=1)
        text = (tmp_path / "run" / "model" / "README.md").read_text()
        (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        names = {}
        exec(example, names)
        physics = [env.unwrapped for env in names["envs"].envs]
        assert {env.gravity for env in physics} == {5.0}
        assert {env.tau for env in physics} == ({names["tasks"][0]["tau"]} if evaluated else {0.02})


def test_histories_of_attributes_survive_minari(cart_poles, tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    _, histories = cart_poles
    to_minari(histories, "cart/pole-v0")
    assert minari.load_dataset("cart/pole-v0").env_spec is None
    from_minari("cart/pole-v0", tmp_path / "again")
    assert read_metadata(tmp_path / "again") == read_metadata(histories)
