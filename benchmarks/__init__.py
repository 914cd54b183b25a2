"""Benchmarks, one module per claim.

Run them from the root of the repository: python -m benchmarks.NAME --zoo FOLDER.
"""
