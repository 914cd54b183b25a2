"""Unstructured sparsity: zeros inside weights, without a change of shapes."""
