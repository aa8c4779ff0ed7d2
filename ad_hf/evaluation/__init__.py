"""Evaluation: rollouts on held-out tasks, intervals, pictures and reports."""
