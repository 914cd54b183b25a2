#!/bin/sh
# The environment of `onnxprune handoff --to vela`.   usage: tools/setup_vela.sh [FOLDER, default .venv-vela]
# Two environments, because Vela and TensorFlow want different releases of flatbuffers; vela is linked into the first one's bin.
set -eu
. "$(dirname "$0")/vendor_env.sh"
folder=${1:-.venv-vela}
make_env "$folder" onnx2tf==1.29.24 tensorflow==2.19.0 tf_keras==2.19.0 "onnx>=1.19,<1.20" "numpy<2"
make_env "$folder/vela" ethos-u-vela==5.2.0
ln -sf ../vela/bin/vela "$folder/bin/vela"
echo "run bundles with: PATH=$folder/bin:\$PATH $folder/bin/python run.py"
