"""Watermaze: a pool seen in first person, with a platform under the water (https://huggingface.co/papers/2210.14215)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ad_hf.envs.vector import NativeVectorEnv, SingleEnv
from ad_hf.envs.watermaze_view import POOL_RADIUS, draw_map, draw_views

# One row per action: steps ahead, steps to the left, turns to the left.
ACTIONS = np.array(
    [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [1, 0, 1], [1, 0, -1]], dtype=np.float64
)
STEP_LENGTH, TURN_ANGLE = 0.1, np.pi / 6
PLATFORM_RADIUS = 0.15
SWIMMING_RADIUS = 0.9  # of the agent's centre: it has a body
MAP_PIXELS = 216


def platform_distance(*, platform: Any = (0.5, 0.5), **_: Any) -> float:
    """Distance of the platform from the start (the centre); the key by which the tasks are stratified."""
    return float(np.hypot(*platform))


def optimal_return(*, max_episode_steps: int = 50, **_: Any) -> float:
    """
    Return of an episode in which the agent goes straight to the platform.

    Along its first heading and across it, without a turn, an agent gets closer to any platform than the platform's
    radius in 15 steps.

    Raises:
        ValueError: if episodes are shorter, where the return depends on the first heading.
    """
    if max_episode_steps < 15:
        raise ValueError(f"the optimal return is known for episodes of at least 15 steps, got {max_episode_steps}")
    return 1.0


class WatermazeVectorEnv(NativeVectorEnv):
    r"""
    Round pools of radius 1 with landmarks on their walls, each with a platform that is never seen. The agent starts in
    the centre, sees a frame (`height`, `width`, 3), and is rewarded with 1 on first reaching the platform.

    Actions are forward, backward, left, right (0.1 each), turn left and turn right (30 degrees each), and both turns
    while moving forward. At the wall the agent slides along it. `info["reached"]` says whether it has reached the
    platform, 0 or 1.

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of pools.
        platform (`np.ndarray` of shape `(num_envs, 2)` or `(2,)`, *optional*, defaults to `(0.5, 0.5)`):
            Middle of each pool's platform, or of all pools', (x, y) in the unit disc: the task. Its radius is 0.15.
        height, width (`int`, *optional*, defaults to 72 and 96):
            Pixels of a frame.
        random_heading (`bool`, *optional*, defaults to `True`):
            Whether episodes start with any heading, so that only the landmarks tell where to go. If not, the agent
            looks along the x axis at first, and a fixed sequence of actions finds a platform again.
        terminate_on_reach (`bool`, *optional*, defaults to `False`):
            Whether the platform ends the episode. If not, it goes on, with nothing more to gain, to its time limit.
        max_episode_steps (`int`, *optional*, defaults to 50):
            Steps after which an episode is truncated.
        autoreset_mode, render_mode:
            As in [`~ad_hf.envs.vector.NativeVectorEnv`].

    Raises:
        ValueError: if a platform lies outside its pool, or a frame has no pixels.
    """

    def __init__(
        self,
        num_envs: int = 1,
        platform: Any = (0.5, 0.5),
        height: int = 72,
        width: int = 96,
        random_heading: bool = True,
        terminate_on_reach: bool = False,
        max_episode_steps: int = 50,
        **vector: Any,
    ) -> None:
        if min(height, width) < 1:
            raise ValueError(f"height and width must be at least 1, got {height} and {width}")
        self.random_heading, self.terminate_on_reach = random_heading, terminate_on_reach
        spaces = gym.spaces.Box(0, 255, (height, width, 3), np.uint8), gym.spaces.Discrete(len(ACTIONS))
        super().__init__(num_envs, *spaces, max_episode_steps, **vector)
        self.platforms = self._points("platform", platform, "iuf").astype(np.float64)
        if not (np.hypot(*self.platforms.T) <= POOL_RADIUS).all():
            raise ValueError(f"platform must lie in the pool, x * x + y * y <= 1, got {self.platforms.tolist()}")
        self._size = height, width
        self._positions, self._headings = np.zeros((num_envs, 2)), np.zeros(num_envs)
        self._reached = np.zeros(num_envs, dtype=bool)
        self._started = np.arange(num_envs)
        self._last_frames: np.ndarray | None = None

    def _start(self, indices: np.ndarray) -> None:
        self._positions[indices] = 0.0
        self._headings[indices] = 0.0
        if self.random_heading:
            for index in indices:
                self._headings[index] = self._generator(index).uniform(-np.pi, np.pi)
        self._reached[indices] = False
        self._started = indices

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions, headings = self._positions, self._headings
        ahead, left, turn = ACTIONS[actions].T
        headings += turn * TURN_ANGLE
        cosine, sine = np.cos(headings), np.sin(headings)
        positions[:, 0] += (ahead * cosine - left * sine) * STEP_LENGTH
        positions[:, 1] += (ahead * sine + left * cosine) * STEP_LENGTH
        # Along the wall the agent slides.
        positions *= (SWIMMING_RADIUS / np.maximum(np.hypot(*positions.T), SWIMMING_RADIUS))[:, None]
        first = (np.hypot(*(positions - self.platforms).T) <= PLATFORM_RADIUS) & ~self._reached
        self._reached |= first
        return first.astype(np.float64), self._reached & self.terminate_on_reach

    def _observe(self) -> np.ndarray:
        if self._last_frames is None:
            frames = draw_views(self._positions, self._headings, *self._size)
        else:  # only the pools that have just started look different
            frames, started = self._last_frames.copy(), self._started
            frames[started] = draw_views(self._positions[started], self._headings[started], *self._size)
        # Where episodes end and start in one step, that step observes twice.
        again = self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any()
        self._last_frames = frames if again else None
        return frames

    def _information(self) -> dict[str, np.ndarray]:
        return {"reached": self._reached.astype(np.int64)}

    def _frame(self, index: int) -> np.ndarray:
        """A map beside the agent's view, which is enlarged to about the map's size."""
        position, heading = self._positions[index], self._headings[index]
        view = draw_views(position[None], heading[None], *self._size)[0]
        scale = max(1, MAP_PIXELS // len(view))
        view = view.repeat(scale, axis=0).repeat(scale, axis=1)
        top = draw_map(self.platforms[index], PLATFORM_RADIUS, position, heading, len(view))
        return np.concatenate([top, view], 1)


class WatermazeEnv(SingleEnv):
    """One pool, with the arguments of [`WatermazeVectorEnv`] for one."""

    vector_class = WatermazeVectorEnv
