"""What a source may see beside the agent's observation, such as whether it holds a key."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from ad_hf.envs.spaces import space_from_json, space_to_json


def categories(space: spaces.Space) -> np.ndarray | None:
    """Number of categories of each dimension of a discrete space (dimensions,), `None` for another."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n])
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return space.nvec
    return np.full(space.shape, 2) if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1 else None


class SourceObservation(VectorWrapper):
    r"""
    Appends entries of the environments' infos to their observations, for the source alone: it stands between the
    recorder, which keeps what the agent will see, and the learner.

    Discrete observations become one MultiDiscrete, Box vectors one longer Box.

    Args:
        envs (`gymnasium.vector.VectorEnv`):
            Environments in SAME_STEP mode, whose infos hold the entries at every reset and step.
        extra (`dict[str, dict]`):
            Space of each entry as JSON, by its name in the infos: `{"has_key": {"type": "Discrete", "n": 2}}`.

    Raises:
        ValueError: for entries that are no spaces, for observations that nothing can be appended to (images, Dict and
            Tuple spaces), and where an environment does not give an entry.
    """

    def __init__(self, envs: VectorEnv, extra: dict[str, dict[str, Any]]) -> None:
        super().__init__(envs)
        self._extra = _space_from_jsons(extra)
        own, others = envs.single_observation_space, list(self._extra.values())
        sizes = [categories(space) for space in (own, *others)]
        found = [size for size in sizes if size is not None]
        space: spaces.Space
        if len(found) == len(sizes):
            space = spaces.MultiDiscrete(np.concatenate(found))
        elif isinstance(own, spaces.Box) and len(own.shape) == 1:
            bounds = [_bounds(each, size) for each, size in zip((own, *others), sizes)]
            low, high = (np.concatenate(side).astype(np.float32) for side in zip(*bounds))
            space = spaces.Box(low, high)
        else:
            raise ValueError(
                f"source_observation {sorted(extra)} cannot be appended to observations of {own}: expected a discrete "
                "space with discrete entries, or a Box vector"
            )
        self.single_observation_space, self.observation_space = space, batch_space(space, envs.num_envs)

    def _append(self, observations: Any, infos: dict[str, Any], indices: np.ndarray) -> np.ndarray:
        """Observations (number, ...) of some environments (number,) with their entries, (number, size)."""
        # gymnasium's own vectors give final observations as an array of objects
        parts = [np.stack(list(observations[indices]))]
        for name, space in self._extra.items():
            known = infos.get(f"_{name}")
            if known is None or not np.asarray(known)[indices].all():
                given = sorted(key for key in map(str, infos) if not key.startswith("_"))
                raise ValueError(
                    f"{self.env} gives no info[{name!r}] at every reset and step, which source_observation asks for; "
                    f"it gives {', '.join(given) or 'nothing'}"
                )
            parts.append(np.asarray(infos[name])[indices].astype(space.dtype))
        columns = [np.reshape(part, (len(indices), -1)) for part in parts]
        return np.concatenate(columns, axis=1).astype(self.single_observation_space.dtype)

    def _strip(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Infos without the entries, which are observations now."""
        own = {key for name in self._extra for key in (name, f"_{name}")}
        return {name: value for name, value in infos.items() if name not in own}

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


def _space_from_jsons(extra: Any) -> dict[str, spaces.Space]:
    if not isinstance(extra, dict):
        raise ValueError(
            "family.source_observation must hold spaces as JSON by the names of infos, such as "
            f"{{'has_key': {{'type': 'Discrete', 'n': 2}}}}, got {extra!r}"
        )
    return {name: space_from_json(space, f"family.source_observation.{name}") for name, space in extra.items()}


def _bounds(space: spaces.Space, sizes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values of a space's elements as vectors."""
    if sizes is not None:
        return np.zeros(len(sizes)), sizes - 1.0
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"source_observation cannot append {space_to_json(space)}: expected a vector or a number")
    return space.low, space.high
