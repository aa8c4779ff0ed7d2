"""The context of a rollout: the model's last steps, across episodes, and how to act on them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .backbone_cache_ad import BackboneCache, NoCache, takes_padded_cache
from .cache_ad import ADCache, as_slice
from .checks_ad import as_elements, as_flags, check_fits, check_rewards
from .mixture_ad import MixtureHead
from .prompt_ad import Prompt, prompt_steps
from .rollout_config_ad import SEEDS, RolloutConfig

if TYPE_CHECKING:
    from .modeling_ad import ADModel


class ADContext:
    r"""
    The last steps of each environment, across episodes, and how to act on them.

    The logits of every step are those of the model on the steps that the context holds, encoded from the first of
    them as in training. A context holds up to `context_length` steps; when a row is full, its oldest `context_drop`
    steps, a quarter by default, are dropped and the rest is encoded anew, at an amortised cost of a few steps.
    (Rolling keys and values instead would mix in steps that are gone: deep layers have attended to them.) With the
    `sliding_window` of [`ADConfig`], keys and values are rolled, as the model was trained to have them: then the
    logits are those of the model on all steps so far, and nothing is encoded twice.

    Args:
        model ([`ADModel`]):
            The model, whose weights must not change while the context is in use.
        num_envs (`int`):
            Number of environments.
        rollout_config ([`RolloutConfig`]):
            Settings; what is unset has its default.

    Attributes:
        lengths (`torch.Tensor` of shape `(num_envs,)`):
            Steps that each row holds; with a sliding window, all steps so far.
        logits (`torch.Tensor` of shape `(num_envs, n)`):
            What the last actions were chosen from.
        log_probs (`torch.Tensor` of shape `(num_envs,)`):
            With what log-probability they were.
    """

    def __init__(self, model: ADModel, num_envs: int, rollout_config: RolloutConfig | None = None) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
        self.model, self.num_envs = model, (num_envs := int(num_envs))
        self.config: Any = (rollout_config or RolloutConfig()).resolve()
        if self.config.seed + num_envs > SEEDS:
            raise ValueError(f"seed + num_envs must be at most 2**63, got {self.config.seed} + {num_envs}")
        if isinstance(model.head, MixtureHead) and (self.config.top_k or self.config.top_p < 1):
            raise ValueError(
                "top_k and top_p choose among categories, of which this model's actions have none "
                "(action_distribution='mixture'): leave them unset and lower the temperature instead"
            )
        self.length, self.dropped = _context_sizes(model, self.config)
        weight = self._weight
        self._device, self._dtype = weight.device, weight.dtype
        blocks: Any = model.config.backbone_config or model.config
        states = 1 + 2 * (getattr(blocks, "num_hidden_layers", None) or 1)  # tokens, keys and values
        check_fits(
            states * num_envs * self.length * model.config.hidden_size * weight.element_size(),
            f"a context of num_envs={num_envs} and context_length={self.length}",
        )
        self._cache: ADCache | BackboneCache | NoCache
        self._tokens: torch.Tensor | None = None  # of the steps that are held, to encode them anew
        if model.backbone is None:
            self._cache = ADCache(model.config, num_envs, weight.device, weight.dtype, self.length)
        elif takes_padded_cache(model.backbone):
            self._cache = BackboneCache(model, num_envs, self.length)
        else:
            self._cache = NoCache(model, num_envs, self.length)
        if model.config.sliding_window is None:
            shape = (num_envs, self.length, model.config.hidden_size)
            self._tokens = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self._seeds = np.arange(num_envs, dtype=np.uint64) + np.array(self.config.seed, dtype=np.uint64)
        self._counters = np.zeros(num_envs, dtype=np.uint64)
        self._none = model.head.no_action()
        self._last_actions = self._none.expand(num_envs, *self._none.shape).clone()
        self._first = torch.ones(num_envs, dtype=torch.bool)  # no step of the environment's own yet
        self._first_rewards = torch.zeros(num_envs)
        self.logits: torch.Tensor | None = None
        self.log_probs: torch.Tensor | None = None

    @property
    def _weight(self) -> torch.Tensor:
        """One of the model's weights, which tells where they are, and of what type."""
        return self.model.embedding.episode_start.weight

    @property
    def lengths(self) -> torch.Tensor:
        """Steps that each row (num_envs,) holds; with a sliding window, all steps so far."""
        return self._cache.lengths

    def reset(self, mask: np.ndarray | None = None, prompt: Prompt | None = None) -> None:
        """
        Forget everything: what follows is a new history.

        Args:
            mask (`np.ndarray` of shape `(num_envs,)`, *optional*):
                In which environments; in all by default.
            prompt (`Mapping` or a sequence of them, *optional*):
                What their contexts begin with instead of nothing, see [`ADContext.prompt`].
        """
        rows = as_flags(np.ones(self.num_envs, dtype=bool) if mask is None else mask, self.num_envs, "mask")
        parsed = None if prompt is None else self._parsed(prompt)  # before anything is forgotten
        self._cache.reset(rows)
        self._first[rows] = True
        self._first_rewards[rows] = 0.0
        self._last_actions[rows] = self._none
        if parsed is not None:
            self._begin_with([steps if reset else None for steps, reset in zip(parsed, rows.tolist())])

    @torch.no_grad()
    def prompt(self, histories: Prompt) -> None:
        """
        Let contexts begin with histories, instead of what they hold, as if the environments had lived through them;
        their next steps begin an episode.

        Args:
            histories (`Mapping` or a sequence of them):
                One history for all environments, or one for each, `None` for those whose context stays as it is. A
                history has `observations` (time, ...), `actions` (time, ...) and `rewards` (time,), and `terminations`
                and `truncations` (time,) or else `episode_starts` (time,): a row of a learning-history dataset is one.
                Of a history longer than the context, its end is held.

        Raises:
            ValueError: for a wrong number of histories, and for malformed ones, naming the environment.
        """
        parsed = self._parsed(histories)
        self.reset(np.array([steps is not None for steps in parsed]))
        self._begin_with(parsed)

    def _parsed(self, histories: Prompt) -> list[dict[str, torch.Tensor] | None]:
        """The steps of each environment's history; those that are the same object are parsed once."""
        many: list[Any] = [histories] * self.num_envs if isinstance(histories, Mapping) else []
        if isinstance(histories, Iterable) and not isinstance(histories, str | Mapping):
            many = list(histories)
        if len(many) != self.num_envs:
            raise ValueError(
                f"prompt must be one history for all environments or one (or None) for each of {self.num_envs}, got "
                f"{len(many) or repr(histories)}"
            )
        parsed: dict[int, dict[str, torch.Tensor]] = {}
        for env, history in enumerate(many):
            name = f"prompt of environment {env}"
            if history is not None and not isinstance(history, Mapping):
                raise ValueError(f"{name}: expected a mapping of observations, actions, rewards, ..., got {history!r}")
            if history is not None and id(history) not in parsed:
                parsed[id(history)] = prompt_steps(history, self.model, self._none, name)
        return [None if history is None else parsed[id(history)] for history in many]

    @torch.no_grad()
    def _begin_with(self, parsed: list[dict[str, torch.Tensor] | None]) -> None:
        """Let contexts that are empty begin with steps."""
        embedded: dict[int, torch.Tensor] = {}
        for env, steps in enumerate(parsed):
            if steps is None or not len(steps["rewards"]):
                continue
            if id(steps) not in embedded:
                inputs = (steps["observations"], steps["previous_actions"], steps["previous_rewards"], steps["starts"])
                embedded[id(steps)] = self.model.embedding(*(part.unsqueeze(0).to(self._device) for part in inputs))
            time = len(steps["rewards"])
            held = self._held(time)
            tokens = embedded[id(steps)][:, time - held :]
            if self._tokens is not None:
                self._tokens[env, :held] = tokens[0]
            self._cache.refill(self.model, torch.tensor([env]), tokens, torch.tensor([held]))
            self._last_actions[env] = steps["actions"][-1].to(self._last_actions.dtype)
            self._first_rewards[env] = steps["rewards"][-1]

    def _held(self, time: int) -> int:
        """Steps that a row holds after so many; with a sliding window, those that reach into it through all blocks."""
        window = self.model.config.sliding_window
        if window is not None:
            return min(time, window + (self.model.config.num_hidden_layers - 1) * (window - 1))
        if time <= self.length:
            return time
        return self.length - self.dropped + (time - self.length - 1) % self.dropped + 1

    @torch.no_grad()
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
                What is seen now.
            rewards (`np.ndarray` of shape `(num_envs,)`, *optional*):
                The rewards that led here, also across the border of an episode. Ignored at a history's first step.
            episode_starts (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Whether this is an episode's first step; a history's first step always is.
            active (`np.ndarray` of shape `(num_envs,)`, *optional*):
                Environments whose step counts; the others' contexts stay as they are and their actions mean nothing
                (autoreset in the next step has steps that are no experience).
            do_sample (`bool`, *optional*):
                Whether to sample this time; by default as the settings say.

        Returns:
            `np.ndarray` of shape `(num_envs, ...)`: the actions. `context.logits` (num_envs, n) is what they were
            chosen from.

        Raises:
            ValueError: for arguments of a wrong shape, and for observations and rewards that are not finite or not of
                the model's spaces, naming the environment.
        """
        rows = as_flags(np.ones(self.num_envs, dtype=bool) if active is None else active, self.num_envs, "active")
        if do_sample is not None and not isinstance(do_sample, (bool, np.bool_)):
            raise ValueError(f"do_sample must be True or False, got {do_sample!r}")
        if self.model.training:  # a context acts without dropout, whoever trains the model meanwhile
            self.model.eval()
            try:
                return self.act(observations, rewards, episode_starts, active, do_sample)
            finally:
                self.model.train()
        counted = None if bool(rows.all()) else rows
        tokens = self._embed(observations, rewards, episode_starts, rows)
        try:
            if self._tokens is not None:
                self._make_room(rows)
                index = torch.nonzero(rows).squeeze(1)
                self._tokens[index, self.lengths[index]] = tokens[index, 0]
            hidden_states = self._cache.step(self.model, tokens, counted)
        except RuntimeError as error:  # of types or devices that differ
            weight = self._weight
            if (weight.dtype, weight.device) == (self._dtype, self._device):
                raise
            raise ValueError(
                f"the model was moved from {self._dtype} on {self._device} to {weight.dtype} on {weight.device} after "
                "the context was made: make another with init_context"
            ) from error
        self.logits = self.model.head(hidden_states[:, 0]).float().cpu()
        if not np.isfinite(self.logits.numpy()).all():
            self._refuse_logits(rows)
        head = self.model.head
        sample = self.config.do_sample if do_sample is None else do_sample
        actions, self.log_probs = head.choose(self.logits, self._seeds, self._counters, self.config, bool(sample))
        self._last_actions[rows] = actions[rows].to(self._last_actions.dtype)
        self._first &= ~rows
        self._counters += rows.numpy().astype(np.uint64)
        return actions.numpy()

    def _refuse_logits(self, rows: torch.Tensor) -> None:
        """Say which environment that acts has logits that are not finite; those of others mean nothing."""
        assert self.logits is not None
        wrong = ~self.logits.isfinite().all(dim=1) & rows
        if wrong.any():
            raise ValueError(
                f"the model's logits are not finite for environment {int(wrong.int().argmax())}: its weights hold NaN "
                "or infinities, or inputs are too large for it (see observation_std and reward_scale in its config)"
            )

    def _embed(self, observations: Any, rewards: Any, episode_starts: Any, rows: torch.Tensor) -> torch.Tensor:
        """Tokens (num_envs, 1, width) of what environments are in."""
        seen = as_elements(observations, self.model.config.observation_space or {}, self.num_envs, rows.numpy())
        paid = torch.zeros(self.num_envs)
        if rewards is not None:
            paid = torch.from_numpy(check_rewards(rewards, self.num_envs, rows.numpy()))
        starts = torch.zeros(self.num_envs, dtype=torch.bool)
        if episode_starts is not None:
            starts = as_flags(episode_starts, self.num_envs, "episode_starts", numbers=True)
        parts = (seen, self._last_actions, torch.where(self._first, self._first_rewards, paid), starts | self._first)
        return self.model.embedding(*(part.unsqueeze(1).to(self._device) for part in parts))

    def _make_room(self, rows: torch.Tensor) -> None:
        """Let the full rows forget their oldest steps, and encode the others anew."""
        full = torch.nonzero(rows & (self.lengths == self.length)).squeeze(1)
        if full.numel() == 0 or self._tokens is None:
            return
        kept = self.length - self.dropped
        rows_in_memory = as_slice(full)
        tokens = self._tokens[rows_in_memory, self.dropped :].clone()
        self._tokens[rows_in_memory, :kept] = tokens
        self._cache.refill(self.model, full, tokens, torch.full((len(full),), kept))

    def copy(self) -> ADContext:
        """A context of its own that goes on from here, with the same random streams."""
        shared = {id(part): part for part in (self.model, self.model.backbone, self.config)}
        return copy.deepcopy(self, shared)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that the context holds, as tensors, on its device; `safetensors.torch.save_file` writes them."""
        state = {name: getattr(self, f"_{name}") for name in ("last_actions", "first", "first_rewards")}
        state |= {name: torch.from_numpy(getattr(self, f"_{name}").astype(np.int64)) for name in ("seeds", "counters")}
        if self._tokens is not None:
            state["tokens"] = self._tokens
        state |= {f"cache.{name}": tensor for name, tensor in self._cache.state_dict().items()}
        return {"weights": self._digest(), **{name: tensor.clone() for name, tensor in state.items()}}

    def _digest(self) -> torch.Tensor:
        """A number () that is another one for other weights."""
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
                raise ValueError(f"a context's state must be a dict of tensors, got {type(part).__name__} as {name}")
        state = {name: torch.as_tensor(part) for name, part in state.items()}
        expected = self.state_dict()
        digest = expected.pop("weights")
        if int(state.pop("weights", digest)) != int(digest):  # which states of older versions lack
            raise ValueError("the context's state is of a model with other weights, which would not go on from it")
        for name in sorted(expected.keys() | state.keys()):
            shapes = [tuple(part[name].shape) if name in part else "nothing" for part in (state, expected)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the context's state has {shapes[0]} as {name}, expected {shapes[1]}: make the context with the "
                    "model, num_envs and context_length of the one that was saved"
                )
        most = {"cache.lengths": self.length if self._tokens is not None else SEEDS, "counters": SEEDS, "seeds": SEEDS}
        if isinstance(self._cache, BackboneCache):
            most["cache.column"] = self._cache.columns
        for name, limit in most.items():
            if int(state[name].min()) < 0 or int(state[name].max()) > limit:
                raise ValueError(f"the context's state has impossible {name}: {state[name].tolist()}")
        for name in ("last_actions", "first", "first_rewards"):
            setattr(self, f"_{name}", state[name].clone().to(expected[name]))
        for name in ("seeds", "counters"):
            setattr(self, f"_{name}", state[name].cpu().numpy().astype(np.uint64))
        if self._tokens is not None:
            self._tokens.copy_(state["tokens"])
        prefix = "cache."
        self._cache.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        )


def _context_sizes(model: ADModel, config: RolloutConfig) -> tuple[int, int]:
    """Steps that a context holds, and how many it drops at once."""
    known, window = model.config.context_length, model.config.sliding_window
    length = config.context_length or known
    if length > known or (window is not None and length != known):
        allowed = f"at most {known}, the model's" if window is None else f"{known}, as the model's attention slides"
        raise ValueError(f"context_length must be {allowed}; got {length}")
    if window is not None and config.context_drop is not None:
        raise ValueError(
            f"context_drop is of models that attend to all of their context: this one's slides by a step at a time "
            f"(sliding_window={window})"
        )
    dropped = config.context_drop or max(1, length // 4)
    if dropped > length:
        raise ValueError(f"context_drop must be at most context_length ({length}), got {dropped}")
    return length, dropped


__all__ = ["ADContext"]
