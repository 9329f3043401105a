"""Benchmarks of speed and memory, as ratios inside one run. Ratios are more stable than times, which vary between machines."""
