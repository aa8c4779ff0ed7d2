"""Attention: which implementation is used, that all agree, and how positions enter."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ad_hf.model.attention_ad import rotary_tables
from ad_hf.model.masks_ad import EAGER_CPU_WINDOW
from ad_hf.model.modeling_ad import ADModel


@pytest.mark.parametrize("window", [1, 2, 33])
def test_eager_and_sdpa_agree_in_float32_gradients_too(make_model, make_history, window):
    results = []
    for attention in ("eager", "sdpa"):
        model = make_model(attn_implementation=attention)
        inputs, labels = make_history(model.config, batch=4, time=window)
        output = model(**inputs, labels=labels)
        output.loss.backward()
        results.append((output, {name: weight.grad for name, weight in model.named_parameters()}))

    (eager, eager_gradients), (sdpa, sdpa_gradients) = results
    torch.testing.assert_close(eager.logits, sdpa.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(eager.loss, sdpa.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(eager_gradients, sdpa_gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bfloat16_autocast_is_float32_up_to_its_precision(make_model, make_history, attention):
    model = make_model(attn_implementation=attention)
    inputs, labels = make_history(model.config, batch=4, time=16)
    exact = model(**inputs, labels=labels)

    with torch.autocast("cpu", torch.bfloat16):
        rough = model(**inputs, labels=labels)
    rough.loss.backward()

    assert rough.loss.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    assert (rough.logits.float() - exact.logits).abs().mean() < 0.05 * exact.logits.std()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_attention_depends_on_differences_of_positions_only(make_model):
    attention = make_model().blocks[0].attention
    hidden = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1)

    def weights(positions):
        return attention(hidden, rotary_tables(positions, 8, 10000.0, torch.float32), mask, "eager", None)[1]

    positions = torch.arange(9)
    for shift in (1, 37, 150):
        torch.testing.assert_close(weights(positions + shift), weights(positions), atol=1e-4, rtol=0)
    assert (weights(2 * positions) - weights(positions)).abs().max() > 0.01


def test_attention_is_chosen_by_device_and_window(make_model, tmp_path):
    model = make_model()
    make_model(attn_implementation="sdpa").save_pretrained(tmp_path)
    for each in (model, ADModel(model.config), ADModel.from_pretrained(tmp_path)):  # which is not saved
        assert each.attention_implementation(1, torch.device("cpu")) == "eager"
        assert each.attention_implementation(EAGER_CPU_WINDOW, torch.device("cpu")) == "eager"
        assert each.attention_implementation(EAGER_CPU_WINDOW + 1, torch.device("cpu")) == "sdpa"
        assert each.attention_implementation(8, torch.device("cuda")) == "sdpa"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_that_was_asked_for_is_respected(make_model, tmp_path, attention):
    asked = make_model(attn_implementation=attention)
    make_model().save_pretrained(tmp_path)
    loaded = ADModel.from_pretrained(tmp_path, attn_implementation=attention)
    switched = make_model()
    switched.set_attn_implementation(attention)

    for model in (asked, loaded, switched):
        for window in (1, 10_000):
            assert model.attention_implementation(window, torch.device("cpu")) == attention


def test_attention_functions_registered_with_transformers_are_used(make_model, make_history):
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("counting_attention", counting)
    AttentionMaskInterface.register("counting_attention", sdpa_mask)
    model = make_model(attn_implementation="counting_attention")
    inputs, _ = make_history(model.config)
    logits = model(**inputs).logits

    assert len(calls) == model.config.num_hidden_layers
    torch.testing.assert_close(logits, make_model()(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 7, 200])
def test_long_windows_of_sliding_attention_are_computed_by_blocks_to_the_same_result(make_model, make_history, window):
    results = []
    for attention in ({}, {"attn_implementation": "sdpa"}):
        model = make_model(context_length=600, sliding_window=window, **attention)
        inputs, labels = make_history(model.config, batch=2, time=EAGER_CPU_WINDOW + 90)
        output = model(**inputs, labels=labels)
        output.loss.backward()
        results.append((output.logits, [weight.grad for weight in model.parameters()]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
