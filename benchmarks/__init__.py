"""Benchmarks, one file a claim; run as modules from the root of the repository: python -m benchmarks.NAME --zoo FOLDER."""
