"""What a context should do, done slowly, and random lives of environments with which the two are compared."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from ad_hf.model.context_ad import ADContext
from ad_hf.model.modeling_ad import ADModel

VECTOR = {"type": "Box", "shape": [3], "low": [-1.0] * 3, "high": [1.0] * 3, "dtype": "float32"}
IMAGE = {"type": "Box", "shape": [4, 4, 1], "low": [0], "high": [255], "dtype": "uint8"}
MULTI_DISCRETE = {"type": "MultiDiscrete", "nvec": [3, 2]}
BOX = {"type": "Box", "shape": [2], "low": [-1.0, 0.0], "high": [1.0, 4.0], "dtype": "float32"}
OBSERVATION_SPACES = [{"type": "Discrete", "n": 7}, MULTI_DISCRETE, {"type": "MultiBinary", "n": 3}, VECTOR, IMAGE]
ACTION_SPACES = [{"type": "Discrete", "n": 5}, MULTI_DISCRETE, BOX]

# No tokens: `vocab_size` of 1, and neither begin nor end.
NO_TOKENS = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3, **NO_TOKENS}
GROUPED = {**SMALL, "num_key_value_heads": 1, "intermediate_size": 32}
LLAMA = {"model_type": "llama", **GROUPED}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, **NO_TOKENS}
GPT2["initializer_range"] = 0.3
GPT_NEOX = {"model_type": "gpt_neox", **SMALL, "intermediate_size": 32}
MISTRAL = {"model_type": "mistral", **GROUPED, "sliding_window": 5}
BLOOM = {"model_type": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3, **NO_TOKENS}
MAMBA = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 2}
MAMBA |= {"initializer_range": 0.3, **NO_TOKENS}
LFM2 = {"model_type": "lfm2", **GROUPED, "layer_types": ["conv", "full_attention"]}

# How rows of a context live, for `assert_agrees`.
lives = st.fixed_dictionaries(
    {
        "num_envs": st.integers(1, 4),
        "seed": st.integers(0, 1000),
        "active_probability": st.sampled_from([1.0, 0.7, 0.4]),
        "reset_probability": st.sampled_from([0.0, 0.05]),
        "with_prompts": st.booleans(),
    }
)


def none_action(space: dict) -> torch.Tensor:
    """What stands for the action before the first."""
    if space["type"] == "Box":
        return torch.zeros(space["shape"])
    return torch.tensor(space["n"] if space["type"] == "Discrete" else space["nvec"])


def elements(space: dict, number: int, rng: np.random.Generator) -> np.ndarray:
    """Random elements (number, ...) of a space."""
    if space["type"] == "Box" and space["dtype"] == "uint8":
        return rng.integers(256, size=(number, *space["shape"])).astype(np.uint8)
    if space["type"] == "Box":
        low, high = (np.array(space[bound], dtype=np.float32) for bound in ("low", "high"))
        return rng.uniform(low, high, size=(number, *space["shape"])).astype(np.float32)
    if space["type"] == "Discrete":
        return rng.integers(space["n"], size=number)
    sizes = space["nvec"] if space["type"] == "MultiDiscrete" else [2] * space["n"]
    return rng.integers(sizes, size=(number, len(sizes)))


def random_history(model: ADModel, time: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A history of so many steps, as a row of a dataset."""
    ends = rng.random(time) < 0.2
    return {
        "observations": elements(model.config.observation_space, time, rng),
        "actions": elements(model.config.action_space, time, rng),
        "rewards": rng.normal(size=time),
        "terminations": ends & (rng.random(time) < 0.5),
        "truncations": ends,
    }


class ReferenceContext:
    """The documented rule, slowly: a Python list of steps per environment, encoded alone and without a cache."""

    def __init__(self, model: ADModel, num_envs: int, length: int | None = None, drop: int | None = None) -> None:
        self.model, self.none = model, none_action(model.config.action_space)
        self.length = length or model.config.context_length
        self.drop = drop or max(1, self.length // 4)
        self.forgets = drop is not None or not model.config.is_unbounded
        self.steps: list[list[tuple]] = [[] for _ in range(num_envs)]
        self.last_actions = [self.none] * num_envs
        self.first_rewards: list[float | None] = [0.0] * num_envs  # None after an environment's own first step

    def reset(self, env: int) -> None:
        self.steps[env], self.last_actions[env], self.first_rewards[env] = [], self.none, 0.0

    def see(self, env: int, observation, reward, start) -> None:
        """Add a step; a row that is full first forgets its oldest ones, unless the model never forgets at once."""
        if self.forgets and len(self.steps[env]) == self.length:
            del self.steps[env][: self.drop]
        if self.first_rewards[env] is not None:
            reward, start, self.first_rewards[env] = self.first_rewards[env], True, None
        parts = (observation, self.last_actions[env], torch.tensor(reward).float(), torch.tensor(bool(start)))
        self.steps[env].append(tuple(map(torch.as_tensor, parts)))

    def do(self, env: int, action) -> None:
        self.last_actions[env] = torch.as_tensor(action).to(self.none.dtype)

    def live(self, env: int, history: dict[str, np.ndarray]) -> None:
        """Go through a history step by step, as if it were the environment's own."""
        self.reset(env)
        ends = history["terminations"] | history["truncations"]
        for step, action in enumerate(history["actions"]):
            self.see(env, history["observations"][step], history["rewards"][step - 1], ends[step - 1])
            self.do(env, action)
        if len(ends):
            self.first_rewards[env] = history["rewards"][-1]

    @torch.no_grad()
    def logits(self, env: int) -> torch.Tensor:
        inputs = [torch.stack(parts).unsqueeze(0) for parts in zip(*self.steps[env])]
        return self.model(*inputs).logits[0, -1]


def assert_greedy(model: ADModel, action, logits: torch.Tensor, tolerance: float) -> None:
    """In each dimension, no action is likelier, but for rounding."""
    categories = model.head.to_categories(torch.as_tensor(action))
    for category, part in zip(categories, logits.split(model.head.sizes)):
        assert part[category] > part.max() - 2 * tolerance


class Lives:
    """Random lives of environments, which a context (of `settings`) and the reference go through side by side."""

    def __init__(self, model: ADModel, num_envs: int, seed: int = 0, tolerance: float = 1e-4, **settings) -> None:
        self.model, self.num_envs, self.rng = model, num_envs, np.random.default_rng(seed)
        self.tolerance = tolerance
        self.context: ADContext = model.init_context(num_envs, do_sample=False, **settings)
        drop, length = settings.get("context_drop"), settings.get("context_length")
        self.reference = ReferenceContext(model, num_envs, length, drop)

    def prompts(self, rows: np.ndarray) -> list[dict | None]:
        """Histories of different lengths, some of them longer than the context, for some of the rows."""
        longest = 2 * self.reference.length + 3
        prompts: list[dict | None] = []
        for env in range(self.num_envs):
            wanted = rows[env] and self.rng.random() < 0.8
            prompts.append(random_history(self.model, int(self.rng.integers(longest)), self.rng) if wanted else None)
            if prompts[-1] is not None:
                self.reference.live(env, prompts[-1])
        return prompts

    def begin_anew(self, rows: np.ndarray, with_prompts: bool) -> None:
        """Reset some environments, with prompts or without."""
        for env in np.flatnonzero(rows):
            self.reference.reset(env)
        self.context.reset(rows, prompt=self.prompts(rows) if with_prompts else None)

    def step(self, active_probability: float = 1.0) -> None:
        """A step of all or some environments, after which those that acted must agree with the reference."""
        rng, config, context, reference = self.rng, self.model.config, self.context, self.reference
        observations, rewards = elements(config.observation_space, self.num_envs, rng), rng.normal(size=self.num_envs)
        starts, active = rng.random(self.num_envs) < 0.2, rng.random(self.num_envs) < active_probability

        actions = context.act(observations, rewards, starts, active if active_probability < 1 else None)

        for env in np.flatnonzero(active):
            reference.see(env, observations[env], rewards[env], starts[env])
            expected = reference.logits(env)
            error = (context.logits[env] - expected).abs().max().item()
            assert error < self.tolerance, f"environment {env} at its step {len(reference.steps[env])}: {error}"
            assert_greedy(self.model, actions[env], expected, self.tolerance)
            reference.do(env, actions[env])
        if reference.forgets:
            assert context.lengths.tolist() == [len(steps) for steps in reference.steps]


def assert_agrees(
    model: ADModel,
    num_envs: int,
    num_steps: int,
    seed: int = 0,
    active_probability: float = 1.0,
    reset_probability: float = 0.0,
    with_prompts: bool = False,
    **settings,
) -> Lives:
    """Go through so many random steps."""
    lives = Lives(model, num_envs, seed, **settings)
    if with_prompts:
        lives.context.prompt(lives.prompts(np.ones(num_envs, dtype=bool)))
    for _ in range(num_steps):
        resets = lives.rng.random(num_envs) < reset_probability
        if resets.any():
            lives.begin_anew(resets, with_prompts)
        lives.step(active_probability)
    return lives
