"""Dark Key-to-Door: a room in which an unseen key opens an unseen door (https://huggingface.co/papers/2210.14215)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ad_hf.envs.dark_room import RoomsVectorEnv, draw_room, walk
from ad_hf.envs.vector import SingleEnv, of_each

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
    targets = np.where(of_each(envs, "_has_key")[:, None], of_each(envs, "doors"), of_each(envs, "keys"))
    return walk(observations[:, :2].astype(np.int64), targets)


class DarkKeyToDoorVectorEnv(RoomsVectorEnv):
    r"""
    Rooms of `size` x `size` cells, each with a key and a door that the agent does not see. It starts anywhere, sees
    its cell (x, y), is rewarded with 1 on first reaching the key, and with 1 on first reaching the door with the key.
    Episodes never terminate; the time limit truncates them.

    Actions are left, right, up, down, stay. `info["has_key"]` and `info["door_open"]`, 0 or 1, are for learners that
    may know more than the agent.

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of rooms.
        size (`int`, *optional*, defaults to 9):
            Cells along each wall.
        key, door (`np.ndarray` of shape `(num_envs, 2)` or `(2,)`, *optional*, defaults to `(0, 0)` and `(8, 8)`):
            Cells (x, y) of each room's key and door, or of all rooms': the task. Where both are in one cell, the door
            takes a step of its own.
        max_episode_steps (`int`, *optional*, defaults to 50):
            Steps after which an episode is truncated.
        autoreset_mode, render_mode:
            As in [`~ad_hf.envs.vector.NativeVectorEnv`].

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
        **vector: Any,
    ) -> None:
        super().__init__(num_envs, size, max_episode_steps, **vector)
        self.keys, self.doors = self._cells("key", key), self._cells("door", door)
        self._has_key, self._door_open = np.zeros((2, num_envs), dtype=bool)

    def _start(self, indices: np.ndarray) -> None:
        for index in indices:
            self._positions[index] = self._generator(index).integers(self.size, size=2)
        self._has_key[indices] = self._door_open[indices] = False

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._walk(actions)
        opens = self._has_key & ~self._door_open & (self._positions == self.doors).all(axis=1)
        takes = ~self._has_key & (self._positions == self.keys).all(axis=1)
        self._has_key |= takes
        self._door_open |= opens
        return (opens | takes).astype(np.float64), np.zeros(self.num_envs, dtype=bool)

    def _information(self) -> dict[str, np.ndarray]:
        return {"has_key": self._has_key.astype(np.int64), "door_open": self._door_open.astype(np.int64)}

    def _frame(self, index: int) -> np.ndarray:
        cells = {OPEN_DOOR if self._door_open[index] else DOOR: self.doors[index]}
        if not self._has_key[index]:
            cells[KEY] = self.keys[index]
        return draw_room(self.size, cells, self._positions[index])


class DarkKeyToDoorEnv(SingleEnv):
    """One room, with the arguments of [`DarkKeyToDoorVectorEnv`] for one."""

    vector_class = DarkKeyToDoorVectorEnv
