"""Models of several groups of spaces: one trunk, and an embedding and a head for each pair of spaces."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModel

from ad_hf import ADConfig, ADModel

ROOM = {"observation_space": {"type": "MultiDiscrete", "nvec": [9, 9]}, "action_space": {"type": "Discrete", "n": 5}}
BOUNDS = [-4.8, None, -0.41887903213500977, None], [4.8, None, 0.41887903213500977, None]
CART = {
    "observation_space": {"type": "Box", "shape": [4], "low": BOUNDS[0], "high": BOUNDS[1], "dtype": "float32"},
    **{"action_space": {"type": "Discrete", "n": 2}, "observation_mean": [0.0, 1.0, 0.0, 0.0]},
    **{"observation_std": [2.0, 1.0, 0.5, 1.0], "reward_scale": 3.0},
}
PULL = {
    "observation_space": {"type": "Box", "shape": [3], "low": [-1] * 3, "high": [1] * 3, "dtype": "float32"},
    "action_space": {"type": "Box", "shape": [1], "low": [-2.0], "high": [2.0], "dtype": "float32"},
}
GROUPS = {"room": ROOM, "cart": CART, "pull": PULL, "key": ROOM, "cart_raw": {**CART, "reward_scale": 1.0}}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "context_length": 12}


def make_model(groups=GROUPS, **settings):
    torch.manual_seed(0)
    return ADModel(ADConfig(groups=groups, **{**SIZES, **settings})).eval()


def make_batch(name, rows, time, seed=0, padded=0):
    rng, group = np.random.default_rng(seed), GROUPS[name]

    def elements(space, more=0):
        if space["type"] == "Box":
            return torch.tensor(rng.normal(size=(rows, time, *space["shape"])), dtype=torch.float32)
        sizes = np.array(space.get("nvec", space.get("n"))) + more
        return torch.tensor(rng.integers(0, sizes, (rows, time, *np.shape(sizes))))

    mask = torch.ones(rows, time, dtype=torch.long)
    mask[:, time - padded :] = 0
    return {
        "observations": elements(group["observation_space"]),
        "previous_actions": elements(group["action_space"], 1),
        "previous_rewards": torch.tensor(rng.normal(size=(rows, time)), dtype=torch.float32),
        "episode_starts": torch.tensor(rng.random((rows, time)) < 0.2),
        "labels": elements(group["action_space"]),
        **({"attention_mask": mask} if padded else {}),
    }


def by_argument(batches):
    arguments = dict.fromkeys(argument for batch in batches.values() for argument in batch)
    return {each: {name: batch[each] for name, batch in batches.items() if each in batch} for each in arguments}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "backbone_config": {
                "model_type": "llama",
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "vocab_size": 1,
            }
        },
    ],
    ids=["own", "llama"],
)
def test_a_pass_over_all_groups_is_a_pass_over_each(settings):
    model = make_model(**settings)
    batches = {"cart": make_batch("cart", 3, 12, 1), "room": make_batch("room", 2, 9, 2, padded=4)}
    batches |= {"pull": make_batch("pull", 2, 12, 3), "key": make_batch("key", 1, 12, 4)}
    together = model(**by_argument(batches))
    alone = {name: model.group(name)(**batch) for name, batch in batches.items()}
    steps = {"cart": 36, "room": 10, "pull": 24, "key": 12}
    for name, output in alone.items():
        real = batches[name].get("attention_mask", torch.ones(1, 1)).bool().expand(output.logits.shape[:2])
        assert torch.allclose(together.logits[name][real], output.logits[real], atol=1e-5)
        assert torch.isclose(together.losses[name], output.loss, atol=1e-5)
    mean = sum(alone[name].loss * number for name, number in steps.items()) / sum(steps.values())
    assert torch.isclose(together.loss, mean, atol=1e-5)
    together.loss.backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "embed_tokens" not in name)


def test_groups_of_equal_spaces_share_all_and_a_group_has_its_own_normalisation():
    model = make_model()
    assert set(model.embeddings) == set(model.heads) == {"key", "cart", "pull"}
    batch = make_batch("room", 2, 12)
    assert torch.equal(model.group("room")(**batch).logits, model.group("key")(**batch).logits)
    batch = make_batch("cart", 2, 12)
    assert not torch.allclose(model.group("cart")(**batch).logits, model.group("cart_raw")(**batch).logits)
    moved = dict(batch, observations=batch["observations"] * 2 + torch.tensor([5.0, 0, 0, 0]))
    moved["previous_rewards"] = batch["previous_rewards"] * 3
    other = make_model({"cart": {**CART, "observation_mean": [5.0, 2.0, 0.0, 0.0], "reward_scale": 9.0}})
    other.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in other.state_dict()})
    other.config.groups["cart"]["observation_std"] = [4.0, 2.0, 1.0, 2.0]
    assert torch.allclose(other.group("cart")(**moved).logits, model.group("cart")(**batch).logits, atol=1e-5)


def test_a_group_is_saved_as_a_model_of_its_own_and_shares_weights_until_then(tmp_path):
    model = make_model()
    view = model.group("cart")
    with torch.no_grad():
        model.heads["cart"].linear.bias += 1
        model.blocks[0].up.bias += 1
    batch = make_batch("cart", 2, 12)
    view.save_pretrained(tmp_path / "cart")
    alone = AutoModel.from_pretrained(tmp_path / "cart")
    assert alone.config.groups is None
    assert set(alone.state_dict()) == set(ADModel(alone.config).state_dict())
    assert alone.num_parameters() < model.num_parameters()
    for each in (alone, model.group("cart")):
        assert torch.equal(each(**batch).logits, view(**batch).logits)
    model.save_pretrained(tmp_path / "all")
    again = AutoModel.from_pretrained(tmp_path / "all")
    assert again.config.groups == model.config.groups
    assert torch.equal(again.group("cart")(**batch).logits, view(**batch).logits)


def test_a_model_that_accelerate_wraps_has_groups():
    model, batch = make_model(), make_batch("room", 2, 12)
    expected = model.group("room")(**batch).logits
    AcceleratorState._reset_state()
    try:
        Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    finally:
        AcceleratorState._reset_state()
    assert torch.equal(model.group("room")(**batch).logits, expected)


def test_a_rollout_chooses_the_group_by_the_environments_spaces():
    model = make_model({name: GROUPS[name] for name in ("room", "cart", "key")})
    settings = {"num_episodes": 2, "seed": 3, "output_steps": True}
    for env, name in (("CartPole-v1", "cart"), ("ad_hf/DarkRoom-v0", "room")):
        out = model.rollout(env, **settings)
        alone = model.group(name).rollout(env, **settings)
        assert np.array_equal(out.actions, alone.actions)
        assert np.array_equal(out.episode_returns, alone.episode_returns)
    context = model.group("room").init_context(2)
    assert context.act(np.zeros((2, 2), int), np.zeros(2), np.ones(2, bool)).shape == (2,)


@pytest.mark.parametrize(
    ("env", "group", "error"),
    [
        ("CartPole-v1", None, "groups cart, cart_raw have these spaces: say by group= whose normalisation to use"),
        ("CartPole-v1", "cat", "group must be one of room, cart, pull, key, cart_raw, got 'cat'"),
        ("CartPole-v1", "room", "the environments' observation_space is Box"),
        ("MountainCar-v0", None, r"spaces are Box.* and Discrete\(3\), which no group has: room, cart"),
    ],
)
def test_a_rollout_refuses_environments_of_no_group_or_of_several(env, group, error):
    with pytest.raises(ValueError, match=error):
        make_model().rollout(env, num_episodes=1, group=group)
    assert make_model().rollout("CartPole-v1", num_episodes=1, group="cart_raw").episode_returns.shape == (1, 1)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"groups": {}}, "groups must hold a group"),
        ({"groups": {"room": ROOM}, **ROOM}, "stand alone, got .* beside observation_space, action_space"),
        ({"groups": {"room": ROOM}, "reward_scale": 2.0}, "stand alone, got .* beside reward_scale"),
        ({"groups": {"a.b": ROOM}}, "names such as 'dark_room', got 'a.b'"),
        ({"groups": {"keys": ROOM}}, "names such as 'dark_room', got 'keys'"),
        (
            {"groups": {"room": {"observation_space": ROOM["observation_space"]}}},
            "room must hold observation_space, act",
        ),
        ({"groups": {"room": {**ROOM, "context_length": 3}}}, "room must hold"),
        ({"groups": {"room": {**ROOM, "action_space": {"type": "Text"}}}}, "groups: room: action_space: it must be"),
        ({"groups": {"cart": {**CART, "observation_std": [1.0]}}}, "cart: observation_std must hold one number per"),
        ({"groups": {"cart": {**CART, "reward_scale": 0}}}, "cart: reward_scale must be a finite number, above 0"),
    ],
)
def test_a_configuration_refuses_groups_that_make_no_model(settings, error):
    with pytest.raises(ValueError, match=error):
        ADConfig(**settings)


def test_arguments_that_are_not_by_group_are_refused():
    model, batch = make_model(), make_batch("room", 1, 3)
    with pytest.raises(ValueError, match="observations must be a mapping of groups, of cart, cart_raw"):
        model(**batch)
    with pytest.raises(ValueError, match=r"take one of the model's groups, as model.group\('room'\)"):
        model.init_context(1)
    with pytest.raises(ValueError, match="group must be one of none, got 'room'"):
        model.group("pull").group("room")
