"""The cache of our own blocks: at every step, logits are those of the model on exactly the steps it should hold."""

import numpy as np
import pytest
import torch
from context_reference import (
    ACTION_SPACES,
    BOX,
    IMAGE,
    MULTI_DISCRETE,
    OBSERVATION_SPACES,
    VECTOR,
    Lives,
    assert_agrees,
    elements,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_hf.model.cache_ad import ADCache, make_cache

FIXED = {"deadline": None, "derandomize": True, "database": None}
shapes = st.fixed_dictionaries(
    {
        "num_hidden_layers": st.integers(1, 3),
        "num_attention_heads": st.integers(1, 3),
        "head_dim": st.sampled_from([2, 4, 6]),
        "context_length": st.integers(1, 10),
        "observation_space": st.sampled_from(OBSERVATION_SPACES),
        "action_space": st.sampled_from(ACTION_SPACES),
        "weights_seed": st.integers(0, 3),
    }
)
lives = st.fixed_dictionaries(
    {
        "num_envs": st.integers(1, 4),
        "seed": st.integers(0, 1000),
        "active_probability": st.sampled_from([1.0, 0.7, 0.4]),
        "reset_probability": st.sampled_from([0.0, 0.05]),
        "with_prompts": st.booleans(),
    }
)


def sized(shape: dict) -> dict:
    """Settings of a model of a shape."""
    rest = {name: value for name, value in shape.items() if name != "head_dim"}
    return {**rest, "hidden_size": shape["head_dim"] * shape["num_attention_heads"]}


@settings(max_examples=60, **FIXED)
@given(shape=shapes, life=lives, data=st.data())
def test_cached_steps_are_the_model_on_the_steps_that_are_held(make_model, shape, life, data):
    longest = shape["context_length"]
    length = data.draw(st.one_of(st.none(), st.integers(1, longest)), "context_length")
    drop = data.draw(st.one_of(st.none(), st.sampled_from([1, length or longest]), st.integers(1, length or longest)))
    sizes = {"context_length": length, "context_drop": drop}

    run = assert_agrees(make_model(**sized(shape)), num_steps=3 * longest + 6, **life, **sizes)

    assert run.context.length == (length or longest)
    assert isinstance(run.context._cache, ADCache)


@settings(max_examples=60, **FIXED)
@given(shape=shapes, life=lives, data=st.data())
def test_a_sliding_window_gives_the_model_on_all_steps_so_far(make_model, shape, life, data):
    window = data.draw(st.integers(1, shape["context_length"]), "sliding_window")
    model = make_model(**sized(shape), sliding_window=window)

    run = assert_agrees(model, num_steps=3 * shape["context_length"] + 6, **life)

    assert run.context._cache.states[0][0].shape[2] == window


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 6}], ids=["dropping", "sliding"])
@pytest.mark.parametrize("seed", [0, 1])
def test_environments_that_pause_and_start_anew_on_their_own_do_not_disturb_each_other(make_model, settings, seed):
    model = make_model(observation_space=MULTI_DISCRETE, **settings)

    run = assert_agrees(model, 5, 120, seed, active_probability=0.7, reset_probability=0.012, with_prompts=True)

    assert min(run.seen.values()) > 2  # the run went through the cases that it is there for
    assert len(run.seen) == 3


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=lambda space: space["type"])
def test_logits_are_right_long_after_the_context_is_full(make_model, action_space):
    run = assert_agrees(make_model(observation_space=VECTOR, action_space=action_space), num_envs=2, num_steps=110)
    assert run.context.lengths.tolist() == [14, 14]


@pytest.mark.parametrize("context_length", [1, 2, 3, 4, 5])
def test_tiny_contexts_slide_correctly(make_model, context_length):
    model = make_model(context_length=context_length)
    assert_agrees(model, num_envs=3, num_steps=25)
    assert_agrees(model, num_envs=3, num_steps=40, active_probability=0.6, reset_probability=0.03)


def test_images_as_unsigned_bytes_are_remembered(make_model):
    assert_agrees(make_model(observation_space=IMAGE, context_length=6), num_envs=2, num_steps=20)


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 5}], ids=["dropping", "sliding"])
def test_half_precision_is_the_model_in_half_precision_up_to_its_rounding(make_model, settings):
    model = make_model(**settings, initializer_range=0.1).bfloat16()
    assert_agrees(model, 3, 40, active_probability=0.7, reset_probability=0.03, with_prompts=True, tolerance=0.03)


@pytest.mark.parametrize("steps_before", [100_003, 30_000_000])
@pytest.mark.parametrize("spaces", [{}, {"observation_space": VECTOR, "action_space": BOX}], ids=["cells", "vectors"])
def test_a_sliding_window_stays_right_for_as_long_as_one_likes(make_model, spaces, steps_before):
    """Its positions count on without bounds: angles in float32 would be off by hundredths after some 100,000 steps."""
    model = make_model(**spaces, num_hidden_layers=3, context_length=8, sliding_window=4)
    lives = Lives(model, num_envs=2)
    for _ in range(4):  # all of the window is in use
        lives.step()
    state = lives.context.state_dict()
    lives.context.load_state_dict({**state, "cache.lengths": state["cache.lengths"] + steps_before})

    # What was before, at positions that are no longer true, has left the window of all three blocks after 3 * 3 steps.
    checked = 0
    for _ in range(30):
        before = lives.context.lengths.clone()
        config, reference, context = model.config, lives.reference, lives.context
        seen, rewards = elements(config.observation_space, 2, lives.rng), lives.rng.normal(size=2)
        actions = context.act(seen, rewards, np.zeros(2, dtype=bool))
        assert (context.lengths == before + 1).all()
        assert int(before.min()) > steps_before
        for env in range(2):
            reference.see(env, seen[env], rewards[env], False)
            reference.do(env, actions[env])
            if len(reference.steps[env]) > 4 + 3 * 3:
                torch.testing.assert_close(context.logits[env], reference.logits(env), atol=1e-4, rtol=0)
                checked += 1
    assert checked == 2 * 21


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 5}], ids=["dropping", "sliding"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 6], [3, 9], [4, 4, 1, 1, 2]])
def test_a_cache_filled_in_chunks_gives_the_logits_of_one_pass(make_model, make_history, attention, chunks, settings):
    model = make_model(attn_implementation=attention, **settings)
    inputs, _ = make_history(model.config, batch=3, time=12)
    cache = make_cache(model, 3)

    parts = zip(*(part.split(chunks, dim=1) for part in inputs.values()))
    logits = torch.cat([model(*part, past_key_values=cache).logits for part in parts], dim=1)

    torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert cache.lengths.tolist() == [12] * 3


@settings(max_examples=40, **FIXED)
@given(shape=shapes, window=st.integers(1, 10), chunks=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_a_sliding_cache_takes_chunks_of_any_size(make_model, make_history, shape, window, chunks):
    model = make_model(**{**sized(shape), "context_length": 10}, sliding_window=window)
    inputs, _ = make_history(model.config, batch=2, time=sum(chunks))
    cache = make_cache(model, 2)

    parts = zip(*(part.split(chunks, dim=1) for part in inputs.values()))
    logits = torch.cat([model(*part, past_key_values=cache).logits for part in parts], dim=1)

    torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)


def test_a_cache_refuses_more_steps_than_it_holds(make_model, make_history):
    model = make_model(context_length=4)
    inputs, _ = make_history(model.config, batch=1, time=5)
    with pytest.raises(ValueError, match="holds 4 steps"):
        model(**inputs, past_key_values=make_cache(model, 1))
