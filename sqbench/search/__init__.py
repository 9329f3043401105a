"""Adaptive search: what may be chosen (`space`), and what to try next by the results so far (`study`). Needs Optuna."""
