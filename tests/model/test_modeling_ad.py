"""ADModel: shapes, losses, what a step may depend on, and that ways of computing the same thing agree."""

import math

import numpy as np
import pytest
import torch
from context_reference import GPT2, LLAMA
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from ad_hf.model.configuration_ad import ADConfig
from ad_hf.model.modeling_ad import ADModel

OBSERVATIONS = {
    "discrete": {"type": "Discrete", "n": 7},
    "multi_discrete": {"type": "MultiDiscrete", "nvec": [4, 3]},
    "multi_binary": {"type": "MultiBinary", "n": 3},
    "vector": {"type": "Box", "shape": [3], "low": [None] * 3, "high": [None] * 3, "dtype": "float32"},
    "image": {"type": "Box", "shape": [9, 5, 3], "low": [0], "high": [255], "dtype": "uint8"},
}
ACTIONS = {
    "discrete": {"type": "Discrete", "n": 5},
    "multi_discrete": {"type": "MultiDiscrete", "nvec": [3, 2]},
    "box": {"type": "Box", "shape": [2], "low": [-1.0, 0.0], "high": [1.0, 4.0], "dtype": "float32"},
}
BINS = 7
SIZES = {"discrete": [5], "multi_discrete": [3, 2], "box": [BINS, BINS]}
INPUTS = ["observations", "previous_actions", "previous_rewards", "episode_starts"]
BACKBONES = {"llama": LLAMA, "gpt2": {**GPT2, "n_positions": 32}}


def spaces(observation, action):
    return {"observation_space": OBSERVATIONS[observation], "action_space": ACTIONS[action], "num_action_bins": BINS}


def categories_by_hand(kind, actions):
    """Actions (batch, time, ...) as the category of each dimension (batch, time, dimensions)."""
    if kind == "box":
        space = ACTIONS["box"]
        low, high = np.array(space["low"]), np.array(space["high"])
        return np.clip(np.floor((actions.numpy() - low) / (high - low) * BINS), 0, BINS - 1).astype(int)
    return actions.numpy().reshape(*actions.shape[:2], -1)


def loss_by_hand(kind, logits, actions, counted, smoothing=0.0):
    """Mean over the counted steps of the negative log-likelihood, summed over an action's dimensions."""
    total, categories = 0.0, categories_by_hand(kind, actions)
    for row, step in zip(*np.nonzero(counted)):
        offset = 0
        for dimension, size in enumerate(SIZES[kind]):
            part = logits[row, step, offset : offset + size].detach().double().numpy()
            offset += size
            log_probabilities = part - np.log(np.exp(part).sum())
            likelihood = log_probabilities[categories[row, step, dimension]]
            total -= (1 - smoothing) * likelihood + smoothing * log_probabilities.mean()
    return total / counted.sum()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_kind_of_space_gives_logits_per_step_a_loss_and_gradients(make_model, make_history, observation, action):
    model = make_model(**spaces(observation, action))
    inputs, labels = make_history(model.config, batch=8, time=12)

    output = model(**inputs, labels=labels)
    output.loss.backward()

    assert output.logits.shape == (8, 12, sum(SIZES[action]))
    assert output.logits.isfinite().all()
    assert output.loss.item() == pytest.approx(loss_by_hand(action, output.logits, labels, np.ones((8, 12))), rel=1e-5)
    assert not [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("action", ACTIONS)
def test_loss_is_of_steps_that_are_neither_ignored_nor_padding(make_model, make_history, action, smoothing):
    model = make_model(**spaces("vector", action), label_smoothing=smoothing)
    inputs, labels = make_history(model.config, batch=3, time=6)
    counted = np.ones((3, 6), dtype=bool)
    if action == "box":  # whose bounds are of the outer bins
        labels[0, :2] = torch.tensor([ACTIONS["box"]["low"], ACTIONS["box"]["high"]])
    else:
        counted[0, 2] = counted[1, 0] = False
        labels[~torch.from_numpy(counted)] = -100
    counted[2, 4:] = False
    attention_mask = (torch.arange(6) < torch.tensor([[6], [6], [4]])).long()

    output = model(**inputs, labels=labels, attention_mask=attention_mask)

    expected = loss_by_hand(action, output.logits, labels, counted, smoothing)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_steps_may_come_in_the_small_integers_that_datasets_store(make_model, make_history, dtype):
    model = make_model(**spaces("multi_discrete", "multi_discrete"))
    inputs, labels = make_history(model.config)
    expected = model(**inputs, labels=labels)
    small = {name: part.to(dtype) if name in INPUTS[:2] else part for name, part in inputs.items()}

    output = model(**small, labels=labels.to(dtype))

    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


def test_vectors_are_normalised_and_rewards_scaled(make_model, make_history):
    plain = make_model(**spaces("vector", "discrete"))
    mean, std = [1.0, -2.0, 0.5], [2.0, 0.1, 1.0]
    scaled = make_model(**spaces("vector", "discrete"), observation_mean=mean, observation_std=std, reward_scale=10.0)
    inputs, _ = make_history(plain.config)
    raw = {
        **inputs,
        "observations": inputs["observations"] * torch.tensor(std) + torch.tensor(mean),
        "previous_rewards": inputs["previous_rewards"] * 10.0,
    }

    torch.testing.assert_close(scaled(**raw).logits, plain(**inputs).logits, atol=1e-5, rtol=1e-5)
    far, farther = ({**inputs, "observations": torch.full((3, 8, 3), value)} for value in (100.0, 1e30))
    assert torch.equal(scaled(**far).logits, scaled(**farther).logits)  # outliers are cut off


def test_small_differences_beside_a_large_mean_are_seen_in_bfloat16(make_model, make_history):
    mean = [1000.0, -1000.0, 1000.0]
    model = make_model(**spaces("vector", "discrete"), observation_mean=mean, observation_std=[1.0] * 3)
    plain = make_model(**spaces("vector", "discrete"))
    inputs, _ = make_history(model.config)
    raw = {**inputs, "observations": inputs["observations"] + torch.tensor(mean)}
    difference = (model.bfloat16()(**raw).logits - plain.bfloat16()(**inputs).logits).abs().max()
    assert difference < 0.05 * plain(**inputs).logits.abs().max()


def test_continuous_actions_count_in_units_of_their_bounds(make_model, make_history):
    small = {"type": "Box", "shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0], "dtype": "float32"}
    large = {**small, "low": [-1000.0, 0.0], "high": [1000.0, 2000.0]}
    models = [make_model(action_space=space) for space in (small, large)]
    inputs, labels = make_history(models[0].config)
    scaled = [part * 1000.0 + torch.tensor([0.0, 1000.0]) for part in (inputs["previous_actions"], labels)]

    expected = models[0](**inputs, labels=labels)
    output = models[1](**{**inputs, "previous_actions": scaled[0]}, labels=scaled[1])

    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shape", "channels"), [([24, 32, 3], [32, 64]), ([7, 5, 1], [8]), ([9, 10, 3], [4, 8, 16])])
def test_images_of_any_size_are_seen_up_to_their_borders(make_model, make_history, shape, channels):
    space = {"type": "Box", "shape": shape, "low": [0], "high": [255], "dtype": "uint8"}
    model = make_model(observation_space=space, image_channels=channels)
    inputs, _ = make_history(model.config, batch=1, time=2)
    before = model(**inputs).logits
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        changed = inputs["observations"].clone()
        changed[0, 1, row, column] = 255 - changed[0, 1, row, column]
        after = model(**{**inputs, "observations": changed}).logits
        assert torch.equal(after[:, 0], before[:, 0])
        assert not torch.equal(after[:, 1], before[:, 1])


def test_refuses_a_configuration_without_spaces():
    with pytest.raises(ValueError, match="observation_space and action_space"):
        ADModel(ADConfig())


@pytest.mark.parametrize(
    "settings",
    [
        *({**spaces(observation, "multi_discrete")} for observation in ("discrete", "vector", "image")),
        {"attn_implementation": "sdpa"},
        *({"backbone_config": backbone} for backbone in BACKBONES.values()),
    ],
)
def test_a_step_changes_no_logit_before_it_and_its_own(make_model, make_history, settings):
    model = make_model(**settings)
    history, other = (make_history(model.config, batch=8, time=7, seed=seed)[0] for seed in (0, 50))
    before = model(**history).logits
    for name in INPUTS:
        for step in (1, 3, 6):
            changed = {**history, name: history[name].clone()}
            changed[name][:, step:] = ~history[name][:, step:] if name == "episode_starts" else other[name][:, step:]
            after = model(**changed).logits
            torch.testing.assert_close(after[:, :step], before[:, :step], atol=1e-6, rtol=0)
            assert (after[:, step] - before[:, step]).abs().max() > 1e-4, f"{name} has no effect"


@pytest.mark.parametrize("settings", [{}, {"attn_implementation": "sdpa"}, {"backbone_config": BACKBONES["llama"]}])
def test_padding_changes_nothing_for_real_steps(make_model, make_history, settings):
    model = make_model(**settings)
    lengths = [7, 3, 1]
    inputs, labels = make_history(model.config, batch=3, time=7)
    attention_mask = (torch.arange(7) < torch.tensor(lengths).unsqueeze(1)).long()

    padded = model(**inputs, attention_mask=attention_mask, labels=labels)

    alone = []
    for row, length in enumerate(lengths):
        steps = {name: part[row : row + 1, :length] for name, part in inputs.items()}
        alone.append(model(**steps, labels=labels[row : row + 1, :length]))
        torch.testing.assert_close(padded.logits[row, :length], alone[-1].logits[0], atol=1e-5, rtol=0)
    expected = sum(output.loss * length for output, length in zip(alone, lengths)) / sum(lengths)
    torch.testing.assert_close(padded.loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feed_forward_activation_is_exactly_relu_forwards_and_backwards(make_model, dtype):
    block, gradients = make_model().blocks[0].to(dtype), []
    with torch.no_grad():
        block.up.weight[:4], block.up.bias[:4] = 0.0, 0.0  # pre-activations of exactly 0, where gradients could differ
    hidden = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    block.attention.forward = lambda *_, **__: (torch.zeros_like(hidden), None)
    for forward in (block, lambda leaf: leaf + block.down(F.relu(block.up(block.feed_forward_norm(leaf))))):
        block.zero_grad()
        leaf = hidden.clone().requires_grad_()
        output = forward(leaf)
        output.float().square().sum().backward()
        gradients.append([output, leaf.grad, block.up.weight.grad.clone(), block.down.weight.grad.clone()])
    assert all(torch.equal(ours, expected) for ours, expected in zip(*gradients))
    assert not block.up.weight.grad[:4].any()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient_checkpointing_computes_blocks_twice_to_the_same_result(make_model, make_history, dropout):
    results = []
    for checkpointing in (False, True):
        model = make_model(dropout=dropout, attention_dropout=dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls = []
        model.blocks[0].up.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        inputs, labels = make_history(model.config)
        torch.manual_seed(0)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        assert len(calls) == 1 + checkpointing
        results.append((loss, {name: weight.grad for name, weight in model.named_parameters()}))

    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("setting", ["dropout", "attention_dropout", "input_mask_probability"])
def test_regularisation_acts_in_training_only(make_model, make_history, setting, attention):
    model, plain = (make_model(attn_implementation=attention, **chosen) for chosen in ({setting: 0.5}, {}))
    inputs, _ = make_history(model.config)

    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    model.train()
    plain.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    assert torch.equal(plain(**inputs).logits, plain(**inputs).logits)


def test_input_masking_blanks_whole_steps(make_model, make_history):
    model = make_model(input_mask_probability=1 - 1e-9).train()
    first, second = (model(**make_history(model.config, seed=seed)[0]).logits for seed in (0, 9))

    torch.testing.assert_close(first, second)


def test_initial_weights_have_the_configured_scale_and_residual_branches_a_smaller_one(make_model):
    layers, scale = 3, 0.05
    model = make_model(hidden_size=64, intermediate_size=128, num_hidden_layers=layers, initializer_range=scale)

    for block in model.blocks:
        for linear in (block.attention.qkv, block.up):
            assert linear.weight.std().item() == pytest.approx(scale, rel=0.1)
        for linear in (block.attention.output, block.down):
            assert linear.weight.std().item() == pytest.approx(scale / math.sqrt(2 * layers), rel=0.1)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_gives_shapes_loss_and_gradients_as_our_own_blocks_do(make_model, make_history, backbone):
    model = make_model(**spaces("vector", "multi_discrete"), backbone_config=BACKBONES[backbone])
    inputs, labels = make_history(model.config)

    output = model(**inputs, labels=labels)
    output.loss.backward()

    assert model.blocks is None
    expected = loss_by_hand("multi_discrete", output.logits, labels, np.ones(labels.shape[:2]))
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    token_tables = ("backbone.embed_tokens.weight", "backbone.wte.weight")  # text models' own, which nothing reads
    for name, weight in model.named_parameters():
        assert name in token_tables or weight.grad.any(), name


GPT2_EAGER = {"backbone_config": BACKBONES["gpt2"], "attn_implementation": "eager"}


@pytest.mark.parametrize("settings", [{}, *({"attn_implementation": name} for name in ("eager", "sdpa")), GPT2_EAGER])
def test_hidden_states_and_attentions_are_returned_as_by_the_librarys_models(make_model, make_history, settings):
    model = make_model(**settings)
    inputs, _ = make_history(model.config, batch=3, time=8)
    expected = model(**inputs)

    output = model(**inputs, output_hidden_states=True, output_attentions=True)

    torch.testing.assert_close(output.logits, expected.logits)
    assert [tuple(states.shape) for states in output.hidden_states] == [(3, 8, 16)] * 3
    torch.testing.assert_close(model.head(output.hidden_states[-1]), output.logits)
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, 2, 8, 8)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 8))
        assert not weights.triu(1).any()
    as_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 2
    assert model(**inputs, output_hidden_states=[-1]).hidden_states[:-1] == (None, None)
    assert expected.hidden_states is expected.attentions is None
    with pytest.raises(TypeError, match="takes no nope"):
        model(**inputs, nope=1)


@pytest.mark.parametrize(
    "settings", [{}, spaces("vector", "box"), {**spaces("vector", "box"), "action_distribution": "mixture"}]
)
def test_losses_of_parts_of_a_batch_add_up(make_model, make_history, settings):
    model = make_model(**settings)
    inputs, labels = make_history(model.config, batch=4, time=8)
    mask = torch.ones(4, 8)
    if labels.dtype == torch.int64:
        labels[0, 2:] = -100
    whole = model(**inputs, labels=labels, attention_mask=mask).loss

    parts = [
        model(
            **{name: values[rows] for name, values in inputs.items()},
            labels=labels[rows],
            attention_mask=mask[rows],
            num_items_in_batch=labels.ne(-100).sum(),
        ).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]

    torch.testing.assert_close(sum(parts), whole)


def test_a_trainer_trains_and_evaluates_it(make_model, make_history, tmp_path):
    model = make_model()
    inputs, labels = make_history(model.config, batch=4, time=8)
    rows = [{name: values[row] for name, values in {**inputs, "labels": labels}.items()} for row in range(4)]
    seen = []
    arguments = {"include_for_metrics": ["inputs"], "report_to": [], "use_cpu": True, "max_steps": 2}
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), gradient_accumulation_steps=2, per_device_train_batch_size=2, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda prediction: seen.append(prediction) or {},
    )

    trainer.train()
    trainer.evaluate()

    assert trainer.model_accepts_loss_kwargs
    assert seen[0].predictions.shape == (4, 8, 5)
    assert (seen[0].inputs == inputs["observations"].numpy()).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_it_can_be_quantised_for_cpus(make_model):
    model = make_model(**spaces("vector", "discrete"))
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    contexts = [part.init_context(2) for part in (model, quantised)]
    for context in contexts:
        context.act(np.zeros((2, 3), dtype=np.float32))

    torch.testing.assert_close(contexts[0].logits, contexts[1].logits, atol=0.1, rtol=0.1)


def test_observations_far_from_zero_are_centred_before_they_are_narrowed(make_model):
    space = {"type": "Box", "shape": [1], "low": [None], "high": [None], "dtype": "float64"}
    far = make_model(observation_space=space, observation_mean=[1.7e9], observation_std=[30.0]).init_context(5)
    near = make_model(observation_space=space, observation_mean=[0.0], observation_std=[30.0]).init_context(5)
    offsets = np.array([[-60.0], [-30.0], [0.0], [30.0], [60.0]])

    far.act(1.7e9 + offsets)
    near.act(offsets)

    torch.testing.assert_close(far.logits, near.logits)
    assert len(far.logits[:, 0].unique()) == 5


MISFITS = [  # an input, its value at row 0 and a step, and where it is said to be wrong
    *(("observations", 2, value, "observations of row 0, step 2 are no element") for value in (7, -1)),
    ("previous_actions", 0, 6, "previous_actions of row 0, step 0"),
    *(("labels", 1, value, "labels of row 0, step 1") for value in (5, -5)),
]


def test_inputs_that_do_not_fit_are_named(make_model, make_history):
    model = make_model()
    inputs, labels = make_history(model.config, batch=3, time=8)
    inputs["labels"] = labels
    for name, step, value, message in MISFITS:
        changed = inputs[name].clone()
        changed[0, step] = value
        with pytest.raises(ValueError, match=message):
            model(**{**inputs, name: changed})
    for name in ("previous_actions", "previous_rewards", "episode_starts", "labels"):
        for values in (inputs[name][:, 1:], inputs[name][:, :1]):
            with pytest.raises(ValueError, match=rf"{name} must have shape \(3, 8\)"):
                model(**{**inputs, name: values})
