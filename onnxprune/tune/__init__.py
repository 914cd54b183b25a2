"""Fine-tuning of ONNX graphs with torch."""
