"""MiniGrid's Fetch without its mission: which object to fetch has to be found out. Needs the extra `minigrid`."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

try:
    from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
    from minigrid.envs import FetchEnv
except ModuleNotFoundError as error:
    raise ImportError(f"SilentFetch needs the package minigrid: pip install 'ad_hf[minigrid]' ({error})") from error

# A cell holds nothing that the agent sees, nothing, a wall, or a key or a ball of a colour.
KEY = OBJECT_TO_IDX["key"]
KINDS = 3 + 2 * len(COLOR_TO_IDX)


class SilentFetchEnv(FetchEnv):
    """
    A room of MiniGrid with keys and balls of six colours. One of them pays, as do others of its kind and colour; any
    other ends the episode without a reward. Objects, the start and what pays are the same in all episodes.

    An observation holds, for each cell before the agent, one of 15 categories: MiniGrid's images hold numbers that
    stand for kinds and colours. Actions are MiniGrid's first four: turn left, turn right, go forward, pick up. The
    return of an episode is 1 - 0.9 * steps / max_steps, or 0.

    Args:
        layout (`int`, *optional*, defaults to 0):
            Seed of the room: it draws objects, their places along the walls, the start among them, and what pays.
        size (`int`, *optional*, defaults to 7):
            Height and width of the room in cells, walls included.
        num_objects (`int`, *optional*, defaults to 5):
            How many objects there are.
        agent_view_size (`int`, *optional*, defaults to 5):
            Height and width, in cells, of what the agent sees before it. Odd.
        max_steps (`int`, *optional*, defaults to 30):
            Length of an episode.
        render_mode (`str`, *optional*):
            `"rgb_array"` or `"human"`.
    """

    def __init__(
        self,
        layout: int = 0,
        size: int = 7,
        num_objects: int = 5,
        agent_view_size: int = 5,
        max_steps: int = 30,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(size, num_objects, max_steps, agent_view_size=agent_view_size, render_mode=render_mode)
        self.layout = layout
        self.action_space = spaces.Discrete(4)
        self.observation_space = spaces.MultiDiscrete(np.full(agent_view_size**2, KINDS))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in the same room."""
        return super().reset(seed=self.layout, options=options)

    def place_obj(self, obj: Any, *arguments: Any, **keywords: Any) -> Any:
        """Place an object along a wall, but in no corner, or the agent (`None`) in the middle: it reaches all."""

        def is_elsewhere(_: Any, place: tuple[int, int]) -> bool:
            return sum(each in (1, self.size - 2) for each in place) != (obj is not None)

        return super().place_obj(obj, *arguments, **{**keywords, "reject_fn": is_elsewhere})

    def gen_obs(self) -> np.ndarray:
        """The categories of the cells before the agent (agent_view_size ** 2,)."""
        kinds, colors, _ = np.moveaxis(super().gen_obs()["image"].astype(np.int64), -1, 0)
        return np.where(kinds < KEY, kinds, 3 + (kinds - KEY) * len(COLOR_TO_IDX) + colors).ravel()
