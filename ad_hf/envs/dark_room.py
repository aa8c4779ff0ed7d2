"""Dark Room: a square room in which the agent sees its own cell and never the goal (https://huggingface.co/papers/2210.14215)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from ad_hf.envs.vector import NativeVectorEnv, SingleEnv, of_each

# One row per action: left, right, up, down, stay, as changes of (x, y); y grows upwards.
MOVES = np.array([[-1, 0], [1, 0], [0, 1], [0, -1], [0, 0]], dtype=np.int64)

CELL_PIXELS = 16
FLOOR, WALL, GOAL, AGENT = (38, 42, 54), (60, 66, 84), (94, 201, 98), (253, 174, 97)


def goal_distance(*, size: int = 9, goal: tuple[int, int] = (0, 0), **_: Any) -> int:
    """Number of steps from the start (the centre) to the goal; the key by which a room's goals are stratified."""
    return abs(int(goal[0]) - size // 2) + abs(int(goal[1]) - size // 2)


def optimal_return(
    *,
    size: int = 9,
    goal: tuple[int, int] = (0, 0),
    max_episode_steps: int = 20,
    sparse_reward: bool = False,
    **_: Any,
) -> float:
    """Return of an episode in which the agent walks straight to the goal and, with dense rewards, stays there."""
    # The reward is paid after a move, so a goal under the start pays from the first step as a neighbouring one does.
    steps_rewarded = max(0, max_episode_steps - max(1, goal_distance(size=size, goal=goal)) + 1)
    return float(min(1, steps_rewarded) if sparse_reward else steps_rewarded)


def walk(positions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Actions (n,) straight from cells (n, 2) to others (n, 2), in x first; where these are one, to stay."""
    x, y = (targets - positions).T
    return np.select([x < 0, x > 0, y > 0, y < 0], [0, 1, 2, 3], default=4)


def expert(observations: np.ndarray, envs: Any) -> np.ndarray:
    """Optimal actions (num_envs,): straight to the goal, and stay; for [`~ad_hf.sources.noised.NoisedPolicy`]."""
    return walk(observations[:, :2].astype(np.int64), of_each(envs, "goals"))


def optimal_actions(observations: np.ndarray, *, goal: tuple[int, int] = (0, 0), **_: Any) -> np.ndarray:
    """Optimal actions (num_steps,) of one room at observations (num_steps, 2): for `data.labels` of a recipe."""
    return walk(observations[:, :2].astype(np.int64), np.broadcast_to(np.asarray(goal), (len(observations), 2)))


def draw_room(size: int, cells: dict[tuple[int, int, int], np.ndarray], position: np.ndarray) -> np.ndarray:
    """Frame (size * 16, size * 16, 3) of a room with cells (2,) of some colours, the y axis pointing up."""
    frame = np.empty((size, CELL_PIXELS, size, CELL_PIXELS, 3), dtype=np.uint8)
    frame[:] = FLOOR
    frame[:, 0] = frame[:, :, :, 0] = WALL
    for colour, cell in cells.items():
        frame[size - 1 - cell[1], 1:, cell[0], 1:] = colour
    frame[size - 1 - position[1], 4:-3, position[0], 4:-3] = AGENT
    return frame.reshape(size * CELL_PIXELS, size * CELL_PIXELS, 3)


class RoomsVectorEnv(NativeVectorEnv):
    """Square rooms in which agents walk by a cell a step, see their own cell, and stop at walls."""

    def __init__(self, num_envs: int, size: int, max_episode_steps: int, **vector: Any) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        spaces = gym.spaces.MultiDiscrete([size, size]), gym.spaces.Discrete(len(MOVES))
        super().__init__(num_envs, *spaces, max_episode_steps, **vector)
        self._positions = np.full((num_envs, 2), size // 2, dtype=np.int64)

    def _cells(self, name: str, cells: Any) -> np.ndarray:
        """Cells (num_envs, 2) of an argument that gives one for each room, or one for all."""
        points = self._points(name, cells, "iu").astype(np.int64)
        if points.min() < 0 or points.max() >= self.size:
            raise ValueError(f"{name} must lie in the room, 0 to {self.size - 1} in x and in y, got {points.tolist()}")
        return points

    def _walk(self, actions: np.ndarray) -> None:
        self._positions += MOVES[actions]
        np.maximum(self._positions, 0, out=self._positions)
        np.minimum(self._positions, self.size - 1, out=self._positions)

    def _observe(self) -> np.ndarray:
        return self._positions.copy()


class DarkRoomVectorEnv(RoomsVectorEnv):
    r"""
    Rooms of `size` x `size` cells, each with a goal of its own. The agent starts in the centre and sees its cell
    (x, y), not the goal. Episodes never terminate; the time limit truncates them.

    Actions are left, right, up, down, stay; y grows upwards.

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of rooms.
        size (`int`, *optional*, defaults to 9):
            Cells along each wall.
        goal (`np.ndarray` of shape `(num_envs, 2)` or `(2,)`, *optional*, defaults to `(0, 0)`):
            Goal cell (x, y) of each room, or one for all: the task.
        sparse_reward (`bool`, *optional*, defaults to `False`):
            If `False`, every step that ends on the goal is rewarded with 1 (Dark Room); if `True`, only the first one
            in an episode (as in Dark Room Hard), and `info["reached"]` says whether there was one.
        max_episode_steps (`int`, *optional*, defaults to 20):
            Steps after which an episode is truncated.
        autoreset_mode, render_mode:
            As in [`~ad_hf.envs.vector.NativeVectorEnv`].

    Raises:
        ValueError: if a goal lies outside the room.
    """

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 9,
        goal: Any = (0, 0),
        sparse_reward: bool = False,
        max_episode_steps: int = 20,
        **vector: Any,
    ) -> None:
        super().__init__(num_envs, size, max_episode_steps, **vector)
        self.goals, self.sparse_reward = self._cells("goal", goal), sparse_reward
        self._reached = np.zeros(num_envs, dtype=bool)

    def _start(self, indices: np.ndarray) -> None:
        self._positions[indices] = self.size // 2
        self._reached[indices] = False

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._walk(actions)
        on_goal = (self._positions == self.goals).all(axis=1)
        rewards = (on_goal & ~(self._reached & self.sparse_reward)).astype(np.float64)
        self._reached |= on_goal
        return rewards, np.zeros(self.num_envs, dtype=bool)

    def _information(self) -> dict[str, np.ndarray]:
        return {"reached": self._reached.astype(np.int64)} if self.sparse_reward else {}

    def _frame(self, index: int) -> np.ndarray:
        return draw_room(self.size, {GOAL: self.goals[index]}, self._positions[index])


class DarkRoomEnv(SingleEnv):
    """One Dark Room, with the arguments of [`DarkRoomVectorEnv`] for one."""

    vector_class = DarkRoomVectorEnv
