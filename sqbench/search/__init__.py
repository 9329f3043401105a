"""Adaptive search: the space of choices (`space`), and the next trials by the results so far (`study`). It needs Optuna."""
