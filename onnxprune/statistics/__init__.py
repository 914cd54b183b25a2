"""Activation and gradient statistics, collected by onnxruntime passes over calibration data."""
