"""Scripts that are copied into bundles. They run where onnxprune is not: standard library and the vendor's tools only, Python >= 3.8."""
