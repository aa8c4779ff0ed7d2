"""Whether numbers are what a model can take."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

LARGEST = float(np.finfo(np.float32).max)  # models compute in float32
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # by which an action may be beyond a bound, as a part of the bound


def outside(values: np.ndarray, space: spaces.Space | None = None, is_action: bool = False) -> np.ndarray:
    """
    Which elements a model cannot take.

    Args:
        values (`np.ndarray` of shape `(num_elements, ...)`):
            The elements.
        space (`gymnasium.Space`, *optional*):
            Their space; by default they are rewards.
        is_action (`bool`, *optional*, defaults to `False`):
            Whether they are actions, which are held to the bounds of a Box. Many environments take the bounds of their
            observations lightly: of these, as of rewards, it is asked that they are finite as float32.

    Returns:
        `np.ndarray` of shape `(num_elements,)`: truth values.
    """
    low: Any = -LARGEST
    high: Any = LARGEST
    if isinstance(space, spaces.Box):
        if is_action:
            bounds = np.stack([space.low, space.high]).astype(np.float64)
            sizes = np.abs(np.where(np.isfinite(bounds), bounds, 0.0)).max(axis=0).clip(min=1.0)
            slack = ROUNDING * sizes if values.dtype.kind == "f" else 0.0
            low, high = np.maximum(bounds[0] - slack, low), np.minimum(bounds[1] + slack, high)
    elif space is not None:
        low, high = 0, np.asarray(space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", 2)) - 1
    # Mostly there are none, as the least and the largest number show; NaN is neither.
    if not values.size or (values.min() >= np.max(low) and values.max() <= np.min(high)):
        return np.zeros(len(values), dtype=bool)
    return np.asarray(~((values >= low) & (values <= high)).reshape(len(values), -1).all(axis=1))
