"""Speed and memory, as ratios inside one run: machines differ and drift, ratios do not."""
