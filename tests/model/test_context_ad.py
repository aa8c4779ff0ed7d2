"""ADContext: environments that do not know of each other, resets, copies, saved states, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from context_reference import (
    BLOOM,
    BOX,
    GPT2,
    LFM2,
    LLAMA,
    MISTRAL,
    MULTI_DISCRETE,
    VECTOR,
    elements,
    random_history,
)
from safetensors.torch import load_file, save_file

KINDS = {
    "dropping": {},
    "sliding": {"sliding_window": 6},
    "llama": {"backbone_config": LLAMA},
    "gpt2": {"backbone_config": GPT2},
    "mistral": {"backbone_config": MISTRAL},
    "lfm2": {"backbone_config": LFM2},
}
kinds = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def play(model, worlds, num_steps=60, staggered=False, **settings):
    """
    Actions and logits of the steps that count, per toy world: each has rules, pauses and new beginnings of its own.
    """
    worlds = np.array(worlds)
    dice = np.stack([np.random.default_rng(world).random((2, num_steps)) for world in worlds], axis=-1)
    context = model.init_context(len(worlds), **settings)
    state, rewards, starts = worlds % 7, np.zeros(len(worlds)), np.ones(len(worlds), dtype=bool)
    ages, lived = np.zeros(len(worlds), dtype=int), [[] for _ in worlds]
    for pauses, restarts in zip(*dice):
        active = pauses > 0.3 * staggered
        context.reset(restarts < 0.05 * staggered)
        actions = context.act(state, rewards, starts, active)
        for env in np.flatnonzero(active):
            lived[env].append((int(actions[env]), context.logits[env]))
        state = np.where(active, (3 * state + actions + worlds) % 7, state)
        rewards = np.where(active, (state == worlds % 7) + 0.1 * (ages % 3), rewards)
        ages += active
        starts = (ages + worlds) % 9 == 0
    return [([action for action, _ in steps], torch.stack([logits for _, logits in steps])) for steps in lived]


def assert_same_lives(found, expected):
    for (actions, logits), (expected_actions, expected_logits) in zip(found, expected, strict=True):
        assert actions == expected_actions
        torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("staggered", [False, True], ids=["in step", "staggered"])
@kinds
def test_an_environments_actions_depend_on_its_seed_and_past_alone(make_model, settings, staggered):
    model = make_model(**settings)
    together = play(model, range(6), staggered=staggered, seed=0)

    assert all(one[0] != other[0] for one, other in itertools.combinations(together, 2))
    for first, last in [(0, 2), (2, 6), (0, 1), (3, 4), (5, 6)]:  # environment i of a context has seed + i
        alone = play(model, range(first, last), staggered=staggered, seed=first)
        assert_same_lives(alone, together[first:last])


@pytest.mark.parametrize(
    ("settings", "mixed_precision"),
    [({}, "no"), ({}, "bf16"), ({"backbone_config": LLAMA}, "no")],
    ids=["own blocks", "own blocks in bfloat16", "llama"],
)
def test_environments_of_which_not_all_are_encoded_at_a_time_are_each_their_own(make_model, settings, mixed_precision):
    model, num_envs = make_model(**settings), 500  # which hold 12 steps each when they are full
    same = {"num_steps": 25, "mixed_precision": mixed_precision}
    together = play(model, range(num_envs), seed=0, **same)
    for world in (0, 250, 340, 341, 342, 499):
        assert_same_lives(play(model, [world], seed=world, **same), [together[world]])


def lived(model, num_envs=3, num_steps=20, seed=0, **settings):
    """A context after some steps, in which environments were reset, prompted and paused."""
    rng, context = np.random.default_rng(seed), model.init_context(num_envs, **settings)
    for number in range(num_steps):
        if number % 4 == 0:
            prompt = random_history(model, int(rng.integers(1, 40)), rng) if number % 8 == 0 else None
            context.reset(np.arange(num_envs) == rng.integers(num_envs), prompt)
        seen = elements(model.config.observation_space, num_envs, rng)
        context.act(seen, rng.normal(size=num_envs), rng.random(num_envs) < 0.2, rng.random(num_envs) < 0.7)
    return context


def further_steps(num_envs=3, num_steps=25, seed=5):
    """What is seen, rewards, starts and who acts, for so many steps (num_steps, num_envs) each."""
    rng, shape = np.random.default_rng(seed), (num_steps, num_envs)
    return rng.integers(7, size=shape), rng.normal(size=shape), rng.random(shape) < 0.2, rng.random(shape) < 0.8


def go_on(context, steps):
    """Actions and logits (steps and environments that act, ...) of further steps."""
    found = [(torch.from_numpy(context.act(*step))[step[3]], context.logits[step[3]]) for step in zip(*steps)]
    return torch.cat([actions for actions, _ in found]), torch.cat([logits for _, logits in found])


def assert_identical(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("num_steps", [0, 20])
@kinds
def test_a_copy_goes_on_bit_for_bit_and_by_itself(make_model, settings, num_steps):
    model = make_model(**settings)
    context = lived(model, num_steps=num_steps) if num_steps else model.init_context(3)
    first, second = context.copy(), context.copy()

    assert_identical(first.lengths, context.lengths)
    assert first.model is model  # there is no second set of weights
    assert getattr(first._cache, "backbone", model.backbone) is model.backbone
    expected = go_on(context, further_steps())
    assert not torch.equal(expected[1], go_on(first, further_steps(seed=6))[1])
    first.reset()
    assert_identical(go_on(second, further_steps()), expected)


@pytest.mark.parametrize(
    "settings", [*KINDS.values(), {"backbone_config": BLOOM}, {"action_space": MULTI_DISCRETE}, {"action_space": BOX}]
)
def test_a_saved_state_goes_on_bit_for_bit(make_model, tmp_path, settings):
    model = make_model(**settings)
    context, other = lived(model), lived(model, num_steps=7, seed=9)
    save_file(context.state_dict(), tmp_path / "context.safetensors")
    state = load_file(tmp_path / "context.safetensors")
    expected = go_on(context, further_steps())

    other.load_state_dict(state)

    assert_identical(go_on(other, further_steps()), expected)
    fresh = make_model(**settings).init_context(3)
    fresh.load_state_dict(state)  # which the further steps of the other have not changed
    assert_identical(go_on(fresh, further_steps()), expected)


SLIDING, OF_LLAMA, OF_MISTRAL = KINDS["sliding"], KINDS["llama"], KINDS["mistral"]
OTHERS = {"num_envs": 2, "hidden_size": 32, "context_length": 12, "num_hidden_layers": 1, "num_attention_heads": 1}
OTHERS |= {"sliding_window": 16, "action_space": BOX, "backbone_config": LLAMA}


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({}, [{name: value} for name, value in OTHERS.items()] + [OF_MISTRAL]),
        (SLIDING, [{}, {"sliding_window": 4}, {**SLIDING, "num_hidden_layers": 1}]),
        (OF_LLAMA, [{}, OF_MISTRAL, {"backbone_config": {**LLAMA, "num_hidden_layers": 1}}]),
        (OF_LLAMA, [{"backbone_config": {**LLAMA, "num_key_value_heads": 2}}]),
        (OF_MISTRAL, [OF_LLAMA]),
    ],
)
def test_states_of_other_contexts_are_refused_and_change_nothing(make_model, settings, others):
    model = make_model(**settings)
    context, twin = lived(model), lived(model)
    for other in others:
        owner = make_model(**{name: value for name, value in other.items() if name != "num_envs"})
        state = lived(owner, other.get("num_envs", 3)).state_dict()
        for each in (context, model.init_context(3)):
            with pytest.raises(ValueError, match="context's state"):
                each.load_state_dict(state)

    assert_identical(go_on(context, further_steps(num_steps=3)), go_on(twin, further_steps(num_steps=3)))


@kinds
def test_incomplete_states_are_refused(make_model, settings):
    state = lived(make_model(**settings)).state_dict()
    for missing in state.keys() - {"weights"}:  # which states of older versions lack
        incomplete = {name: tensor for name, tensor in state.items() if name != missing}
        with pytest.raises(ValueError, match=missing):
            make_model(**settings).init_context(3).load_state_dict(incomplete)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64])
def test_observations_may_be_integers_of_any_type(make_model, dtype):
    model = make_model(context_length=4)
    context, twin = model.init_context(2), model.init_context(2)
    for step in range(8):
        seen = np.array([step, 2 * step]) % 7
        assert (context.act(seen) == twin.act(seen.astype(dtype))).all()


REFUSED_STEPS = [
    ({"observations": np.zeros(2, int)}, r"observations must be numbers of shape \(3,\), got int64 of shape \(2,\)"),
    ({"observations": np.zeros((3, 1), int)}, r"observations .* \(3,\), got int64 of shape \(3, 1\)"),
    ({"observations": ["a", "b", "c"]}, "observations must be numbers"),
    ({"observations": [0, 7, 0]}, "observations of environment 1 are no element of .*'n': 7.*: 7"),
    ({"observations": [0, 0, -1]}, "observations of environment 2 are no element of .*: -1"),
    ({"observations": [0.5, 0, 0]}, "observations of environment 0 are no element of .*: 0.5"),
    ({"rewards": np.zeros(2)}, r"rewards must be numbers of shape \(3,\), got float64 of shape \(2,\)"),
    ({"rewards": 1.0}, r"rewards must be numbers of shape \(3,\), got float64 of shape \(\)"),
    ({"rewards": [0.0, np.nan, 0.0]}, "rewards of environment 1 are not finite in float32: nan"),
    ({"rewards": [0.0, 0.0, -np.inf]}, "rewards of environment 2 are not finite in float32: -inf"),
    ({"rewards": [0.0, 0.0, 1e39]}, r"rewards of environment 2 are not finite in float32: 1e\+39"),
    ({"episode_starts": np.zeros(2, bool)}, r"episode_starts must be .* shape \(3,\), .*got .*2"),
    ({"episode_starts": np.zeros((3, 1), bool)}, r"episode_starts must be .* shape \(3,\), .*got .*3, 1"),
    ({"episode_starts": "abc"}, "episode_starts must be numbers"),
    ({"episode_starts": [None, None, None]}, "episode_starts must be numbers"),
    ({"episode_starts": [2, 0, 0]}, "episode_starts of environment 0 are no element"),
    ({"active": np.ones(4, bool)}, r"active must have shape \(3,\), .*got .*4"),
    ({"active": True}, r"active must have shape \(3,\), .*got"),
    ({"active": [0, 1, 1]}, "active must have shape"),  # numbers of environments, maybe
    ({"do_sample": "yes"}, "do_sample must be True or False, got 'yes'"),
    ({"do_sample": 1}, "do_sample must be True or False, got 1"),
]


def test_malformed_steps_are_refused_by_name_and_change_nothing(make_model):
    model = make_model()
    context, twin = lived(model), lived(model)
    for step, message in REFUSED_STEPS:
        with pytest.raises(ValueError, match=message):
            context.act(**{"observations": np.zeros(3, int), "rewards": np.zeros(3), **step})
    assert_identical(go_on(context, further_steps(num_steps=3)), go_on(twin, further_steps(num_steps=3)))
    vectors = make_model(observation_space=VECTOR).init_context(2)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="observations of environment 1 are not finite"):
            vectors.act(np.array([[0.0, 0.0, 0.0], [0.0, bad, 0.0]]))


def test_what_environments_return_that_do_not_act_may_be_anything(make_model):
    model = make_model(observation_space=VECTOR)
    context, twin = model.init_context(2), model.init_context(2)
    good = np.zeros((2, 3))
    for each, seen, paid in ((context, np.full(3, np.nan), np.nan), (twin, np.zeros(3), 0.0)):
        each.act(good)
        each.act(np.stack([good[0], seen]), np.array([1.0, paid]), active=np.array([True, False]))
    assert torch.equal(context.logits[0], twin.logits[0])
    assert (context.act(good, np.ones(2)) == twin.act(good, np.ones(2))).all()
    assert torch.equal(context.logits, twin.logits)


@pytest.mark.parametrize(
    ("model_settings", "num_envs", "settings", "message"),
    [
        ({}, 1, {"context_length": 17}, "context_length must be at most 16, the model's; got 17"),
        ({}, 1, {"context_drop": 17}, r"context_drop must be at most context_length \(16\), got 17"),
        ({}, 1, {"context_length": 4, "context_drop": 5}, r"context_drop must be at most context_length \(4\), got 5"),
        ({"sliding_window": 4}, 1, {"context_length": 8}, "context_length must be 16, as .* context_drop"),
        *(
            (layers, 10**9, {}, r"^a context of num_envs=1000000000 would take [\d,]+ bytes, .*: make it smaller")
            for layers in (
                {},
                {"layer_types": ["linear_attention"] * 2},
                {"backbone_config": LFM2},
                {"backbone_config": BLOOM},
            )
        ),
        *(({}, number, {}, "num_envs must be a whole number") for number in ("2", 0, -1, True, 2.0, None)),
    ],
)
def test_impossible_contexts_are_refused(make_model, model_settings, num_envs, settings, message):
    with pytest.raises(ValueError, match=message):
        make_model(**model_settings).init_context(num_envs, **settings)


def test_a_mask_has_a_truth_value_for_each_environment(make_model):
    context = make_model().init_context(2)
    for mask in ([0, 1], "text", [True], np.array([1.0, 0.0]), np.ones(3, dtype=bool)):
        with pytest.raises(ValueError, match="mask must have shape"):
            context.reset(mask)


def test_a_moved_model_needs_another_context(make_model):
    model = make_model()
    context = model.init_context(2)
    model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"moved from torch\.float32 on cpu after"):
        context.act(np.zeros(2, dtype=int))


def test_a_state_is_of_one_models_weights_and_possible(make_model):
    model = make_model()
    state = lived(model).state_dict()
    lengths = {"cache.lengths": torch.tensor([1000, 0, 0])}
    for owner, changed, message in (
        (make_model(weights_seed=1), state, "a model with other weights"),
        (model, {**state, **lengths}, r"impossible cache.lengths: \[1000"),
        (model, {**state, "cache.lengths": torch.tensor([-5, 0, 0])}, "impossible cache.lengths"),
        (model, {**state, "seeds": "x"}, "must hold tensors, got seeds"),
        (model, {**state, "seeds": [0, 1, 2]}, "must hold tensors, got seeds"),
        (model, list(state), "must be a dict of tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            owner.init_context(3).load_state_dict(changed)

    context = model.init_context(3)
    context.load_state_dict({name: part.numpy() for name, part in state.items() if name != "weights"})  # an older one
    assert torch.equal(context.state_dict()["tokens"], state["tokens"])
