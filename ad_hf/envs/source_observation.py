"""Observations of a source: those of the agent and entries of infos, such as whether it holds a key."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from ad_hf.envs.spaces import categories, space_from_json


def _bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest values of the elements of a discrete space or a vector (size,), `None` for another."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.low, space.high
    sizes = categories(space)
    return None if sizes is None else (np.zeros_like(sizes), sizes - 1)


class SourceObservation(VectorWrapper):
    r"""
    Appends entries of the environments' infos to their observations, for the source alone: it stands between the
    recorder, which keeps the agent's observations, and the learner.

    Discrete observations become one MultiDiscrete, Box vectors one longer Box.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            Environments in SAME_STEP mode, whose infos hold the entries at every reset and step.
        extra (`dict[str, dict]`):
            Space of each entry as JSON, by its name in the infos: `{"has_key": {"type": "Discrete", "n": 2}}`.

    Raises:
        ValueError: for entries that are no spaces, for observations that are images, dicts or tuples, and where an
            environment gives no such entry.
    """

    def __init__(self, envs: VectorEnv, extra: dict[str, dict[str, Any]]) -> None:
        super().__init__(envs)
        self._extra = {
            name: space_from_json(space, f"family.source_observation.{name}") for name, space in extra.items()
        }
        parts = [envs.single_observation_space, *self._extra.values()]
        bounds: list[Any] = [_bounds(part) for part in parts]
        is_box, *extra_boxes = [isinstance(part, spaces.Box) for part in parts]
        if None in bounds or (any(extra_boxes) and not is_box):
            raise ValueError(
                f"source_observation {sorted(extra)} cannot be appended to observations of {parts[0]}: expected a "
                "discrete space with discrete entries, or a Box vector with vectors or discrete entries"
            )
        low, high = (np.concatenate(side) for side in zip(*bounds))
        space: Any = spaces.MultiDiscrete(high + 1)
        if is_box:
            space = spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.single_observation_space, self.observation_space = space, batch_space(space, envs.num_envs)

    def _append(self, observations: Any, infos: dict[str, Any], indices: np.ndarray) -> np.ndarray:
        """Observations (number, ...) of some environments (number,) with their entries, (number, size)."""
        # gymnasium's own vectors give final observations as an array of objects
        parts = [np.stack(list(observations[indices]))]
        for name, space in self._extra.items():
            mask = infos.get(f"_{name}")
            if mask is None or not np.asarray(mask)[indices].all():
                names = sorted(key for key in map(str, infos) if not key.startswith("_"))
                raise ValueError(
                    f"{self.env} gives no info[{name!r}] at every reset and step, which source_observation asks for; "
                    f"it gives {', '.join(names) or 'nothing'}"
                )
            parts.append(np.asarray(infos[name])[indices].astype(space.dtype))
        columns = [np.reshape(part, (len(indices), -1)) for part in parts]
        return np.concatenate(columns, axis=1).astype(self.single_observation_space.dtype)

    def _strip(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Infos without the entries."""
        return {name: value for name, value in infos.items() if str(name).removeprefix("_") not in self._extra}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None):
        """Reset the environments; returns observations with their entries (num_envs, size)."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._append(observations, infos, np.arange(self.num_envs)), self._strip(infos)

    def step(self, actions: np.ndarray):
        """Step the environments; final observations have their entries too."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = np.flatnonzero(terminations | truncations)
        if ended.size:
            final_info = infos.get("final_info", {})
            final = np.zeros(self.observation_space.shape or (), dtype=self.single_observation_space.dtype)
            final[ended] = self._append(infos["final_obs"], final_info, ended)
            infos = {**infos, "final_obs": final, "final_info": self._strip(final_info)}
        extended = self._append(observations, infos, np.arange(self.num_envs))
        return extended, rewards, terminations, truncations, self._strip(infos)
