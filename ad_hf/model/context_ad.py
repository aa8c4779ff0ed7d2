"""The context of a rollout: the model's last steps, across episodes, and how to act on them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .backbone_cache_ad import make_cache
from .cache_ad import as_slice
from .configuration_ad import LINEAR, ADConfig
from .embeddings_ad import FLAG, NUMBER, check_elements, check_flags, to_tensor
from .heads_ad import uniform
from .loading_ad import check_fits
from .planning_ad import Planner
from .prompt_ad import Prompt, Steps, parse_prompts
from .rollout_config_ad import SEEDS, RolloutConfig

# Rows are encoded so many tokens at a time: more of them leave the processor's caches, fewer keep it less busy.
TOKENS_AT_A_TIME = 4096


class ContextMixin:
    """
    The step API of a model. [`ADContext`] needs of it: `embedding` of steps as tokens, `encode` of tokens as states
    that a cache stores, `decode` of tokens after those in a cache, and `head`.
    """

    config: ADConfig
    rollout_config: RolloutConfig

    def init_context(
        self,
        num_envs: int,
        prompt: Prompt | None = None,
        seed: int | None = None,
        rollout_config: RolloutConfig | None = None,
        **overrides: Any,
    ) -> ADContext:
        """
        A context for environments of one's own: `actions = context.act(observations, rewards, episode_starts)`.

        Args:
            num_envs (`int`):
                Number of environments that are acted in side by side.
            prompt (`Mapping` or a sequence of them, *optional*):
                Histories to begin with, see [`ADContext.prompt`]; by default the context is empty.
            seed (`int`, *optional*):
                Seed of the sampled actions; environment i has `seed + i`.
            rollout_config ([`RolloutConfig`], *optional*), overrides:
                How actions are chosen and what the context holds, as of [`ADModel.rollout`].
        """
        overrides = overrides if seed is None else {**overrides, "seed": seed}
        config = RolloutConfig.from_dict(overrides).resolve(rollout_config or RolloutConfig(), self.rollout_config)
        if self.config.groups is not None:
            raise ValueError(f"take one of the model's groups, as model.group({next(iter(self.config.groups))!r})")
        context = ADContext(self, num_envs, config)
        if prompt is not None:
            context.prompt(prompt)
        return context


class ADContext:
    r"""
    The last steps of each environment, across episodes, and how to act on them.

    The logits of every step are those of the model on the steps that the context holds, encoded from the first of
    them as in training. A context holds up to `context_length` steps; when a row is full, its oldest `context_drop`
    steps, a quarter by default, are dropped and the rest is encoded anew, at an amortised cost of a few steps.
    (Rolling keys and values instead would mix in steps that are gone: deep layers have attended to them.) If all
    layers have sliding or linear attention, keys and values are rolled and states go on, as the model was trained to
    have them: then the logits are those of the model on all steps so far, and nothing is encoded twice.

    Args:
        model ([`ADModel`]):
            The model, whose weights must not change while the context is in use.
        num_envs (`int`):
            Number of environments.
        rollout_config ([`RolloutConfig`]):
            Settings; those that are unset have their defaults.

    Attributes:
        logits (`torch.Tensor` of shape `(num_envs, n)`):
            Logits of the last actions.
        log_probs (`torch.Tensor` of shape `(num_envs,)`):
            Log-probabilities with which they were chosen.
    """

    def __init__(self, model: Any, num_envs: int, rollout_config: RolloutConfig | None = None) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
        self.model, self.num_envs = model, (num_envs := int(num_envs))
        self.config: Any = (rollout_config or RolloutConfig()).resolve()
        if self.config.seed + num_envs > SEEDS:
            raise ValueError(f"seed + num_envs must be at most 2**63, got {self.config.seed} + {num_envs}")
        model.head.check_rollout(self.config)
        self.length, self.dropped = context_sizes(model.config, self.config)
        self._forgets = not model.config.is_unbounded or self.config.context_drop is not None
        self._device, self._dtype = self._placement()
        self._decode, dtype = model.step_decoder(self.config, num_envs)
        self._planner = Planner(model, self._decode, self.config) if self.config.num_beams > 1 else None
        self._cache = make_cache(model, num_envs, self.length, dtype)
        self._tokens: torch.Tensor | None = None  # of the steps that are held, to encode them anew
        if self._forgets:
            shape = (num_envs, self.length, model.config.hidden_size)
            check_fits(math.prod(shape) * self._dtype.itemsize, f"a context of num_envs={num_envs}")
            self._tokens = torch.zeros(shape, device=self._device, dtype=self._dtype)
        self._seeds = np.arange(num_envs, dtype=np.uint64) + np.array(self.config.seed, dtype=np.uint64)
        self._counters = np.zeros(num_envs, dtype=np.uint64)
        self._none = model.head.no_action()
        self._last_actions = self._none.expand(num_envs, *self._none.shape).clone()
        self._first = torch.ones(num_envs, dtype=torch.bool)  # no step of the environment's own yet
        self._first_rewards = torch.zeros(num_envs)
        self.logits: torch.Tensor | None = None
        self.log_probs: torch.Tensor | None = None

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        """Where the model's weights are, and of what type."""
        weight = self.model.embedding.episode_start.weight
        return weight.device, weight.dtype

    @property
    def lengths(self) -> torch.Tensor:
        """Steps that each row (num_envs,) holds; of a model that never forgets at once, all steps so far."""
        return self._cache.lengths

    def reset(self, mask: np.ndarray | None = None, prompt: Prompt | None = None) -> None:
        """
        Forget everything: the next steps are those of a new history.

        Args:
            mask (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Environments that are forgotten; all by default.
            prompt (`Mapping` or a sequence of them, *optional*):
                Histories with which their contexts begin instead of nothing, see [`ADContext.prompt`].
        """
        rows = self._rows(mask, "mask")
        histories = (
            None if prompt is None else parse_prompts(prompt, self.num_envs, self.model.config, self._none)
        )  # before anything is forgotten
        self._forget(rows)
        if histories is not None:
            self._begin_with([steps if row else None for steps, row in zip(histories, rows.tolist())])

    def prompt(self, histories: Prompt) -> None:
        """
        Let contexts begin with histories, instead of their steps so far, as if the environments had lived through
        them; their next steps begin an episode.

        Args:
            histories (`Mapping` or a sequence of them):
                One history for all environments, or one for each, `None` for those whose context stays as it is. A
                history has `observations` (time, ...), `actions` (time, ...) and `rewards` (time,), and `terminations`
                and `truncations` (time,) or else `episode_starts` (time,): a row of a learning-history dataset is one.
                Of a history longer than the context, its end is held.

        Raises:
            ValueError: for a wrong number of histories, and for malformed ones, naming the environment.
        """
        parsed = self._parse(histories)
        self._forget(torch.tensor([steps is not None for steps in parsed]))
        self._begin_with(parsed)

    def _rows(self, mask: Any, name: str) -> torch.Tensor:
        """A mask (num_envs,) of environments, all by default."""
        return torch.from_numpy(
            check_flags(np.full(self.num_envs, True) if mask is None else mask, self.num_envs, name)
        )

    def _parse(self, histories: Prompt) -> list[Steps | None]:
        return parse_prompts(histories, self.num_envs, self.model.config, self._none)

    def _forget(self, rows: torch.Tensor) -> None:
        self._cache.forget(rows)
        self._first[rows], self._first_rewards[rows], self._last_actions[rows] = True, 0.0, self._none

    @torch.no_grad()
    def _begin_with(self, histories: list[Steps | None]) -> None:
        """Let contexts that are empty begin with steps."""
        for steps in {id(steps): steps for steps in histories if steps is not None}.values():
            if not (time := len(steps["rewards"])):
                continue
            rows = torch.tensor([env for env, own in enumerate(histories) if own is steps])
            inputs = (steps[name] for name in ("observations", "previous_actions", "previous_rewards", "starts"))
            tokens = self.model.embedding(*(part.unsqueeze(0).to(self._device) for part in inputs))
            tokens = tokens[:, time - self._held(time) :]
            if self._tokens is not None:
                self._tokens[rows, : tokens.shape[1]] = tokens.to(self._dtype)
            self._cache.store(rows, tokens.shape[1], self.model.encode(tokens))
            self._last_actions[rows] = steps["actions"][-1].to(self._last_actions.dtype)
            self._first_rewards[rows] = steps["rewards"][-1]

    def _held(self, time: int) -> int:
        """Steps that a row holds after so many; of sliding windows, those that reach into them through all blocks."""
        config = self.model.config
        window = config.sliding_window
        if not self._forgets:
            if LINEAR in config.kinds_of_layers:
                return time
            return min(time, window + (config.num_hidden_layers - 1) * (window - 1))
        if time <= self.length:
            return time
        return self.length - self.dropped + (time - self.length - 1) % self.dropped + 1

    def act(
        self,
        observations: Any,
        rewards: Any = None,
        episode_starts: Any = None,
        active: Any = None,
        do_sample: bool | None = None,
    ) -> np.ndarray:
        """
        Add a step to the context and choose its action.

        Args:
            observations (`np.ndarray` of shape `(num_envs, ...)`):
                The present observations.
            rewards (`np.ndarray` of shape `(num_envs,)`, *optional*):
                The rewards that led here, also across the border of an episode. Ignored at a history's first step.
            episode_starts (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Whether this is an episode's first step; a history's first step always is.
            active (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Environments whose step counts; the others' contexts stay as they are and their actions mean nothing
                (autoreset in the next step has steps that are not experience).
            do_sample (`bool`, *optional*):
                Whether to sample this time; by default as the settings say.

        Returns:
            `np.ndarray` of shape `(num_envs, ...)`: the actions. `context.logits` (num_envs, n) are their logits.

        Raises:
            ValueError: for arguments of a wrong shape, and for observations and rewards that are not finite or not of
                the model's spaces, naming the environment.
        """
        number, rows = self.num_envs, self._rows(active, "active")
        mask = rows.numpy()
        if do_sample is not None and not isinstance(do_sample, (bool, np.bool_)):
            raise ValueError(f"do_sample must be True or False, got {do_sample!r}")
        space: dict[str, Any] = self.model.config.observation_space or {}
        observations = check_elements(observations, space, number, "observations", mask)
        rewards = check_elements(np.zeros(number) if rewards is None else rewards, NUMBER, number, "rewards", mask)
        starts = np.zeros(number) if episode_starts is None else episode_starts
        starts = check_elements(starts, FLAG, number, "episode_starts")
        return self.step(observations, rewards, starts, mask, do_sample)

    @torch.no_grad()
    def step(
        self,
        observations: np.ndarray,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
        active: np.ndarray,
        do_sample: bool | None = None,
    ) -> np.ndarray:
        """[`ADContext.act`] on arrays that have been checked."""
        if self.model.training:  # a context acts without dropout, whoever trains the model meanwhile
            self.model.train(False)
            try:
                return self.step(observations, rewards, episode_starts, active, do_sample)
            finally:
                self.model.train(True)
        if self._placement() != (self._device, self._dtype):
            raise ValueError(
                f"the model was moved from {self._dtype} on {self._device} after the context was made: make another "
                "with init_context"
            )
        rows, head = torch.from_numpy(active), self.model.head
        paid = torch.where(self._first, self._first_rewards, to_tensor(rewards.astype(np.float32)))
        starts = to_tensor(episode_starts).bool() | self._first
        parts = (to_tensor(observations), self._last_actions, paid, starts)
        tokens = self.model.embedding(*(part.unsqueeze(1).to(self._device) for part in parts))
        self._cache.active = None if active.all() else rows
        if self._tokens is not None:
            self._make_room(rows)
            index = torch.nonzero(rows).squeeze(1)
            self._tokens[index, self.lengths[index]] = tokens[index, 0]
        hidden = self._decode(tokens, self._cache)[:, 0]
        self.logits = head(hidden).float().cpu()
        wrong = ~np.isfinite(self.logits.numpy()).all(axis=1) & active
        if wrong.any():
            raise ValueError(
                f"the model's logits are not finite for environment {int(wrong.argmax())}: its weights hold NaN or "
                "infinities, or inputs are too large for it (see observation_std and reward_scale in its config)"
            )
        sample = self.config.do_sample if do_sample is None else bool(do_sample)
        numbers = uniform(self._seeds, self._counters, head.draws)
        logits = self.logits
        if self._planner is not None:
            streams = self._seeds, self._counters
            logits = self._planner.improve(logits, hidden, parts[0], self._cache, rows, *streams)
        actions, self.log_probs = head.choose(logits, numbers, self.config, sample)
        self._last_actions[rows] = actions[rows].to(self._last_actions.dtype)
        self._first &= ~rows
        self._counters += active.astype(np.uint64)
        return actions.numpy()

    def _make_room(self, rows: torch.Tensor) -> None:
        """Let the full rows forget their oldest steps, and encode the others anew."""
        full = torch.nonzero(rows & (self.lengths == self.length)).squeeze(1)
        rest = self.length - self.dropped
        for part in full.split(max(1, TOKENS_AT_A_TIME // max(1, rest))) if len(full) else ():
            index = as_slice(part)
            tokens = self._tokens[index, self.dropped :].clone()  # type: ignore[index]
            self._tokens[index, :rest] = tokens  # type: ignore[index]
            self._cache.store(part, rest, self.model.encode(tokens) if rest else [])

    def copy(self) -> ADContext:
        """A context of its own that goes on from here, with the same random streams."""
        shared = {
            id(part): part for part in (self.model, self.model.backbone, self.config, self._decode, self._planner)
        }
        return copy.deepcopy(self, shared)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that the context holds, as tensors, on its device; `safetensors.torch.save_file` writes them."""
        return {"weights": self._digest(), **{name: part.clone() for name, part in self._state().items()}}

    def _state(self) -> dict[str, torch.Tensor]:
        """The tensors of the context themselves, or views of its arrays."""
        state = {name: getattr(self, f"_{name}") for name in ("last_actions", "first", "first_rewards")}
        state |= {name: torch.from_numpy(getattr(self, f"_{name}").view(np.int64)) for name in ("seeds", "counters")}
        if self._tokens is not None:
            state["tokens"] = self._tokens
        return state | {f"cache.{name}": part for name, part in self._cache.state_dict().items()}

    def _digest(self) -> torch.Tensor:
        """A number () that tells weights from others."""
        digest = hashlib.blake2b(digest_size=7)
        for weight in self.model.parameters():
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return torch.tensor(int.from_bytes(digest.digest()))

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """
        Go on where a context's [`~ADContext.state_dict`] was taken, to the bit.

        Raises:
            ValueError: for a state of another model's context, or of another number of environments or length.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"a context's state must be a dict of tensors, got {type(state).__name__}")
        for name, part in state.items():
            if not isinstance(part, torch.Tensor | np.ndarray):
                raise ValueError(f"a context's state must hold tensors, got {name} as {type(part).__name__}")
        state = {name: torch.as_tensor(part) for name, part in state.items()}
        digest, expected = self._digest(), self._state()
        if int(state.pop("weights", digest)) != int(digest):  # which states of older versions lack
            raise ValueError("the context's state is of a model with other weights, which would not go on from it")
        for name in sorted(expected.keys() | state.keys()):
            shapes = [tuple(part[name].shape) if name in part else "nothing" for part in (state, expected)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the context's state has {shapes[0]} as {name}, expected {shapes[1]}: make the context with the "
                    "model, num_envs and context_length of the one that was saved"
                )
        lengths = state["cache.lengths"]
        if not 0 <= int(lengths.min()) <= int(lengths.max()) <= (SEEDS if self._tokens is None else self.length):
            raise ValueError(f"the context's state has impossible cache.lengths: {lengths.tolist()}")
        for name, part in expected.items():
            part.copy_(state[name])


def context_sizes(model: ADConfig, config: RolloutConfig) -> tuple[int, int]:
    """Steps that a context holds, and how many it drops at once."""
    most = model.context_length
    length = config.context_length or most
    unbounded = model.is_unbounded and config.context_drop is None
    if length > most or (unbounded and length != most):
        allowed = (
            f"{most}, as the model forgets nothing without context_drop"
            if unbounded
            else f"at most {most}, the model's"
        )
        raise ValueError(f"context_length must be {allowed}; got {length}")
    if config.num_beams > 1 and not model.is_unbounded:  # type: ignore[operator]
        length = min(length, most - config.planning_horizon)  # type: ignore[operator]
        if length < 1:
            raise ValueError(f"planning_horizon must be below context_length ({most}), got {config.planning_horizon}")
    dropped = config.context_drop or max(1, length // 4)
    if dropped > length:
        raise ValueError(f"context_drop must be at most context_length ({length}), got {dropped}")
    return length, dropped


__all__ = ["ADContext", "ContextMixin"]
