"""Names of forms and calibrators, which the options of a recipe list without numpy."""

AUTO = "auto"
FORM_NAMES = ("u8s8", "tensorrt", "openvino", "pow2", "qlinear")
CALIBRATORS = ("minmax", "percentile", "entropy")
