"""Post-training quantization to int8 and conversion to float16, on onnxruntime's tools."""
