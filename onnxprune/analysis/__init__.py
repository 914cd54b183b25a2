"""Analysis of which channels of a model must be cut together, and what they cost."""
