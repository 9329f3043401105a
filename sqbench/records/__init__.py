"""Records: the identity of a point, and its results. `sqbench.records.store` loads without torch. `identity` needs the methods."""
