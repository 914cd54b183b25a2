"""Costs of layers and channels: measured latency, computed cycles, multiply-accumulates."""
