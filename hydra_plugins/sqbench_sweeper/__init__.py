"""Discovered by Hydra: everything under the namespace package hydra_plugins is."""
