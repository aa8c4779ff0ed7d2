"""Planning: values of first actions against every imagined path by full passes, and what planning leaves as it is."""

import numpy as np
import pytest
import ring_world
import torch
from context_reference import LLAMA, MULTI_DISCRETE, VECTOR, ReferenceContext, elements, random_history

from ad_hf.model.dynamics_ad import reward_values
from ad_hf.model.heads_ad import uniform
from ad_hf.model.planning_ad import IMAGINED

ACTIONS, HORIZON, WEIGHT = 3, 3, 2.0
MIXED = {"layer_types": ["linear_attention", "sliding_attention"], "sliding_window": 4}
KINDS = {
    "full": {"context_length": 12},
    "sliding": {"sliding_window": 4},
    "window of one": {"sliding_window": 1},
    "mixed": MIXED,
    "vectors": {"sliding_window": 5, "observation_space": VECTOR, "observation_std": [0.5, 1.0, 2.0]},
    "several dimensions": {"context_length": 12, "observation_space": MULTI_DISCRETE},
}
PLANNERS = ["beam_search", "policy_iteration"]


def plans(make_model, **settings):
    """A model that can plan, whose heads are as arbitrary as its other weights."""
    space = {"type": "Discrete", "n": ACTIONS}
    return make_model(action_space=space, dynamics_weight=1.0, dynamics_discount=0.8, reward_scale=0.5, **settings)


@torch.no_grad()
def look(model, steps):
    """Hidden state (width,) and log-probabilities of actions (n,) of the last of some steps, by a full pass."""
    output = model(*(torch.stack(parts).unsqueeze(0) for parts in zip(*steps)), output_hidden_states=True)
    return output.hidden_states[-1][0, -1], output.logits[0, -1].double().log_softmax(-1)


@torch.no_grad()
def extend(model, path, action, numbers=None):
    """A path of imagined steps with one action more: the likeliest of what follows, or drawn by numbers."""
    head, values = model.dynamics, reward_values().double()
    seen, state, action = path["steps"][-1][0], path["state"][None, None], torch.tensor(action)
    logits = head.transition(state, seen[None, None], action[None, None])[0, 0]
    if model.config.observation_space["type"] == "Box":
        mean, std = logits[:3], 0.01 + torch.nn.functional.softplus(logits[3:])
        mean = mean if numbers is None else mean + std * torch.special.ndtri(numbers[1:]).float()
        reached = (seen + mean * torch.tensor(model.config.observation_std)).clamp(-1, 1)
    else:
        parts = enumerate(logits.split(head.sizes), start=1)
        reached = torch.stack([pick(part, numbers, index) for index, part in parts]).view(seen.shape)
    found = head.outcomes(state, reached[None, None], action[None, None])
    reward, value = ((each[0, 0].double().softmax(-1) * values).sum() for each in (found.reward, found.value))
    paid = values[pick(found.reward[0, 0], numbers, 0)].float() * model.config.reward_scale
    returns = path["returns"] + path["alive"] * reward
    alive = path["alive"] * model.config.dynamics_discount * (1 - torch.sigmoid(found.end[0, 0].double()))
    step = (reached, action, paid, torch.tensor(False))
    return {
        **path,
        "steps": [*path["steps"], step],
        "returns": returns,
        "alive": alive,
        "total": returns + alive * value,
    }


def pick(logits, numbers, index):
    if numbers is None:
        return logits.argmax()
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return (cumulative[:-1] / cumulative[-1] <= numbers[index]).sum()


def root(model, steps):
    state, log_probs = look(model, steps)
    return {"steps": list(steps), "state": state, "returns": 0.0, "alive": 1.0, "prior": 0.0}, log_probs


def searched(model, steps, num_beams=None):
    """Values (n,) of first actions by all paths, or by so many at a time, of which each first action keeps one."""
    start, _ = root(model, steps)
    paths = [{**extend(model, start, action), "first": action} for action in range(ACTIONS)]
    rank = lambda path: float(WEIGHT * path["total"] + path["prior"])  # noqa: E731
    for _ in range(HORIZON - 1):
        children = []
        for path in paths:
            state, log_probs = look(model, path["steps"])
            for action in range(ACTIONS):
                prior = path["prior"] + log_probs[action]
                children.append(extend(model, {**path, "state": state, "prior": prior}, action))
        paths = sorted(children, key=rank, reverse=True)
        best = [next(path for path in paths if path["first"] == action) for action in range(ACTIONS)]
        others = [path for path in paths if not any(path is each for each in best)]
        paths = paths if num_beams is None else best + others[: num_beams - ACTIONS]
    best = [max((path for path in paths if path["first"] == action), key=rank) for action in range(ACTIONS)]
    return torch.stack([path["total"] for path in best])


def iterated(model, steps, num_beams, seed, counter):
    """Values (n,) of first actions by rollouts of the policy."""
    start, log_probs = root(model, steps)
    draws = 2 + model.dynamics.draws  # of the action, the reward, and each dimension of the observation
    dice = uniform(np.array([seed], dtype=np.uint64) ^ IMAGINED, np.array([counter]), HORIZON * num_beams * draws)
    dice = dice.view(HORIZON, num_beams, draws)
    candidates, totals = log_probs.argsort(descending=True), [[] for _ in range(ACTIONS)]
    for number in range(num_beams):
        first = int(candidates[number % ACTIONS])
        path = extend(model, start, first, dice[0, number, 1:])
        for numbers in dice[1:, number]:
            state, log_probs = look(model, path["steps"])
            path = extend(model, {**path, "state": state}, int(pick(log_probs, numbers, 0)), numbers[1:])
        totals[first].append(path["total"])
    return torch.stack([torch.stack(each).mean() for each in totals])


def spied(context):
    """The values that a context plans by, of the rows of its last step."""
    found, values = [], context._planner.values
    context._planner.values = lambda *arguments: found.append(values(*arguments)) or found[-1]
    return found


def assert_plans_as(model, expected, num_envs=3, num_steps=22, **settings):
    """Live random lives with pauses, resets and prompts; values must be as expected, and the best action is taken."""
    rng, reference = np.random.default_rng(0), ReferenceContext(model, num_envs)
    if not model.config.is_unbounded:
        reference = ReferenceContext(model, num_envs, model.config.context_length - HORIZON)
    context = model.init_context(
        num_envs, do_sample=False, planning_horizon=HORIZON, planning_weight=WEIGHT, **settings
    )
    found, counters = spied(context), np.zeros(num_envs, dtype=int)
    for number in range(num_steps):
        if number % 5 == 3:
            env = int(rng.integers(num_envs))
            prompt = random_history(model, int(rng.integers(1, 20)), rng) if number % 2 else None
            context.reset(np.arange(num_envs) == env, prompt)
            reference.reset(env) if prompt is None else reference.live(env, prompt)
        seen, paid = elements(model.config.observation_space, num_envs, rng), rng.normal(size=num_envs)
        starts, active = rng.random(num_envs) < 0.2, rng.random(num_envs) < 0.8
        actions = context.act(seen, paid, starts, active)
        for place, env in enumerate(np.flatnonzero(active)):
            reference.see(env, seen[env], paid[env], starts[env])
            if number % 3 == 0:
                values = expected(reference.steps[env], env, counters[env])
                torch.testing.assert_close(found[-1][place], values, atol=1e-4, rtol=0)
                scores = root(model, reference.steps[env])[1] + WEIGHT * values
                assert scores[actions[env]] > scores.max() - 1e-3
            reference.do(env, actions[env])
        counters += active


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_beams_for_all_paths_are_every_path_by_full_passes(make_model, settings):
    model = plans(make_model, **settings)
    assert_plans_as(model, lambda steps, *_: searched(model, steps), num_beams=ACTIONS**HORIZON)


@pytest.mark.parametrize("settings", [KINDS["full"], KINDS["sliding"]], ids=["full", "sliding"])
def test_fewer_beams_keep_the_best_paths_and_one_of_each_first_action(make_model, settings):
    model = plans(make_model, **settings)
    assert_plans_as(model, lambda steps, *_: searched(model, steps, 4), num_beams=4)


@pytest.mark.parametrize("kind", ["full", "mixed", "vectors", "several dimensions"])
def test_policy_iteration_is_the_mean_of_rollouts_of_the_policy(make_model, kind):
    model = plans(make_model, **KINDS[kind])
    assert_plans_as(
        model,
        lambda steps, env, counter: iterated(model, steps, 7, env, counter),
        **{"num_beams": 7, "planner": "policy_iteration"},
    )


def live(model, worlds, num_steps=20, **settings):
    """Actions and log-probabilities of each world, of which each has rules, pauses and ends of its own."""
    worlds = np.array(worlds)
    dice = np.stack([np.random.default_rng(world).random((3, num_steps)) for world in worlds], axis=-1)
    context = model.init_context(len(worlds), seed=int(worlds[0]), **settings)
    cells, paid, lives = worlds % 7, np.zeros(len(worlds)), [[] for _ in worlds]
    for pauses, starts, gains in zip(*dice):
        active = pauses > 0.2
        actions = context.act(cells, paid, starts < 0.2, active)
        for env in np.flatnonzero(active):
            lives[env].append((int(actions[env]), round(float(context.log_probs[env]), 4)))
        cells, paid = np.where(active, (3 * cells + actions + worlds) % 7, cells), np.where(active, gains > 0.5, paid)
    return lives


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("settings", [KINDS["full"], KINDS["sliding"], MIXED], ids=["full", "sliding", "mixed"])
def test_what_is_planned_does_not_depend_on_who_stands_beside(make_model, settings, planner):
    model, settings = plans(make_model, **settings), {"num_beams": 4, "planner": planner, "planning_horizon": 3}
    together = live(model, range(5), **settings)
    assert together != live(model, range(5), **{**settings, "num_beams": 1})
    for first, last in [(0, 1), (1, 3), (4, 5)]:
        assert live(model, range(first, last), **settings) == together[first:last]


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("sampling", [{"temperature": 0.7, "epsilon": 0.1}, {"top_k": 2}, {"do_sample": False}])
def test_where_all_actions_are_worth_the_same_the_policy_acts(make_model, sampling, num_beams, planner):
    """To the number: the very actions of a rollout without planning, with the same probabilities."""
    model = plans(make_model, sliding_window=4)
    plain = live(model, range(3), **sampling)
    planned = {"num_beams": num_beams, "planner": planner, "planning_horizon": 2, **sampling}
    assert live(model, range(3), planning_weight=5.0, **planned) != plain
    assert live(model, range(3), planning_weight=0.0, **planned) == plain
    torch.nn.init.zeros_(model.dynamics.outcome.outputs.weight)
    assert live(model, range(3), planning_weight=5.0, **planned) == plain


def test_copies_and_saved_states_plan_on_alike(make_model):
    model = plans(make_model, **MIXED)
    context, other = (model.init_context(2, num_beams=4, planner="policy_iteration") for _ in range(2))
    rng = np.random.default_rng(0)
    steps = [(rng.integers(7, size=2), rng.normal(size=2)) for _ in range(16)]
    for step in steps[:6]:
        context.act(*step)
    copy = context.copy()
    assert copy._planner is context._planner
    other.load_state_dict(context.state_dict())
    found = [[each.act(*step).tolist() for step in steps[6:]] for each in (context, copy, other)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("planner", PLANNERS)
def test_planning_wins_where_histories_are_of_random_actions(make_model, planner):
    model = ring_world.train(make_model, updates=100)[0]
    settings = {"num_beams": 10, "planner": planner, "planning_weight": 20.0}
    assert ring_world.mean_reward(model) < 0.3
    assert ring_world.mean_reward(model, planning_horizon=2, **settings) > 0.7


@pytest.mark.parametrize(
    ("settings", "rollout", "message"),
    [
        ({"dynamics_weight": 0.0}, {}, "the model has no dynamics heads: train it with dynamics_weight above 0"),
        ({"action_space": MULTI_DISCRETE}, {}, "has actions of several dimensions"),
        ({"backbone_config": LLAMA}, {}, "has blocks of transformers"),
        ({}, {"planning_horizon": 16}, r"planning_horizon must be below context_length \(16\), got 16"),
        ({}, {"planner": "tree"}, "planner must be one of beam_search, policy_iteration, got 'tree'"),
        ({}, {"planning_weight": -1.0}, "planning_weight must be a finite number, at least 0, got -1.0"),
    ],
)
def test_what_cannot_be_planned_is_refused(make_model, settings, rollout, message):
    model = make_model(**{"dynamics_weight": 1.0, **settings})
    with pytest.raises(ValueError, match=message):
        model.init_context(2, num_beams=4, **rollout)
