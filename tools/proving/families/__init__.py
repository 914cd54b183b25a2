"""Spaces of worlds per family of operators."""
