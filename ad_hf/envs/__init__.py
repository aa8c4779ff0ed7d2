"""Environments, task families, and the bridge between gymnasium and Stable-Baselines3."""

import gymnasium as gym

for name, module, max_episode_steps in (
    ("AdversarialBandit", "adversarial_bandit", 100),
    ("DarkRoom", "dark_room", 20),
    ("DarkKeyToDoor", "dark_key_to_door", 50),
    ("TabularMDP", "tabular_mdp", 20),
    ("Watermaze", "watermaze", 50),
):
    gym.register(
        id=f"ad_hf/{name}-v0",
        entry_point=f"ad_hf.envs.{module}:{name}Env",
        vector_entry_point=f"ad_hf.envs.{module}:{name}VectorEnv",
        max_episode_steps=max_episode_steps,
    )
gym.register(id="ad_hf/SilentFetch-v0", entry_point="ad_hf.envs.silent_fetch:SilentFetchEnv")
del name, module, max_episode_steps
