#!/bin/sh
# The environment of `onnxprune handoff --to nngen`.   usage: tools/setup_nngen.sh [FOLDER, default .venv-nngen]
set -eu
. "$(dirname "$0")/vendor_env.sh"
make_env "${1:-.venv-nngen}" nngen==1.3.4 veriloggen==2.3.0 pyverilog==1.3.0 "onnx>=1.17,<1.24" "numpy>=1.26"
need iverilog "sudo apt-get install iverilog (clock cycles need it)"
