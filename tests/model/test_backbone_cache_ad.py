"""Backbones of transformers: at every step, the logits are those of the model on the steps that the context holds."""

import numpy as np
import pytest
import torch
from context_reference import (
    ACTION_SPACES,
    BLOOM,
    GPT2,
    GPT_NEOX,
    LLAMA,
    MAMBA,
    MISTRAL,
    NO_TOKENS,
    OBSERVATION_SPACES,
    SMALL,
    VECTOR,
    assert_agrees,
    random_history,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_hf.model.cache_ad import ADCache, StepCache

FIXED = {"deadline": None, "derandomize": True, "database": None}
QWEN2 = {**LLAMA, "model_type": "qwen2", "sliding_window": 4}  # which it only has with `use_sliding_window`
GPT_NEO = {"model_type": "gpt_neo", "hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 3, **NO_TOKENS}
GPT_NEO |= {"max_position_embeddings": 32, "initializer_range": 0.3}
CTRL = {"model_type": "ctrl", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "dff": 32, **NO_TOKENS}
CTRL["initializer_range"] = 0.3  # of a backbone that writes to the embeddings that it is given
FALCON = {"model_type": "falcon", **SMALL, "new_decoder_architecture": False}
lives = st.fixed_dictionaries(
    {
        "num_envs": st.integers(1, 4),
        "seed": st.integers(0, 1000),
        "active_probability": st.sampled_from([1.0, 0.7, 0.4]),
        "reset_probability": st.sampled_from([0.0, 0.05]),
        "with_prompts": st.booleans(),
    }
)


def sized(backbone: dict, layers: int, heads: int, head_dim: int, context_length: int) -> dict:
    """A backbone's configuration with other sizes."""
    sizes = {
        **{"num_hidden_layers": layers, "n_layer": layers, "num_attention_heads": heads, "n_head": heads},
        **{"hidden_size": heads * head_dim, "n_embd": heads * head_dim, "n_positions": context_length},
    }
    return {**backbone, **{name: value for name, value in sizes.items() if name in backbone}}


@settings(max_examples=24, **FIXED)
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
        backbone_config=sized(backbone, layers, heads, head_dim, context_length),
        context_length=context_length,
        observation_space=observation_space,
        action_space=action_space,
    )

    # Long enough for the library's columns, a quarter more than the context, to be used up several times.
    run = assert_agrees(model, num_steps=4 * longest + 20, context_length=length, context_drop=drop, **life)

    assert isinstance(run.context._cache, ADCache)


@pytest.mark.parametrize("backbone", [LLAMA, GPT2, GPT_NEOX, QWEN2], ids=lambda config: config["model_type"])
def test_environments_that_pause_and_start_anew_on_their_own_do_not_disturb_each_other(make_model, backbone):
    model = make_model(backbone_config=backbone)

    run = assert_agrees(model, 4, 100, active_probability=0.7, reset_probability=0.02, with_prompts=True)

    assert isinstance(run.context._cache, ADCache)
    assert min(run.seen.values()) > 2  # the run went through the cases that it is there for
    assert len(run.seen) == 3


@settings(max_examples=10, **FIXED)
@given(backbone=st.sampled_from([MISTRAL, BLOOM, MAMBA]), life=lives, drop=st.sampled_from([None, 1, 3, 7]))
def test_backbones_that_no_padded_cache_serves_encode_the_held_steps_each_time(make_model, backbone, life, drop):
    model = make_model(backbone_config=backbone, context_length=7)
    run = assert_agrees(model, num_steps=30, context_drop=drop, **life)
    assert isinstance(run.context._cache, StepCache)


@pytest.mark.parametrize(
    ("backbone", "cached"),
    [
        (LLAMA, True),
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
        *("llama", "mistral without a window", "qwen2 with windows", "gemma3"),
        *("gpt_neo, all of it global", "gpt_neo with local layers", "falcon", "falcon with alibi", "ctrl"),
    ],
)
def test_every_kind_of_attention_is_encoded_rightly(make_model, backbone, cached):
    model = make_model(backbone_config=backbone, context_length=8)
    run = assert_agrees(model, 3, 30, active_probability=0.7, reset_probability=0.05, with_prompts=True)
    assert isinstance(run.context._cache, ADCache if cached else StepCache)


@pytest.mark.parametrize("backbone", [LLAMA, MISTRAL], ids=lambda config: config["model_type"])
def test_a_step_in_which_no_environment_acts_changes_nothing(make_model, backbone):
    model = make_model(backbone_config=backbone, context_length=4)
    context, untouched = model.init_context(2, do_sample=False), model.init_context(2, do_sample=False)
    rng = np.random.default_rng(0)
    for _ in range(12):
        seen, rewards = rng.integers(7, size=2), rng.normal(size=2)
        context.act(rng.integers(7, size=2), rewards, active=np.zeros(2, dtype=bool))
        actions = context.act(seen, rewards)
        assert (actions == untouched.act(seen, rewards)).all()
        torch.testing.assert_close(context.logits, untouched.logits)
        assert (context.lengths == untouched.lengths).all()


def test_backbones_act_in_half_precision(make_model):
    model = make_model(backbone_config={**LLAMA, "initializer_range": 0.1}, observation_space=VECTOR).bfloat16()
    assert_agrees(model, 3, 40, active_probability=0.7, reset_probability=0.03, with_prompts=True, tolerance=0.05)


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
