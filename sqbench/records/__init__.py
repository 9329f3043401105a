"""Records: what a point is, and what came of it. Read `sqbench.records.store` without torch; identity needs the methods."""
