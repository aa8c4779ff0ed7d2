"""The cache of our own blocks: at every step, logits are those of the model on exactly the steps it should hold."""

import numpy as np
import pytest
import torch
from context_reference import (
    ACTION_SPACES,
    BLOOM,
    BOX,
    GPT2,
    GPT_NEOX,
    LLAMA,
    MAMBA,
    MISTRAL,
    NO_TOKENS,
    OBSERVATION_SPACES,
    SMALL,
    VECTOR,
    Lives,
    assert_agrees,
    elements,
    lives,
    random_history,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_hf.model.backbone_cache_ad import StepCache, make_cache
from ad_hf.model.cache_ad import ADCache

QWEN2 = {**LLAMA, "model_type": "qwen2", "sliding_window": 4}  # which it only has with `use_sliding_window`
GPT_NEO = {"model_type": "gpt_neo", "hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 3, **NO_TOKENS}
GPT_NEO |= {"max_position_embeddings": 32, "initializer_range": 0.3}
CTRL = {"model_type": "ctrl", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "dff": 32, **NO_TOKENS}
CTRL["initializer_range"] = 0.3  # of a backbone that writes to the embeddings that it is given
FALCON = {"model_type": "falcon", **SMALL, "new_decoder_architecture": False}
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


@settings(max_examples=40, **FIXED)
@given(shape=shapes, life=lives, data=st.data())
def test_a_sliding_window_gives_the_model_on_all_steps_so_far(make_model, shape, life, data):
    window = data.draw(st.integers(1, shape["context_length"]), "sliding_window")
    model = make_model(**sized(shape), sliding_window=window)

    run = assert_agrees(model, num_steps=3 * shape["context_length"] + 6, **life)

    assert run.context._cache.states[0][0].shape[2] == window


NARROW = {"backbone_config": {**LLAMA, "initializer_range": 0.1}}
NARROW_MAMBA = {"backbone_config": {**MAMBA, "initializer_range": 0.1}}
HALF = {"dropping": {}, "sliding": {"sliding_window": 5}, "llama": NARROW, "mamba": NARROW_MAMBA}


@pytest.mark.parametrize("settings", HALF.values(), ids=HALF)
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


@pytest.mark.parametrize(
    "settings", [{}, {"sliding_window": 5}, {"backbone_config": LLAMA}, {"backbone_config": MAMBA}]
)
def test_a_cache_takes_a_step_at_a_time_and_gives_the_logits_of_one_pass(make_model, make_history, settings):
    model = make_model(**settings, context_length=12)
    inputs, _ = make_history(model.config, batch=3, time=12)
    cache = make_cache(model, 3)

    steps = zip(*(part.split(1, dim=1) for part in inputs.values()))
    logits = torch.cat([model(*step, past_key_values=cache).logits for step in steps], dim=1)

    torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert cache.lengths.tolist() == [12] * 3
    with pytest.raises(ValueError, match="one step at a time, got 12"):
        model(**inputs, past_key_values=cache)
    if "sliding_window" not in settings and settings.get("backbone_config") is not MAMBA:
        with pytest.raises(ValueError, match="holds 12 steps"):
            model(*(part[:, :1] for part in inputs.values()), past_key_values=cache)


def sized_backbone(backbone: dict, layers: int, heads: int, head_dim: int, context_length: int) -> dict:
    """A backbone's configuration with other sizes."""
    sizes = {
        **{"num_hidden_layers": layers, "n_layer": layers, "num_attention_heads": heads, "n_head": heads},
        **{"hidden_size": heads * head_dim, "n_embd": heads * head_dim, "n_positions": context_length},
    }
    return {**backbone, **{name: value for name, value in sizes.items() if name in backbone}}


@settings(max_examples=20, **FIXED)
@given(
    backbone=st.sampled_from([LLAMA, GPT2, GPT_NEOX, QWEN2]),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8]),
    context_length=st.integers(1, 10),
    observation_space=st.sampled_from(OBSERVATION_SPACES),
    action_space=st.sampled_from(ACTION_SPACES),
    life=lives,
    data=st.data(),
)
def test_cached_steps_are_the_backbone_on_the_steps_that_are_held(
    make_model, backbone, layers, heads, head_dim, context_length, observation_space, action_space, life, data
):
    length = data.draw(st.one_of(st.none(), st.integers(1, context_length)), "context_length")
    longest = length or context_length
    drop = data.draw(st.one_of(st.none(), st.sampled_from([1, longest]), st.integers(1, longest)), "context_drop")
    model = make_model(
        backbone_config=sized_backbone(backbone, layers, heads, head_dim, context_length),
        context_length=context_length,
        observation_space=observation_space,
        action_space=action_space,
    )

    # Long enough for the library's columns, a quarter more than the context, to be used up several times.
    run = assert_agrees(model, num_steps=4 * longest + 20, context_length=length, context_drop=drop, **life)

    assert isinstance(run.context._cache, ADCache)


@pytest.mark.parametrize(
    ("backbone", "cached"),
    [
        (LLAMA, True),
        (MISTRAL, False),
        (BLOOM, False),
        ({**MISTRAL, "sliding_window": None}, True),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 1}, False),
        ({**LLAMA, "model_type": "gemma3_text", "head_dim": 8}, False),
        ({**GPT_NEO, "attention_types": [[["global"], 2]]}, True),
        ({**GPT_NEO, "attention_types": [[["global", "local"], 1]]}, False),
        ({**FALCON, "alibi": False}, True),
        ({**FALCON, "alibi": True}, False),
        (CTRL, True),
    ],
    ids=[
        *("llama", "mistral", "bloom", "mistral without a window", "qwen2 with windows", "gemma3"),
        *("gpt_neo, all of it global", "gpt_neo with local layers", "falcon", "falcon with alibi", "ctrl"),
    ],
)
def test_every_kind_of_attention_is_encoded_rightly(make_model, backbone, cached):
    model = make_model(backbone_config=backbone, context_length=8)
    run = assert_agrees(model, 3, 30, active_probability=0.7, reset_probability=0.05, with_prompts=True)
    assert isinstance(run.context._cache, ADCache if cached else StepCache)


@pytest.mark.parametrize(
    "backbone",
    [None, LLAMA, GPT2, GPT_NEOX, MISTRAL, BLOOM, MAMBA],
    ids=lambda config: config and config["model_type"],
)
def test_a_model_that_has_acted_trains_on_and_acts_on(make_model, make_history, backbone):
    model = make_model(backbone_config=backbone, context_length=6)
    context = model.init_context(2, prompt=random_history(model, 9, np.random.default_rng(0)))
    for _ in range(8):
        context.act(np.array([1, 2]))
    inputs, labels = make_history(model.config, time=6)

    model.train()(**inputs, labels=labels).loss.backward()

    assert all(parameter.grad is not None for parameter in model.head.parameters())
    twin = context.copy()
    context.reset(np.array([True, False]))
    for each in (context, twin):
        each.act(np.array([1, 2]))
    torch.testing.assert_close(context.logits[1], twin.logits[1], atol=1e-5, rtol=0)
