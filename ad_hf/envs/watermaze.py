"""Watermaze: a pool seen in first person, with a platform under the water (https://huggingface.co/papers/2210.14215)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ad_hf.envs.vector import NativeVectorEnv
from ad_hf.envs.watermaze_view import draw_map, draw_views

# One row per action: steps ahead, steps to the left, turns to the left.
ACTIONS = np.array(
    [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [1, 0, 1], [1, 0, -1]], dtype=np.float64
)
STEP_LENGTH, TURN_ANGLE = 0.1, np.pi / 6
PLATFORM_RADIUS = 0.15
SWIMMING_RADIUS = 0.9  # how far from the centre the wall lets the agent be: it has a body
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


def _check_platforms(platform: Any, num_envs: int | None = None) -> np.ndarray:
    platforms = np.asarray(platform)
    shapes = ((2,),) if num_envs is None else ((2,), (num_envs, 2))
    if platforms.shape not in shapes or platforms.dtype.kind not in "iuf":
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"platform must hold numbers (x, y) in shape {expected}, got {platform!r}")
    platforms = platforms.astype(np.float64)
    if not (np.hypot(*platforms.T) <= 1.0).all():
        raise ValueError(f"platform must lie in the pool, x * x + y * y <= 1, got {platforms.tolist()}")
    return platforms


def _frame_space(height: int, width: int) -> gym.spaces.Box:
    if min(height, width) < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    return gym.spaces.Box(0, 255, (height, width, 3), np.uint8)


def _swim(positions: np.ndarray, headings: np.ndarray, actions: Any) -> None:
    """Move agents (number, 2) and turn their headings (number,), in place; they slide along the wall."""
    ahead, left, turn = ACTIONS[actions].T
    headings += turn * TURN_ANGLE
    cosine, sine = np.cos(headings), np.sin(headings)
    positions[:, 0] += (ahead * cosine - left * sine) * STEP_LENGTH
    positions[:, 1] += (ahead * sine + left * cosine) * STEP_LENGTH
    positions *= (SWIMMING_RADIUS / np.maximum(np.hypot(*positions.T), SWIMMING_RADIUS))[:, None]


def _on_platform(positions: np.ndarray, platforms: np.ndarray) -> np.ndarray:
    return np.hypot(*(positions - platforms).T) <= PLATFORM_RADIUS


def _draw(view: np.ndarray, platform: np.ndarray, position: np.ndarray, heading: float) -> np.ndarray:
    """A map beside what the agent sees, enlarged to about the map's size."""
    scale = max(1, MAP_PIXELS // len(view))
    view = view.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.concatenate([draw_map(platform, PLATFORM_RADIUS, position, heading, len(view)), view], axis=1)


class WatermazeEnv(gym.Env[np.ndarray, np.int64]):
    r"""
    A round pool of radius 1 with landmarks on its wall and a platform that is never seen. The agent starts in the
    centre, sees a frame (`height`, `width`, 3), and is rewarded with 1 on first reaching the platform.

    Actions are forward, backward, left, right (0.1 each), turn left and turn right (30 degrees each), and both turns
    while moving forward. At the wall the agent slides along it.

    `gym.make("ad_hf/Watermaze-v0", max_episode_steps=...)` truncates episodes, after 50 steps unless told otherwise.
    `info["reached"]` says whether the platform was reached, 0 or 1.

    Args:
        platform (`tuple[float, float]`, *optional*, defaults to `(0.5, 0.5)`):
            Where the middle of the platform is, (x, y) in the unit disc: the task. Its radius is 0.15.
        height, width (`int`, *optional*, defaults to 72 and 96):
            Pixels of a frame.
        random_heading (`bool`, *optional*, defaults to `True`):
            Whether episodes start with any heading, so that only the landmarks tell where to go. If not, the agent
            looks along the x axis at first, and a platform can be found again by a fixed sequence of actions.
        terminate_on_reach (`bool`, *optional*, defaults to `False`):
            Whether the platform ends the episode. If not, it goes on, with nothing more to gain, to its time limit.
        render_mode (`str`, *optional*):
            `"rgb_array"` or `None`.

    Raises:
        ValueError: if the platform lies outside the pool, or a frame has no pixels.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        platform: Any = (0.5, 0.5),
        height: int = 72,
        width: int = 96,
        random_heading: bool = True,
        terminate_on_reach: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.platform = _check_platforms(platform)
        self.observation_space = _frame_space(height, width)
        self.action_space = gym.spaces.Discrete(len(ACTIONS))
        self.random_heading, self.terminate_on_reach = random_heading, terminate_on_reach
        self.render_mode = render_mode
        self._size = height, width
        self._position, self._heading = np.zeros((1, 2)), np.zeros(1)
        self._reached = False

    def _observe(self) -> np.ndarray:
        return draw_views(self._position, self._heading, *self._size)[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Put the agent in the centre; returns what it sees (height, width, 3) and info."""
        super().reset(seed=seed)
        self._position[:] = 0.0
        self._heading[:] = self.np_random.uniform(-np.pi, np.pi) if self.random_heading else 0.0
        self._reached = False
        return self._observe(), {"reached": 0}

    def step(self, action: np.int64):
        """Move or turn, or both."""
        _swim(self._position, self._heading, action)
        first = not self._reached and bool(_on_platform(self._position, self.platform)[0])
        self._reached |= first
        terminated = self.terminate_on_reach and self._reached
        return self._observe(), float(first), terminated, False, {"reached": int(self._reached)}

    def render(self) -> np.ndarray | None:
        """A map beside what the agent sees, or `None` without a render mode."""
        if self.render_mode != "rgb_array":
            return None
        return _draw(self._observe(), self.platform, self._position[0], self._heading[0])


class WatermazeVectorEnv(NativeVectorEnv):
    r"""
    Many pools in one set of numpy arrays, each with a platform of its own; agrees step by step with [`WatermazeEnv`].

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of pools.
        platform (`np.ndarray` of shape `(num_envs, 2)` or `(2,)`, *optional*, defaults to `(0.5, 0.5)`):
            Platform of each pool, or one for all.
        height, width, random_heading, terminate_on_reach, render_mode:
            As in [`WatermazeEnv`], shared by all pools.
        max_episode_steps (`int`, *optional*, defaults to 50):
            Steps after which an episode is truncated.
        autoreset_mode (`AutoresetMode` or `str`, *optional*, defaults to `"SameStep"`):
            Any of gymnasium's modes: see [`~ad_hf.envs.vector.NativeVectorEnv`].

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
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        self.platforms = np.broadcast_to(_check_platforms(platform, num_envs), (num_envs, 2))
        self.random_heading, self.terminate_on_reach = random_heading, terminate_on_reach
        super().__init__(
            num_envs,
            _frame_space(height, width),
            gym.spaces.Discrete(len(ACTIONS)),
            max_episode_steps,
            autoreset_mode,
            render_mode,
        )
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
        _swim(self._positions, self._headings, actions)
        first = _on_platform(self._positions, self.platforms) & ~self._reached
        self._reached |= first
        return first.astype(np.float64), self._reached & self.terminate_on_reach

    def _observe(self) -> np.ndarray:
        if self._last_frames is None:
            frames = draw_views(self._positions, self._headings, *self._size)
        else:  # only the pools that have just started look different
            frames, started = self._last_frames.copy(), self._started
            frames[started] = draw_views(self._positions[started], self._headings[started], *self._size)
        # Where episodes end and start in one step, the frames are asked for a second time.
        again = self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any()
        self._last_frames = frames if again else None
        return frames

    def _information(self) -> dict[str, np.ndarray]:
        return {"reached": self._reached.astype(np.int64)}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One map beside what the agent sees per pool, or `None` without a render mode."""
        if self.render_mode != "rgb_array":
            return None
        views = draw_views(self._positions, self._headings, *self._size)
        return tuple(_draw(*pool) for pool in zip(views, self.platforms, self._positions, self._headings))
