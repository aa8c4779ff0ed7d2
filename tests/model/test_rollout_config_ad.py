"""Settings of rollouts: which of several is taken, what is refused, and what is saved with a model."""

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_environments import DARK_ROOM, dark_rooms

from ad_hf.model.modeling_ad import ADModel
from ad_hf.model.rollout_config_ad import RolloutConfig

DEFAULTS = RolloutConfig().resolve().to_dict() | {"max_steps": None, "context_length": None, "context_drop": None}
FIXED = {"deadline": None, "derandomize": True, "database": None}
VALUES = {
    "num_episodes": st.integers(1, 50),
    "max_steps": st.integers(1, 50),
    "do_sample": st.booleans(),
    "temperature": st.floats(0.1, 5),
    "top_k": st.integers(0, 9),
    "top_p": st.floats(0.1, 1),
    "epsilon": st.floats(0, 1),
    "num_beams": st.integers(1, 9),
    "planner": st.sampled_from(["beam_search", "policy_iteration"]),
    "planning_horizon": st.integers(1, 9),
    "planning_weight": st.floats(0, 9),
    "context_length": st.integers(4, 16),
    "context_drop": st.integers(1, 4),
    "mixed_precision": st.sampled_from(["auto", "no", "bf16"]),
    "seed": st.integers(0, 99),
    **{f"output_{name}": st.booleans() for name in ("steps", "log_probs", "logits", "frames")},
}
some = st.fixed_dictionaries({}, optional=VALUES)
LIMITS = {"num_episodes", "max_steps"}


def test_every_setting_has_a_default():
    names = [field.name for field in fields(RolloutConfig)]
    assert sorted(names) == sorted(DEFAULTS) == sorted(VALUES)
    assert RolloutConfig().to_dict() == {}
    assert RolloutConfig().resolve() == RolloutConfig(**DEFAULTS)


@settings(max_examples=100, **FIXED)
@given(keywords=some, argument=some, saved=some)
def test_a_keyword_beats_the_argument_which_beats_what_is_saved_which_beats_the_default(
    make_model, keywords, argument, saved
):
    model = make_model(dynamics_weight=1.0)
    model.rollout_config = RolloutConfig(**saved)
    given = keywords.keys() | argument.keys() | saved.keys()
    if "num_beams" not in given and given & {"planner", "planning_horizon", "planning_weight"}:
        with pytest.raises(ValueError, match="nothing is planned without num_beams of at least 2, got plann"):
            model.init_context(1, rollout_config=RolloutConfig(**argument), **keywords)
        return
    config = model.init_context(1, rollout_config=RolloutConfig(**argument), **keywords).config

    for name in DEFAULTS.keys() - LIMITS:
        given_by = [each[name] for each in (keywords, argument, saved) if name in each]
        assert getattr(config, name) == (given_by or [DEFAULTS[name]])[0], name
    # How long a rollout is, is one setting: whoever sets either of the two sets both.
    who = next((each for each in (keywords, argument, saved) if LIMITS & each.keys()), {"num_episodes": 100})
    assert {name: getattr(config, name) for name in LIMITS} == {name: who.get(name) for name in LIMITS}
    assert model.rollout_config == RolloutConfig(**saved)


def test_the_length_of_a_rollout_is_one_setting(make_model):
    model = make_model(**DARK_ROOM)
    model.rollout_config = RolloutConfig(num_episodes=2)
    seven = {"rollout_config": RolloutConfig(max_steps=7)}
    for settings_, steps, episodes in (
        ({}, 10, 2),
        ({"max_steps": 13}, 13, 2),
        ({"max_steps": 3}, 3, 0),
        (seven, 7, 1),
        ({**seven, "num_episodes": 3}, 15, 3),
        ({**seven, "num_episodes": 3, "max_steps": 6}, 6, 3),
        ({**seven, "max_steps": None}, 7, 1),  # which is to say nothing
    ):
        output = model.rollout(dark_rooms(), **settings_)  # episodes are of 5 steps
        assert (output.num_steps[0], output.episode_lengths.shape[1]) == (steps, episodes)


REFUSED = {
    "must be an integer, at least 1, got": [
        *({"num_episodes": 0}, {"num_episodes": True}, {"max_steps": 1.5}, {"max_steps": "9"}),
        *({"context_length": 0}, {"context_drop": 0}),
    ],
    "top_k must be an integer, at least 0, got": [{"top_k": -1}, {"top_k": 2.0}],
    r"seed must be an integer, at least 0, below 9\d+, got": [{"seed": -1}, {"seed": "0"}, {"seed": 2**63}],
    "temperature must be a finite number, above 0, got": [
        {"temperature": value} for value in (0.0, -1.0, math.nan, math.inf, "1", True)
    ],
    "mixed_precision must be one of auto, no, bf16, got": [{"mixed_precision": value} for value in ("fp16", 1, True)],
    "top_p must be a finite number, above 0, at most 1, got": [{"top_p": value} for value in (0.0, 1.1, math.nan)],
    "epsilon must be a finite number, at least 0, at most 1, got": [{"epsilon": each} for each in (1.1, -0.1, [0.1])],
    "must be True or False, got": [{"do_sample": 1}, {"output_steps": "yes"}],
    "unknown rollout setting 'beams': expected num_episodes": [{"beams": 2}],
}


def test_settings_out_of_range_or_of_a_wrong_type_are_refused(make_model, tmp_path):
    model = make_model(**DARK_ROOM)
    for message, settings_ in REFUSED.items():
        for wrong in settings_:
            name, value = next(iter(wrong.items()))
            (tmp_path / "rollout_config.json").write_text(json.dumps(wrong))
            for give in (
                lambda wrong=wrong: RolloutConfig.from_dict(wrong),
                lambda wrong=wrong: model.rollout(dark_rooms(), **wrong),
                lambda wrong=wrong: model.init_context(1, **wrong),
                lambda: RolloutConfig.from_pretrained(tmp_path),
            ):
                with pytest.raises(ValueError, match=message) as refused:
                    give()
                assert name in str(refused.value)
                assert name == "beams" or repr(value) in str(refused.value)
    for nothing in (None, 3, "seed", [1]):
        with pytest.raises(ValueError, match="rollout settings must be a dict"):
            RolloutConfig.from_dict(nothing)


def test_whole_numbers_are_numbers():
    config = RolloutConfig(temperature=2, top_p=1, epsilon=0)
    assert (config.temperature, config.top_p, config.epsilon) == (2, 1, 0)


@settings(max_examples=40, **FIXED)
@given(chosen=some)
def test_a_saved_file_holds_what_is_set_and_gives_it_back(tmp_path_factory, chosen):
    folder = tmp_path_factory.mktemp("saved")
    RolloutConfig(**chosen).save_pretrained(folder)

    assert json.loads((folder / "rollout_config.json").read_text()) == chosen
    assert RolloutConfig.from_pretrained(folder) == RolloutConfig(**chosen)


def test_settings_are_saved_with_the_model_and_loaded_with_it(make_model, tmp_path):
    model = make_model(**DARK_ROOM)
    model.rollout_config = RolloutConfig(num_episodes=3, do_sample=False, temperature=0.5, seed=7)
    model.save_pretrained(tmp_path)

    loaded = ADModel.from_pretrained(tmp_path)
    assert loaded.rollout_config == model.rollout_config
    assert loaded.rollout(dark_rooms()).episode_returns.shape == (4, 3)


def test_a_model_without_saved_settings_has_the_defaults(make_model, tmp_path):
    make_model(**DARK_ROOM).save_pretrained(tmp_path)
    first = {"num_episodes": 100, "do_sample": True, "temperature": 1.0, "seed": 0}  # as the first version wrote it
    (tmp_path / "rollout_config.json").write_text(json.dumps(first, indent=2) + "\n")
    assert ADModel.from_pretrained(tmp_path).rollout_config.resolve() == RolloutConfig().resolve()
    (tmp_path / "rollout_config.json").unlink()

    assert ADModel.from_pretrained(tmp_path).rollout_config == RolloutConfig()
