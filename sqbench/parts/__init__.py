"""What every part of a recipe is, and the task that it works on: a model, its statistics and a scheme."""
