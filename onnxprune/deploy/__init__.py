"""Deployment: bundles for devices and tool flows, and the figures that they send back."""
