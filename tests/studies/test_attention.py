"""Attention, against what it is made of."""

import numpy as np
import pytest
import torch
from PIL import Image
from studies.attention import Attention, attention_of, plot_attention, record_episodes


def test_the_recorded_steps_are_what_the_model_saw(dark_room_family, dark_room_model):
    tasks = dark_room_family.tasks("test")
    output = dark_room_model.rollout(
        dark_room_family.make_vec(tasks), num_episodes=3, output_steps=True, output_logits=True
    )
    logits = []
    hook = dark_room_model.head.register_forward_hook(lambda _, __, out: logits.append(out))
    attention = attention_of(dark_room_model, output)
    hook.remove()

    # From the same inputs come the same logits as at each step of the rollout.
    np.testing.assert_allclose(logits[-1].detach().numpy(), output.logits, atol=1e-5)
    assert attention.weights.shape == (1, 3, dark_room_model.config.num_attention_heads, 12, 12)
    np.testing.assert_allclose(attention.weights.sum(axis=-1), 1, atol=1e-5)
    assert np.abs(np.triu(attention.weights, 1)).max() == 0
    assert attention.episodes[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert dark_room_model.config._attn_implementation != "eager"


def test_shares_of_episodes_add_up_and_rewards_are_found(dark_room_family, dark_room_model):
    output = record_episodes(dark_room_model, dark_room_family, dark_room_family.tasks("test"), 3)

    masses = attention_of(dark_room_model, output).by_episode()

    np.testing.assert_allclose(masses.sum(axis=1), 1, atol=1e-5)
    # Of six steps, the third brought a reward, which the fourth saw: all attention goes there.
    weights = np.zeros((1, 1, 1, 6, 6))
    weights[..., 3] = 1
    made_up = Attention(weights, np.array([[0, 0, 0, 0, 1, 1]]), np.array([[0, 0, 1, 0, 0, 0]]))
    given, even = made_up.to_rewarded()
    assert given.tolist() == [1.0]
    assert even == 0.25
    np.testing.assert_array_equal(made_up.by_episode(), [[1.0, 0.0]])


def test_rollouts_that_do_not_fit_are_refused(dark_room_family, dark_room_model):
    output = record_episodes(dark_room_model, dark_room_family, dark_room_family.tasks("test"), 4)

    with pytest.raises(ValueError, match=r"equally many steps, 12 at most, got \[16, 16, 16\]"):
        attention_of(dark_room_model, output)


def test_a_picture_is_drawn(dark_room_family, dark_room_model, tmp_path):
    torch.manual_seed(0)
    tasks = dark_room_family.tasks("test")
    output = record_episodes(dark_room_model, dark_room_family, tasks, 3)
    plot_attention(tmp_path / "attention.png", attention_of(dark_room_model, output))

    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > 400
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
