#!/bin/sh
# The environment of `onnxprune handoff --to hls4ml`.   usage: tools/setup_hls4ml.sh [FOLDER, default .venv-hls4ml]
# onnx stays below 1.20: qonnx writes the newest IR version it finds, and onnxruntime refuses those of later releases.
set -eu
. "$(dirname "$0")/vendor_env.sh"
make_env "${1:-.venv-hls4ml}" hls4ml==1.3.0 qonnx==1.0.0 "onnx>=1.19,<1.20" "numpy>=1.26"
need g++ "sudo apt-get install g++ (the C++ simulation needs it)"
