"""The sweepers of sqbench. Hydra discovers everything under the namespace package hydra_plugins."""
