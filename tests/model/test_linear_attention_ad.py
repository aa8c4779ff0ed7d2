"""Linear attention: by chunks as step by step, at every step of a rollout, and over windows that follow others."""

import pytest
import torch
from context_reference import BOX, VECTOR, assert_agrees, lives
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.linear_attention_ad import CHUNK, delta_step, gated_delta_rule

KINDS = ["full_attention", "sliding_attention", "linear_attention"]
FIXED = {"deadline": None, "derandomize": True, "database": None}
LINEAR = {"layer_types": ["linear_attention"] * 2, "sliding_window": None}
MIXED = {"layer_types": ["linear_attention", "sliding_attention"], "sliding_window": 5}


def layers(kinds: list[str]) -> dict:
    """Settings of a model with such layers."""
    return {
        "layer_types": kinds,
        "num_hidden_layers": len(kinds),
        "sliding_window": 5 if "sliding_attention" in kinds else None,
    }


def slowly(units, value, log_decay, strength, state):
    """The gated delta rule as its formula reads, in float64, one step after the other."""
    outputs, (query, key) = [], units.unbind(2)
    for step in range(query.shape[2]):
        state = state * log_decay[:, :, step, None, None].exp()
        error = value[:, :, step] - (state @ key[:, :, step, :, None]).squeeze(-1)
        state = state + (strength[:, :, step, None] * error).unsqueeze(-1) * key[:, :, step, None]
        outputs.append((state @ query[:, :, step, :, None]).squeeze(-1))
    return torch.stack(outputs, 2), state


@pytest.mark.parametrize("time", [1, 7, CHUNK, CHUNK + 1, 3 * CHUNK + 5, 200 * CHUNK])
@pytest.mark.parametrize("fastest", [1e-3, 1.0])
def test_the_delta_rule_by_chunks_is_its_formula(time, fastest):
    torch.manual_seed(time)
    units, value = torch.randn(2, 3, 2, time, 8), torch.randn(2, 3, time, 8)
    units = units / units.norm(dim=-1, keepdim=True)
    log_decay, strength = -fastest * torch.rand(2, 3, time), torch.rand(2, 3, time)
    arguments = units, value, log_decay, strength, torch.randn(2, 3, 8, 8)

    outputs, state = gated_delta_rule(*arguments)
    expected, expected_state = slowly(*(part.double() for part in arguments))

    torch.testing.assert_close(outputs, expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, expected_state.float(), atol=1e-5, rtol=1e-5)

    state = arguments[-1].clone()
    steps = []
    for step in range(time):
        now = slice(step, step + 1)
        rest = value[:, :, now], log_decay[:, :, now], strength[:, :, now]
        steps.append(delta_step(units[:, :, :, now], *rest, state))
    torch.testing.assert_close(torch.cat(steps, 2), expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, expected_state.float(), atol=1e-5, rtol=1e-5)


@settings(max_examples=40, **FIXED)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    drop=st.sampled_from([None, 1, 4, 9]),
    weights_seed=st.integers(0, 3),
    life=lives,
)
def test_steps_of_layers_of_any_kind_are_the_model_on_the_steps_it_has_seen(
    make_model, kinds, drop, weights_seed, life
):
    model = make_model(
        weights_seed=weights_seed,
        context_length=9,
        initializer_range=0.2,
        **layers(kinds),
    )
    assert_agrees(model, num_steps=40, tolerance=1e-5, context_drop=drop, **life)


@pytest.mark.parametrize("settings", [LINEAR, MIXED], ids=["linear", "mixed"])
def test_a_memory_without_a_window_stays_right_far_beyond_the_trained_length(make_model, settings):
    model = make_model(context_length=20, observation_space=VECTOR, action_space=BOX, **settings)
    run = assert_agrees(model, num_envs=2, num_steps=250, active_probability=0.8, tolerance=1e-4)
    assert run.context.lengths.min() > 150


@pytest.mark.parametrize("settings", [LINEAR, MIXED], ids=["linear", "mixed"])
def test_products_in_bfloat16_stay_near(make_model, settings):
    model = make_model(**settings, initializer_range=0.05)
    assert_agrees(model, 8, 60, mixed_precision="bf16", reset_probability=0.03, tolerance=0.03)


@pytest.mark.parametrize("settings", [LINEAR, MIXED, {"sliding_window": 5}], ids=["linear", "mixed", "sliding"])
def test_windows_with_a_carry_are_the_whole_history(make_model, make_history, settings):
    """Also of rows that begin anew with a window, beside others that go on."""
    model = make_model(**settings, initializer_range=0.2)
    inputs, _ = make_history(model.config, batch=3, time=50)
    again = torch.tensor([False, True, False])

    with torch.no_grad():
        whole, carry, logits = model(**inputs).logits, model.init_carry(3), []
        for start, end in ((0, 13), (13, 14), (14, 30), (30, 50)):
            if start == 30:
                carry = carry.reset(again)
            window = model(**{name: part[:, start:end] for name, part in inputs.items()}, past_key_values=carry)
            carry = window.past_key_values
            logits.append(window.logits)
        late = model(**{name: part[again, 30:] for name, part in inputs.items()}).logits

    logits = torch.cat(logits, dim=1)
    torch.testing.assert_close(logits[~again], whole[~again], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[again, :30], whole[again, :30], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[again, 30:], late, atol=1e-5, rtol=1e-5)
    assert carry.lengths.tolist() == [50, 20, 50]


def test_a_carry_takes_no_gradient_along_and_is_the_same_with_checkpointing(make_model, make_history):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(**MIXED).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs, labels = make_history(model.config, time=20)
        carry = model.init_carry(3)
        for start in (0, 10):
            window = {name: part[:, start : start + 10] for name, part in inputs.items()}
            outputs = model(**window, labels=labels[:, start : start + 10], past_key_values=carry)
            carry = outputs.past_key_values
            outputs.loss.backward()  # a second time through the first window's graph would be an error
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    assert len(gradients[0]) == len(gradients[1])
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)
        assert first.abs().sum() > 0


def test_what_sees_a_whole_window_carries_nothing(make_model):
    with pytest.raises(ValueError, match="sliding_attention and linear_attention"):
        make_model().init_carry(2)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"layer_types": ["linear_attention"]}, "num_hidden_layers"),
        ({"layer_types": ["linear_attention", "mamba2"]}, "mamba2"),
        ({"layer_types": ["linear_attention"] * 2, "sliding_window": 4}, "sliding_window"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": None}, "sliding_window"),
        ({"layer_types": ["linear_attention"] * 2, "linear_num_heads": 3}, "linear_num_heads"),
        ({"layer_types": ["full_attention"] * 2, "backbone_config": {"model_type": "llama"}}, "backbone_config"),
    ],
)
def test_layers_that_do_not_fit_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        ADConfig(num_hidden_layers=2, hidden_size=16, context_length=8, **wrong)


def test_the_automatic_window_is_of_models_that_have_one():
    assert ADConfig(layer_types=["linear_attention"] * 4).sliding_window is None
    assert ADConfig(layer_types=["linear_attention", "sliding_attention"] * 2).sliding_window == 50
