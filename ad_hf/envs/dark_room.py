"""Dark Room: a square room in which the agent sees its own cell and never the goal (https://huggingface.co/papers/2210.14215)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ad_hf.envs.vector import NativeVectorEnv, of_each

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
    """Actions (n,) that lead straight from cells (n, 2) to others (n, 2), in x first, and stay where those are one."""
    x, y = (targets - positions).T
    return np.select([x < 0, x > 0, y > 0, y < 0], [0, 1, 2, 3], default=4)


def expert(observations: np.ndarray, envs: Any) -> np.ndarray:
    """Optimal actions (num_envs,): straight to the goal, and stay; for [`~ad_hf.sources.noised.NoisedPolicy`]."""
    return walk(observations[:, :2].astype(np.int64), of_each(envs, "goals", "goal"))


def optimal_actions(observations: np.ndarray, *, goal: tuple[int, int] = (0, 0), **_: Any) -> np.ndarray:
    """Optimal actions (num_steps,) of one room at observations (num_steps, 2): for `data.labels` of a recipe."""
    return walk(observations[:, :2].astype(np.int64), np.broadcast_to(np.asarray(goal), (len(observations), 2)))


def check_cells(name: str, cell: Any, size: int, num_envs: int | None = None) -> np.ndarray:
    """
    Cells of a room as integers of shape `(2,)` or, of several rooms, `(num_envs, 2)` too.

    Raises:
        ValueError: if they lie outside the room or are no cells, with the name of the argument.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    cells = np.asarray(cell)
    shapes = ((2,),) if num_envs is None else ((2,), (num_envs, 2))
    if cells.shape not in shapes or not np.issubdtype(cells.dtype, np.integer):
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name} must hold integers (x, y) in shape {expected}, got {cell!r}")
    if cells.min() < 0 or cells.max() >= size:
        raise ValueError(f"{name} must lie in the room, 0 to {size - 1} in x and in y, got {cells.tolist()}")
    return cells.astype(np.int64)


def draw_room(size: int, cells: dict[tuple[int, int, int], np.ndarray], position: np.ndarray) -> np.ndarray:
    """Frame (size * 16, size * 16, 3) of a room with cells (2,) of some colours, the y axis pointing up."""
    frame = np.empty((size, CELL_PIXELS, size, CELL_PIXELS, 3), dtype=np.uint8)
    frame[:] = FLOOR
    frame[:, 0] = frame[:, :, :, 0] = WALL
    for colour, cell in cells.items():
        frame[size - 1 - cell[1], 1:, cell[0], 1:] = colour
    frame[size - 1 - position[1], 4:-3, position[0], 4:-3] = AGENT
    return frame.reshape(size * CELL_PIXELS, size * CELL_PIXELS, 3)


class DarkRoomEnv(gym.Env[np.ndarray, np.int64]):
    r"""
    A room of `size` x `size` cells. The agent starts in its centre and sees its cell (x, y), not the goal.

    `gym.make("ad_hf/DarkRoom-v0", max_episode_steps=...)` truncates episodes, after 20 steps unless told otherwise.

    Args:
        size (`int`, *optional*, defaults to 9):
            Cells along each wall.
        goal (`tuple[int, int]`, *optional*, defaults to `(0, 0)`):
            Goal cell (x, y). This is the task.
        sparse_reward (`bool`, *optional*, defaults to `False`):
            If `False`, every step that ends on the goal is rewarded with 1 (Dark Room); if `True`, only the first one
            in an episode (as in Dark Room Hard), and `info["reached"]` says whether there was one.
        render_mode (`str`, *optional*):
            `"rgb_array"` or `None`.

    Raises:
        ValueError: if the goal lies outside the room.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        size: int = 9,
        goal: tuple[int, int] = (0, 0),
        sparse_reward: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.size = size
        self.goal = check_cells("goal", goal, size)
        self.sparse_reward = sparse_reward
        self.render_mode = render_mode
        self.observation_space = gym.spaces.MultiDiscrete([size, size])
        self.action_space = gym.spaces.Discrete(len(MOVES))
        self._position = np.full(2, size // 2, dtype=np.int64)
        self._reached = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Put the agent in the centre; returns its cell (2,) and info."""
        super().reset(seed=seed)
        self._position = np.full(2, self.size // 2, dtype=np.int64)
        self._reached = False
        return self._position.copy(), self._information()

    def step(self, action: np.int64):
        """Move by one cell (walls stop the agent); episodes never terminate, the time limit truncates them."""
        self._position = np.clip(self._position + MOVES[action], 0, self.size - 1)
        on_goal = bool((self._position == self.goal).all())
        reward = float(on_goal and not (self.sparse_reward and self._reached))
        self._reached |= on_goal
        return self._position.copy(), reward, False, False, self._information()

    def _information(self) -> dict[str, Any]:
        return {"reached": int(self._reached)} if self.sparse_reward else {}

    def render(self) -> np.ndarray | None:
        """A frame (size * 16, size * 16, 3), or `None` without a render mode."""
        return draw_room(self.size, {GOAL: self.goal}, self._position) if self.render_mode == "rgb_array" else None


class DarkRoomVectorEnv(NativeVectorEnv):
    r"""
    Many Dark Rooms in one set of numpy arrays, each with a goal of its own; agrees step by step with [`DarkRoomEnv`].

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of rooms.
        size, sparse_reward, render_mode:
            As in [`DarkRoomEnv`], shared by all rooms.
        goal (`np.ndarray` of shape `(num_envs, 2)` or `(2,)`, *optional*, defaults to `(0, 0)`):
            Goal cell of each room, or one for all.
        max_episode_steps (`int`, *optional*, defaults to 20):
            Steps after which an episode is truncated.
        autoreset_mode (`AutoresetMode` or `str`, *optional*, defaults to `"SameStep"`):
            Any of gymnasium's modes: see [`~ad_hf.envs.vector.NativeVectorEnv`].

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
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        self.size = size
        self.goals = np.broadcast_to(check_cells("goal", goal, size, num_envs), (num_envs, 2))
        self.sparse_reward = sparse_reward
        super().__init__(
            num_envs,
            gym.spaces.MultiDiscrete([size, size]),
            gym.spaces.Discrete(len(MOVES)),
            max_episode_steps,
            autoreset_mode,
            render_mode,
        )
        self._positions = np.full((num_envs, 2), size // 2, dtype=np.int64)
        self._reached = np.zeros(num_envs, dtype=bool)

    def _start(self, indices: np.ndarray) -> None:
        self._positions[indices] = self.size // 2
        self._reached[indices] = False

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._positions += MOVES[actions]
        np.clip(self._positions, 0, self.size - 1, out=self._positions)
        on_goal = (self._positions == self.goals).all(axis=1)
        rewards = (on_goal & ~(self._reached & self.sparse_reward)).astype(np.float64)
        self._reached |= on_goal
        return rewards, np.zeros(self.num_envs, dtype=bool)

    def _observe(self) -> np.ndarray:
        return self._positions.copy()

    def _information(self) -> dict[str, np.ndarray]:
        return {"reached": self._reached.astype(np.int64)} if self.sparse_reward else {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame (size * 16, size * 16, 3) per room, or `None` without a render mode."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(
            draw_room(self.size, {GOAL: goal}, position) for position, goal in zip(self._positions, self.goals)
        )
