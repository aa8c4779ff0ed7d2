"""StepDecoder: the type of its products, what it agrees with, and when it stands in for the model's own pass."""

import numpy as np
import pytest
import torch

from ad_hf.model.step_ad import FEWEST_BFLOAT16_ROWS, StepDecoder, choose_products

FAST = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def live(model, num_envs=9, num_steps=40, **settings):
    """Logits (num_steps, num_envs, n) of a context with a random life."""
    rng, context, found = np.random.default_rng(0), model.init_context(num_envs, seed=0, **settings), []
    for _ in range(num_steps):
        context.act(rng.integers(7, size=num_envs), rng.normal(size=num_envs), rng.random(num_envs) < 0.2)
        found.append(context.logits)
    return torch.stack(found)


@pytest.mark.parametrize(
    ("mixed_precision", "dtype", "rows", "expected"),
    [
        ("no", torch.float32, 256, torch.float32),
        ("bf16", torch.float32, 1, torch.bfloat16),
        ("auto", torch.float32, FEWEST_BFLOAT16_ROWS - 1, torch.float32),
        ("auto", torch.float32, FEWEST_BFLOAT16_ROWS, torch.bfloat16 if FAST else torch.float32),
        ("auto", torch.float64, 256, torch.float64),
    ],
)
def test_products_have_the_type_that_is_asked_for(mixed_precision, dtype, rows, expected):
    assert choose_products(mixed_precision, torch.zeros(1, dtype=dtype), rows) == expected


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 6}], ids=["dropping", "sliding"])
def test_products_in_bfloat16_change_logits_by_their_rounding(make_model, settings):
    model = make_model(**settings)
    exact, rounded = (live(model, num_steps=1, mixed_precision=name) for name in ("no", "bf16"))
    assert 0 < float((rounded - exact).abs().max()) < 0.05 * float(exact.std())
    assert model.blocks[0].up.weight.dtype == torch.float32  # the model itself is as before


def test_a_step_agrees_with_the_models_own_pass(make_model, monkeypatch):
    model = make_model(sliding_window=6)
    found = live(model, mixed_precision="no")
    monkeypatch.setattr(type(model), "step_decoder", lambda self, *_: (self.decode, torch.float32))
    torch.testing.assert_close(found, live(model), atol=1e-5, rtol=0)


def test_blocks_that_were_changed_are_run_as_they_are(make_model):
    """Adapters, hooks and quantised layers compute something else than the weights of the blocks say."""
    plain, calls = make_model(), []
    config = plain.init_context(1).config
    assert isinstance(plain.step_decoder(config, 1)[0], StepDecoder)

    hooked, wrapped, replaced = make_model(), make_model(), make_model()
    hooked.blocks[1].up.register_forward_hook(lambda *_: calls.append(1))
    forward = wrapped.blocks[0].attention.qkv.forward
    wrapped.blocks[0].attention.qkv.forward = lambda values: 2 * forward(values)
    replaced.blocks[0].down = torch.nn.Sequential(replaced.blocks[0].down, torch.nn.Tanh())
    expected = live(plain, mixed_precision="no")
    for model, same in ((hooked, True), (wrapped, False), (replaced, False)):
        assert model.step_decoder(config, 1)[0] == model.decode
        assert torch.allclose(live(model, mixed_precision="no"), expected, atol=1e-5) == same
    assert len(calls) == 40
