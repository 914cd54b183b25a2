"""Runs: recipe, stages, run directory, outputs."""
