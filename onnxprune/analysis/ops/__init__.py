"""Rows of the rule table that depend on the node: patterns built from attributes and ranks."""
