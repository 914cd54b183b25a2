#!/bin/sh
# The environment of `onnxprune handoff --to finn`, for estimates without Vivado.   usage: tools/setup_finn.sh [FOLDER, default .venv-finn]
# finn-plus and brevitas are installed without their requirements: those cannot be met together with a torch that is for the CPU only.
set -eu
. "$(dirname "$0")/vendor_env.sh"
folder=${1:-.venv-finn}
make_env "$folder" "torch>=2.6" "setuptools<81" onnx==1.21.0 onnxruntime==1.25.1 protobuf==5.29.6 "numpy>=2.4,<2.5" "scipy>=1.17,<1.18" "scikit-learn<1.8" \
    "pandas<2.4" "matplotlib<3.11" "bitstring>=4.3.1,<4.4" "click<9" "mashumaro[yaml]<4" onnx-ir onnx-passes onnxscript "pydantic>2" "rich<14" "termcolor<3" \
    psutil importlib-metadata "clize>=5.0.1" "sigtools>=4.0.1" toposort attrs cffi
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps finn-plus==1.6.1 brevitas==0.13.0 qonnx==1.0.0 dependencies==2.0.1 unfoldNd \
    mip==1.17.0 onnxoptimizer==0.4.2
