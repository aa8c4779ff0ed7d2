"""
What a context can hold of Dark Key-to-Door: returns of agents that walk straight to where key and door last paid, as
long as those steps are in the context, and otherwise search.

    python scripts/studies/perfect_memory.py
"""

from __future__ import annotations

import numpy as np

from ad_hf.envs.dark_key_to_door import DarkKeyToDoorVectorEnv
from ad_hf.envs.dark_room import MOVES, walk

LENGTHS = (20, 30, 40, 50, 60, 100, 200)


def returns_with_memory(
    context_length: int, crosses: bool, num_envs: int = 1000, num_episodes: int = 60, seed: int = 0
) -> np.ndarray:
    """
    Mean returns (num_episodes,) of agents with a perfect memory of `context_length` steps. They search for what is not
    in it by random actions, or, if they cross the room, by walking to one random cell after another.
    """
    generator = np.random.default_rng(seed)
    size = DarkKeyToDoorVectorEnv().size
    places = generator.integers(size, size=(2, num_envs, 2))  # of keys, and of doors
    envs = DarkKeyToDoorVectorEnv(num_envs, key=places[0], door=places[1])
    cells, infos = envs.reset(seed=seed)
    everyone, paid = np.arange(num_envs), np.full((2, num_envs), -context_length - 1)
    aims = generator.integers(size, size=(num_envs, 2))
    returns = np.zeros((num_episodes, num_envs))
    for step in range(num_episodes * envs.max_episode_steps):
        sought = infos["has_key"]
        known = (step - paid[sought, everyone] <= context_length) & (infos["door_open"] == 0)
        arrived = (cells == aims).all(axis=1)
        aims[arrived] = generator.integers(size, size=(arrived.sum(), 2))
        searching = walk(cells, aims) if crosses else generator.integers(len(MOVES), size=num_envs)
        actions = np.where(known, walk(cells, places[sought, everyone]), searching)
        cells, rewards, _, _, infos = envs.step(actions)
        paid[sought[rewards > 0], everyone[rewards > 0]] = step
        returns[step // envs.max_episode_steps] += rewards
    return returns.mean(axis=1)


def main() -> None:
    """Print the returns."""
    print("context  random actions  crossing the room  (last ten of 60 episodes)")
    for length in LENGTHS:
        random, crossing = (returns_with_memory(length, crosses)[-10:].mean() for crosses in (False, True))
        print(f"{length:7}  {random:14.2f}  {crossing:17.2f}")


if __name__ == "__main__":
    main()
