"""Source algorithms: Stable-Baselines3 learners, the recorder of their histories, and collection over many tasks."""
