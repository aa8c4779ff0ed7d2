"""Dark Key-to-Door: a room in which an unseen key opens an unseen door (https://huggingface.co/papers/2210.14215)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ad_hf.envs.dark_room import MOVES, check_cells, draw_room, walk
from ad_hf.envs.vector import NativeVectorEnv, of_each

KEY, DOOR, OPEN_DOOR = (244, 196, 48), (86, 180, 233), (94, 201, 98)


def path_length(*, key: tuple[int, int] = (0, 0), door: tuple[int, int] = (8, 8), **_: Any) -> int:
    """Number of steps from the key to the door; the key by which the tasks are stratified."""
    return abs(int(key[0]) - int(door[0])) + abs(int(key[1]) - int(door[1]))


def optimal_return(*, size: int = 9, max_episode_steps: int = 50, **_: Any) -> float:
    """
    Return of an episode in which the agent walks straight to the key and on to the door.

    Raises:
        ValueError: if episodes are too short to walk twice across the room, where the return depends on the start.
    """
    if max_episode_steps < 4 * (size - 1) + 1:
        raise ValueError(
            f"the optimal return is known for episodes of at least {4 * (size - 1) + 1} steps in a room of size "
            f"{size}, got {max_episode_steps}"
        )
    return 2.0


def expert(observations: np.ndarray, envs: Any) -> np.ndarray:
    """Optimal actions (num_envs,): to the key, and to the door; for [`~ad_hf.sources.noised.NoisedPolicy`]."""
    has_key = of_each(envs, "_has_key", "_has_key")[:, None]
    targets = np.where(has_key, of_each(envs, "doors", "door"), of_each(envs, "keys", "key"))
    return walk(observations[:, :2].astype(np.int64), targets)


def _draw(
    size: int, position: np.ndarray, key: np.ndarray, door: np.ndarray, has_key: bool, door_open: bool
) -> np.ndarray:
    """Frame (size * 16, size * 16, 3) of a room; a key that was taken is not there any more."""
    cells = {OPEN_DOOR if door_open else DOOR: door}
    return draw_room(size, cells if has_key else {**cells, KEY: key}, position)


class DarkKeyToDoorEnv(gym.Env[np.ndarray, np.int64]):
    r"""
    A room of `size` x `size` cells with a key and a door that the agent does not see. It starts anywhere, sees its
    cell (x, y), is rewarded with 1 on first reaching the key, and with 1 on first reaching the door with the key.

    `gym.make("ad_hf/DarkKeyToDoor-v0", max_episode_steps=...)` truncates episodes, after 50 steps unless told
    otherwise. `info["has_key"]` and `info["door_open"]`, 0 or 1, are for learners that may know more than the agent.

    Args:
        size (`int`, *optional*, defaults to 9):
            Cells along each wall.
        key, door (`tuple[int, int]`, *optional*, defaults to `(0, 0)` and `(8, 8)`):
            Cells (x, y) of the two: the task. Where they are in one cell, the door takes a step of its own.
        render_mode (`str`, *optional*):
            `"rgb_array"` or `None`.

    Raises:
        ValueError: if the key or the door lies outside the room.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        size: int = 9,
        key: tuple[int, int] = (0, 0),
        door: tuple[int, int] = (8, 8),
        render_mode: str | None = None,
    ) -> None:
        self.size = size
        self.key, self.door = check_cells("key", key, size), check_cells("door", door, size)
        self.render_mode = render_mode
        self.observation_space = gym.spaces.MultiDiscrete([size, size])
        self.action_space = gym.spaces.Discrete(len(MOVES))
        self._position = np.zeros(2, dtype=np.int64)
        self._has_key = self._door_open = False

    def _information(self) -> dict[str, Any]:
        return {"has_key": int(self._has_key), "door_open": int(self._door_open)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Put the agent in any cell, with even chances; returns the cell (2,) and info."""
        super().reset(seed=seed)
        self._position = self.np_random.integers(self.size, size=2)
        self._has_key = self._door_open = False
        return self._position.copy(), self._information()

    def step(self, action: np.int64):
        """Move by one cell (walls stop the agent); episodes never terminate, the time limit truncates them."""
        self._position = np.clip(self._position + MOVES[action], 0, self.size - 1)
        opens = self._has_key and not self._door_open and bool((self._position == self.door).all())
        takes = not self._has_key and bool((self._position == self.key).all())
        self._has_key |= takes
        self._door_open |= opens
        return self._position.copy(), float(opens or takes), False, False, self._information()

    def render(self) -> np.ndarray | None:
        """A frame (size * 16, size * 16, 3), or `None` without a render mode."""
        if self.render_mode != "rgb_array":
            return None
        return _draw(self.size, self._position, self.key, self.door, self._has_key, self._door_open)


class DarkKeyToDoorVectorEnv(NativeVectorEnv):
    r"""
    Many rooms with keys and doors in one set of numpy arrays; agrees step by step with [`DarkKeyToDoorEnv`].

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of rooms.
        size, render_mode:
            As in [`DarkKeyToDoorEnv`], shared by all rooms.
        key, door (`np.ndarray` of shape `(num_envs, 2)` or `(2,)`, *optional*, defaults to `(0, 0)` and `(8, 8)`):
            Cells of each room's key and door, or of all rooms'.
        max_episode_steps (`int`, *optional*, defaults to 50):
            Steps after which an episode is truncated.
        autoreset_mode (`AutoresetMode` or `str`, *optional*, defaults to `"SameStep"`):
            Any of gymnasium's modes: see [`~ad_hf.envs.vector.NativeVectorEnv`].

    Raises:
        ValueError: if a key or a door lies outside its room.
    """

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 9,
        key: Any = (0, 0),
        door: Any = (8, 8),
        max_episode_steps: int = 50,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        self.size = size
        self.keys = np.broadcast_to(check_cells("key", key, size, num_envs), (num_envs, 2))
        self.doors = np.broadcast_to(check_cells("door", door, size, num_envs), (num_envs, 2))
        super().__init__(
            num_envs,
            gym.spaces.MultiDiscrete([size, size]),
            gym.spaces.Discrete(len(MOVES)),
            max_episode_steps,
            autoreset_mode,
            render_mode,
        )
        self._positions = np.zeros((num_envs, 2), dtype=np.int64)
        self._has_key = np.zeros(num_envs, dtype=bool)
        self._door_open = np.zeros(num_envs, dtype=bool)

    def _start(self, indices: np.ndarray) -> None:
        for index in indices:
            self._positions[index] = self._generator(index).integers(self.size, size=2)
        self._has_key[indices] = self._door_open[indices] = False

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._positions += MOVES[actions]
        np.clip(self._positions, 0, self.size - 1, out=self._positions)
        opens = self._has_key & ~self._door_open & (self._positions == self.doors).all(axis=1)
        takes = ~self._has_key & (self._positions == self.keys).all(axis=1)
        self._has_key |= takes
        self._door_open |= opens
        return (opens | takes).astype(np.float64), np.zeros(self.num_envs, dtype=bool)

    def _observe(self) -> np.ndarray:
        return self._positions.copy()

    def _information(self) -> dict[str, np.ndarray]:
        return {"has_key": self._has_key.astype(np.int64), "door_open": self._door_open.astype(np.int64)}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame (size * 16, size * 16, 3) per room, or `None` without a render mode."""
        if self.render_mode != "rgb_array":
            return None
        rooms = zip(self._positions, self.keys, self.doors, self._has_key, self._door_open)
        return tuple(_draw(self.size, *room) for room in rooms)
