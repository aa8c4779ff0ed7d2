"""Rollout: to environments what `generate` is to text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import ModelOutput, logging

from .configuration_ad import ADConfig
from .context_ad import ContextMixin
from .embeddings_ad import FLAG, NUMBER, check_elements
from .environments_ad import autoreset_mode, check_envs, make_envs
from .groups_ad import GroupsMixin
from .loading_ad import check_fits
from .prompt_ad import Prompt
from .rollout_config_ad import RolloutConfig

logger = logging.get_logger(__name__)

# Steps of an episode after which a warning says that it may never end.
LONG = 100_000


@dataclass
class RolloutOutput(ModelOutput):
    """
    Output of a rollout. Episodes and steps beyond those of an environment are padding.

    Attributes:
        episode_returns (`np.ndarray` of shape `(num_envs, num_episodes)`):
            Sum of rewards of each episode, in order; NaN for episodes not finished.
        episode_lengths (`np.ndarray` of shape `(num_envs, num_episodes)`):
            Steps of each episode; 0 for episodes not finished.
        num_steps (`np.ndarray` of shape `(num_envs,)`):
            Steps of each environment that count, those of an unfinished last episode included.
        observations, actions (`np.ndarray` of shape `(num_envs, time, ...)`, *optional*, with `output_steps`):
            The steps. `observations[:, t]` led to `actions[:, t]`, which brought `rewards[:, t]`.
        rewards, terminations, truncations (`np.ndarray` of shape `(num_envs, time)`, *optional*, with `output_steps`):
            The reward of each step, and whether its episode ended there.
        final_observations (`np.ndarray` of shape `(num_envs, num_episodes, ...)`, *optional*, with `output_steps`):
            The last observation of each episode, that of an unfinished last episode included.
        log_probs (`np.ndarray` of shape `(num_envs, time)`, *optional*, with `output_log_probs`):
            Log-probabilities with which the actions were chosen.
        logits (`np.ndarray` of shape `(num_envs, time, n)`, *optional*, with `output_logits`):
            The model's logits.
        frames (`np.ndarray` of shape `(num_envs, time, height, width, 3)`, *optional*, with `output_frames`):
            Pictures of the observations at each step.
        observation_space, action_space (`dict`, *optional*, with `output_steps`):
            Spaces of one environment as JSON.
    """

    episode_returns: np.ndarray | None = None
    episode_lengths: np.ndarray | None = None
    num_steps: np.ndarray | None = None
    observations: np.ndarray | None = None
    actions: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminations: np.ndarray | None = None
    truncations: np.ndarray | None = None
    final_observations: np.ndarray | None = None
    log_probs: np.ndarray | None = None
    logits: np.ndarray | None = None
    frames: np.ndarray | None = None
    observation_space: dict[str, Any] | None = None
    action_space: dict[str, Any] | None = None


class Environments:
    """
    Vector environments whose episodes follow each other alike in every autoreset mode, and whose output is checked.

    Attributes:
        observations (`np.ndarray` of shape `(num_envs, ...)`):
            The present observations.
        starts (`np.ndarray` of shape `(num_envs,)`):
            Whether they are the first of an episode.
        resetting (`np.ndarray` of shape `(num_envs,)`):
            Environments that only reset in the next step, which is not experience.
        rewards (`np.ndarray` of shape `(num_envs,)`):
            The last rewards that were experience.
    """

    def __init__(self, envs: Any, config: ADConfig, needs_last: bool) -> None:
        check_envs(config, envs)
        self.envs, self.num_envs, self.mode = envs, int(envs.num_envs), autoreset_mode(envs)
        self.space: dict[str, Any] = config.observation_space or {}
        self.needs_last = needs_last  # observations of episodes, which environments of SAME_STEP mode may leave out
        self.steps, self.rewards = 0, np.zeros(self.num_envs)
        self.starts, self.resetting = np.ones(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)

    def reset(self, **arguments: Any) -> None:
        """Reset environments, and look at the observations of all."""
        observations, _ = self._call("reset", 2, **arguments)
        self.observations = self._check_observations(observations)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Take a step.

        Returns:
            Terminations and truncations (num_envs,), false where the step was a reset, and the observations
            (num_envs, ...) that the step led to, which are the last ones of the episodes that ended.
        """
        self.steps += 1
        observations, rewards, *flags, infos = self._call("step", 5, actions)
        acted = ~self.resetting
        rewards = check_elements(rewards, NUMBER, self.num_envs, f"step {self.steps}: rewards", acted)
        self.rewards = np.where(acted, rewards, self.rewards)
        terminations, truncations = (
            check_elements(values, FLAG, self.num_envs, f"step {self.steps}: {name}").astype(bool) & acted
            for values, name in zip(flags, ("terminations", "truncations"))
        )
        ended = terminations | truncations
        self.observations = reached = self._check_observations(observations)
        if self.mode == "NextStep":
            self.starts, self.resetting = self.resetting, ended
            return terminations, truncations, reached
        self.starts = ended
        if self.mode == "SameStep" and self.needs_last and ended.any():
            last = infos.get("final_obs") if isinstance(infos, Mapping) else None
            if last is None or any(last[env] is None for env in np.flatnonzero(ended)):
                raise ValueError(
                    f"step {self.steps}: infos hold no final_obs of environments whose episodes ended, as those of "
                    "SAME_STEP mode do; output_steps needs it"
                )
            pairs = zip(last, reached, ended)
            reached = self._check_observations([final if end else now for final, now, end in pairs], "final_obs")
        elif self.mode == "Disabled" and ended.any():
            self.reset(options={"reset_mask": ended.copy()})
        return terminations, truncations, reached

    def _call(self, name: str, number: int, *args: Any, **kwargs: Any) -> tuple:
        try:
            result = getattr(self.envs, name)(*args, **kwargs)
        except (TypeError, ValueError) as error:  # as of gymnasium, when it cannot stack the environments' outputs
            raise ValueError(f"step {self.steps}: the environments could not {name}: {error}") from error
        if not isinstance(result, tuple) or len(result) != number:
            raise ValueError(f"step {self.steps}: {name} must return a tuple of {number}, got {result!r}")
        return result

    def _check_observations(self, values: Any, name: str = "observations") -> np.ndarray:
        # A copy, as environments may write the next ones to the same array.
        return np.array(check_elements(values, self.space, self.num_envs, f"step {self.steps}: {name}"))


class Recording:
    """
    Counts episodes and steps, and keeps the steps that were asked for.

    Args:
        num_envs (`int`):
            Number of environments.
        config ([`RolloutConfig`]):
            What to keep, all settings set, and when environments are done.
    """

    def __init__(self, num_envs: int, config: Any) -> None:
        self.config, self.num_envs = config, num_envs
        episodes = config.num_episodes or 16
        check_fits(16 * num_envs * episodes, f"num_episodes={episodes} of {num_envs} environments")
        self.num_steps, self.episodes, self.lengths = np.zeros((3, num_envs), dtype=np.int64)
        self._returns = np.zeros(num_envs)
        self.output = RolloutOutput(
            episode_returns=np.full((num_envs, episodes), np.nan),
            episode_lengths=np.zeros((num_envs, episodes), dtype=np.int64),
            num_steps=self.num_steps,
        )
        names = [name for name in ("log_probs", "logits", "frames") if getattr(config, f"output_{name}")]
        if config.output_steps:
            names += ["observations", "actions", "rewards", "terminations", "truncations"]
        # Of each name, environments, places and values.
        self._kept: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in names}
        self._finals: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._last: Any = None  # the observations that the last steps led to

    @property
    def done(self) -> np.ndarray:
        """Environments (num_envs,) that have had all their episodes or steps."""
        limits = ((self.episodes, self.config.num_episodes), (self.num_steps, self.config.max_steps))
        return np.any([count >= (np.inf if limit is None else limit) for count, limit in limits], axis=0)

    def add(self, envs: np.ndarray, reached: np.ndarray, step: dict[str, Any]) -> None:
        """
        Add a step of some environments.

        Args:
            envs (`np.ndarray` of shape `(number,)`):
                Their indices.
            reached (`np.ndarray` of shape `(num_envs, ...)`):
                The observations that it led to.
            step (`dict`):
                `rewards`, `terminations` and `truncations` (num_envs,), and what else is kept, (num_envs, ...) each.
        """
        for name, parts in self._kept.items():
            parts.append((envs, self.num_steps[envs], np.asarray(step[name])[envs]))
        self._returns[envs] += step["rewards"][envs]
        self.lengths[envs] += 1
        self.num_steps[envs] += 1
        ended = envs[(step["terminations"] | step["truncations"])[envs]]
        if self.config.output_steps:
            self._last = reached.copy() if self._last is None else self._last
            self._last[envs] = reached[envs]
            self._finals.append((ended, self.episodes[ended], reached[ended]))
        if ended.size:
            self._end(ended)

    def _end(self, ended: np.ndarray) -> None:
        output, places = self.output, self.episodes[ended]
        for name, values, padding in (("returns", self._returns, np.nan), ("lengths", self.lengths, 0)):
            array = output[f"episode_{name}"]
            if int(places.max()) >= array.shape[1]:
                array = np.concatenate([array, np.full_like(array, padding)], axis=1)
                output[f"episode_{name}"] = array
            array[ended, places], values[ended] = values[ended], 0
        self.episodes[ended] += 1

    def finish(self, config: ADConfig) -> RolloutOutput:
        """The output, with the steps that were kept, and the spaces of the model."""
        output, episodes, time = self.output, int(self.episodes.max()), int(self.num_steps.max())
        if self.config.num_episodes is None:
            output.episode_returns = output["episode_returns"][:, :episodes]
            output.episode_lengths = output["episode_lengths"][:, :episodes]
        for name, parts in self._kept.items():
            output[name] = self._scatter(parts, time)
        if self.config.output_steps:
            rest = np.flatnonzero(self.lengths)
            self._finals.append((rest, self.episodes[rest], self._last[rest]))
            output.final_observations = self._scatter(self._finals, int((self.episodes + (self.lengths > 0)).max()))
            output.observation_space, output.action_space = config.observation_space, config.action_space
        return output

    def _scatter(self, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], length: int) -> np.ndarray:
        """An array (num_envs, length, ...) of values at places of environments."""
        values = parts[0][2]
        array = np.zeros((self.num_envs, length, *values.shape[1:]), dtype=values.dtype)
        for envs, places, values in parts:
            array[envs, places] = values
        return array


class RolloutMixin(ContextMixin, GroupsMixin):
    """The rollout of a model, as `GenerationMixin` has the generation of text."""

    config: ADConfig
    training: bool

    def rollout(
        self,
        envs: Any,
        rollout_config: RolloutConfig | None = None,
        prompt: Prompt | None = None,
        callback: Callable[[RolloutOutput], Any] | None = None,
        env_kwargs: Any = None,
        group: str | None = None,
        **overrides: Any,
    ) -> RolloutOutput:
        r"""
        Act in environments with the context as the only memory: frozen weights, learning from one's own experience.

        Args:
            envs (`gymnasium.vector.VectorEnv`, `gymnasium.Env` or `str`):
                Environments with the spaces of the model: a vector environment of any autoreset mode, a single
                environment, or the id of one.
            rollout_config ([`RolloutConfig`], *optional*):
                Settings; those that it leaves unset are taken from the model's own `rollout_config`, then from the
                defaults.
            prompt (`Mapping` or a sequence of them, *optional*):
                Histories that the contexts begin with, one for each environment or one for all, see
                [`ADContext.prompt`]; by default they are empty.
            callback (`Callable[[RolloutOutput], Any]`, *optional*):
                Called after each step with the output so far, in place; if it returns `True`, the rollout ends.
            env_kwargs (`Mapping` or a sequence of them, *optional*):
                With an id: keyword arguments of each environment to make; by default one is made, without any.
            group (`str`, *optional*):
                Of a model of several groups, the one to act as; by default the one with the environments' spaces.
            overrides:
                Fields of [`RolloutConfig`], such as `num_episodes`, `do_sample`, `temperature` and `seed`, which take
                the place of those in `rollout_config`.

        Returns:
            [`RolloutOutput`]: `episode_returns` and `episode_lengths` (num_envs, num_episodes), and what else
            was asked for.

        Raises:
            ValueError: for environments with other spaces than the model's, for unknown settings, and for observations
                or rewards that are not finite or of a wrong shape, naming the environment and the step.

        Example:
            >>> out = model.rollout("CartPole-v1", num_episodes=5)
            >>> out = model.rollout("ad_hf/DarkRoom-v0", env_kwargs=[{"goal": (0, 8)}, {"goal": (7, 1)}])
        """
        config = RolloutConfig.from_dict(overrides).resolve(rollout_config or RolloutConfig(), self.rollout_config)
        if callback is not None and not callable(callback):
            raise ValueError(f"callback must be a function of the output so far, got {callback!r}")
        vector_envs, training = make_envs(envs, env_kwargs), self.training
        acting = self if self.config.groups is None else self.group(self.group_of(vector_envs, group))
        self.train(False)  # type: ignore[attr-defined]
        try:
            environments = Environments(vector_envs, acting.config, config.output_steps)
            return acting._rollout(environments, config, prompt, callback)
        finally:
            self.train(training)  # type: ignore[attr-defined]
            if isinstance(envs, str):
                vector_envs.close()

    def _rollout(
        self, envs: Environments, config: Any, prompt: Prompt | None, callback: Callable[[RolloutOutput], Any] | None
    ) -> RolloutOutput:
        context = self.init_context(envs.num_envs, prompt, rollout_config=config)
        recording = Recording(envs.num_envs, config)
        envs.reset(seed=config.seed)
        while not (done := recording.done).all():
            counted, observations = ~envs.resetting & ~done, envs.observations
            frames = render(envs.envs) if config.output_frames else None
            actions = context.step(observations, envs.rewards, envs.starts, counted)
            terminations, truncations, reached = envs.step(actions)
            step = {
                **{"observations": observations, "actions": actions, "rewards": envs.rewards},
                **{"terminations": terminations, "truncations": truncations},
                **{"log_probs": context.log_probs, "logits": context.logits, "frames": frames},
            }
            recording.add(np.flatnonzero(counted), reached, step)
            if envs.steps % LONG == 0 and config.max_steps is None and recording.lengths.max() >= LONG:
                logger.warning_once(
                    f"an episode has not ended after {LONG} steps: environments that never end one need max_steps"
                )
            if callback is not None and callback(recording.output) is True:
                break
        return recording.finish(self.config)


def render(envs: Any) -> np.ndarray:
    """Pictures (num_envs, height, width, 3) of environments, which must render to arrays."""
    try:
        frames = envs.render()
    except NotImplementedError:
        frames = None
    if frames is None or any(frame is None for frame in frames):
        raise ValueError(
            "output_frames needs environments that render to arrays: make them with render_mode='rgb_array'"
        )
    return np.stack(frames)


__all__ = ["RolloutConfig", "RolloutMixin", "RolloutOutput"]
