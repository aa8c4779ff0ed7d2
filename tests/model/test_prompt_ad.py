"""Prompts: a context that begins with a history is the context of an environment that has lived through it."""

import numpy as np
import pytest
import torch
from context_reference import (
    BOX,
    GPT2,
    LLAMA,
    MISTRAL,
    MULTI_DISCRETE,
    VECTOR,
    elements,
    random_history,
)
from datasets import Dataset

from ad_hf.model.rollout_ad import RolloutConfig

KINDS = {
    "dropping": {},
    "dropping one": {"drop": 1},
    "dropping all": {"drop": 16},
    "sliding": {"sliding_window": 6},
    "llama": {"backbone_config": LLAMA},
    "gpt2": {"backbone_config": GPT2},
    "mistral": {"backbone_config": MISTRAL},
}
kinds = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def made(make_model, settings):
    """A model of a kind, whose contexts drop as the kind says."""
    model = make_model(**{name: value for name, value in settings.items() if name != "drop"})
    model.rollout_config = RolloutConfig(do_sample=False, context_drop=settings.get("drop"))
    return model


def live(model, num_steps, num_envs=2, seed=0):
    """A context after so many steps of its own, and these as a history of each environment."""
    rng, context, steps = np.random.default_rng(seed), model.init_context(num_envs), []
    rewards, ends = np.zeros(num_envs), np.zeros(num_envs, dtype=bool)
    for _ in range(num_steps):
        seen = elements(model.config.observation_space, num_envs, rng)
        actions = context.act(seen, rewards, ends)
        rewards, ends = rng.normal(size=num_envs), rng.random(num_envs) < 0.2
        steps.append((seen, actions, rewards, ends, np.zeros(num_envs, dtype=bool)))
    names = ("observations", "actions", "rewards", "truncations", "terminations")
    columns = [np.stack(column, axis=1) for column in zip(*steps)]
    return context, [{name: column[env] for name, column in zip(names, columns)} for env in range(num_envs)]


def assert_go_on_alike(context, other, first_rewards, num_steps=25):
    """Whatever follows, both contexts act alike; of the first reward only one of them knows."""
    rng, space = np.random.default_rng(9), context.model.config.observation_space
    for step in range(num_steps):
        seen, rewards = elements(space, context.num_envs, rng), rng.normal(size=context.num_envs)
        starts = rng.random(context.num_envs) < 0.2
        actions = context.act(seen, rewards if step else first_rewards, starts | (step == 0))
        assert (actions == other.act(seen, rewards, starts)).all()
        torch.testing.assert_close(other.logits, context.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 7, 15, 16, 17, 20, 21, 45])
@kinds
def test_a_prompt_is_as_good_as_having_lived_it(make_model, settings, num_steps):
    model = made(make_model, settings)
    context, histories = live(model, num_steps)

    prompted = model.init_context(2, prompt=histories)

    if "sliding_window" not in settings:
        assert (prompted.lengths == context.lengths).all()
    assert_go_on_alike(context, prompted, [history["rewards"][-1] for history in histories])


@pytest.mark.parametrize("action_space", [{"type": "Discrete", "n": 5}, MULTI_DISCRETE, BOX], ids=lambda s: s["type"])
def test_histories_of_every_kind_of_space_are_prompts(make_model, action_space):
    model = made(make_model, {"observation_space": VECTOR, "action_space": action_space})
    context, histories = live(model, 19)
    rewards = [history["rewards"][-1] for history in histories]
    # Rows of a dataset are lists, and hold more than a prompt needs.
    rows = [{name: column.tolist() for name, column in history.items()} | {"task_id": 3} for history in histories]

    assert_go_on_alike(context, model.init_context(2, prompt=rows), rewards)


def test_a_dataset_of_histories_prompts_each_environment_with_its_own_row(make_model):
    """Its rows are made on the way, and may be gone when the next one is."""
    model, rng = made(make_model, {}), np.random.default_rng(0)
    rows = [{name: column.tolist() for name, column in random_history(model, 9, rng).items()} for _ in range(100)]
    contexts = [
        model.init_context(100, prompt=prompt) for prompt in (rows, Dataset.from_list(rows).with_format("numpy"))
    ]
    for context in contexts:
        context.act(np.full(100, 3))
    torch.testing.assert_close(contexts[1].logits, contexts[0].logits, atol=1e-5, rtol=0)


def test_starts_of_episodes_may_be_given_instead_of_their_ends(make_model):
    model = made(make_model, {})
    history = random_history(model, 12, np.random.default_rng(0))
    starts = np.roll(history["terminations"] | history["truncations"], 1)
    others = {name: history[name] for name in ("observations", "actions", "rewards")}
    for first in (False, True):  # which a history's first step is, whatever is said of it
        starts[0] = first
        contexts = [model.init_context(1, prompt=prompt) for prompt in (history, {**others, "episode_starts": starts})]
        for context in contexts:
            context.act(np.array([2]))
        torch.testing.assert_close(contexts[0].logits, contexts[1].logits)
    assert starts[1:].any()


@kinds
def test_a_prompt_takes_the_place_of_what_an_environment_has_lived_through(make_model, settings):
    model, rng = made(make_model, settings), np.random.default_rng(1)
    (context, _), (untouched, _) = live(model, 25, num_envs=4), live(model, 25, num_envs=4)
    history, empty = random_history(model, 9, rng), random_history(model, 0, rng)

    context.prompt([history, None, empty, None])

    fresh = model.init_context(4, prompt=[history, None, None, None])
    seen, rewards = elements(model.config.observation_space, 4, rng), rng.normal(size=4)
    for each in (context, untouched, fresh):
        each.act(seen, rewards)
    torch.testing.assert_close(context.logits[[1, 3]], untouched.logits[[1, 3]], atol=1e-5, rtol=0)
    torch.testing.assert_close(context.logits[[0, 2]], fresh.logits[[0, 2]], atol=1e-5, rtol=0)


REFUSED_COLUMNS = [
    ({"observations": None}, "expected a mapping of observations, actions, rewards, .*got actions"),
    ({"actions": None}, "expected a mapping of observations"),
    ({"rewards": None}, "expected a mapping of observations"),
    ({"terminations": None}, "expected .* terminations and truncations or episode_starts"),
    ({"observations": np.zeros(7, int)}, r"observations must be numbers of shape \(8,\), got"),
    ({"observations": np.zeros((8, 2), int)}, r"observations must be numbers of shape \(8,\), got"),
    ({"observations": [0, 1, 2, 7, 0, 0, 0, 0]}, "observations of step 3 are no element of"),
    ({"observations": [[0, 0], [0]]}, "observations must be an array of numbers"),
    ({"actions": np.zeros(9, int)}, r"actions must be numbers of shape \(8,\), got"),
    ({"actions": [0] * 7 + [5]}, "actions of step 7 are no element of .*'n': 5.*: 5"),
    ({"actions": [-100] + [0] * 7}, "actions of step 0 are no element of .*: -100"),
    ({"rewards": np.zeros((8, 1))}, r"rewards must be numbers of shape \(8,\), got"),
    ({"rewards": 5}, r"rewards must be numbers of shape \(1,\), got"),
    ({"rewards": [[1.0, 2.0], [3.0]]}, "rewards must be an array of numbers"),
    ({"rewards": [0.0, np.nan] + [0.0] * 6}, "rewards of step 1 are not finite in float32: nan"),
    ({"terminations": np.zeros(7, bool)}, r"terminations must be numbers of shape \(8,\)"),
    ({"truncations": np.zeros((8, 1), bool)}, r"truncations must be numbers of shape \(8,\)"),
]


def test_malformed_prompts_are_refused_by_the_number_of_their_environment_and_leave_nothing(make_model):
    model = made(make_model, {})
    history = random_history(model, 8, np.random.default_rng(0))
    (context, _), (untouched, _) = live(model, 5, num_envs=3), live(model, 5, num_envs=3)

    for changes, message in REFUSED_COLUMNS:
        changed = {name: value for name, value in {**history, **changes}.items() if value is not None}
        with pytest.raises(ValueError, match=f"prompt of environment 1: {message}"):
            context.reset(np.ones(3, dtype=bool), prompt=[history, changed, None])
    for prompt in ([history], [history] * 4, "history", 3, [[0, 1], [2, 3], [4]], [3, 4, 5]):
        with pytest.raises(ValueError, match="prompt"):
            context.reset(prompt=prompt)
        with pytest.raises(ValueError, match="prompt"):
            model.init_context(3, prompt=prompt)

    for each in (context, untouched):
        each.act(np.array([1, 2, 3]), np.ones(3))
    assert torch.equal(context.logits, untouched.logits)
