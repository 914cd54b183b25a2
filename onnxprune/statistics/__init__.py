"""Statistics of activations and gradients, collected by onnxruntime passes over calibration data."""
