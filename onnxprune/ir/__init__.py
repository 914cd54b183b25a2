"""The model in memory: reading and writing, weights, shapes, and execution by onnxruntime."""
