"""A whole run: recipe, stages, run directory, outputs."""
