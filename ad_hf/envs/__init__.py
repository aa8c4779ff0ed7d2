"""Environments, task families, and the bridge between gymnasium and Stable-Baselines3."""

import gymnasium as gym

gym.register(
    id="ad_hf/DarkRoom-v0",
    entry_point="ad_hf.envs.dark_room:DarkRoomEnv",
    vector_entry_point="ad_hf.envs.dark_room:DarkRoomVectorEnv",
    max_episode_steps=20,
)
