"""Graphs for the rows of the rule table and the movement operators, by family."""
